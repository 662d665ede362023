//! Connections to one endpoint that wait for their next request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Behind;
use super::request_body::RequestBody;
use crate::balance::EndpointPool;
use crate::route::UpstreamPolicy;
use crate::telemetry::connections::Connections;
use crate::telemetry::requests::Tally;

/// HTTP/1.1 connections to one endpoint that are kept without a request; further ones are closed.
const MAX_IDLE_PER_ENDPOINT: usize = 1024;
/// HTTP/2 connections to one endpoint; at the bound streams wait for each other.
const MAX_HTTP2_PER_ENDPOINT: usize = 8;
/// Streams after which another HTTP/2 connection is made; servers allow at least so many (RFC 9113, section 6.5.2).
const STREAMS_PER_CONNECTION: usize = 100;

/// Protocol of a connection to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum UpstreamProtocol {
    Http1,
    Http2,
}

impl UpstreamProtocol {
    /// What a TLS handshake offers.
    pub(super) fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http1 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
        }
    }
}

type Http1Sender = http1::SendRequest<RequestBody>;
type Http2Sender = http2::SendRequest<RequestBody>;

/// The connections of one client to one endpoint.
#[derive(Default)]
pub struct HttpPool {
    /// Counts the changes after which older connections are not used again.
    age: AtomicU32,
    http1: Mutex<Vec<Http1>>,
    pub(super) http2: Multiplexed,
    /// How requests ended.
    pub(crate) requests: Tally,
    /// Connections that are not HTTP.
    pub(crate) connections: Connections,
}

impl EndpointPool for HttpPool {
    fn renew(&self) {
        self.age.fetch_add(1, Relaxed);
        self.http1.lock().clear();
        // Streams that are open hold their connection until they end.
        self.http2.open.lock().clear();
    }
}

/// An HTTP/1.1 connection.
pub(super) struct Http1 {
    pub(super) sender: Http1Sender,
    pub(super) local_address: Option<SocketAddr>,
    behind: Option<Behind>,
    made: Instant,
    since: Instant,
    requests: u32,
    age: u32,
}

impl Http1 {
    /// Whether it may serve another request.
    fn may_serve(&self, policy: &UpstreamPolicy, now: Instant) -> bool {
        let requests = policy.http.max_requests_per_connection;
        requests.is_none_or(|limit| self.requests < limit)
            && is_young(self.made, policy, now)
            && is_within(self.since, policy.http.idle_timeout, now)
    }

    /// It serves one more.
    pub(super) fn count(&mut self) {
        self.requests += 1;
    }
}

fn is_within(since: Instant, limit: Option<Duration>, now: Instant) -> bool {
    limit.is_none_or(|limit| now.duration_since(since) < limit)
}

fn is_young(made: Instant, policy: &UpstreamPolicy, now: Instant) -> bool {
    is_within(made, policy.tcp.max_duration, now)
}

impl HttpPool {
    /// A connection that has just been made.
    pub(super) fn new_http1(
        &self,
        (sender, local_address): Made<Http1Sender>,
        behind: Option<Behind>,
    ) -> Http1 {
        let now = Instant::now();
        Http1 {
            sender,
            local_address,
            behind,
            made: now,
            since: now,
            requests: 0,
            age: self.age.load(Relaxed),
        }
    }

    /// The HTTP/1.1 connection that was used last, by whoever is `behind`, and is still open.
    pub(super) fn take_http1(
        &self,
        policy: &UpstreamPolicy,
        behind: Option<&Behind>,
    ) -> Option<Http1> {
        let mut idle = self.http1.lock();
        if idle.is_empty() {
            return None;
        }
        let now = Instant::now();
        // The last at once, where the server is not told who is behind.
        while let Some(index) = idle.iter().rposition(|one| one.behind.as_ref() == behind) {
            let connection = idle.remove(index);
            if connection.sender.is_ready() && connection.may_serve(policy, now) {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps an HTTP/1.1 connection for its next request.
    pub(super) fn keep_http1(&self, mut connection: Http1, policy: &UpstreamPolicy) {
        let now = Instant::now();
        connection.since = now;
        if connection.age != self.age.load(Relaxed) || !connection.may_serve(policy, now) {
            return;
        }
        let mut idle = self.http1.lock();
        if idle.len() < MAX_IDLE_PER_ENDPOINT {
            idle.push(connection);
        }
    }

    /// Closes one connection that waits, to make room for another; returns whether there was one.
    pub(super) fn give_up_one(&self) -> bool {
        let idle = &mut *self.http1.lock();
        let found = !idle.is_empty();
        if found {
            // The one that has waited longest.
            idle.remove(0);
        }
        found || self.give_up_http2()
    }

    /// The same with HTTP/2 connections alone.
    pub(super) fn give_up_http2(&self) -> bool {
        self.http2.give_up_one()
    }

    /// Closes what has waited, or lived, too long.
    pub(super) fn sweep(&self, policy: &UpstreamPolicy) {
        let now = Instant::now();
        self.http1
            .lock()
            .retain(|one| one.sender.is_ready() && one.may_serve(policy, now));
        self.http2.sweep(policy, now);
    }
}

/// HTTP/2 connections to one endpoint.
#[derive(Default)]
pub(super) struct Multiplexed {
    open: Mutex<Vec<Http2>>,
    /// One connection is made at a time: those who wait will share it.
    pub(super) connecting: tokio::sync::Mutex<()>,
}

/// An HTTP/2 connection.
struct Http2 {
    sender: Http2Sender,
    local_address: Option<SocketAddr>,
    behind: Option<Behind>,
    streams: Arc<AtomicUsize>,
    made: Instant,
    used: Instant,
    requests: u32,
}

/// A connection that has just been made: what sends over it, and from which address.
pub(super) type Made<T> = (T, Option<SocketAddr>);

/// A stream of an HTTP/2 connection.
pub(super) struct Http2Stream {
    pub(super) sender: Http2Sender,
    pub(super) local_address: Option<SocketAddr>,
    /// Counted until it is dropped.
    _place: Place,
}

/// The place of a stream among those of its connection.
pub(super) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Multiplexed {
    /// A stream of a connection with room, or, at the bound of connections, of the least used.
    pub(super) fn stream(
        &self,
        policy: &UpstreamPolicy,
        behind: Option<&Behind>,
    ) -> Option<Http2Stream> {
        let now = Instant::now();
        let http = &policy.http;
        let limit = http.max_concurrent_streams.map(|limit| limit as usize);
        let mut open = self.open.lock();
        // Dropped from here, a connection ends with its last stream.
        open.retain(|one| {
            let requests = http.max_requests_per_connection;
            !one.sender.is_closed()
                && requests.is_none_or(|limit| one.requests < limit)
                && is_young(one.made, policy, now)
        });
        let full = limit.is_none() && open.len() >= MAX_HTTP2_PER_ENDPOINT;
        let least = open
            .iter_mut()
            .filter(|one| one.behind.as_ref() == behind)
            .min_by_key(|one| one.streams.load(Relaxed))?;
        let room = least.streams.load(Relaxed) < limit.unwrap_or(STREAMS_PER_CONNECTION);
        (room || full).then(|| least.stream(now))
    }

    /// Adds a connection, and takes its first stream.
    pub(super) fn add(
        &self,
        (sender, local_address): Made<Http2Sender>,
        behind: Option<Behind>,
    ) -> Http2Stream {
        let now = Instant::now();
        let mut connection = Http2 {
            sender,
            local_address,
            behind,
            streams: Arc::default(),
            made: now,
            used: now,
            requests: 0,
        };
        let stream = connection.stream(now);
        self.open.lock().push(connection);
        stream
    }

    fn give_up_one(&self) -> bool {
        let mut open = self.open.lock();
        let idle = open.iter().position(|one| one.streams.load(Relaxed) == 0);
        idle.map(|index| open.swap_remove(index)).is_some()
    }

    fn sweep(&self, policy: &UpstreamPolicy, now: Instant) {
        self.open.lock().retain_mut(|one| {
            if one.streams.load(Relaxed) > 0 {
                one.used = now;
            }
            !one.sender.is_closed()
                && is_young(one.made, policy, now)
                && is_within(one.used, policy.http.idle_timeout, now)
        });
    }
}

impl Http2 {
    fn stream(&mut self, now: Instant) -> Http2Stream {
        self.used = now;
        self.requests += 1;
        self.streams.fetch_add(1, Relaxed);
        Http2Stream {
            sender: self.sender.clone(),
            local_address: self.local_address,
            _place: Place(Arc::clone(&self.streams)),
        }
    }
}
