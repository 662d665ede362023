//! Bodies of answers: an endpoint's, or our own.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::record::Record;
use super::upstream::{self, Lease};
use crate::balance::Report;
use crate::telemetry::Flag;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Why an answer ended early.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The endpoint did not send it to the end.
    #[error("the endpoint's body: {0}")]
    Upstream(#[source] hyper::Error),
    /// The rule's timeout.
    #[error("upstream request timeout")]
    Timeout,
}

/// The body of an answer.
pub(super) enum Answer {
    /// Ours.
    Own(Option<Bytes>),
    /// An endpoint's.
    Upstream(Box<Upstream>),
}

/// An endpoint's body with all that is held until it ends.
pub(super) struct Upstream {
    pub(super) incoming: Incoming,
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
    pub(super) record: Record,
    pub(super) lease: Option<Lease>,
    /// The trailers say whether a gRPC call failed.
    pub(super) grpc_status_later: bool,
}

impl Upstream {
    /// The connection is free, the line complete.
    fn end(&mut self) {
        self.record.end();
        if let Some(lease) = self.lease.take() {
            lease.finish();
        }
    }
}

impl Upstream {
    /// Tells health detection what a gRPC call came to.
    fn report(&mut self, trailers: &HeaderMap) {
        if let Some(status) = grpc_status(trailers) {
            self.record.grpc_status(status);
        }
        if let (true, Some(lease)) = (std::mem::take(&mut self.grpc_status_later), &self.lease)
            && let Some(status) = http_status_of(trailers)
        {
            lease.report(Report::Status(status));
            lease.report_to_route(status >= 500);
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // hyper does not poll a body again that says it has ended.
        if self.lease.is_some() && self.incoming.is_end_stream() {
            self.end();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let answer = match &mut *self {
            Self::Own(bytes) => {
                return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))));
            }
            Self::Upstream(answer) => answer,
        };
        if let Some(deadline) = &mut answer.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            answer.record.broken(
                Flag::UpstreamRequestTimeout,
                "response_timeout",
                &AnswerError::Timeout,
            );
            return Poll::Ready(Some(Err(AnswerError::Timeout)));
        }
        let frame = ready!(Pin::new(&mut answer.incoming).poll_frame(cx));
        match &frame {
            None => answer.end(),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    answer.record.sent(data.len() as u64);
                } else if let Some(trailers) = frame.trailers_ref() {
                    answer.report(trailers);
                }
                if answer.incoming.is_end_stream() {
                    answer.end();
                }
            }
            Some(Err(error)) => {
                let (flag, details) = if upstream::is_cut_short(error) {
                    (
                        Flag::UpstreamProtocolError,
                        "upstream_reset_after_response_started{protocol_error}",
                    )
                } else {
                    (
                        Flag::UpstreamConnectionTermination,
                        "upstream_reset_after_response_started{connection_termination}",
                    )
                };
                answer.record.broken(flag, details, error);
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(AnswerError::Upstream)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Upstream(upstream) => upstream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Upstream(upstream) => upstream.incoming.size_hint(),
        }
    }
}

/// An answer of ours with a body.
pub(super) fn own(status: StatusCode, body: Bytes) -> Response<Answer> {
    let mut response = Response::new(Answer::Own(Some(body).filter(|body| !body.is_empty())));
    *response.status_mut() = status;
    response
}

/// The answer of a rule: text, or for gRPC a status, with the text as its message.
pub(super) fn of_rule(status: StatusCode, body: Bytes, grpc: bool) -> Response<Answer> {
    if grpc {
        return self::grpc(grpc_status_of(status), &String::from_utf8_lossy(&body));
    }
    let is_text = !body.is_empty();
    let mut response = own(status, body);
    if is_text {
        let text = HeaderValue::from_static("text/plain");
        response.headers_mut().insert(CONTENT_TYPE, text);
    }
    response
}

/// An error of ours: a line of text, or for gRPC a response that consists of
/// trailers only (gRPC over HTTP/2, "Responses").
pub(super) fn error(status: StatusCode, reason: &str, grpc: bool) -> Response<Answer> {
    if grpc {
        return self::grpc(grpc_status_of(status), reason);
    }
    of_rule(status, reason.replace(['\r', '\n'], " ").into(), false)
}

/// A gRPC status.
pub(super) fn grpc(code: u16, message: &str) -> Response<Answer> {
    let mut response = own(StatusCode::OK, Bytes::new());
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(code));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(message))
        && !message.is_empty()
    {
        headers.insert(GRPC_MESSAGE, message);
    }
    response
}

/// An answer of ours to HEAD has no body, only its length; over HTTP/2 it would be sent.
pub(super) fn leave_body_out(response: &mut Response<Answer>) {
    if let Answer::Own(body) = response.body_mut()
        && let Some(body) = body.take()
    {
        let length = HeaderValue::from(body.len());
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
}

/// A rule may give an answer of ours another content type, but not take it away; an answer to a
/// call of gRPC's is one whatever the rule says.
pub(super) fn keep_content_type(response: &mut Response<Answer>) {
    let has_body = !response.body().is_end_stream();
    let headers = response.headers_mut();
    if headers.contains_key(GRPC_STATUS) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    } else if has_body && !headers.contains_key(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
}

/// gRPC, "HTTP to gRPC Status Code Mapping".
fn grpc_status_of(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// The status of a call of gRPC's, where `headers` (or trailers) have one.
pub(in crate::proxy) fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// The status of HTTP that stands for a gRPC status, where `headers` (or trailers) have one.
pub(super) fn http_status_of(headers: &HeaderMap) -> Option<u16> {
    // As Envoy maps them.
    Some(match grpc_status(headers)? {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    })
}

/// `grpc-message` is percent-encoded where it is not printable ASCII (gRPC over HTTP/2).
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => encoded.push_str(&format!("%{byte:02X}")),
            printable => encoded.push(char::from(printable)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_messages_are_printable_ascii() {
        assert_eq!(percent_encoded("100% \u{e9}\n"), "100%25 %C3%A9%0A");
    }
}
