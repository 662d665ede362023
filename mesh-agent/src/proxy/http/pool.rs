//! Connections to endpoints that wait for their next request.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::request_body::RequestBody;
use crate::balance::EndpointAddress;
use crate::registry::WorkloadName;
use crate::route::UpstreamTls;

/// HTTP/1.1 connections to one endpoint that are kept without a request; further ones are closed.
const MAX_IDLE_PER_ENDPOINT: usize = 1024;
/// HTTP/2 connections to one endpoint; at the bound streams wait for each other.
const MAX_HTTP2_PER_ENDPOINT: usize = 8;
/// Streams after which another HTTP/2 connection is made; servers allow at least so many (RFC 9113, section 6.5.2).
const STREAMS_PER_CONNECTION: usize = 100;
/// How long a connection is kept without a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Parts of the pool with a lock each, which is held for a look-up only.
const SHARDS: usize = 16;

/// Who may share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Connections carry the client's identity.
    pub(super) client: WorkloadName,
    /// The service decides which identities the endpoint may have.
    pub(super) service: String,
    pub(super) endpoint: EndpointAddress,
    pub(super) protocol: UpstreamProtocol,
    pub(super) tls: UpstreamTls,
    /// Under which policies it was made: others decide about a new one.
    pub(super) policy_epoch: u64,
}

/// Protocol of a connection to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum UpstreamProtocol {
    Http1,
    Http2,
}

type Http1 = http1::SendRequest<RequestBody>;
type Http2 = http2::SendRequest<RequestBody>;

/// All waiting connections.
pub(super) struct Pool {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

#[derive(Default)]
struct Shard {
    http1: HashMap<Key, Vec<(Http1, Instant)>>,
    http2: HashMap<Key, Arc<Multiplexed>>,
}

impl Pool {
    /// A pool that closes what waits too long. Needs a tokio runtime.
    pub(super) fn new() -> Arc<Self> {
        let pool = Arc::new(Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
        });
        let weak = Arc::downgrade(&pool);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(IDLE_TIMEOUT / 2);
            loop {
                ticks.tick().await;
                let Some(pool) = weak.upgrade() else { return };
                pool.sweep(Instant::now());
            }
        });
        pool
    }

    fn shard(&self, key: &Key) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// The HTTP/1.1 connection that was used last and is still open.
    pub(super) fn take_http1(&self, key: &Key) -> Option<Http1> {
        let mut shard = self.shard(key).lock();
        let idle = shard.http1.get_mut(key)?;
        while let Some((sender, _)) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps an HTTP/1.1 connection for its next request.
    pub(super) fn keep_http1(&self, key: Key, sender: Http1) {
        let mut shard = self.shard(&key).lock();
        let idle = shard.http1.entry(key).or_default();
        if idle.len() < MAX_IDLE_PER_ENDPOINT {
            idle.push((sender, Instant::now()));
        }
    }

    /// The HTTP/2 connections to an endpoint.
    pub(super) fn http2(&self, key: &Key) -> Arc<Multiplexed> {
        let mut shard = self.shard(key).lock();
        if let Some(known) = shard.http2.get(key) {
            return Arc::clone(known);
        }
        Arc::clone(shard.http2.entry(key.clone()).or_default())
    }

    /// Closes what waits for requests of a client that is gone.
    pub(super) fn forget(&self, client: &WorkloadName) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.http1.retain(|key, _| key.client != *client);
            shard.http2.retain(|key, _| key.client != *client);
        }
    }

    fn sweep(&self, now: Instant) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.http1.retain(|_, idle| {
                idle.retain(|(sender, since)| {
                    sender.is_ready() && now.duration_since(*since) < IDLE_TIMEOUT
                });
                !idle.is_empty()
            });
            shard.http2.retain(|_, connections| {
                connections.sweep();
                // Someone may be connecting right now.
                !connections.open.lock().is_empty() || Arc::strong_count(connections) > 1
            });
        }
    }
}

/// HTTP/2 connections to one endpoint.
#[derive(Default)]
pub(super) struct Multiplexed {
    open: Mutex<Vec<Connection>>,
    /// One connection is made at a time: those who wait will share it.
    pub(super) connecting: tokio::sync::Mutex<()>,
}

struct Connection {
    sender: Http2,
    streams: Arc<AtomicUsize>,
    /// Had no stream at the last sweep, nor since.
    unused: AtomicBool,
}

/// A stream of an HTTP/2 connection, counted until it is dropped.
pub(super) struct Stream(Arc<AtomicUsize>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Multiplexed {
    /// A stream of a connection with room, or, at the bound of connections, of the least used.
    pub(super) fn stream(&self) -> Option<(Http2, Stream)> {
        let mut open = self.open.lock();
        open.retain(|connection| !connection.sender.is_closed());
        let full = open.len() >= MAX_HTTP2_PER_ENDPOINT;
        let least = open
            .iter()
            .min_by_key(|connection| connection.streams.load(Relaxed))?;
        let room = least.streams.load(Relaxed) < STREAMS_PER_CONNECTION;
        (room || full).then(|| least.stream())
    }

    /// Adds a connection, and takes its first stream.
    pub(super) fn add(&self, sender: Http2) -> (Http2, Stream) {
        let connection = Connection {
            sender,
            streams: Arc::default(),
            unused: AtomicBool::new(false),
        };
        let stream = connection.stream();
        self.open.lock().push(connection);
        stream
    }

    fn sweep(&self) {
        self.open.lock().retain(|connection| {
            let busy = connection.streams.load(Relaxed) > 0;
            !connection.sender.is_closed() && (busy || !connection.unused.swap(true, Relaxed))
        });
    }
}

impl Connection {
    fn stream(&self) -> (Http2, Stream) {
        self.unused.store(false, Relaxed);
        self.streams.fetch_add(1, Relaxed);
        (self.sender.clone(), Stream(Arc::clone(&self.streams)))
    }
}
