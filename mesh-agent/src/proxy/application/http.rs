//! Requests to an application, each of them decided by the policies. The
//! connection to the application belongs to the caller's connection: what one
//! ends, the other ends.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version, request};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::copy_bidirectional;
use tokio::sync::Mutex;

use super::admissions::{Admission, Head};
use super::counting::{self, Counting};
use super::pipe::Pipe;
use super::{Caller, Event, arrived, connect, record, report};
use crate::policy::authorization::{Decision, Payload, Reason, Verdict};
use crate::proxy::http::message::{self, BadRequest};
use crate::proxy::http::{
    CONNECTION_WINDOW, HttpVersion, MAX_CONCURRENT_STREAMS, MAX_HEADER_BYTES, STREAM_WINDOW,
};
use crate::proxy::replay::Replay;
use crate::proxy::turn::after_others;
use crate::proxy::write_together::WriteTogether;
use crate::proxy::{Local, Node};
use crate::telemetry::callers::Arrived;

/// What a caller is told whose request is denied, as by Envoy.
const DENIED: &str = "RBAC: access denied";
/// gRPC status `PERMISSION_DENIED`.
const GRPC_PERMISSION_DENIED: &str = "7";

/// A failure that ends the caller's connection (HTTP/1.1) or stream (HTTP/2):
/// what happened to the application's connection happens to the caller's.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One connection of a caller.
struct Filter {
    node: Arc<Node>,
    local: Arc<Local>,
    caller: Caller,
    application: SocketAddr,
    version: HttpVersion,
    upstream: Mutex<Option<Upstream>>,
    /// Where its requests are counted.
    arrived: Option<Arc<Arrived>>,
}

/// The connection to the application.
enum Upstream {
    Http1(conn::http1::SendRequest<counting::Asked>),
    Http2(conn::http2::SendRequest<counting::Asked>),
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
    let admission = node
        .admissions
        .http(local.workload.clone(), caller.clone(), application);
    let filter = Arc::new(Filter {
        arrived: arrived(node, local, &caller, application),
        node: node.clone(),
        local: local.clone(),
        caller,
        application,
        version,
        upstream: Mutex::default(),
    });
    let service = service_fn(move |request| answer(filter.clone(), request));
    match version {
        HttpVersion::Http1 => {
            let connection = http1::Builder::new()
                .half_close(true)
                .header_read_timeout(None)
                .preserve_header_case(true)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            until_revoked(&admission, connection).await
        }
        HttpVersion::Http2 => {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(MAX_HEADER_BYTES)
                .serve_connection(TokioIo::new(WriteTogether::new(stream)), service);
            until_revoked(&admission, after_others(connection)).await
        }
    }
}

async fn until_revoked(
    admission: &Admission,
    connection: impl Future<Output = hyper::Result<()>>,
) -> io::Result<()> {
    tokio::select! {
        result = connection => result.map_err(io::Error::other),
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
    let normalization = filter.node.snapshot.load().authorization.path_normalization;
    let admitted = message::admit(&mut request, normalization);
    let head = match admitted.and_then(|()| head(&request)) {
        Ok(head) => Arc::new(head),
        Err(bad) => {
            return Ok(own(
                bad.status(),
                &bad.to_string(),
                asked,
                counting.as_deref(),
            ));
        }
    };
    let decision = filter.decide(&head);
    if decision.verdict != Verdict::Allow {
        let answer = own(StatusCode::FORBIDDEN, DENIED, asked, counting.as_deref());
        let length = answer.body().size_hint().exact().unwrap_or_default();
        filter.denied(&head, &decision.reason, length);
        return Ok(answer);
    }
    let Filter {
        node,
        local,
        caller,
        application,
        ..
    } = &*filter;
    super::told(node, &local.workload, caller, *application, decision);
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
    let forwarded = filter.forward(Request::from_parts(parts, body));
    let response = tokio::select! {
        response = forwarded => response?,
        revoked = admission.revoked() => return Err(revoked.into()),
    };
    if let Some(counting) = &counting {
        counting.answered(response.status().as_u16(), response.headers());
    }
    Ok(pass_on(
        response,
        (admission, counting),
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
        let snapshot = self.node.snapshot.load();
        let request = head.request(&self.caller);
        snapshot.authorization.decide(
            &self.local.workload,
            &self.caller.connection(self.application),
            Payload::Http(&request),
        )
    }

    /// Tells of a request that was answered by so many bytes instead of forwarded.
    fn denied(&self, head: &Head, reason: &Reason, length: u64) {
        record::request(
            &self.node,
            &self.local.workload,
            (&self.caller, self.application),
            (head, self.version),
            reason,
            length,
        );
        tracing::debug!(
            workload = %self.local.workload.name,
            client = %self.caller.address,
            identity = self.caller.identity.as_ref().map(tracing::field::display),
            method = %head.method,
            authority = head.authority,
            path = head.path_and_query,
            details = reason.details(),
            "request denied"
        );
        report(
            &self.node,
            &self.local.workload,
            &self.caller,
            self.application,
            Event::Denied,
            reason.to_string(),
        );
    }

    /// Over HTTP/1.1 the application gets the host that was decided about in the only
    /// place where it looks.
    fn rewrite(&self, parts: &mut request::Parts, head: &Head) -> Result<(), Failure> {
        if parts.method == Method::CONNECT {
            return Ok(());
        }
        match self.version {
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

    /// Over the connection to the application; a new one where there is none
    /// any more. A request is sent once.
    async fn forward(
        &self,
        request: Request<counting::Asked>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut upstream = self.upstream.lock().await;
        let ready = match &mut *upstream {
            Some(Upstream::Http1(sender)) => sender.ready().await.is_ok(),
            Some(Upstream::Http2(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        if !ready {
            *upstream = Some(self.open().await?);
        }
        match &mut *upstream {
            Some(Upstream::Http1(sender)) => Ok(sender.send_request(request).await?),
            Some(Upstream::Http2(sender)) => {
                let mut sender = sender.clone();
                // Others do not wait for this answer.
                drop(upstream);
                Ok(sender.send_request(request).await?)
            }
            None => Err("no connection to the application".into()),
        }
    }

    async fn open(&self) -> Result<Upstream, Failure> {
        let stream = connect(&self.node, &self.local, &self.caller, self.application).await?;
        Ok(match self.version {
            HttpVersion::Http1 => {
                let (sender, connection) = conn::http1::Builder::new()
                    .preserve_header_case(true)
                    .handshake(TokioIo::new(stream))
                    .await?;
                // What goes wrong is told to whoever waits for a response.
                tokio::spawn(connection.with_upgrades());
                Upstream::Http1(sender)
            }
            HttpVersion::Http2 => {
                let (sender, connection) = conn::http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .max_header_list_size(MAX_HEADER_BYTES)
                    .handshake(TokioIo::new(WriteTogether::new(stream)))
                    .await?;
                tokio::spawn(after_others(connection));
                Upstream::Http2(sender)
            }
        })
    }
}

/// The application's answer; it goes on as long as the request has leave to.
fn pass_on(
    mut response: Response<Incoming>,
    (admission, counting): (Admission, Option<Arc<Counting>>),
    client_upgrade: Option<OnUpgrade>,
    head: &Head,
) -> Response<Answer> {
    let status = response.status();
    let switches = status == StatusCode::SWITCHING_PROTOCOLS
        || (head.method == Method::CONNECT && status.is_success());
    if let (true, Some(client)) = (switches, client_upgrade) {
        let upstream = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let Err(error) = tunnel(client, upstream, &admission).await {
                tracing::debug!(%error, "tunnel through the filter ended");
            }
            drop(counting);
        });
        return response.map(|_| Answer::Own(None));
    }
    response.map(|body| Answer::Application {
        body,
        admission,
        counting,
    })
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
        headers.insert(
            "grpc-status",
            HeaderValue::from_static(GRPC_PERMISSION_DENIED),
        );
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
    Application {
        body: Incoming,
        admission: Admission,
        counting: Option<Arc<Counting>>,
    },
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
            Self::Application {
                body,
                admission,
                counting,
            } => {
                if let Poll::Ready(revoked) = admission.poll_revoked(cx) {
                    return Poll::Ready(Some(Err(revoked.into())));
                }
                let polled = Pin::new(body).poll_frame(cx);
                if let (Poll::Ready(Some(Ok(frame))), Some(counting)) = (&polled, counting) {
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
