//! One request and its answer: route, then forward or answer.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::ConnectionContext;
use super::answer::{self, Answer};
use super::connector::Connector;
use super::forward::Exchange;
use super::message;
use super::record::Record;
use crate::balance::Destination;
use crate::registry::Registry;
use crate::route::{Abort, ClientView, Decision, Outcome, RequestView};

const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// Answers one request.
pub(super) async fn answer<C: Connector>(
    context: Arc<ConnectionContext<C>>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let grpc = message::is_grpc(request.headers());
    let authority = match message::authority(&request) {
        Ok(authority) => authority,
        Err(bad) => {
            let record = Record::begin(&request, "", &context.client.name);
            return Ok(refuse(
                record,
                StatusCode::BAD_REQUEST,
                "DPE",
                &bad.to_string(),
                grpc,
            ));
        }
    };
    let mut record = Record::begin(&request, authority, &context.client.name);
    // One configuration for the whole exchange, whatever comes into force meanwhile.
    let snapshot = context.snapshot.load_full();
    let registry: &Registry = &snapshot.registry;
    let service = registry
        .successor(&context.service)
        .unwrap_or(&context.service);
    let view = RequestView {
        authority,
        method: request.method(),
        path_and_query: request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str()),
        scheme: request.uri().scheme_str().unwrap_or("http"),
        headers: request.headers(),
    };
    let client = ClientView {
        namespace: &context.client.name.namespace,
        labels: &context.client.labels,
    };
    let port = context.original_destination.port();
    let decision =
        snapshot
            .routes
            .decide(&view, &client, service, port, registry, &mut rand::rng());
    record.route(decision.route_name);
    if let Some(delay) = decision.delay {
        record.flag("DI");
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
        };
        let mut response = match exchange.run(request).await {
            Ok(forwarded) => forwarded.into_response(plan, exchange.record),
            Err(failure) => {
                exchange.record.reason(&failure.reason);
                let mut response = refuse(
                    exchange.record,
                    failure.status,
                    failure.flag,
                    &failure.reason,
                    grpc,
                );
                if failure.overloaded {
                    let yes = HeaderValue::from_static("true");
                    response.headers_mut().insert(OVERLOADED, yes);
                }
                response
            }
        };
        decision.share_response(response.headers_mut());
        return Ok(response);
    }
    Ok(own_answer(&decision, record, grpc))
}

/// The answer of a decision that needs no upstream.
fn own_answer(decision: &Decision<'_>, mut record: Record, grpc: bool) -> Response<Answer> {
    let mut response = match &decision.outcome {
        Outcome::Forward(_) => answer::own(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
        Outcome::Redirect(redirection) => {
            let mut response = answer::own(redirection.status, Bytes::new());
            match HeaderValue::from_str(&redirection.location) {
                Ok(location) => {
                    response.headers_mut().insert(LOCATION, location);
                }
                Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
            }
            response
        }
        Outcome::Direct(direct) => {
            let mut response = answer::own(direct.status, direct.body.clone());
            if !direct.body.is_empty() {
                let text = HeaderValue::from_static("text/plain");
                response.headers_mut().insert(CONTENT_TYPE, text);
            }
            response
        }
        Outcome::Preflight(allowed) => {
            let mut response = answer::own(StatusCode::OK, Bytes::new());
            if let Some(allowed) = allowed {
                allowed.preflight(response.headers_mut());
            }
            response
        }
        Outcome::Abort(abort) => {
            record.flag("FI");
            match abort {
                Abort::Http(status) => answer::error(*status, "fault filter abort", grpc),
                Abort::Grpc(code) => answer::grpc(*code, "fault filter abort"),
            }
        }
        Outcome::Unroutable(unroutable) => {
            record.reason(&unroutable.reason);
            let (status, flag) = (unroutable.status, unroutable.flag);
            let mut response = refuse(record, status, flag, &unroutable.reason, grpc);
            decision.share_response(response.headers_mut());
            return response;
        }
    };
    decision.edit_own_response(response.headers_mut());
    decision.share_response(response.headers_mut());
    record.status(response.status());
    record.end();
    response
}

fn refuse(
    mut record: Record,
    status: StatusCode,
    flag: &'static str,
    reason: &str,
    grpc: bool,
) -> Response<Answer> {
    record.flag(flag);
    record.status(status);
    record.end();
    answer::error(status, reason, grpc)
}
