//! Requests to an application, each of them decided by the policies. The
//! connection to the application belongs to the caller's connection: what one
//! ends, the other ends.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version, request};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_common::Transport;
use tokio::io::copy_bidirectional;

use super::admissions::{Admission, Head};
use super::counting::{self, Counting};
use super::kept::{Busy, Kept, Unsent};
use super::pipe::Pipe;
use super::{Caller, Event, arrived, record, report};
use crate::policy::authorization::{Decision, Payload, Reason, Verdict};
use crate::proxy::http::interim::{Interim, WithInterim, this_task};
use crate::proxy::http::message::{self, BadRequest};
use crate::proxy::http::{HttpVersion, MAX_CONCURRENT_STREAMS, MAX_HEADER_BYTES};
use crate::proxy::replay::Replay;
use crate::proxy::turn::after_others;
use crate::proxy::write_together::WriteTogether;
use crate::proxy::{Local, Node};
use crate::telemetry::callers::Arrived;
use crate::telemetry::{Flag, Flags};

/// What a caller is told whose request is denied, as by Envoy.
const DENIED: &str = "RBAC: access denied";
/// What a caller is told whose request is one too many, as by Envoy.
const OVERFLOW: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: overflow";
/// Statuses of gRPC.
const PERMISSION_DENIED: &str = "7";
const UNAVAILABLE: &str = "14";

/// A failure that ends the caller's connection (HTTP/1.1) or stream (HTTP/2):
/// what happened to the application's connection happens to the caller's.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One connection of a caller.
struct Filter {
    /// The other half of it.
    kept: Arc<Kept>,
    /// Where its requests are counted.
    arrived: Option<Arc<Arrived>>,
    /// Informational responses on their way to a caller that speaks HTTP/1.
    interim: Arc<Interim>,
    /// A request was let through, or the account has it that none was.
    is_accounted: AtomicBool,
}

/// Serves a connection until it ends, or policies forbid it altogether.
pub(super) async fn serve(
    node: &Arc<Node>,
    local: &Arc<Local>,
    caller: Caller,
    application: SocketAddr,
    version: HttpVersion,
    stream: Replay<Pipe>,
) -> io::Result<()> {
    let admission =
        node.admissions
            .http(local.workload.clone(), caller.clone(), application, version);
    let arrived = arrived(node, local, &caller, application);
    let kept = Kept::new(node, local, caller, application, version);
    let tending = kept.clone().tend();
    let interim = Arc::<Interim>::default();
    let filter = Arc::new(Filter {
        kept,
        arrived,
        interim: interim.clone(),
        is_accounted: AtomicBool::new(false),
    });
    let service = service_fn(move |request| answer(filter.clone(), request));
    match version {
        HttpVersion::Http1 => {
            let connection = http1::Builder::new()
                .half_close(true)
                .header_read_timeout(None)
                .preserve_header_case(true)
                .serve_connection(TokioIo::new(WithInterim::new(stream, interim)), service)
                .with_upgrades();
            until_revoked(&admission, tending, connection).await
        }
        HttpVersion::Http2 => {
            let window = node.windows.take();
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
                .initial_stream_window_size(window.stream())
                .initial_connection_window_size(window.connection())
                .max_send_buf_size(window.send_buffer())
                .max_header_list_size(MAX_HEADER_BYTES)
                .serve_connection(TokioIo::new(WriteTogether::new(stream)), service);
            until_revoked(&admission, tending, after_others(connection)).await
        }
    }
}

async fn until_revoked(
    admission: &Admission,
    tending: impl Future<Output = Infallible>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> io::Result<()> {
    tokio::select! {
        result = connection => result.map_err(io::Error::other),
        never = tending => match never {},
        revoked = admission.revoked() => Err(revoked),
    }
}

/// Decides about one request, and forwards it or says no.
async fn answer(
    filter: Arc<Filter>,
    mut request: Request<Incoming>,
) -> Result<Response<Answer>, Failure> {
    let asked = Asked {
        is_grpc: message::is_grpc(request.headers()),
        is_head: request.method() == Method::HEAD,
    };
    let counting = (filter.arrived.clone()).map(|arrived| Counting::begin(arrived, asked.is_grpc));
    let kept = &filter.kept;
    let normalization = kept.node.snapshot.load().authorization.path_normalization;
    let admitted = message::admit(&mut request, normalization);
    let head = match admitted.and_then(|()| head(&request)) {
        Ok(head) => Arc::new(head),
        Err(bad) => {
            let text = bad.to_string();
            return Ok(own(
                bad.status(),
                PERMISSION_DENIED,
                &text,
                asked,
                counting.as_deref(),
            ));
        }
    };
    let decision = filter.decide(&head);
    if decision.verdict != Verdict::Allow {
        let status = StatusCode::FORBIDDEN;
        let answer = own(
            status,
            PERMISSION_DENIED,
            DENIED,
            asked,
            counting.as_deref(),
        );
        let length = answer.body().size_hint().exact().unwrap_or_default();
        filter.denied(&head, &decision.reason, length);
        return Ok(answer);
    }
    let Kept {
        node,
        local,
        caller,
        application,
        ..
    } = &**kept;
    super::told(node, &local.workload, caller, *application, decision);
    let Ok(busy) = kept.begin() else {
        return Ok(filter.overflow(&head, asked, counting.as_deref()));
    };
    let admission = (node.admissions).request(
        local.workload.clone(),
        caller.clone(),
        *application,
        head.clone(),
    );
    let client_upgrade = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();
    let upgrades = message::is_upgrade(&parts);
    parts.extensions.clear();
    filter.rewrite(&mut parts, &head)?;
    let body = counting::Asked::new(body, counting.clone());
    let request = Request::from_parts(parts, body);
    let task = match request.version() {
        Version::HTTP_11 => Some(this_task().await),
        _ => None,
    };
    let (request, informing) = filter.interim.pass_on(request, task);
    let sent = tokio::select! {
        sent = kept.send(request, busy.limits()) => sent,
        revoked = admission.revoked() => return Err(revoked.into()),
    };
    drop(informing);
    let response = match sent {
        Err(Unsent::Overflow(_)) => {
            return Ok(filter.overflow(&head, asked, counting.as_deref()));
        }
        sent => sent?,
    };
    filter.is_accounted.store(true, Relaxed);
    if let Some(counting) = &counting {
        counting.answered(response.status().as_u16(), response.headers());
    }
    Ok(pass_on(
        response,
        Held {
            admission,
            counting,
            _busy: busy,
        },
        upgrades.then_some(client_upgrade),
        &head,
    ))
}

/// What policies see of a request.
fn head<B>(request: &Request<B>) -> Result<Head, BadRequest> {
    let path = request.uri().path_and_query();
    Ok(Head {
        authority: message::authority(request)?.to_owned(),
        method: request.method().clone(),
        path_and_query: path.map_or("", PathAndQuery::as_str).to_owned(),
        headers: request.headers().clone(),
    })
}

impl Filter {
    fn decide(&self, head: &Head) -> Decision {
        let kept = &self.kept;
        let snapshot = kept.node.snapshot.load();
        let request = head.request(&kept.caller);
        snapshot.authorization.decide(
            &kept.local.workload,
            &kept.caller.connection(kept.application),
            Payload::Http(&request),
        )
    }

    /// A connection of which nothing has been let through so far was refused, as far as the
    /// application knows.
    fn refused(&self, why: Transport) {
        if !self.is_accounted.swap(true, Relaxed) {
            let (kept, to) = (&self.kept, self.kept.application);
            super::refused(&kept.node, &kept.local, &kept.caller, to, why);
        }
    }

    /// Tells of a request that was answered by so many bytes instead of forwarded.
    fn denied(&self, head: &Head, reason: &Reason, length: u64) {
        let kept = &self.kept;
        let details = reason.details();
        let why = record::Answered {
            code: StatusCode::FORBIDDEN.as_u16(),
            flags: Flags::default(),
            details: &details,
            length,
        };
        record::request(kept, head, &why);
        self.refused(Transport::Blocked);
        tracing::debug!(
            workload = %kept.local.workload.name,
            client = %kept.caller.address,
            identity = kept.caller.identity.as_ref().map(tracing::field::display),
            method = %head.method,
            authority = head.authority,
            path = head.path_and_query,
            details = reason.details(),
            "request denied"
        );
        report(
            &kept.node,
            &kept.local.workload,
            &kept.caller,
            kept.application,
            Event::Denied,
            reason.to_string(),
        );
    }

    /// The answer to a request for which there is no room, as Envoy's.
    fn overflow(&self, head: &Head, asked: Asked, counting: Option<&Counting>) -> Response<Answer> {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let mut answer = own(status, UNAVAILABLE, OVERFLOW, asked, counting);
        let overloaded = HeaderName::from_static("x-envoy-overloaded");
        (answer.headers_mut()).insert(overloaded, HeaderValue::from_static("true"));
        let flags = Flags::from(Flag::UpstreamOverflow);
        if let Some(counting) = counting {
            counting.flagged(flags);
        }
        let why = record::Answered {
            code: status.as_u16(),
            flags,
            details: "upstream_reset_before_response_started{overflow}",
            length: answer.body().size_hint().exact().unwrap_or_default(),
        };
        record::request(&self.kept, head, &why);
        self.refused(Transport::NoRoom);
        tracing::debug!(
            workload = %self.kept.local.workload.name,
            client = %self.kept.caller.address,
            port = self.kept.application.port(),
            path = head.path_and_query,
            "request refused: a bound of the Sidecar is reached"
        );
        answer
    }

    /// Over HTTP/1.1 the application gets the host that was decided about in the only
    /// place where it looks.
    fn rewrite(&self, parts: &mut request::Parts, head: &Head) -> Result<(), Failure> {
        if parts.method == Method::CONNECT {
            return Ok(());
        }
        match self.kept.version {
            HttpVersion::Http1 => {
                if parts.uri.authority().is_some() {
                    parts
                        .headers
                        .insert(HOST, HeaderValue::try_from(head.authority.as_str())?);
                    parts.uri = parts
                        .uri
                        .path_and_query()
                        .cloned()
                        .map_or_else(|| Uri::from_static("/"), Uri::from);
                }
            }
            HttpVersion::Http2 => parts.version = Version::HTTP_2,
        }
        Ok(())
    }
}

/// What is held until an answer has ended.
struct Held {
    admission: Admission,
    counting: Option<Arc<Counting>>,
    _busy: Busy,
}

/// The application's answer; it goes on as long as the request has leave to.
fn pass_on(
    mut response: Response<Incoming>,
    held: Held,
    client_upgrade: Option<OnUpgrade>,
    head: &Head,
) -> Response<Answer> {
    let status = response.status();
    let switches = status == StatusCode::SWITCHING_PROTOCOLS
        || (head.method == Method::CONNECT && status.is_success());
    if let (true, Some(client)) = (switches, client_upgrade) {
        let upstream = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let Err(error) = tunnel(client, upstream, &held.admission).await {
                tracing::debug!(%error, "tunnel through the filter ended");
            }
            drop(held);
        });
        return response.map(|_| Answer::Own(None));
    }
    response.map(|body| Answer::Application { body, held })
}

async fn tunnel(
    client: OnUpgrade,
    upstream: OnUpgrade,
    admission: &Admission,
) -> Result<(), Failure> {
    let io = |upgraded: Upgraded| TokioIo::new(upgraded);
    let (mut client, mut upstream) = (io(client.await?), io(upstream.await?));
    tokio::select! {
        result = copy_bidirectional(&mut client, &mut upstream) => Ok(result.map(drop)?),
        revoked = admission.revoked() => Err(revoked.into()),
    }
}

/// What an answer of our own depends on.
#[derive(Clone, Copy)]
struct Asked {
    is_grpc: bool,
    is_head: bool,
}

/// The agent's own answer.
fn own(
    status: StatusCode,
    grpc_status: &'static str,
    text: &str,
    asked: Asked,
    counting: Option<&Counting>,
) -> Response<Answer> {
    let Asked { is_grpc, is_head } = asked;
    let (status, body, content_type) = if is_grpc {
        (StatusCode::OK, Bytes::new(), "application/grpc")
    } else {
        let body = Bytes::copy_from_slice(text.as_bytes());
        (status, body, "text/plain")
    };
    let length = body.len();
    // The answer to HEAD has no body, only its length; over HTTP/2 it would be sent.
    let body = (length > 0 && !is_head).then_some(body);
    let mut response = Response::new(Answer::Own(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if is_head && length > 0 {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if is_grpc {
        headers.insert("grpc-status", HeaderValue::from_static(grpc_status));
        if let Ok(message) = HeaderValue::from_str(text) {
            headers.insert("grpc-message", message);
        }
    }
    if let Some(counting) = counting {
        counting.answered(status.as_u16(), response.headers());
        counting.sent(if is_head { 0 } else { length as u64 });
    }
    response
}

/// The body of an answer.
enum Answer {
    /// Ours.
    Own(Option<Bytes>),
    /// The application's, as long as there is leave for it.
    Application { body: Incoming, held: Held },
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Application { body, held } => {
                if let Poll::Ready(revoked) = held.admission.poll_revoked(cx) {
                    return Poll::Ready(Some(Err(revoked.into())));
                }
                let polled = Pin::new(body).poll_frame(cx);
                if let (Poll::Ready(Some(Ok(frame))), Some(counting)) = (&polled, &held.counting) {
                    counting.frame(frame);
                }
                polled.map_err(Failure::from)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Application { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Application { body, .. } => body.size_hint(),
        }
    }
}
