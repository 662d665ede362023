//! Copies of requests for other destinations. They never change what becomes
//! of the request itself: a copy that cannot keep up is given up, and its answer
//! is thrown away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::{Request, request};
use http_body::Body;
use tokio::time::Instant;

use super::connector::{Connector, Target};
use super::outgoing;
use super::pool::UpstreamProtocol;
use super::request_body::{BodySource, RequestBody};
use super::upstream::{self, HttpCluster, Wanted};
use super::{ConnectionContext, message};
use crate::balance::{Choice, Destination, Report, Version};
use crate::registry::Service;
use crate::route::{Plan, UpstreamPolicy};

/// Copies that are under way at a time; further ones are not made.
const MAX_MIRRORED: usize = 1024;
/// How long a copy may take, where its rule sets no timeout.
const TIMEOUT: Duration = Duration::from_secs(15);

static MIRRORED: AtomicUsize = AtomicUsize::new(0);

/// A copy that is under way.
struct Counted;

impl Counted {
    fn enter() -> Option<Self> {
        let enter = |count| (count < MAX_MIRRORED).then_some(count + 1);
        MIRRORED.fetch_update(Relaxed, Relaxed, enter).ok()?;
        Some(Self)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        MIRRORED.fetch_sub(1, Relaxed);
    }
}

/// Sends copies of a request, whose head is as the client sent it, to the
/// mirrors of a plan.
pub(super) fn spawn<C: Connector>(
    context: &Arc<ConnectionContext<C>>,
    plan: &Plan<'_>,
    version: Version,
    head: &request::Parts,
    body: &BodySource,
) {
    for mirror in &plan.mirrors {
        let Some(counted) = Counted::enter() else {
            tracing::debug!(
                service = mirror.service.host,
                "a request is not mirrored: too many are"
            );
            return;
        };
        let protocol = outgoing::protocol(mirror, head.version, &head.method, &head.headers);
        let mut head = head.clone();
        head.extensions.clear();
        // The host stays the client's, as does the path that the rule makes.
        let forwarded = message::forward(&mut head, &plan.rewritten, &plan.service.host, protocol);
        if forwarded.is_err() {
            continue;
        }
        plan.edit_request(&mut head.headers);
        let now = Instant::now().into_std();
        let destination = Destination::of(mirror, &context.client, version);
        let copy = Copy {
            context: Arc::clone(context),
            cluster: context.upstreams.clusters.get(&destination, now),
            service: Arc::clone(mirror.service),
            policy: Arc::clone(mirror.policy),
            protocol,
        };
        let timeout = plan.timeout.unwrap_or(TIMEOUT);
        let request = Request::from_parts(head, body.copy());
        tokio::spawn(async move {
            let _counted = counted;
            let service = copy.service.host.clone();
            match tokio::time::timeout(timeout, copy.send(request)).await {
                Ok(Some(status)) => tracing::debug!(service, status, "request was mirrored"),
                Ok(None) => tracing::debug!(service, "a mirrored request failed"),
                Err(_) => tracing::debug!(service, "a mirrored request took too long"),
            }
        });
    }
}

struct Copy<C> {
    context: Arc<ConnectionContext<C>>,
    cluster: Arc<HttpCluster>,
    service: Arc<Service>,
    policy: Arc<UpstreamPolicy>,
    protocol: UpstreamProtocol,
}

impl<C: Connector> Copy<C> {
    /// Sends it once; the status of the answer, which is read to its end.
    async fn send(self, request: Request<RequestBody>) -> Option<u16> {
        let choice = Choice {
            like: Some(self.context.original_destination.ip()),
            ..Choice::default()
        };
        let now = Instant::now().into_std();
        let member = self.cluster.choose(&choice, now, &mut rand::rng())?;
        let target = |address: SocketAddr| Target {
            client: Arc::clone(&self.context.client),
            client_address: self.context.client_address,
            flow: None,
            original_destination: self.context.original_destination,
            service: Arc::clone(&self.service),
            endpoint: Arc::clone(&member.endpoint),
            address,
            policy: Arc::clone(&self.policy),
            alpn: self.protocol.alpn(),
        };
        let wanted = Wanted {
            cluster: &self.cluster,
            policy: &self.policy,
            member: &member,
            protocol: self.protocol,
            limits: None,
            moves: true,
            behind: self.context.behind(&self.policy),
            target: &target,
        };
        let connection = self
            .context
            .upstreams
            .connection(&wanted, false)
            .await
            .ok()?;
        let active = self.cluster.begin(&connection.member).ok()?;
        let member = Arc::clone(&connection.member);
        let Ok(mut sent) = connection.send(request, active).await else {
            upstream::report(&self.cluster, &member, Report::Failed);
            return None;
        };
        let status = sent.response.status().as_u16();
        sent.lease.report(Report::Status(status));
        let body = sent.response.body_mut();
        loop {
            let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx));
            match frame.await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return Some(status),
                None => break,
            }
        }
        sent.lease.finish();
        Some(status)
    }
}
