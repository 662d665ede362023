//! DNS of one workload: questions about the mesh are answered, all others go,
//! byte for byte, to the nameserver that the application asked.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{MessageType, ResponseCode};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::message::{self, Key, MAX_UDP_BYTES, Reaction, Transport, react};
use super::pktinfo;
use super::zone::Zone;
use crate::netns::Sockets;
use crate::registry::{Registry, Service};

/// Most forwarded questions of a workload that wait for an answer; more are refused.
pub const MAX_QUERIES_IN_FLIGHT: usize = 256;
/// Most connections of a workload that ask over TCP; further ones are closed unheard.
pub const MAX_TCP_CONNECTIONS: usize = 256;
/// How long a nameserver may take, unless the server is told otherwise.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after an error of the socket that is not of one datagram, such as no memory.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// Where the kernel keeps which nameserver stands behind which local address.
pub trait Nameservers: Send + Sync + 'static {
    /// The nameserver that `client` asked, when its datagram arrived at `alias`.
    fn original(&self, alias: IpAddr, client: SocketAddr) -> Option<SocketAddr>;
}

/// The DNS server of one workload, for its UDP socket and its TCP connections.
pub struct DnsServer {
    namespace: Arc<str>,
    registry: Box<dyn Fn() -> Arc<Registry> + Send + Sync>,
    sees: Box<dyn Fn(&Service) -> bool + Send + Sync>,
    pub(super) sockets: Arc<dyn Sockets>,
    pub(super) in_flight: Arc<Semaphore>,
    pub(super) tcp_connections: Arc<Semaphore>,
    pub(super) query_timeout: Duration,
    rotation: AtomicUsize,
}

impl DnsServer {
    /// A server for a workload of `namespace`. `registry` gives the one in force at each
    /// question; `sockets` open towards nameservers as the workload would.
    pub fn new(
        namespace: impl Into<Arc<str>>,
        registry: impl Fn() -> Arc<Registry> + Send + Sync + 'static,
        sockets: Arc<dyn Sockets>,
    ) -> Self {
        Self {
            namespace: namespace.into(),
            registry: Box::new(registry),
            sees: Box::new(|_| true),
            sockets,
            in_flight: Arc::new(Semaphore::new(MAX_QUERIES_IN_FLIGHT)),
            tcp_connections: Arc::new(Semaphore::new(MAX_TCP_CONNECTIONS)),
            query_timeout: QUERY_TIMEOUT,
            rotation: AtomicUsize::new(0),
        }
    }

    /// Only for entries that the workload sees; the names of others are somebody else's.
    pub fn with_visibility(self, sees: impl Fn(&Service) -> bool + Send + Sync + 'static) -> Self {
        Self {
            sees: Box::new(sees),
            ..self
        }
    }

    /// Another time than [`QUERY_TIMEOUT`] for nameservers to answer.
    pub fn with_query_timeout(self, query_timeout: Duration) -> Self {
        Self {
            query_timeout,
            ..self
        }
    }

    pub(super) fn react(&self, packet: &[u8], transport: Transport) -> Reaction {
        let registry = (self.registry)();
        let zone = Zone {
            registry: &registry,
            namespace: &self.namespace,
            sees: &self.sees,
            rotation: self.rotation.fetch_add(1, Ordering::Relaxed),
        };
        react(&zone, packet, transport)
    }

    /// Answers what arrives at `socket` until `stop`, and then what is under way. The one error is a socket that cannot say
    /// where its datagrams were sent to.
    pub async fn serve_udp(
        self: Arc<Self>,
        socket: UdpSocket,
        nameservers: Arc<dyn Nameservers>,
        stop: CancellationToken,
    ) -> io::Result<()> {
        pktinfo::enable(&socket)?;
        let socket = Arc::new(socket);
        let mut forwarded = JoinSet::new();
        let mut buffer = [0; MAX_UDP_BYTES as usize];
        loop {
            let arrival = tokio::select! {
                () = stop.cancelled() => break,
                arrival = pktinfo::receive(&socket, &mut buffer) => arrival,
            };
            while forwarded.try_join_next().is_some() {}
            let arrival = match arrival {
                Ok(arrival) => arrival,
                Err(error) => {
                    tracing::debug!(%error, "DNS datagram not received");
                    if error.kind() != io::ErrorKind::InvalidData {
                        tokio::time::sleep(RECEIVE_PAUSE).await;
                    }
                    continue;
                }
            };
            let packet = &buffer[..arrival.length];
            match self.react(packet, Transport::Udp) {
                Reaction::Ignore => {}
                Reaction::Answer(answer) => reply(&socket, Some(answer), arrival).await,
                Reaction::Forward => match self.in_flight.clone().try_acquire_owned() {
                    Err(_) => {
                        let refusal = message::error(packet, ResponseCode::Refused);
                        reply(&socket, refusal, arrival).await;
                    }
                    Ok(slot) => {
                        let (packet, socket) = (packet.to_vec(), socket.clone());
                        let alias = arrival.to.to_canonical();
                        let nameserver = nameservers.original(alias, arrival.from);
                        let server = self.clone();
                        forwarded.spawn(async move {
                            let _slot = slot;
                            let answer = server.forward_udp(&packet, nameserver).await;
                            reply(&socket, answer, arrival).await;
                        });
                    }
                },
            }
        }
        // Questions that are with a nameserver are still answered.
        while forwarded.join_next().await.is_some() {}
        Ok(())
    }

    /// The answer of `nameserver`, or that it failed.
    async fn forward_udp(&self, packet: &[u8], nameserver: Option<SocketAddr>) -> Option<Vec<u8>> {
        let answer = match nameserver {
            Some(nameserver) => {
                let asked = ask(self.sockets.as_ref(), packet, nameserver);
                let timely = tokio::time::timeout(self.query_timeout, asked).await;
                timely.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
            None => Err(io::Error::other(
                "the nameserver that was asked is not known",
            )),
        };
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!(?nameserver, %error, "DNS query not answered");
                message::error(packet, ResponseCode::ServFail)
            }
        }
    }
}

/// One question to `nameserver`, from a socket and so a source port of its own, which the
/// kernel chooses at random.
async fn ask(sockets: &dyn Sockets, packet: &[u8], nameserver: SocketAddr) -> io::Result<Vec<u8>> {
    let query = Key::of(packet, MessageType::Query)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let socket = sockets.udp(nameserver)?;
    socket.send(packet).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not fit the question was forged, or is late: wait for the right one.
        let response = Key::of(&buffer[..length], MessageType::Response);
        if response.is_some_and(|response| query.is_answered_by(&response)) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn reply(socket: &UdpSocket, answer: Option<Vec<u8>>, arrival: pktinfo::Arrival) {
    let Some(answer) = answer else { return };
    if let Err(error) = pktinfo::send(socket, &answer, arrival.from, arrival.to).await {
        // The client has gone, or its firewall refuses: its own timeout tells it.
        tracing::debug!(client = %arrival.from, %error, "DNS answer not sent");
    }
}
