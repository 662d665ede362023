//! Connections of a local application, as the kernel hands them over: find out
//! where to, recognise the protocol, and go on as HTTP or as TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use mesh_common::{Protocol as Recognised, Transport};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::application_stream::ApplicationStream;
use super::client_hello;
use super::copy::Duplex;
use super::destination::{Meant, meant, named};
use super::http::{self, ConnectionContext, HttpVersion, Upstreams};
use super::replay::Replay;
use super::reset_watch::ResetWatch;
use super::sniff::{MAX_SNIFF, Sniffed, sniff};
use super::tcp::{self, Connection};
use super::upstream::Upstream;
use super::{Local, Node};
use crate::datapath::{Accepted, FlowPath};
use crate::dns::DnsServer;
use crate::registry::{Protocol, Resolution};
use crate::route::ClientView;

/// On a port without a declared protocol the client has this long to speak
/// first; then the server is connected to, in case it is its turn.
pub(super) const CLIENT_FIRST: Duration = Duration::from_millis(50);
/// A client that has begun to speak has this long to say enough to tell HTTP from others.
const SNIFF_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed accept, such as on too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The outbound side of one workload.
pub struct Outbound {
    /// The node.
    pub node: Arc<Node>,
    /// The workload.
    pub local: Arc<Local>,
    /// Answers its DNS questions.
    pub dns: Arc<DnsServer>,
    /// Ways to endpoints, shared by all workloads.
    pub upstreams: Arc<Upstreams<Upstream>>,
    /// Cancelled when the workload leaves or the agent stops.
    pub drain: CancellationToken,
}

/// Accepts until the workload leaves.
pub async fn serve(listener: TcpListener, outbound: Arc<Outbound>) {
    loop {
        let accepted = tokio::select! {
            () = outbound.drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let connections = outbound.node.connections.clone();
                let outbound = outbound.clone();
                connections.spawn(async move {
                    if let Err(error) = outbound.connection(stream, client).await {
                        let workload = &outbound.local.workload.name;
                        tracing::debug!(%workload, %client, %error, "outbound connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(workload = %outbound.local.workload.name, %error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Outbound {
    async fn connection(&self, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
        let Some(Accepted {
            destination,
            flow,
            is_spliced,
        }) = self.node.datapath.marks().accepted(&stream)?
        else {
            // Somebody who found the listener's port. There is nothing for him here.
            stream.abort();
            return Err(io::Error::other("no original destination"));
        };
        let bridges = self.node.datapath.bridges();
        let mut stream = ApplicationStream::new(stream, is_spliced, bridges);
        let _ = stream.set_nodelay(true);
        if destination.port() == mesh_common::DNS_PORT {
            self.note_protocol(flow, Recognised::Dns);
            let dns = self.dns.clone();
            return Box::pin(dns.serve_tcp(stream, destination, self.drain.clone())).await;
        }
        let snapshot = self.node.snapshot.load_full();
        let (service, protocol, by_name) = match meant(&snapshot, &self.local.workload, destination)
        {
            Meant::Port(service, protocol) => (service, protocol, false),
            Meant::Unknown(service) => (service, Protocol::Auto, true),
            Meant::NoSuchPort(service) => {
                stream.abort();
                return Err(io::Error::other(format!(
                    "{} has no port {}",
                    service.host,
                    destination.port()
                )));
            }
        };
        let connection = Connection {
            outbound: self,
            service,
            client,
            destination,
            flow,
            server_name: None,
            by_name,
            began: Instant::now(),
        };
        // Boxed, so that a TCP connection has no room for what only HTTP needs.
        match protocol {
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
                Box::pin(self.http(connection, stream)).await
            }
            Protocol::Auto => Box::pin(self.first_speaker(connection, stream)).await,
            Protocol::Tls => Box::pin(self.tls(connection, BytesMut::new(), stream)).await,
            Protocol::Tcp | Protocol::Udp => tcp::forward(&connection, stream).await,
        }
    }

    /// The way is not known yet, or is each request's own.
    fn note_protocol(&self, flow: u64, protocol: Recognised) {
        let path = FlowPath {
            endpoint: None,
            destination_identity: None,
            transport: Transport::Unknown,
            protocol,
        };
        self.node.note_path(flow, &path);
    }

    /// TLS of the application: passed through, to where the server name leads.
    async fn tls(
        &self,
        mut connection: Connection<'_>,
        mut bytes: BytesMut,
        mut stream: ApplicationStream,
    ) -> io::Result<()> {
        let workload = &self.local.workload;
        let snapshot = self.node.snapshot.load_full();
        let (client, routes) = (ClientView::of(workload), &snapshot.routes);
        if connection.by_name || routes.wants_server_name(&client, &connection.service) {
            let hello = client_hello::read(&mut stream, &mut bytes).await?;
            connection.server_name = hello.and_then(|hello| hello.server_name);
        }
        if let (true, Some(name)) = (connection.by_name, &connection.server_name) {
            let port = connection.destination.port();
            if let Some(service) = named(&snapshot, workload, name, port) {
                connection.service = service;
            }
        }
        tcp::forward(&connection, Replay::new(bytes, stream)).await
    }

    /// A port that is declared to carry HTTP: only the version is to be told.
    async fn http(
        &self,
        connection: Connection<'_>,
        mut stream: ApplicationStream,
    ) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        let version = match read_more(&mut stream, &mut bytes, None).await? {
            Sniffed::Http2 => HttpVersion::Http2,
            // What is no HTTP gets the HTTP server's answer.
            _ => HttpVersion::Http1,
        };
        self.as_http(connection, version, Replay::new(bytes, stream))
            .await
    }

    async fn as_http(
        &self,
        connection: Connection<'_>,
        version: HttpVersion,
        stream: Replay<ApplicationStream>,
    ) -> io::Result<()> {
        let recognised = match version {
            HttpVersion::Http1 => Recognised::Http1,
            HttpVersion::Http2 => Recognised::Http2,
        };
        self.note_protocol(connection.flow, recognised);
        let passage = self.passage(connection.flow, recognised);
        if connection.service.resolution == Resolution::Nowhere {
            passage.refused(Transport::Blocked, None);
        }
        let context = Arc::new(ConnectionContext {
            client: self.local.workload.clone(),
            client_address: connection.client,
            original_destination: connection.destination,
            service: connection.service,
            snapshot: self.node.snapshot.clone(),
            upstreams: self.upstreams.clone(),
            drain: self.drain.clone(),
            recent: http::Recent::default(),
            interim: Arc::default(),
            passage,
            telemetry: self.node.telemetry.clone(),
        });
        let reset = ResetWatch::of(stream.get_ref())?;
        // The stream outlives the exchange where protocols are switched.
        let stream = stream.counted(self.node.connections.token());
        tokio::select! {
            biased;
            served = http::serve(stream, version, context) => served.map_err(io::Error::other),
            error = reset.reset() => Err(error),
        }
    }

    /// Tells the account of a connection of which nothing passes.
    fn passage(&self, flow: u64, protocol: Recognised) -> http::Passage {
        let node = self.node.clone();
        http::Passage::new(move |why, endpoint| node.note_refused(flow, why, endpoint, protocol))
    }

    /// No protocol is declared: the first bytes tell, whoever sends them.
    async fn first_speaker(
        &self,
        connection: Connection<'_>,
        mut stream: ApplicationStream,
    ) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        let first = read_more(&mut stream, &mut bytes, Some(CLIENT_FIRST)).await?;
        if !bytes.is_empty() {
            return self.by_first_bytes(connection, first, bytes, stream).await;
        }
        // The client waits: is it the server's turn?
        let (mut upstream, counted) = match tcp::connect(&connection).await {
            Ok(connected) => connected,
            Err(unconnected) => return tcp::give_up(&connection, stream, unconnected).await,
        };
        let mut greeting = BytesMut::new();
        tokio::select! {
            biased;
            greeted = upstream.read_buf(&mut greeting) => {
                greeted?;
                let upstream = Replay::new(greeting, upstream);
                tcp::copy(&connection, Replay::new(bytes, stream), upstream, counted).await
            }
            first = read_more(&mut stream, &mut bytes, None) => match first? {
                // HTTP is routed, perhaps elsewhere: this connection was not needed.
                first @ (Sniffed::Http1 | Sniffed::Http2) => {
                    drop(upstream);
                    self.by_first_bytes(connection, first, bytes, stream).await
                }
                _ => tcp::copy(&connection, Replay::new(bytes, stream), upstream, counted).await,
            },
        }
    }

    async fn by_first_bytes(
        &self,
        connection: Connection<'_>,
        first: Sniffed,
        bytes: BytesMut,
        stream: ApplicationStream,
    ) -> io::Result<()> {
        if first == Sniffed::Tls {
            return self.tls(connection, bytes, stream).await;
        }
        let stream = Replay::new(bytes, stream);
        match first {
            Sniffed::Http1 => self.as_http(connection, HttpVersion::Http1, stream).await,
            Sniffed::Http2 => self.as_http(connection, HttpVersion::Http2, stream).await,
            _ => tcp::forward(&connection, stream).await,
        }
    }
}

/// Reads until the bytes tell the protocol, the stream ends, or time is up:
/// `patience` for the first byte (none: as long as it takes), then [`SNIFF_TIMEOUT`].
pub(super) async fn read_more(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut BytesMut,
    patience: Option<Duration>,
) -> io::Result<Sniffed> {
    let mut patience = patience;
    loop {
        let read = stream.read_buf(bytes);
        let count = match patience {
            None => read.await?,
            Some(limit) => match tokio::time::timeout(limit, read).await {
                Ok(count) => count?,
                Err(_) => return Ok(Sniffed::NeedMore),
            },
        };
        if count == 0 {
            return Ok(if bytes.is_empty() {
                Sniffed::NeedMore
            } else {
                Sniffed::Other
            });
        }
        match sniff(bytes) {
            Sniffed::NeedMore if bytes.len() < MAX_SNIFF => patience = Some(SNIFF_TIMEOUT),
            told => return Ok(told),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_at_rest_takes_little_memory() {
        fn size<'a, F: Future>(_: impl FnOnce(&'a Outbound, TcpStream, SocketAddr) -> F) -> usize {
            size_of::<F>()
        }
        // An unoptimized build takes more than a release.
        let bytes = size(|outbound, stream, client| outbound.connection(stream, client));
        assert!(bytes <= 2_048, "{bytes} bytes");
    }
}
