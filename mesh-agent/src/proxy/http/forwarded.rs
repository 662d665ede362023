//! The answer of an endpoint on its way to the client.

use http::header::{HeaderName, HeaderValue, SET_COOKIE};
use http::{Response, StatusCode, Version};
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::answer::{self, Answer};
use super::record::{Record, VIA_UPSTREAM};
use super::upstream::Sent;
use super::{message, tunnel, websocket};
use crate::route::Plan;

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// A response that has begun.
pub(super) struct Forwarded {
    pub(super) sent: Sent,
    pub(super) began: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) client_upgrade: Option<OnUpgrade>,
    pub(super) is_connect: bool,
    /// The client asked for WebSocket by HTTP/2.
    pub(super) extended_connect: bool,
    /// Cookie by which the client's next requests go to the same endpoint.
    pub(super) set_cookie: Option<HeaderValue>,
    /// The exchange is gRPC, and its status is still to come, in the trailers.
    pub(super) grpc_status_later: bool,
}

impl Forwarded {
    /// The answer for the client, which holds what the exchange needs until it ends.
    pub(super) fn into_response(self, plan: &Plan<'_>, mut record: Record) -> Response<Answer> {
        let Sent {
            mut response,
            lease,
        } = self.sent;
        let status = response.status();
        record.answered(&response);
        record.details(VIA_UPSTREAM);
        if let Some(status) = answer::grpc_status(response.headers()) {
            record.grpc_status(status);
        }
        let switches =
            status == StatusCode::SWITCHING_PROTOCOLS || (self.is_connect && status.is_success());
        if let (true, Some(client)) = (switches, self.client_upgrade) {
            let upstream = hyper::upgrade::on(&mut response);
            tunnel::spawn(client, upstream, record, lease);
            let (mut parts, _) = response.into_parts();
            parts.extensions.clear();
            if self.extended_connect {
                websocket::answer(&mut parts);
            }
            plan.edit_response(&mut parts.headers);
            return Response::from_parts(parts, Answer::Own(None));
        }
        let (mut parts, incoming) = response.into_parts();
        parts.extensions.clear();
        parts.version = Version::HTTP_11;
        message::strip_hop_by_hop(&mut parts.headers);
        if self.extended_connect {
            websocket::answer(&mut parts);
        }
        let service_time_ms = self.began.elapsed().as_millis() as u64;
        record.service_time(service_time_ms);
        parts
            .headers
            .insert(SERVICE_TIME, HeaderValue::from(service_time_ms));
        if let Some(cookie) = self.set_cookie {
            parts.headers.append(SET_COOKIE, cookie);
        }
        plan.edit_response(&mut parts.headers);
        let deadline = (!incoming.is_end_stream())
            .then_some(self.deadline)
            .flatten();
        let body = answer::Upstream {
            incoming,
            deadline: deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline))),
            record,
            lease: Some(lease),
            grpc_status_later: self.grpc_status_later,
        };
        Response::from_parts(parts, Answer::Upstream(Box::new(body)))
    }
}
