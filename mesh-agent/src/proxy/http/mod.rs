//! HTTP/1.1, HTTP/2 and gRPC on the client's node: route, balance, forward.

mod affinity;
mod answer;
mod asked;
mod connector;
mod exchange;
mod failure;
mod forward;
mod forwarded;
pub(super) mod interim;
pub(super) mod message;
mod mirror;
mod outgoing;
mod passage;
mod pool;
mod record;
mod request_body;
mod request_id;
mod tunnel;
mod upstream;
mod websocket;

pub use answer::AnswerError;
pub(super) use answer::grpc_status;
pub use connector::{Connector, Target};
use interim::{Interim, WithInterim};
pub use passage::Passage;
pub use pool::HttpPool;
pub use request_body::BodyError;
pub(super) use upstream::report;
pub use upstream::{HttpCluster, Upstreams};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::TryFutureExt;
use http::{Method, StatusCode, header};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::balance::{Clusters, Destination};
use crate::proxy::turn::after_others;
use crate::proxy::write_together::WriteTogether;
use crate::registry::{Service, Workload};
use crate::route::UpstreamPolicy;
use crate::snapshot::Snapshot;
use crate::telemetry::Telemetry;

/// Streams that a client may have open on one HTTP/2 connection; more have to wait.
pub(super) const MAX_CONCURRENT_STREAMS: u32 = 1000;
/// HTTP/2 flow control window of a stream, in bytes.
pub(super) const STREAM_WINDOW: u32 = 1024 * 1024;
/// HTTP/2 flow control window of a connection, in bytes.
pub(super) const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// Header fields of a message of HTTP/2, in bytes; Envoy takes as many.
pub(super) const MAX_HEADER_BYTES: u32 = 60 * 1024;

/// Version that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// When connections are to end, an idle one of HTTP/1 is kept for this time: a
/// request may be on its way, which a close would lose. Its answer then says
/// that it is the last.
const LAST_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// What is known of a client's connection.
pub struct ConnectionContext<C> {
    /// Workload that made it.
    pub client: Arc<Workload>,
    /// Its address, as the application sees it.
    pub client_address: SocketAddr,
    /// Address that the application asked for.
    pub original_destination: SocketAddr,
    /// Service of that address.
    pub service: Arc<Service>,
    /// The configuration; every request reads the one in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The way to endpoints.
    pub upstreams: Arc<Upstreams<C>>,
    /// When cancelled, the connection ends after the requests that are under way.
    pub drain: CancellationToken,
    /// Where its last request went.
    pub recent: Recent,
    /// Informational responses on their way to a client of HTTP/1.
    pub interim: Arc<Interim>,
    /// Whether any of them has passed.
    pub passage: Passage,
    /// Who is told of its requests.
    pub telemetry: Arc<Telemetry>,
}

/// Both ends of a client's connection, where the server is told of them: the PROXY protocol speaks for a
/// whole connection, so requests of others do not belong on it.
/// Shared: connections are moved about, and hardly any has it.
type Behind = Arc<(SocketAddr, SocketAddr)>;

impl<C> ConnectionContext<C> {
    /// Who is behind connections to endpoints, where these are told.
    fn behind(&self, policy: &UpstreamPolicy) -> Option<Behind> {
        let told = || Arc::new((self.client_address, self.original_destination));
        policy.proxy_protocol.map(|_| told())
    }
}

/// The cluster of a connection's last request: the next is mostly for the same.
#[derive(Default)]
pub struct Recent(Mutex<Option<Arc<HttpCluster>>>);

impl Recent {
    fn get(
        &self,
        clusters: &Clusters<HttpPool>,
        destination: &Destination<'_>,
        now: Instant,
    ) -> Arc<HttpCluster> {
        match self.0.try_lock() {
            Some(mut last) => clusters.get_again(&mut last, destination, now),
            // Another stream of the connection is looking.
            None => clusters.get(destination, now),
        }
    }
}

/// Serves one connection of a client until it ends. Bytes that were read from
/// it to recognise the protocol are to be read again from `io`.
///
/// # Errors
/// What broke the connection: bytes that are not HTTP, a reset.
pub async fn serve<C, I>(
    io: I,
    version: HttpVersion,
    context: Arc<ConnectionContext<C>>,
) -> Result<(), hyper::Error>
where
    C: Connector,
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (drain, interim) = (context.drain.clone(), Arc::clone(&context.interim));
    let service = service_fn(move |request| {
        let is_drained = (version == HttpVersion::Http1 && request.method() != Method::CONNECT)
            .then(|| context.drain.clone());
        let is_head = request.method() == Method::HEAD;
        let answered = exchange::answer(Arc::clone(&context), request);
        // Mapped: an async block that awaits what it captured would hold it twice.
        answered.map_ok(move |mut response| {
            if is_head {
                answer::leave_body_out(&mut response);
            }
            let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            if is_drained.is_some_and(|drain| drain.is_cancelled()) && !switches {
                let close = http::HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            response
        })
    });
    match version {
        HttpVersion::Http1 => {
            let connection = http1::Builder::new()
                // A client may close its side after the request, and idle as long as it likes.
                .half_close(true)
                .header_read_timeout(None)
                .serve_connection(TokioIo::new(WithInterim::new(io, interim)), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                result = connection.as_mut() => return result,
                () = async {
                    drain.cancelled().await;
                    tokio::time::sleep(LAST_REQUEST_TIMEOUT).await;
                } => connection.as_mut().graceful_shutdown(),
            }
            connection.await
        }
        HttpVersion::Http2 => {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
                // A client may give up all of its requests at once; beyond h2's 20 that would end the connection.
                .max_pending_accept_reset_streams(MAX_CONCURRENT_STREAMS as usize)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(MAX_HEADER_BYTES)
                .enable_connect_protocol()
                .serve_connection(TokioIo::new(WriteTogether::new(io)), service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                result = after_others(connection.as_mut()) => return result,
                () = drain.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            after_others(connection).await
        }
    }
}

#[cfg(test)]
mod tests;
