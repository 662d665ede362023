//! Forwards one request: choose an endpoint, send, try again.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{EXPECT, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version, request};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::answer::{self, Answer};
use super::connector::{Connector, Target};
use super::message::{self, BadRequest};
use super::pool::{Key, UpstreamProtocol};
use super::record::Record;
use super::request_body::{BodySource, RequestBody};
use super::upstream::{SendError, Sent, Wanted};
use super::{ConnectionContext, tunnel};
use crate::balance::{self, EndpointAddress, InFlight};
use crate::registry::{Endpoint, Protocol, Resolution};
use crate::route::Plan;

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// An exchange that failed: the answer that the client gets.
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) flag: &'static str,
    pub(super) reason: String,
}

impl Failure {
    fn unavailable(flag: &'static str, cause: &dyn std::fmt::Display) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            flag,
            reason: format!("upstream connect error or disconnect/reset before headers: {cause}"),
        }
    }

    /// As if the destination had looked at the request and answered.
    fn denied() -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            flag: "-",
            reason: "RBAC: access denied".to_owned(),
        }
    }

    fn timeout() -> Self {
        Self {
            status: StatusCode::GATEWAY_TIMEOUT,
            flag: "UT",
            reason: "upstream request timeout".to_owned(),
        }
    }

    fn bad_request(bad: BadRequest) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            flag: "DPE",
            reason: bad.to_string(),
        }
    }
}

/// A request that is being forwarded.
pub(super) struct Exchange<'a, C> {
    pub(super) context: &'a ConnectionContext<C>,
    pub(super) plan: &'a Plan<'a>,
    pub(super) grpc: bool,
    pub(super) record: Record,
}

/// A response that has begun.
pub(super) struct Forwarded {
    sent: Sent,
    in_flight: InFlight,
    began: Instant,
    deadline: Option<Instant>,
    client_upgrade: Option<OnUpgrade>,
    is_connect: bool,
}

impl<C: Connector> Exchange<'_, C> {
    /// Sends the request until an answer has begun, or nothing is left to try.
    pub(super) async fn run(
        &mut self,
        mut request: Request<Incoming>,
    ) -> Result<Forwarded, Failure> {
        let protocol = self.protocol(&request);
        let client_upgrade =
            (protocol == UpstreamProtocol::Http1).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let client_upgrade = client_upgrade.filter(|_| message::is_upgrade(&parts));
        let is_connect = parts.method == Method::CONNECT;
        let default_authority = self.plan.service.host.as_str();
        message::forward(
            &mut parts,
            &self.plan.rewritten,
            default_authority,
            protocol,
        )
        .map_err(Failure::bad_request)?;
        self.plan.edit_request(&mut parts.headers);
        parts.extensions.clear();
        let body = BodySource::new(body);
        let began = Instant::now();
        let timeout = self.plan.timeout;
        let attempts = self.attempts(parts, &body, protocol);
        let (sent, in_flight) = match timeout {
            None => attempts.await?,
            Some(timeout) => within(timeout, &body, attempts).await?,
        };
        body.commit();
        // The time runs from the end of the request to the end of the response.
        let deadline = timeout.and_then(|timeout| Some(body.ended_at(began)? + timeout));
        Ok(Forwarded {
            sent,
            in_flight,
            began,
            deadline,
            client_upgrade,
            is_connect,
        })
    }

    /// HTTP/2 for gRPC, where the port declares it, and where it declares
    /// nothing and the client speaks it.
    fn protocol(&self, request: &Request<Incoming>) -> UpstreamProtocol {
        let declared = self
            .plan
            .service
            .port(self.plan.port)
            .map(|port| port.protocol);
        let http2 = match declared {
            Some(Protocol::Http2 | Protocol::Grpc) => {
                request.headers().get(http::header::UPGRADE).is_none()
            }
            Some(Protocol::Auto) => request.version() == Version::HTTP_2,
            _ => false,
        };
        if http2 || (self.grpc && request.version() == Version::HTTP_2) {
            UpstreamProtocol::Http2
        } else {
            UpstreamProtocol::Http1
        }
    }

    async fn attempts(
        &mut self,
        parts: request::Parts,
        body: &BodySource,
        protocol: UpstreamProtocol,
    ) -> Result<(Sent, InFlight), Failure> {
        let retries = self.plan.retries;
        let http2_or_grpc = self.grpc || protocol == UpstreamProtocol::Http2;
        let resend = retries.on.after_sending(http2_or_grpc) && retries.attempts > 0;
        let idempotent = parts.method.is_idempotent();
        // Kept only where it may be needed: once sent, a request is gone.
        let spare = (resend || idempotent).then(|| parts.clone());
        let mut head = Some(parts);
        let mut tried: Vec<EndpointAddress> = Vec::new();
        let mut retry = 0;
        let mut fresh = false;
        loop {
            let (endpoint, address) = self.choose(&tried)?;
            let Some(parts) = head.take().or_else(|| spare.clone()) else {
                return Err(Failure::unavailable(
                    "UC",
                    &"the request cannot be sent again",
                ));
            };
            self.record.attempt(&self.plan.service.host, &address);
            let in_flight = self.context.upstreams.load.begin(&address);
            let target = self.target(endpoint, &address);
            let wanted = Wanted {
                key: self.key(address.clone(), protocol),
                target: &target,
                connect_timeout: self.plan.policy.connect_timeout,
            };
            let request = outgoing(parts, body, protocol);
            let send = self.context.upstreams.send(&wanted, request, fresh);
            let result = match retries.per_try_timeout {
                Some(timeout) => within(timeout, body, async { Ok(send.await) }).await,
                None => Ok(send.await),
            };
            let left = retry < retries.attempts;
            let again = left && spare.is_some() && body.is_replayable();
            let failure = match result {
                Ok(Ok(sent)) => {
                    let response = &sent.response;
                    let wants_more = retries.on.answer(response.status(), response.headers());
                    if !wants_more {
                        return Ok((sent, in_flight));
                    }
                    if !again {
                        self.record.flag("URX");
                        return Ok((sent, in_flight));
                    }
                    None
                }
                Ok(Err(SendError::Connect { cause, .. })) if cause.is_denied() => {
                    return Err(Failure::denied());
                }
                Ok(Err(SendError::Connect {
                    cause,
                    head: unsent,
                })) => {
                    let failure = Failure::unavailable("UF", &cause);
                    if !left || !retries.on.connect() {
                        return Err(self.exhausted(failure));
                    }
                    // It has not been sent: this very request is the next one.
                    head = Some(*unsent);
                    Some(failure)
                }
                Ok(Err(SendError::Ended {
                    cause,
                    refused,
                    reused,
                    reset,
                    client,
                })) => {
                    let failure = Failure::unavailable(if reset { "UR" } else { "UC" }, &cause);
                    if client {
                        return Err(failure);
                    }
                    // A connection that had waited may have been closed while the request was
                    // on its way. Repeating is safe for these methods (RFC 9110, section 9.2.2).
                    let stale = reused && !fresh && !reset && idempotent;
                    if stale && spare.is_some() && body.is_replayable() {
                        fresh = true;
                        continue;
                    }
                    if !again || !retries.on.ended(refused) {
                        return Err(self.exhausted(failure));
                    }
                    Some(failure)
                }
                Err(timeout) => {
                    if !again || !retries.on.ended(false) {
                        return Err(self.exhausted(timeout));
                    }
                    Some(timeout)
                }
            };
            if let Some(failure) = failure {
                self.record.reason(&failure.reason);
            }
            drop(in_flight);
            retry += 1;
            fresh = false;
            if retries.ignore_previous_hosts {
                tried.push(address);
            }
            let wait = retries.wait(retry, &mut rand::rng());
            tokio::time::sleep(wait).await;
        }
    }

    fn exhausted(&mut self, failure: Failure) -> Failure {
        if self.plan.retries.attempts > 0 {
            self.record.flag("URX");
        }
        failure
    }

    fn choose(
        &self,
        tried: &[EndpointAddress],
    ) -> Result<(Arc<Endpoint>, EndpointAddress), Failure> {
        let service = self.plan.service;
        let original = self.context.original_destination;
        if service.resolution == Resolution::None && service.endpoints.is_empty() {
            let endpoint = asked_for(original, self.plan.port);
            return Ok((endpoint, EndpointAddress::Socket(original)));
        }
        let wanted = balance::Wanted {
            port: self.plan.port,
            labels: self.plan.subset.map(|subset| &subset.labels),
            algorithm: self.plan.policy.algorithm(),
            avoid: tried,
            like: Some(original.ip()),
        };
        balance::choose(
            service,
            &wanted,
            &self.context.upstreams.load,
            &mut rand::rng(),
        )
        .and_then(|endpoint| {
            let address = EndpointAddress::of(endpoint, self.plan.port)?;
            Some((Arc::clone(endpoint), address))
        })
        .ok_or_else(|| Failure {
            status: StatusCode::SERVICE_UNAVAILABLE,
            flag: "UH",
            reason: "no healthy upstream".to_owned(),
        })
    }

    fn target(&self, endpoint: Arc<Endpoint>, address: &EndpointAddress) -> Target {
        Target {
            client: Arc::clone(&self.context.client),
            client_address: self.context.client_address,
            service: Arc::clone(self.plan.service),
            endpoint,
            address: match address {
                EndpointAddress::Socket(address) => *address,
                EndpointAddress::Name(_, port) => SocketAddr::from(([0, 0, 0, 0], *port)),
            },
            tls: self.plan.policy.tls,
        }
    }

    fn key(&self, endpoint: EndpointAddress, protocol: UpstreamProtocol) -> Key {
        Key {
            client: self.context.client.name.clone(),
            service: self.plan.service.host.clone(),
            endpoint,
            protocol,
            tls: self.plan.policy.tls,
            policy_epoch: self.context.snapshot.load().authorization.epoch,
        }
    }
}

/// The address that the application asked for, as an endpoint.
fn asked_for(original: SocketAddr, port: u16) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address: Some(original.ip()),
        host: None,
        ports: BTreeMap::from([(port, original.port())]),
        labels: BTreeMap::new(),
        weight: 1,
        workload: None,
    })
}

/// The request of one attempt.
fn outgoing(
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

/// Bounds the time from the end of the client's request.
async fn within<T>(
    timeout: Duration,
    body: &BodySource,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let expiry = async {
        body.ended().await;
        tokio::time::sleep(timeout).await;
    };
    tokio::select! {
        biased;
        result = work => result,
        () = expiry => Err(Failure::timeout()),
    }
}

impl Forwarded {
    /// The answer for the client, which holds what the exchange needs until it ends.
    pub(super) fn into_response(self, plan: &Plan<'_>, mut record: Record) -> Response<Answer> {
        let Sent {
            mut response,
            lease,
        } = self.sent;
        let status = response.status();
        record.status(status);
        let switches =
            status == StatusCode::SWITCHING_PROTOCOLS || (self.is_connect && status.is_success());
        if let (true, Some(client)) = (switches, self.client_upgrade) {
            let upstream = hyper::upgrade::on(&mut response);
            tunnel::spawn(client, upstream, record, self.in_flight);
            let (mut parts, _) = response.into_parts();
            parts.extensions.clear();
            plan.edit_response(&mut parts.headers);
            return Response::from_parts(parts, Answer::Own(None));
        }
        let (mut parts, incoming) = response.into_parts();
        parts.extensions.clear();
        parts.version = Version::HTTP_11;
        message::strip_hop_by_hop(&mut parts.headers);
        let service_time_ms = self.began.elapsed().as_millis() as u64;
        parts
            .headers
            .insert(SERVICE_TIME, HeaderValue::from(service_time_ms));
        plan.edit_response(&mut parts.headers);
        let deadline = (!incoming.is_end_stream())
            .then_some(self.deadline)
            .flatten();
        let body = answer::Upstream {
            incoming,
            deadline: deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline))),
            record,
            lease: Some(lease),
            in_flight: Some(self.in_flight),
        };
        Response::from_parts(parts, Answer::Upstream(Box::new(body)))
    }
}
