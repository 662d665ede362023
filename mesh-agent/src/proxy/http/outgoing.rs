//! What goes out in one attempt: the request, and the protocol that it travels by.

use std::sync::Arc;

use http::header::{EXPECT, HeaderMap};
use http::{Method, Request, StatusCode, Version, request};
use tokio::sync::Notify;

use super::message;
use super::pool::UpstreamProtocol;
use super::request_body::{BodySource, RequestBody};
use crate::registry::Protocol;
use crate::route::{Plan, ProtocolPolicy};

/// HTTP/2 for gRPC, where the port declares it, where it declares nothing and the
/// client speaks it, and where the DestinationRule wants it.
pub(super) fn protocol(
    plan: &Plan<'_>,
    version: Version,
    method: &Method,
    headers: &HeaderMap,
) -> UpstreamProtocol {
    let by_client = version == Version::HTTP_2;
    let upgrades = headers.contains_key(http::header::UPGRADE) || method == Method::CONNECT;
    let declared = || {
        let port = plan.service.port(plan.port);
        match port.map(|port| port.protocol) {
            Some(Protocol::Http2 | Protocol::Grpc) => true,
            Some(Protocol::Auto) => by_client,
            _ => by_client && message::is_grpc(headers),
        }
    };
    let http2 = match plan.policy.http.protocol {
        ProtocolPolicy::Client => by_client,
        ProtocolPolicy::Http2 => true,
        ProtocolPolicy::Declared => declared(),
    };
    if http2 && !upgrades {
        UpstreamProtocol::Http2
    } else {
        UpstreamProtocol::Http1
    }
}

/// The request of one attempt.
pub(super) fn outgoing(
    parts: request::Parts,
    body: &BodySource,
    protocol: UpstreamProtocol,
) -> Request<RequestBody> {
    let waits = protocol == UpstreamProtocol::Http1 && expects_continue(&parts.headers);
    let mut request = Request::from_parts(parts, body.attempt());
    if waits {
        let said = Arc::new(Notify::new());
        request.body_mut().wait_for_continue(Arc::clone(&said));
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                said.notify_one();
            }
        });
    }
    request
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
