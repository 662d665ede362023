//! Tunnels to other nodes, on pooled connections.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::{Method, Request, StatusCode, Uri, header};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::connection::{Common, ConnectError, Connection, Key, connect};
use super::forwarded;
use super::handshakes::{Handshakes, Unanswered};
use super::memory::{TunnelMemory, Tunnels};
use super::outbox::Payload;
use super::refusal::Refusal;
use super::stream::TunnelStream;
use crate::identity::{Certificates, Identity};
use crate::netns::Sockets;

/// Time to open a tunnel, all in all. Clients of applications often wait 5 s:
/// they shall see our answer.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(4);
/// When a connection that was in the pool does not answer a CONNECT for so
/// long, its peer is taken for gone and a fresh connection is tried.
const POOLED_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection without tunnels is closed after this time, at most twice of it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Different (source, destination) pairs with connections; above it no further
/// peer is connected to until another is idle.
const MAX_PEERS: usize = 16_384;

/// A tunnel to be opened.
pub struct TunnelRequest {
    /// Opens the TCP connection from the source workload's namespace.
    pub sockets: Arc<dyn Sockets>,
    /// The true client's address, which the destination shall see.
    pub source: SocketAddr,
    /// As whom we connect.
    pub source_identity: Identity,
    /// The source workload's address, from which the connection comes.
    pub from: IpAddr,
    /// Where HBONE is spoken: the destination workload's address, port 15008.
    pub node: SocketAddr,
    /// The destination workload's address with the application's port.
    pub authority: SocketAddr,
    /// Whom the destination may be; nobody, if empty.
    pub expected: Vec<Identity>,
}

/// Why a tunnel was not opened. Nothing of the application's was sent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TunnelError {
    /// No connection to the node.
    #[error(transparent)]
    Connect(#[from] Arc<ConnectError>),
    /// The connection failed before the CONNECT was answered.
    #[error("the connection to {node} failed: {source}")]
    Broken {
        /// The peer.
        node: SocketAddr,
        /// What h2 said.
        source: Arc<h2::Error>,
    },
    /// The peer answered with no.
    #[error("{node} refused the tunnel to {authority}: {refusal}")]
    Refused {
        /// The peer.
        node: SocketAddr,
        /// What was asked for.
        authority: SocketAddr,
        /// Status and reason.
        refusal: Refusal,
    },
    /// The peer did not answer in time.
    #[error("{node} did not answer within {} s", limit.as_secs())]
    Timeout {
        /// The peer.
        node: SocketAddr,
        /// The time that was given.
        limit: Duration,
    },
    /// The pool is full.
    #[error("no connection to {node}: there are connections to {MAX_PEERS} peers already")]
    TooManyPeers {
        /// The peer.
        node: SocketAddr,
    },
}

impl TunnelError {
    /// Whether the peer said that the source may not talk to the destination.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. }
            if matches!(refusal.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }
}

/// All connections to other nodes. Clones share them; when the last clone is
/// dropped, each connection closes with its last tunnel.
#[derive(Clone)]
pub struct TunnelPool {
    shared: Arc<Pool>,
}

struct Pool {
    common: Common,
    idle_timeout: Duration,
    /// Numbers connections in the order in which they are begun.
    next_number: AtomicU64,
    peers: Mutex<HashMap<Key, Peer>>,
    /// Tasks that drive connections.
    drivers: TaskTracker,
}

#[derive(Default)]
struct Peer {
    connections: Vec<Connection>,
    attempt: Option<Attempt>,
}

/// A connection on its way, for all who wait for it.
type Attempt = Shared<BoxFuture<'static, Result<(), Arc<ConnectError>>>>;

/// Room for a tunnel on a connection.
struct Slot {
    sender: h2::client::SendRequest<Payload>,
    peer_identity: Identity,
    handshake: Arc<Unanswered>,
    tunnels: Arc<Tunnels>,
    permit: OwnedSemaphorePermit,
    connection: u64,
    /// Whether the connection was there before it was asked for.
    pooled: bool,
}

enum Failure {
    /// The CONNECT got no answer from this connection; another may give one.
    Connection(TunnelError),
    Final(TunnelError),
}

impl TunnelPool {
    /// A pool whose connections use `certificates`, whose handshakes are noted in `handshakes`,
    /// and whose tunnels hold no more than `memory` has room for.
    pub fn new(
        certificates: Arc<Certificates>,
        handshakes: Arc<Handshakes>,
        memory: Arc<TunnelMemory>,
    ) -> Self {
        let common = Common {
            certificates,
            handshakes,
            memory,
        };
        Self::of(common, IDLE_TIMEOUT)
    }

    /// The same with another time after which unused connections are closed.
    pub fn with_idle_timeout(certificates: Arc<Certificates>, idle_timeout: Duration) -> Self {
        let common = Common {
            certificates,
            handshakes: Arc::default(),
            memory: Arc::default(),
        };
        Self::of(common, idle_timeout)
    }

    fn of(common: Common, idle_timeout: Duration) -> Self {
        Self {
            shared: Arc::new(Pool {
                common,
                idle_timeout,
                next_number: AtomicU64::new(0),
                peers: Mutex::default(),
                drivers: TaskTracker::new(),
            }),
        }
    }

    /// Opens a tunnel, on a connection of the pool where there is one.
    ///
    /// # Errors
    /// Within [`OPEN_TIMEOUT`]. A pooled connection that had gone is no error,
    /// a fresh one is tried once: the CONNECT had no answer, so nothing was sent.
    pub async fn open(&self, request: TunnelRequest) -> Result<TunnelStream, TunnelError> {
        let node = request.node;
        timeout(OPEN_TIMEOUT, self.try_open(&request))
            .await
            .unwrap_or(Err(TunnelError::Timeout {
                node,
                limit: OPEN_TIMEOUT,
            }))
    }

    /// Opens no more tunnels on connections from this address: its workload is
    /// gone. Open tunnels go on.
    pub fn forget(&self, from: IpAddr) {
        self.shared.peers.lock().retain(|key, _| key.from != from);
    }

    /// Closes every connection with its last tunnel, and returns when all that
    /// was written is on its way.
    pub async fn close(&self) {
        self.shared.peers.lock().clear();
        self.shared.drivers.close();
        self.shared.drivers.wait().await;
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        let peers = self.shared.peers.lock();
        peers.values().map(|peer| peer.connections.len()).sum()
    }

    async fn try_open(&self, request: &TunnelRequest) -> Result<TunnelStream, TunnelError> {
        let mut expected = request.expected.clone();
        expected.sort_unstable();
        expected.dedup();
        let key = Key {
            source_identity: request.source_identity.clone(),
            from: request.from,
            node: request.node,
            expected: expected.into(),
        };
        let began = self.shared.next_number.load(Ordering::Relaxed);
        let slot = self.slot(&key, request, 0).await?;
        let (pooled, number) = (slot.pooled, slot.connection);
        match connect_tunnel(request, slot).await {
            Ok(stream) => Ok(stream),
            Err(Failure::Final(error)) => Err(error),
            Err(Failure::Connection(error)) => {
                self.shared.remove(&key, number);
                if !pooled {
                    return Err(error);
                }
                tracing::debug!(peer = %request.node, %error, "pooled connection had gone");
                // Connections as old as that one may have gone with it.
                let slot = self.slot(&key, request, began).await?;
                connect_tunnel(request, slot)
                    .await
                    .map_err(|(Failure::Connection(error) | Failure::Final(error))| error)
            }
        }
    }

    /// Room on a connection numbered `from` or later; makes one where needed.
    /// All who wait for the same peer wait for the same connection.
    async fn slot(
        &self,
        key: &Key,
        request: &TunnelRequest,
        from: u64,
    ) -> Result<Slot, TunnelError> {
        let mut pooled = true;
        loop {
            let attempt = {
                let mut peers = self.shared.peers.lock();
                if !peers.contains_key(key) && peers.len() >= MAX_PEERS {
                    return Err(TunnelError::TooManyPeers { node: key.node });
                }
                let peer = peers.entry(key.clone()).or_default();
                let slot = peer
                    .connections
                    .iter()
                    .filter(|connection| connection.number >= from)
                    .find_map(|connection| Some((connection, connection.slot()?)));
                if let Some((connection, permit)) = slot {
                    return Ok(Slot {
                        sender: connection.sender(),
                        peer_identity: connection.peer_identity.clone(),
                        handshake: connection.handshake.clone(),
                        tunnels: connection.tunnels.clone(),
                        permit,
                        connection: connection.number,
                        pooled,
                    });
                }
                peer.attempt
                    .get_or_insert_with(|| {
                        Pool::attempt(&self.shared, key.clone(), request.sockets.clone())
                    })
                    .clone()
            };
            pooled = false;
            attempt.await?;
        }
    }
}

impl Pool {
    /// Connects in a task of its own, so that nobody who gives up waiting takes
    /// the connection away from the others.
    fn attempt(self: &Arc<Self>, key: Key, sockets: Arc<dyn Sockets>) -> Attempt {
        let node = key.node;
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let pool = self.clone();
        let task = tokio::spawn(async move { pool.connect(number, key, sockets).await });
        async move {
            task.await
                .unwrap_or_else(|_| Err(Arc::new(ConnectError::GivenUp { node })))
        }
        .boxed()
        .shared()
    }

    async fn connect(
        self: Arc<Self>,
        number: u64,
        key: Key,
        sockets: Arc<dyn Sockets>,
    ) -> Result<(), Arc<ConnectError>> {
        let retire = {
            let (pool, key) = (Arc::downgrade(&self), key.clone());
            move || {
                Weak::upgrade(&pool)
                    .into_iter()
                    .for_each(|pool| pool.remove(&key, number))
            }
        };
        let connected = timeout(
            OPEN_TIMEOUT,
            connect(
                number,
                &key,
                &*sockets,
                &self.common,
                self.idle_timeout,
                retire,
            ),
        )
        .await
        .unwrap_or(Err(ConnectError::Timeout {
            node: key.node,
            limit: OPEN_TIMEOUT,
        }));

        let mut peers = self.peers.lock();
        // Where the peer was forgotten meanwhile, those who wait try again.
        let Some(peer) = peers.get_mut(&key) else {
            return connected.map(drop).map_err(Arc::new);
        };
        peer.attempt = None;
        match connected {
            Ok((connection, driver)) => {
                peer.connections.push(connection);
                drop(peers);
                self.drivers.spawn(driver);
                Ok(())
            }
            Err(error) => {
                if peer.connections.is_empty() {
                    peers.remove(&key);
                }
                Err(Arc::new(error))
            }
        }
    }

    fn remove(&self, key: &Key, number: u64) {
        let mut peers = self.peers.lock();
        if let Some(peer) = peers.get_mut(key) {
            peer.connections
                .retain(|connection| connection.number != number);
            if peer.connections.is_empty() && peer.attempt.is_none() {
                peers.remove(key);
            }
        }
    }
}

/// Sends the CONNECT and waits for its answer.
async fn connect_tunnel(request: &TunnelRequest, slot: Slot) -> Result<TunnelStream, Failure> {
    let node = request.node;
    let answer = ask(request, slot.sender);
    let answer = if slot.pooled {
        timeout(POOLED_ANSWER_TIMEOUT, answer).await.map_err(|_| {
            Failure::Connection(TunnelError::Timeout {
                node,
                limit: POOLED_ANSWER_TIMEOUT,
            })
        })?
    } else {
        answer.await
    };
    let (send, response) = answer.map_err(|source| {
        // A reset of the stream is an answer, unless it says that the request
        // was not looked at.
        let answered = source.is_reset() && source.reason() != Some(h2::Reason::REFUSED_STREAM);
        let error = TunnelError::Broken {
            node,
            source: Arc::new(source),
        };
        if answered {
            Failure::Final(error)
        } else {
            Failure::Connection(error)
        }
    })?;
    slot.handshake.answered();
    let (head, receive) = response.into_parts();
    if !head.status.is_success() {
        return Err(Failure::Final(TunnelError::Refused {
            node,
            authority: request.authority,
            refusal: Refusal::from_response(head.status, &head.headers),
        }));
    }
    Ok(TunnelStream::new(
        send,
        slot.tunnels.receiver(receive),
        slot.peer_identity,
        Some(slot.permit),
    ))
}

type Answer = (h2::SendStream<Payload>, http::Response<h2::RecvStream>);

async fn ask(
    request: &TunnelRequest,
    sender: h2::client::SendRequest<Payload>,
) -> Result<Answer, h2::Error> {
    let mut connect = Request::new(());
    *connect.method_mut() = Method::CONNECT;
    *connect.uri_mut() = Uri::builder()
        .authority(forwarded::canonical(request.authority).to_string())
        .build()
        .expect("an address is an authority");
    connect
        .headers_mut()
        .insert(header::FORWARDED, forwarded::value(request.source));
    let (response, send) = sender.ready().await?.send_request(connect, false)?;
    Ok((send, response.await?))
}
