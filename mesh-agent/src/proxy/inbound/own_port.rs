//! Connections to an application's own port: in the clear, or by mutual TLS as sidecars of Istio
//! speak it, which ends here. TLS of any other client is the application's.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use mesh_common::Transport;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{Inbound, takes_plaintext};
use crate::policy::MtlsMode;
use crate::policy::authorization::Verdict;
use crate::proxy::application::{self, Caller};
use crate::proxy::client_hello;
use crate::proxy::copy::{Duplex, Transferred, copy_both};
use crate::proxy::replay::Replay;
use crate::proxy::sidecar;

/// First byte of TLS (RFC 8446, section 5.1): a record of the handshake.
const HANDSHAKE_RECORD: u8 = 0x16;
/// A client that may speak in the clear has this long to begin with TLS before the application is
/// connected to, whose turn it may be. One that begins later costs the application a connection.
const TLS_FIRST: Duration = Duration::from_millis(10);
/// A client that has to prove who it is has this long to begin.
const PROOF_FIRST: Duration = Duration::from_secs(5);
/// A client that has begun like TLS has this long to finish its first message.
const CLIENT_HELLO: Duration = Duration::from_secs(1);

/// What a client begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beginning {
    /// Nothing so far.
    Silence,
    /// TLS by which a sidecar proves whose it is.
    Sidecar,
    /// Bytes for the application, or the end.
    Bytes,
}

/// `bytes` are what had to be read to tell.
async fn beginning(
    stream: &mut TcpStream,
    bytes: &mut BytesMut,
    patience: Option<Duration>,
) -> io::Result<Beginning> {
    let mut first = [0];
    let peeked = stream.peek(&mut first);
    let count = match patience {
        None => peeked.await?,
        Some(limit) => match timeout(limit, peeked).await {
            Ok(count) => count?,
            Err(_) => return Ok(Beginning::Silence),
        },
    };
    if count == 0 || first[0] != HANDSHAKE_RECORD {
        return Ok(Beginning::Bytes);
    }
    let hello = match timeout(CLIENT_HELLO, client_hello::read(stream, bytes)).await {
        Ok(hello) => hello?,
        Err(_) => None,
    };
    Ok(match hello {
        Some(hello) if hello.is_of_sidecar => Beginning::Sidecar,
        _ => Beginning::Bytes,
    })
}

impl Inbound {
    /// Serves one connection to its end.
    pub(super) async fn own_port(
        &self,
        mut stream: TcpStream,
        client: SocketAddr,
    ) -> io::Result<()> {
        // No NAT: the local address is the one that was asked for.
        let application = stream.local_addr()?;
        let mut caller = Caller {
            address: client,
            flow: None,
            identity: None,
            transport: Transport::Plain,
            is_probe: false,
        };
        let _ = stream.set_nodelay(true);
        let workload = &self.local.workload;
        if workload.addresses.contains(&application.ip())
            && self.node.probes.is_one(client, application)
        {
            tracing::debug!(workload = %workload.name, %client, %application, "probe of the node");
            caller.is_probe = true;
            return self.carry(stream, caller, application).await;
        }
        let mut bytes = BytesMut::new();
        let begun = match self.patience(&caller, application) {
            Some(patience) => beginning(&mut stream, &mut bytes, Some(patience)).await?,
            None => Beginning::Bytes,
        };
        if begun == Beginning::Sidecar {
            return Box::pin(self.sidecar(Replay::new(bytes, stream), client, application)).await;
        }
        let snapshot = self.node.snapshot.load();
        if let Err(policy) = takes_plaintext(&snapshot, workload, application.port()) {
            application::refused(
                &self.node,
                &self.local,
                &caller,
                application,
                Transport::Blocked,
            );
            stream.abort();
            if let Some(line) = self.node.refusals.line() {
                tracing::info!(
                    workload = %workload.name,
                    %client,
                    port = application.port(),
                    policy = policy.as_deref().unwrap_or("-"),
                    left_out = line.left_out,
                    "plaintext refused"
                );
            }
            return Ok(());
        }
        drop(snapshot);
        if begun == Beginning::Silence {
            return Box::pin(self.first_speaker(stream, caller, application)).await;
        }
        self.add_plaintext(&caller, application);
        self.carry(Replay::new(bytes, stream), caller, application)
            .await
    }

    /// How long a client may be silent before it is taken for one in the clear; `None` where
    /// what it says does not matter.
    fn patience(&self, anonymous: &Caller, application: SocketAddr) -> Option<Duration> {
        let snapshot = self.node.snapshot.load();
        let workload = &self.local.workload;
        match (snapshot.peer_authentication).mode(workload, application.port()) {
            (MtlsMode::Disable, _) => None,
            (MtlsMode::Strict, _) => Some(PROOF_FIRST),
            (MtlsMode::Permissive, _) => {
                let connection = anonymous.connection(application);
                let decision = (snapshot.authorization).connection(workload, &connection);
                Some(match decision.verdict {
                    // The application will not speak to somebody without a name.
                    Verdict::Deny => PROOF_FIRST,
                    Verdict::Allow | Verdict::NeedsHttp => TLS_FIRST,
                })
            }
        }
    }

    /// The client waits: is it the application's turn? Whoever speaks first tells.
    async fn first_speaker(
        &self,
        mut stream: TcpStream,
        caller: Caller,
        application: SocketAddr,
    ) -> io::Result<()> {
        let opened = application::open(&self.node, &self.local, caller.clone(), application);
        let mut to_application = match opened.await {
            Ok(to_application) => to_application,
            Err(error) => {
                stream.abort();
                return Err(error.into());
            }
        };
        let began = Instant::now();
        let (mut bytes, mut greeting) = (BytesMut::new(), BytesMut::new());
        let spoken = tokio::select! {
            biased;
            greeted = to_application.read_buf(&mut greeting) => greeted.map(|_| Beginning::Bytes),
            begun = beginning(&mut stream, &mut bytes, None) => begun,
        };
        match spoken {
            Ok(Beginning::Sidecar) => {
                // It was opened for nobody.
                drop(to_application);
                let stream = Replay::new(bytes, stream);
                self.sidecar(stream, caller.address, application).await
            }
            Ok(Beginning::Silence | Beginning::Bytes) => {
                self.add_plaintext(&caller, application);
                let stream = Replay::new(bytes, stream);
                let to_application = Replay::new(greeting, to_application);
                self.copy(stream, to_application, caller, application, began)
                    .await
            }
            Err(error) => {
                // A reset before the first word is a reset to the other end, too.
                stream.abort();
                to_application.abort();
                Err(error)
            }
        }
    }

    /// A sidecar proves who its application is; then it is a caller like one that comes by HBONE.
    async fn sidecar(
        &self,
        stream: Replay<TcpStream>,
        client: SocketAddr,
        application: SocketAddr,
    ) -> io::Result<()> {
        let own = &self.local.workload.identity;
        let trust = self.certificates.watch_trust();
        let config = self.certificates.server_config_to_sidecars(own).await;
        let config = config.map_err(io::Error::other)?;
        let (stream, identity) = sidecar::accept(stream, config, trust).await?;
        let caller = Caller {
            address: client,
            flow: None,
            identity: Some(identity),
            transport: Transport::MutualTls,
            is_probe: false,
        };
        self.carry(stream, caller, application).await
    }

    async fn carry(
        &self,
        mut stream: impl Duplex,
        caller: Caller,
        application: SocketAddr,
    ) -> io::Result<()> {
        let began = Instant::now();
        let opened = application::open(&self.node, &self.local, caller.clone(), application);
        match opened.await {
            Ok(to_application) => {
                self.copy(stream, to_application, caller, application, began)
                    .await
            }
            Err(error) => {
                stream.abort();
                Err(error.into())
            }
        }
    }

    async fn copy(
        &self,
        stream: impl Duplex,
        to_application: impl Duplex,
        caller: Caller,
        application: SocketAddr,
        began: Instant,
    ) -> io::Result<()> {
        let transferred = Transferred::default();
        let result = copy_both(stream, to_application, &transferred).await;
        application::ended(
            &self.node,
            &self.local.workload,
            &caller,
            application,
            &transferred,
            began,
        );
        result.map_err(io::Error::other)
    }

    fn add_plaintext(&self, caller: &Caller, application: SocketAddr) {
        let server = &self.local.workload.name;
        (self.node.plaintext).add(server, application.port(), caller.address.ip());
    }
}
