//! The connection to the application over which a caller's requests go. It belongs to the
//! caller's connection, since the application sees the caller's address; within the bounds
//! of the Sidecar it may be closed and made again in between.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex as SyncMutex;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::ports::{Asking, Keeper, Port, Waiting};
use super::{Caller, connect, counting, inbound};
use crate::balance::Overflow;
use crate::proxy::http::{HttpVersion, MAX_HEADER_BYTES};
use crate::proxy::turn::after_others;
use crate::proxy::write_together::WriteTogether;
use crate::proxy::{Local, Node};
use crate::route::InboundLimits;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsent {
    /// A bound of the Sidecar is reached.
    #[error(transparent)]
    Overflow(#[from] Overflow),
    /// There is no connection to the application.
    #[error(transparent)]
    Unreachable(#[from] io::Error),
    /// The application ended it instead of answering.
    #[error(transparent)]
    Ended(#[from] hyper::Error),
}

/// The way from one connection of a caller to the application.
pub(super) struct Kept {
    pub(super) node: Arc<Node>,
    pub(super) local: Arc<Local>,
    pub(super) caller: Caller,
    pub(super) application: SocketAddr,
    pub(super) version: HttpVersion,
    port: Arc<Port>,
    upstream: Mutex<Option<Upstream>>,
    is_connecting: AtomicBool,
    /// Requests on their way.
    active: AtomicUsize,
    /// When the last of them ended.
    unused_since: SyncMutex<Instant>,
    unused: Notify,
    /// To whom waits for a connection.
    is_known: AtomicBool,
}

struct Upstream {
    sender: Sender,
    made: Instant,
    requests: u32,
}

enum Sender {
    Http1(conn::http1::SendRequest<counting::Asked>),
    Http2(conn::http2::SendRequest<counting::Asked>),
}

impl Upstream {
    async fn is_ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await.is_ok(),
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// Whether it has served as much, or as long, as it may.
    fn is_spent(&self, limits: Option<&InboundLimits>) -> bool {
        limits.is_some_and(|limits| {
            let most = limits.http.max_requests_per_connection;
            most.is_some_and(|most| self.requests >= most)
                || (limits.tcp.max_duration).is_some_and(|limit| self.made.elapsed() >= limit)
        })
    }
}

impl Kept {
    pub(super) fn new(
        node: &Arc<Node>,
        local: &Arc<Local>,
        caller: Caller,
        application: SocketAddr,
        version: HttpVersion,
    ) -> Arc<Self> {
        let port = local.inbound.at(application.port());
        Arc::new(Self {
            node: node.clone(),
            local: local.clone(),
            caller,
            application,
            version,
            port,
            upstream: Mutex::default(),
            is_connecting: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            unused_since: SyncMutex::new(Instant::now()),
            unused: Notify::new(),
            is_known: AtomicBool::new(false),
        })
    }

    fn limits(&self) -> Option<Arc<InboundLimits>> {
        inbound(&self.node, &self.local, self.application).limits
    }

    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Busy, Overflow> {
        let limits = self.limits();
        let most = limits.as_ref().and_then(|limits| limits.http.max_requests);
        let asking = self.port.ask(most)?;
        self.active.fetch_add(1, SeqCst);
        Ok(Busy {
            kept: self.clone(),
            limits,
            _asking: asking,
        })
    }

    fn wait(&self, limits: Option<&InboundLimits>) -> Result<Waiting, Overflow> {
        self.port
            .wait(limits.and_then(|limits| limits.http.max_pending))
    }

    /// Over the connection to the application; a new one where there is none
    /// any more. A request is sent once.
    pub(super) async fn send(
        self: &Arc<Self>,
        request: Request<counting::Asked>,
        limits: Option<&InboundLimits>,
    ) -> Result<Response<Incoming>, Unsent> {
        let waiting = if self.is_connecting.load(SeqCst) {
            Some(self.wait(limits)?)
        } else {
            None
        };
        let mut kept = self.upstream.lock().await;
        let usable = match &mut *kept {
            Some(upstream) => !upstream.is_spent(limits) && upstream.is_ready().await,
            None => false,
        };
        if !usable {
            let _waiting = match waiting {
                Some(waiting) => waiting,
                None => self.wait(limits)?,
            };
            let _connecting = Connecting::new(&self.is_connecting);
            // Its place is free when it has ended.
            *kept = None;
            *kept = Some(self.open(limits).await?);
        }
        let Some(upstream) = &mut *kept else {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        };
        upstream.requests += 1;
        match &mut upstream.sender {
            Sender::Http1(sender) => Ok(sender.send_request(request).await?),
            Sender::Http2(sender) => {
                let mut sender = sender.clone();
                // Others do not wait for this answer.
                drop(kept);
                Ok(sender.send_request(request).await?)
            }
        }
    }

    async fn open(self: &Arc<Self>, limits: Option<&InboundLimits>) -> Result<Upstream, Unsent> {
        let place = match limits {
            Some(limits) => {
                if !self.is_known.swap(true, SeqCst) {
                    let keeper: Arc<dyn Keeper> = self.clone();
                    self.port.meet(Arc::downgrade(&keeper));
                }
                Some(self.port.entered(limits.tcp.max_connections).await)
            }
            None => None,
        };
        let (node, local) = (&self.node, &self.local);
        let stream = connect(node, local, &self.caller, self.application, place).await?;
        let sender = match self.version {
            HttpVersion::Http1 => {
                let (sender, connection) = conn::http1::Builder::new()
                    .preserve_header_case(true)
                    .handshake(TokioIo::new(stream))
                    .await?;
                // What goes wrong is told to whoever waits for a response.
                tokio::spawn(connection.with_upgrades());
                Sender::Http1(sender)
            }
            HttpVersion::Http2 => {
                let window = self.node.windows.take();
                let (sender, connection) = conn::http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(window.stream())
                    .initial_connection_window_size(window.connection())
                    .max_header_list_size(MAX_HEADER_BYTES)
                    .handshake(TokioIo::new(WriteTogether::new(stream)))
                    .await?;
                tokio::spawn(async move {
                    let _window = window;
                    after_others(connection).await
                });
                Sender::Http2(sender)
            }
        };
        Ok(Upstream {
            sender,
            made: Instant::now(),
            requests: 0,
        })
    }

    /// Gives up the connection where nobody uses it and it is as `wanted`.
    fn give_up_if(&self, wanted: impl Fn(&Upstream) -> bool) -> bool {
        // Whoever holds the lock uses it, or is about to.
        let Ok(mut kept) = self.upstream.try_lock() else {
            return false;
        };
        // A request counts before it takes the lock.
        if self.active.load(SeqCst) > 0 || !kept.as_ref().is_some_and(wanted) {
            return false;
        }
        kept.take().is_some()
    }

    /// Gives up the connection when it has been idle for too long, ever again.
    pub(super) async fn tend(self: Arc<Self>) -> Infallible {
        loop {
            let limits = self.limits();
            let limit = limits.and_then(|limits| limits.http.idle_timeout);
            let Some(limit) = limit else {
                self.unused.notified().await;
                continue;
            };
            let left = limit.saturating_sub(self.unused_for());
            if left.is_zero() {
                self.give_up();
                self.unused.notified().await;
            } else {
                let _ = tokio::time::timeout(left, self.unused.notified()).await;
            }
        }
    }

    fn unused_for(&self) -> Duration {
        if self.active.load(SeqCst) > 0 {
            return Duration::ZERO;
        }
        self.unused_since.lock().elapsed()
    }
}

impl Keeper for Kept {
    fn give_up(&self) -> bool {
        self.give_up_if(|_| true)
    }
}

/// A request that is on its way.
pub(super) struct Busy {
    kept: Arc<Kept>,
    /// Those of its beginning hold to its end.
    limits: Option<Arc<InboundLimits>>,
    _asking: Asking,
}

impl Busy {
    /// The bounds that it is under.
    pub(super) fn limits(&self) -> Option<&InboundLimits> {
        self.limits.as_deref()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let kept = &self.kept;
        *kept.unused_since.lock() = Instant::now();
        if kept.active.fetch_sub(1, SeqCst) > 1 {
            return;
        }
        if let Some(limits) = self.limits() {
            kept.give_up_if(|upstream| upstream.is_spent(Some(limits)));
            kept.port.unused();
            kept.unused.notify_one();
        }
    }
}

/// While a connection is being made.
struct Connecting<'a>(&'a AtomicBool);

impl<'a> Connecting<'a> {
    fn new(is_connecting: &'a AtomicBool) -> Self {
        is_connecting.store(true, SeqCst);
        Self(is_connecting)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}
