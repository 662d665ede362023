//! Forwards one request: choose an endpoint, send, try again.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode, Version, request};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::affinity::{self, Affinity};
use super::answer::http_status_of;
use super::asked::{self, Bounds};
use super::connector::{Connector, Target};
use super::failure::Failure;
use super::forwarded::Forwarded;
use super::interim::this_task;
use super::outgoing::{outgoing, protocol};
use super::pool::{HttpPool, UpstreamProtocol};
use super::record::Record;
use super::request_body::BodySource;
use super::upstream::{self, ConnectError, Ended, HttpCluster, Sent, Unsent, Wanted};
use super::{ConnectionContext, message, mirror};
use crate::balance::{self, Choice, EndpointAddress, InRoute, Member, Overflow, Report, Retrying};
use crate::registry::Resolution;
use crate::route::{Balancer, Plan, Retries};
use crate::telemetry::Flag;

/// Connections that may turn out to be closed before a new one is made.
const MAX_STALE: u32 = 16;

/// A request that is being forwarded.
pub(super) struct Exchange<'a, C> {
    pub(super) context: &'a Arc<ConnectionContext<C>>,
    /// Of the configuration that the plan is from.
    pub(super) version: balance::Version,
    pub(super) plan: &'a Plan<'a>,
    pub(super) cluster: Arc<HttpCluster>,
    pub(super) grpc: bool,
    pub(super) record: Record,
    /// Where the request is, while it is there.
    pub(super) at: Option<Arc<Member<HttpPool>>>,
    /// Since when, where latencies are compared.
    pub(super) timed: Option<Instant>,
}

/// Why an attempt came to nothing.
enum Trouble {
    /// There was no connection.
    Connect(ConnectError),
    /// The connection ended.
    Ended(Ended),
    /// The request has been sent, and was not kept.
    Gone,
}

/// A retry, counted among those of its destination and of its route.
type Counted = (Retrying<HttpPool>, Option<InRoute>);

/// What all attempts have in common.
struct Attempts<'a> {
    /// Of the one that is under way, from 1.
    number: u32,
    /// The request, until it is sent.
    head: Option<request::Parts>,
    /// A copy, where it may be needed: once sent, a request is gone.
    spare: Option<request::Parts>,
    body: &'a BodySource,
    protocol: UpstreamProtocol,
    /// Whether the client may get informational responses.
    is_informed: bool,
    affinity: &'a Affinity,
}

impl<C: Connector> Exchange<'_, C> {
    /// The address that was asked last.
    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        match &self.at.as_ref()?.host.address {
            EndpointAddress::Socket(address) => Some(*address),
            EndpointAddress::Name(..) => None,
        }
    }

    /// Sends the request until an answer has begun, or nothing is left to try.
    pub(super) async fn run(
        &mut self,
        mut request: Request<Incoming>,
    ) -> Result<Forwarded, Failure> {
        let in_route = match self.plan.limits {
            None => None,
            Some(limits) => {
                let now = Instant::now().into_std();
                let entered = self.cluster.enter_route(limits, now);
                Some(entered.map_err(|_| Failure::overflow())?)
            }
        };
        let protocol = protocol(
            self.plan,
            request.version(),
            request.method(),
            request.headers(),
        );
        // Only HTTP/1 can pass them, at both ends.
        let is_informed =
            protocol == UpstreamProtocol::Http1 && request.version() == Version::HTTP_11;
        let client_upgrade =
            (protocol == UpstreamProtocol::Http1).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let client_upgrade = client_upgrade.filter(|_| message::is_upgrade(&parts));
        let is_connect = parts.method == Method::CONNECT;
        let body = BodySource::new(body);
        self.record.body(&body);
        self.record.cluster(&self.cluster);
        let bounds = Bounds::of(self.plan, &mut parts.headers);
        if !self.plan.mirrors.is_empty() && client_upgrade.is_none() {
            mirror::spawn(self.context, self.plan, self.version, &parts, &body);
        }
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
        let affinity = affinity::of(
            &self.plan.policy.balancer,
            &parts.headers,
            parts.uri.query().unwrap_or_default(),
            self.context.client_address.ip(),
            &mut rand::rng(),
        );
        let began = Instant::now();
        let timeout = bounds.timeout;
        let finished = {
            let retries = &bounds.retries;
            let attempts = self.attempts(parts, is_informed, &body, protocol, &affinity, retries);
            within(timeout, &body, pin!(attempts)).await
        };
        let result = finished
            .unwrap_or_else(|Expired(after)| Err(self.timed_out(after, Failure::timeout())));
        let now = || Instant::now().into_std();
        if let (Some(in_route), Err(failure)) = (&in_route, &result) {
            // What a bound refuses, and whom a policy, says nothing of the destination.
            if failure.status.is_server_error() && !failure.is_overload() {
                in_route.report(true, now);
            }
        }
        let mut sent = result?;
        if let Some(in_route) = in_route {
            // Of a call of gRPC's the trailers tell.
            if let Some(status) = self.status_of(&sent) {
                in_route.report(status >= 500, now);
            }
            sent.lease.hold(in_route);
        }
        body.commit();
        // The time runs from the end of the request to the end of the response.
        let deadline = timeout.and_then(|timeout| Some(body.ended_at(began)? + timeout));
        Ok(Forwarded {
            grpc_status_later: self.grpc && http_status_of(sent.response.headers()).is_none(),
            sent,
            began,
            deadline,
            client_upgrade,
            is_connect,
            extended_connect: false,
            set_cookie: affinity.set_cookie,
        })
    }

    async fn attempts(
        &mut self,
        parts: request::Parts,
        is_informed: bool,
        body: &BodySource,
        protocol: UpstreamProtocol,
        affinity: &Affinity,
        retries: &Retries,
    ) -> Result<Sent, Failure> {
        let http2_or_grpc = self.grpc || protocol == UpstreamProtocol::Http2;
        let resend = retries.on.after_sending(http2_or_grpc) && retries.attempts > 0;
        let idempotent = parts.method.is_idempotent();
        let mut attempts = Attempts {
            number: 1,
            spare: (resend || idempotent).then(|| parts.clone()),
            head: Some(parts),
            body,
            protocol,
            is_informed,
            affinity,
        };
        let mut tried: Vec<EndpointAddress> = Vec::new();
        let mut retry = 0;
        let mut fresh = false;
        // Counts this exchange among the retries, from the first on.
        let mut retrying = None;
        loop {
            let member = self.choose(affinity, &tried)?;
            self.record.chosen(&member);
            self.timed = None;
            self.at = Some(Arc::clone(&member));
            let result = {
                let attempt = self.attempt(&member, &mut attempts, fresh);
                within(retries.per_try_timeout, body, pin!(attempt)).await
            };
            let left = retry < retries.attempts;
            let again = left && attempts.spare.is_some() && body.is_replayable();
            let failure = match result {
                Ok(Ok(sent)) => {
                    self.report_answer(&sent);
                    let response = &sent.response;
                    let wants_more = retries.on.answer(response.status(), response.headers());
                    if !wants_more {
                        return Ok(sent);
                    }
                    if !again {
                        self.record.flag(Flag::UpstreamRetryLimitExceeded);
                        return Ok(sent);
                    }
                    if !self.may_retry(&mut retrying) {
                        return Ok(sent);
                    }
                    None
                }
                Ok(Err(Trouble::Connect(cause))) if cause.is_denied() => {
                    return Err(Failure::denied());
                }
                Ok(Err(Trouble::Gone)) => {
                    let cause = "the request cannot be sent again";
                    return Err(Failure::terminated(&cause));
                }
                Ok(Err(Trouble::Connect(ConnectError::Overflow(_)))) => {
                    // Another try would make it worse.
                    return Err(Failure::overflow());
                }
                Ok(Err(Trouble::Connect(cause))) => {
                    self.report(Report::Failed);
                    self.record.no_connection(cause.transport_failure());
                    let failure = Failure::no_connection(&cause);
                    // It has not been sent: this very request is the next one.
                    if !left || !retries.on.connect() {
                        return Err(self.exhausted(failure, retries));
                    }
                    Some(failure)
                }
                Ok(Err(Trouble::Ended(Ended {
                    cause,
                    refused,
                    reused,
                    reset,
                    client,
                }))) => {
                    let failure = if reset {
                        Failure::reset(&cause)
                    } else {
                        Failure::terminated(&cause)
                    };
                    if client {
                        return Err(failure);
                    }
                    // A connection that had waited may have been closed while the request was
                    // on its way. Repeating is safe for these methods (RFC 9110, section 9.2.2).
                    let stale = reused && !fresh && !reset && idempotent;
                    if stale && attempts.spare.is_some() && body.is_replayable() {
                        fresh = true;
                        continue;
                    }
                    self.report(Report::Failed);
                    if !again || !retries.on.ended(refused) {
                        return Err(self.exhausted(failure, retries));
                    }
                    Some(failure)
                }
                Err(Expired(after)) => {
                    let timeout = self.timed_out(after, Failure::per_try_timeout());
                    if !again || !retries.on.ended(false) {
                        return Err(self.exhausted(timeout, retries));
                    }
                    Some(timeout)
                }
            };
            if let Some(failure) = failure {
                self.record.reason(&failure.reason);
                if !self.may_retry(&mut retrying) {
                    return Err(failure);
                }
            }
            retry += 1;
            attempts.number += 1;
            fresh = false;
            if retries.ignore_previous_hosts {
                tried.push(member.host.address.clone());
            }
            let wait = retries.wait(retry, &mut rand::rng());
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether one more may be retrying; counts it from then on.
    fn may_retry(&mut self, retrying: &mut Option<Counted>) -> bool {
        if retrying.is_some() {
            return true;
        }
        let limits = self.plan.limits;
        let of_route = limits.map(|limits| self.cluster.retry_route(limits));
        let counted = of_route
            .transpose()
            .and_then(|of_route| Ok((self.cluster.retry()?, of_route)));
        match counted {
            Ok(counted) => {
                *retrying = Some(counted);
                true
            }
            Err(_) => {
                self.record.flag(Flag::UpstreamOverflow);
                false
            }
        }
    }

    /// Sends the request once, over a connection that turns out to be open.
    async fn attempt(
        &mut self,
        member: &Arc<Member<HttpPool>>,
        attempts: &mut Attempts<'_>,
        fresh: bool,
    ) -> Result<Sent, Trouble> {
        let Attempts { protocol, body, .. } = *attempts;
        let (context, plan) = (self.context, self.plan);
        let target = |address: SocketAddr| Target {
            client: Arc::clone(&context.client),
            client_address: context.client_address,
            flow: None,
            original_destination: context.original_destination,
            service: Arc::clone(plan.service),
            endpoint: Arc::clone(&member.endpoint),
            address,
            policy: Arc::clone(plan.policy),
            alpn: protocol.alpn(),
        };
        let cluster = Arc::clone(&self.cluster);
        let wanted = Wanted {
            cluster: &cluster,
            policy: plan.policy,
            member,
            protocol,
            limits: plan.limits,
            moves: attempts.affinity.hash.is_none() && !self.keeps_destination(),
            behind: context.behind(plan.policy),
            target: &target,
        };
        for stale in 0.. {
            let fresh = fresh || stale >= MAX_STALE;
            let connection = context.upstreams.connection(&wanted, fresh).await;
            let connection = connection.map_err(Trouble::Connect)?;
            let Ok(active) = cluster.begin(&connection.member) else {
                connection.give_back(&wanted);
                return Err(Trouble::Connect(ConnectError::Overflow(Overflow)));
            };
            let head = attempts.head.take().or_else(|| attempts.spare.clone());
            let mut head = head.ok_or(Trouble::Gone)?;
            asked::count_attempt(&mut head.headers, attempts.number);
            let local = connection.local_address();
            self.record.attempt(&connection.member, local);
            upstream::report(&cluster, &connection.member, Report::Connected);
            self.at = Some(Arc::clone(&connection.member));
            let outlier = plan.policy.outlier.as_ref();
            self.timed = outlier
                .and_then(|outlier| outlier.latency)
                .map(|_| Instant::now());
            let task = if attempts.is_informed {
                Some(this_task().await)
            } else {
                None
            };
            let request = outgoing(head, body, protocol);
            let (request, informing) = context.interim.pass_on(request, task);
            let sent = connection.send(request, active).await;
            drop(informing);
            match sent {
                Ok(sent) => {
                    if let (Some(since), Some(member)) = (self.timed.take(), &self.at) {
                        member.host.monitor.took(since.elapsed());
                    }
                    return Ok(sent);
                }
                Err(Unsent::Untouched(head)) => attempts.head = Some(*head),
                Err(Unsent::Ended(error)) => return Err(Trouble::Ended(error)),
            }
        }
        unreachable!("a new connection is made after some that were closed")
    }

    fn report(&self, report: Report) {
        if let Some(member) = &self.at {
            upstream::report(&self.cluster, member, report);
        }
    }

    fn report_answer(&self, sent: &Sent) {
        if let Some(status) = self.status_of(sent) {
            sent.lease.report(Report::Status(status));
        }
    }

    /// For gRPC the status of the call counts, which may come with the trailers only.
    fn status_of(&self, sent: &Sent) -> Option<u16> {
        let response = &sent.response;
        if self.grpc && response.status() == StatusCode::OK {
            http_status_of(response.headers())
        } else {
            Some(response.status().as_u16())
        }
    }

    /// A request that took too long has taken at least that long.
    fn timed_out(&mut self, limit: Duration, failure: Failure) -> Failure {
        self.report(Report::TimedOut);
        if let (Some(since), Some(member)) = (self.timed.take(), &self.at) {
            member.host.monitor.took(since.elapsed().max(limit));
        }
        failure
    }

    fn exhausted(&mut self, failure: Failure, retries: &Retries) -> Failure {
        if retries.attempts > 0 {
            self.record.flag(Flag::UpstreamRetryLimitExceeded);
        }
        failure
    }

    /// Whether the address that the client asked for is the endpoint.
    fn keeps_destination(&self) -> bool {
        let service = self.plan.service;
        self.plan.policy.balancer == Balancer::Passthrough
            || (service.resolution == Resolution::None && service.endpoints.is_empty())
    }

    fn choose(
        &self,
        affinity: &Affinity,
        tried: &[EndpointAddress],
    ) -> Result<Arc<Member<HttpPool>>, Failure> {
        let original = self.context.original_destination;
        let now = Instant::now().into_std();
        if self.keeps_destination() {
            let address = EndpointAddress::Socket(original);
            return Ok(self.cluster.asked_for(address, now));
        }
        if let Some(name) = &self.plan.named {
            let address = EndpointAddress::Name(name.as_str().into(), self.plan.port);
            return Ok(self.cluster.asked_for(address, now));
        }
        let choice = Choice {
            hash: affinity.hash,
            avoid: tried,
            remote: self.plan.retries.remote_localities,
            like: Some(original.ip()),
        };
        self.cluster
            .choose(&choice, now, &mut rand::rng())
            .ok_or_else(Failure::no_endpoint)
    }
}

/// The time is up; how much it was.
struct Expired(Duration);

/// Bounds the time from the end of the client's request, where there is a bound. The work is
/// borrowed: passed by value, it would be held twice.
async fn within<T>(
    timeout: Option<Duration>,
    body: &BodySource,
    work: Pin<&mut impl Future<Output = T>>,
) -> Result<T, Expired> {
    let Some(timeout) = timeout else {
        return Ok(work.await);
    };
    let expiry = async {
        body.ended().await;
        tokio::time::sleep(timeout).await;
    };
    tokio::select! {
        biased;
        result = work => Ok(result),
        () = expiry => Err(Expired(timeout)),
    }
}
