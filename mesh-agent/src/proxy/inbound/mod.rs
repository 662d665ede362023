//! Connections to a local application from outside of its namespace: to the application's own
//! port, or through HBONE.

mod own_port;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::StatusCode;
use mesh_common::Transport;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::application::{self, Application, Caller, Refused};
use super::hbone::{self, IncomingTunnel, Place, Refusal, ServerTls, TunnelHandler, TunnelMemory};
use super::{Local, Node};
use crate::identity::{Certificates, Identity};
use crate::netns::BoxFuture;
use crate::policy::MtlsMode;
use crate::registry::Workload;
use crate::snapshot::Snapshot;

/// Pause after a failed accept, such as on too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The inbound side of one workload.
pub struct Inbound {
    /// The node.
    pub node: Arc<Node>,
    /// The workload.
    pub local: Arc<Local>,
    /// Certificates of the node's workloads.
    pub certificates: Arc<Certificates>,
    /// Cancelled when the workload leaves or the agent stops.
    pub drain: CancellationToken,
}

/// Accepts connections to the application's own ports until the workload leaves.
pub async fn serve_own_ports(listener: TcpListener, inbound: Arc<Inbound>) {
    accept(listener, inbound, |inbound, stream, client| async move {
        inbound.own_port(stream, client).await
    })
    .await;
}

/// Accepts HBONE until the workload leaves.
pub async fn serve_hbone(listener: TcpListener, inbound: Arc<Inbound>) {
    accept(listener, inbound, |inbound, stream, client| async move {
        let identity = &inbound.local.workload.identity;
        let certificates = &inbound.certificates;
        let trust = certificates.watch_trust();
        let config = certificates.server_config(identity).await;
        let config = config.map_err(io::Error::other)?;
        let tls = ServerTls { config, trust };
        let drain = inbound.drain.clone();
        hbone::serve(stream, client, tls, inbound, drain)
            .await
            .map_err(io::Error::other)
    })
    .await;
}

async fn accept<F>(
    listener: TcpListener,
    inbound: Arc<Inbound>,
    handle: impl Fn(Arc<Inbound>, TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        let accepted = tokio::select! {
            () = inbound.drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let workload = inbound.local.workload.name.clone();
                let handled = handle(inbound.clone(), stream, client);
                // An async block that awaits what it captured would hold it twice.
                inbound.node.connections.spawn(handled.map(move |result| {
                    if let Err(error) = result {
                        tracing::debug!(%workload, %client, %error, "inbound connection ended");
                    }
                }));
            }
            Err(error) => {
                tracing::warn!(workload = %inbound.local.workload.name, %error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether a port takes connections in the clear; the name of the policy by
/// which it does not.
pub(super) fn takes_plaintext(
    snapshot: &Snapshot,
    workload: &Workload,
    port: u16,
) -> Result<(), Option<String>> {
    match (snapshot.peer_authentication).mode(workload, port) {
        (MtlsMode::Strict, policy) => Err(policy.map(str::to_owned)),
        _ => Ok(()),
    }
}

impl TunnelHandler for Inbound {
    type Io = Application;

    fn connected(&self, peer: &Identity, address: IpAddr) -> Option<Place> {
        self.node.clients.place(peer, address)
    }

    fn memory(&self) -> &Arc<TunnelMemory> {
        &self.node.tunnel_memory
    }

    fn open(&self, tunnel: IncomingTunnel) -> BoxFuture<'_, Result<Application, Refusal>> {
        Box::pin(async move {
            let application = tunnel.authority;
            if !self.local.workload.addresses.contains(&application.ip()) {
                let reason = format!(
                    "{application} is not an address of {}",
                    self.local.workload.name
                );
                return Err(Refusal::new(StatusCode::BAD_REQUEST, reason));
            }
            let caller = Caller {
                address: tunnel.forwarded_for.unwrap_or(tunnel.peer_address),
                flow: None,
                identity: Some(tunnel.peer_identity),
                transport: Transport::Hbone,
                is_probe: false,
            };
            application::open(&self.node, &self.local, caller, application)
                .await
                .map_err(|refused| match refused {
                    // As ztunnel answers.
                    Refused::Policy(_) => {
                        Refusal::new(StatusCode::UNAUTHORIZED, refused.to_string())
                    }
                    Refused::Overflow(_) => {
                        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, refused.to_string())
                    }
                    Refused::Unreachable(error) => Refusal::new(
                        StatusCode::SERVICE_UNAVAILABLE,
                        format!("cannot connect to {application}: {error}"),
                    ),
                })
        })
    }
}
