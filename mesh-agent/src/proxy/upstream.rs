//! From the chosen endpoint to a connection: on this node, through HBONE, to a
//! sidecar, or plain.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::Transport;
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::application::{self, Application, Caller};
use super::hbone::{HBONE_PORT, TunnelPool, TunnelRequest, TunnelStream};
use super::http::{Connector, Target};
use super::notes::Path;
use super::one_of::one_of;
use super::originate::{Originator, Server};
use super::post_tunnel::PostTunnel;
use super::proxy_protocol::proxy_header;
use super::sidecar::{self, Proven};
use super::{Local, Locals, Node, inbound};
use crate::identity::{Certificates, Identity};
use crate::netns::{BoxFuture, Sockets};
use crate::policy::MtlsMode;
use crate::registry::{Location, Tunnel, Workload};
use crate::route::{Keepalive, UpstreamTls};
use crate::snapshot::{SameNode, Snapshot};

/// Connects on behalf of the node's workloads.
pub struct Upstream {
    node: Arc<Node>,
    tunnels: TunnelPool,
    certificates: Arc<Certificates>,
    originator: Originator,
}

impl Upstream {
    /// Connections of `node`, those between nodes through `tunnels`, those to sidecars with
    /// `certificates`.
    pub fn new(node: Arc<Node>, tunnels: TunnelPool, certificates: Arc<Certificates>) -> Self {
        Self {
            node,
            tunnels,
            certificates,
            originator: Originator::default(),
        }
    }

    /// Closes the connections to other nodes with their last tunnels.
    pub async fn close_tunnels(&self) {
        self.tunnels.close().await;
    }

    /// Opens no more tunnels from a workload that has left: a connection of its
    /// old namespace would carry them. Open tunnels go on.
    pub fn forget(&self, workload: &Workload) {
        for address in &workload.addresses {
            self.tunnels.forget(*address);
        }
    }

    /// Connects, and says which way.
    ///
    /// # Errors
    /// Where the endpoint cannot be reached, or must not be.
    pub async fn open(&self, target: &Target) -> io::Result<(Io, Path)> {
        let snapshot = self.node.snapshot.load();
        let locals = self.node.locals.load();
        let source = locals.named(&target.client.name).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotConnected,
                format!("{} has left the mesh", target.client.name),
            )
        })?;
        let destination = target
            .endpoint
            .workload
            .as_ref()
            .and_then(|workload| locals.named(&workload.name));
        let transport =
            transport(&snapshot, target, destination.is_some()).map_err(io::Error::other)?;
        let from = source.workload.address_like(target.address.ip());
        let io = match (transport, destination) {
            (Transport::SameNode, Some(destination)) => {
                let identity = Some(target.client.identity.clone());
                let application = self.same_node(destination, target, identity, transport);
                Io::Application(Box::new(application.await?))
            }
            (Transport::Hbone, _) => Io::Tunnel(Box::new(self.tunnel(source, target).await?)),
            _ => match plain_of_unit(source, &locals, target, &snapshot) {
                Some(destination) => {
                    let application = self.same_node(destination?, target, None, transport);
                    Io::Application(Box::new(application.await?))
                }
                None => Io::Tcp(source.sockets.connect(from, target.address, None).await?),
            },
        };
        let mut io = io;
        if let (Io::Tcp(stream), Some(keepalive)) = (&io, target.policy.tcp.keepalive) {
            keep_alive(stream, keepalive)?;
        }
        if let Some(version) = target.policy.proxy_protocol {
            let header = proxy_header(version, target.client_address, target.original_destination);
            io.write_all(&header).await?;
        }
        if let UpstreamTls::Originate(tls) = &target.policy.tls {
            let Io::Tcp(stream) = io else {
                let reason = "the DestinationRule asks for TLS to an endpoint of the mesh";
                return Err(io::Error::other(reason));
            };
            let server = Server {
                host: &target.service.host,
                names: &target.service.subject_alt_names,
                alpn: target.alpn,
            };
            let stream = self.originator.connect(stream, tls, &server).await?;
            io = Io::Tls(Box::new(stream));
        }
        if transport == Transport::MutualTls {
            let Io::Tcp(stream) = io else {
                let reason = "the endpoint has a sidecar, and is not reached by TCP";
                return Err(io::Error::other(reason));
            };
            io = Io::Sidecar(Box::new(self.to_sidecar(stream, target).await?));
        }
        let identity = match transport {
            Transport::Plain => None,
            _ => target
                .endpoint
                .workload
                .as_ref()
                .map(|workload| workload.identity.clone()),
        };
        let path = Path {
            endpoint: target.address,
            transport,
            identity,
        };
        self.node
            .notes
            .set(&target.client.name, &target.service.host, path.clone());
        Ok((io, path))
    }

    /// Straight into the other namespace, as its own address, which the
    /// kernel's inbound steering leaves alone. The same policies hold as for
    /// connections that come in there.
    async fn same_node(
        &self,
        destination: &Arc<Local>,
        target: &Target,
        identity: Option<Identity>,
        transport: Transport,
    ) -> io::Result<Application> {
        let caller = Caller {
            address: target.client_address,
            flow: target.flow,
            identity,
            transport,
            is_probe: false,
        };
        Ok(application::open(&self.node, destination, caller, target.address).await?)
    }

    /// The server's sidecar proves that it is the endpoint's.
    async fn to_sidecar(
        &self,
        stream: TcpStream,
        target: &Target,
    ) -> io::Result<Proven<TlsStream<TcpStream>>> {
        let client = &target.client.identity;
        let Some(workload) = &target.endpoint.workload else {
            return Err(io::Error::other("nobody is expected there"));
        };
        let trust = self.certificates.watch_trust();
        let config = (self.certificates)
            .client_config_to_sidecar(client, &workload.identity, target.alpn)
            .await
            .map_err(io::Error::other)?;
        let name = sidecar_name(target);
        let handshakes = &self.node.handshakes;
        sidecar::connect(stream, name, config, trust, client, handshakes).await
    }

    async fn tunnel(&self, source: &Local, target: &Target) -> io::Result<TunnelStream> {
        let ip = target.address.ip();
        let from = source.workload.address_like(ip).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!(
                    "{} has no address of the family of {ip}",
                    source.workload.name
                ),
            )
        })?;
        let expected = target
            .endpoint
            .workload
            .iter()
            .map(|workload| workload.identity.clone())
            .collect();
        let request = TunnelRequest {
            sockets: source.sockets.clone(),
            source: target.client_address,
            source_identity: source.workload.identity.clone(),
            from,
            node: SocketAddr::new(ip, HBONE_PORT),
            authority: target.address,
            expected,
        };
        self.tunnels.open(request).await.map_err(|error| {
            let kind = if error.is_denied() {
                io::ErrorKind::PermissionDenied
            } else {
                io::ErrorKind::ConnectionRefused
            };
            io::Error::new(kind, error)
        })
    }
}

/// The name by which Istio calls a port of a service in TLS.
fn sidecar_name(target: &Target) -> ServerName<'static> {
    let mut ports = target.endpoint.ports.iter();
    let port = ports.find(|(_, of_endpoint)| **of_endpoint == target.address.port());
    let port = port.map_or(target.address.port(), |(of_service, _)| *of_service);
    let name = format!("outbound_.{port}_._.{}", target.service.host);
    ServerName::try_from(name).unwrap_or_else(|_| ServerName::IpAddress(target.address.ip().into()))
}

/// Where a plain connection of `source`, a unit of the host, is to a workload of this node: that
/// workload, or why it takes none. Were the agent to connect from the host's namespace, it
/// would seem to be a probe of the node.
fn plain_of_unit<'a>(
    source: &Local,
    locals: &'a Locals,
    target: &Target,
    snapshot: &Snapshot,
) -> Option<io::Result<&'a Arc<Local>>> {
    let is_unit = |local: &Local| local.sockets.location().cgroup.is_some();
    let destination = locals.at(target.address.ip())?;
    if !is_unit(source) || is_unit(destination) {
        return None;
    }
    let port = target.address.port();
    let taken = inbound::takes_plaintext(snapshot, &destination.workload, port);
    let refused = |_| {
        io::Error::new(
            io::ErrorKind::ConnectionReset,
            "the server takes no plaintext",
        )
    };
    Some(taken.map(|()| destination).map_err(refused))
}

/// Probes of a silent connection; the system's own numbers for what is left out.
pub(super) fn keep_alive(stream: &TcpStream, keepalive: Keepalive) -> io::Result<()> {
    let mut wanted = TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        wanted = wanted.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        wanted = wanted.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        wanted = wanted.with_retries(probes);
    }
    SockRef::from(stream).set_tcp_keepalive(&wanted)
}

/// Which way a connection to an endpoint takes (Istio's auto-mTLS: a
/// DestinationRule's `tls` block wins; without one the server's mode decides).
fn transport(snapshot: &Snapshot, target: &Target, same_node: bool) -> Result<Transport, String> {
    let meshed = target.endpoint.workload.as_ref().filter(|workload| {
        workload.is_meshed() && target.service.location == Location::MeshInternal
    });
    let mode = meshed.map(|workload| {
        snapshot
            .peer_authentication
            .mode(workload, target.address.port())
            .0
    });
    let is_attested = || {
        meshed.is_some_and(|workload| {
            snapshot.same_node(&target.client, workload) == SameNode::Attest
        })
    };
    match (&target.policy.tls, mode) {
        (UpstreamTls::Impossible(reason), _) => Err(format!("the DestinationRule: {reason}")),
        (UpstreamTls::IstioMutual, None) => Err(
            "the DestinationRule asks for ISTIO_MUTUAL, but the endpoint is not in the mesh"
                .to_owned(),
        ),
        (UpstreamTls::Disable, Some(MtlsMode::Strict)) if same_node => Err(
            "the DestinationRule disables mutual TLS, but the server accepts nothing else"
                .to_owned(),
        ),
        (_, None) => Ok(Transport::Plain),
        (UpstreamTls::Disable, Some(_)) => Ok(Transport::Plain),
        (UpstreamTls::Auto, Some(MtlsMode::Disable)) => Ok(Transport::Plain),
        (UpstreamTls::IstioMutual, Some(MtlsMode::Disable)) => Err(
            "the DestinationRule asks for ISTIO_MUTUAL, but the server accepts plaintext only"
                .to_owned(),
        ),
        // TLS to the application itself, whoever is in front of it.
        (UpstreamTls::Originate(_), Some(_)) => Ok(Transport::Plain),
        (_, Some(_)) if same_node && is_attested() => Ok(Transport::SameNode),
        (_, Some(_)) if meshed.is_some_and(|workload| workload.tunnel == Tunnel::Sidecar) => {
            Ok(Transport::MutualTls)
        }
        (_, Some(_)) => Ok(Transport::Hbone),
    }
}

impl Connector for Upstream {
    type Io = Io;

    fn connect<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, io::Result<Io>> {
        Box::pin(async move { self.open(target).await.map(|(io, _)| io) })
    }

    fn local_address(io: &Io) -> Option<SocketAddr> {
        io.local_address()
    }
}

/// A connection to an endpoint.
pub enum Io {
    /// Plain.
    Tcp(TcpStream),
    /// On this node.
    Application(Box<Application>),
    /// A stream of a tunnel.
    Tunnel(Box<TunnelStream>),
    /// TLS to a server outside of the mesh.
    Tls(Box<TlsStream<TcpStream>>),
    /// Mutual TLS with the sidecar of a server.
    Sidecar(Box<Proven<TlsStream<TcpStream>>>),
    /// Through a proxy, by POST.
    Posted(Box<PostTunnel>),
}

impl Io {
    /// Address from which it goes out; a stream of a tunnel has none of its own.
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Tls(stream) => stream.get_ref().0.local_addr().ok(),
            Self::Sidecar(stream) => stream.get_ref().get_ref().0.local_addr().ok(),
            Self::Application(_) | Self::Tunnel(_) | Self::Posted(_) => None,
        }
    }
}

one_of!(Io: Tcp | Application | Tunnel | Tls | Sidecar | Posted);
