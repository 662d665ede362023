//! One request and its answer: route, then forward or answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue, LOCATION};
use http::{Request, Response, StatusCode};
use hyper::body::{Body, Incoming};

use super::ConnectionContext;
use super::answer::{self, Answer};
use super::connector::Connector;
use super::failure::Failure;
use super::forward::Exchange;
use super::record::Record;
use super::{message, request_id, websocket};
use crate::balance::Destination;
use crate::registry::Registry;
use crate::route::{Abort, ClientView, Decision, Facts, Outcome, RequestView};
use crate::telemetry::Flag;

const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// Answers one request.
pub(super) async fn answer<C: Connector>(
    context: Arc<ConnectionContext<C>>,
    mut request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let grpc = message::is_grpc(request.headers());
    // One configuration for the whole exchange, whatever comes into force meanwhile.
    let snapshot = context.snapshot.load_full();
    let normalization = snapshot.authorization.path_normalization;
    let admitted = websocket::admit(&mut request).and_then(|extended_connect| {
        message::admit(&mut request, normalization)?;
        request_id::ensure(request.headers_mut(), &mut rand::rng());
        Ok(extended_connect)
    });
    let admitted =
        admitted.and_then(|extended_connect| Ok((extended_connect, message::authority(&request)?)));
    let (extended_connect, authority) = match admitted {
        Ok(admitted) => admitted,
        Err(bad) => {
            let record = Record::begin(&request, "", &context);
            return Ok(refuse(record, Failure::bad_request(bad), grpc, |_| {}));
        }
    };
    let mut record = Record::begin(&request, authority, &context);
    let registry: &Registry = &snapshot.registry;
    let service = registry
        .successor(&context.service)
        .unwrap_or(&context.service);
    let port = context.original_destination.port();
    let decision = {
        let view = RequestView {
            authority,
            method: request.method(),
            path_and_query: request
                .uri()
                .path_and_query()
                .map_or("/", |path| path.as_str()),
            scheme: request.uri().scheme_str().unwrap_or("http"),
            headers: request.headers(),
            facts: Facts {
                client: context.client_address,
                destination: context.original_destination,
                version: request.version(),
                now: SystemTime::now,
            },
        };
        let client = ClientView::of(&context.client);
        snapshot
            .routes
            .decide(&view, &client, service, port, registry, &mut rand::rng())
    };
    record.route(decision.route_name);
    if let Some(meant) = &decision.meant {
        record.meant(
            &meant.host,
            meant.port.unwrap_or(port),
            meant.subset.as_deref(),
        );
    }
    if let Some(delay) = decision.delay {
        record.flag(Flag::DelayInjected);
        tokio::time::sleep(delay).await;
    }
    if let Outcome::Forward(plan) = &decision.outcome {
        let now = tokio::time::Instant::now().into_std();
        let version = snapshot.version();
        let destination = Destination::of(plan, &context.client, version);
        let cluster = context
            .recent
            .get(&context.upstreams.clusters, &destination, now);
        let mut exchange = Exchange {
            context: &context,
            version,
            plan,
            cluster,
            grpc,
            record,
            at: None,
            timed: None,
        };
        let mut response = match exchange.run(request).await {
            Ok(mut forwarded) => {
                context.passage.passed();
                forwarded.extended_connect = extended_connect;
                forwarded.into_response(plan, exchange.record)
            }
            Err(failure) => {
                if let Some(why) = failure.refused {
                    context.passage.refused(why, exchange.endpoint());
                }
                refuse(exchange.record, failure, grpc, |headers| {
                    plan.edit_response(headers);
                })
            }
        };
        decision.share_response(response.headers_mut());
        return Ok(response);
    }
    Ok(own_answer(&decision, record, grpc))
}

/// The answer of a decision that needs no upstream.
fn own_answer(decision: &Decision<'_>, mut record: Record, grpc: bool) -> Response<Answer> {
    record.details("direct_response");
    let mut response = match &decision.outcome {
        Outcome::Forward(_) => answer::own(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
        Outcome::Redirect(redirection) => {
            let mut response = answer::of_rule(redirection.status, Bytes::new(), grpc);
            match HeaderValue::from_str(&redirection.location) {
                Ok(location) => {
                    response.headers_mut().insert(LOCATION, location);
                }
                Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
            }
            response
        }
        Outcome::Direct(direct) => answer::of_rule(direct.status, direct.body.clone(), grpc),
        Outcome::Preflight(allowed) => {
            record.details("cors_response");
            let mut response = answer::own(StatusCode::OK, Bytes::new());
            if let Some(allowed) = allowed {
                allowed.preflight(response.headers_mut());
            }
            response
        }
        Outcome::Abort(abort) => {
            record.flag(Flag::FaultInjected);
            record.details("fault_filter_abort");
            match abort {
                Abort::Http(status) => answer::error(*status, "fault filter abort", grpc),
                Abort::Grpc(code) if grpc => answer::grpc(*code, "fault filter abort"),
                // As Envoy does it, for whom the status of a call of gRPC's is none of HTTP's.
                Abort::Grpc(_) => answer::error(StatusCode::OK, "fault filter abort", false),
            }
        }
        Outcome::Unroutable(unroutable) => {
            let edit = |headers: &mut HeaderMap| decision.edit_own_response(headers);
            let mut response = refuse(record, unroutable.into(), grpc, edit);
            decision.share_response(response.headers_mut());
            return response;
        }
    };
    decision.edit_own_response(response.headers_mut());
    answer::keep_content_type(&mut response);
    decision.share_response(response.headers_mut());
    ended(record, &response);
    response
}

/// The answer of a failure, with the edits of the rule.
fn refuse(
    mut record: Record,
    failure: Failure,
    grpc: bool,
    edit: impl FnOnce(&mut HeaderMap),
) -> Response<Answer> {
    let is_overload = failure.is_overload();
    record.flags(failure.flags);
    record.details(failure.details);
    record.reason(&failure.reason);
    let mut response = answer::error(failure.status, &failure.reason, grpc);
    if is_overload {
        let yes = HeaderValue::from_static("true");
        response.headers_mut().insert(OVERLOADED, yes);
    }
    edit(response.headers_mut());
    answer::keep_content_type(&mut response);
    ended(record, &response);
    response
}

/// An answer of our own is given whole, as far as anybody knows.
fn ended(mut record: Record, response: &Response<Answer>) {
    record.answered(response);
    if let Some(status) = answer::grpc_status(response.headers()) {
        record.grpc_status(status);
    }
    record.sent(response.body().size_hint().exact().unwrap_or_default());
    record.end();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::upstream::Upstream;

    #[test]
    fn a_request_on_its_way_takes_little_memory() {
        type Context = Arc<ConnectionContext<Upstream>>;
        fn size<F: Future>(_: impl FnOnce(Context, Request<Incoming>) -> F) -> usize {
            size_of::<F>()
        }
        // Each request's is copied to where it is run.
        let bytes = size(answer);
        assert!(bytes <= 6 * 1024, "{bytes} bytes");
    }
}
