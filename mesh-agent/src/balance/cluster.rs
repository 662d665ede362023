//! What a client knows of one port of a service (or of a subset of it): its
//! endpoints, their health and load, and what is open. Istio's and Envoy's
//! word for it is cluster.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::guard::{Active, Overflow, Pending, Retrying, Slot};
use super::host::{EndpointAddress, Host, Member};
use super::limits::Gauges;
use super::outlier::{Cause, Detector};
use super::route::RouteGauges;
use super::session::Session;
use super::state::State;
use super::window::Window;
use crate::registry::{Endpoint, PASSTHROUGH, Service, Workload, WorkloadName};
use crate::route::{Plan, Subset, UpstreamPolicy};

/// Endpoints that are remembered for addresses which clients asked for themselves.
/// At the bound the unused ones are forgotten.
const MAX_ASKED_FOR: usize = 1024;

/// What a user of this module keeps for each endpoint.
pub trait EndpointPool: Default + Send + Sync + 'static {
    /// Connections are to be made in another way from now on: no present one is used again.
    fn renew(&self);
}

/// Which cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClusterKey {
    /// Limits and ejections are each client's own, as they are each sidecar's in Istio:
    /// what one provokes is not the others' concern.
    pub client: WorkloadName,
    /// Host of the service.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// Subset.
    pub subset: Option<String>,
}

impl ClusterKey {
    /// As Istio names clusters: `outbound|<port>|<subset>|<host>`.
    pub fn full_name(&self) -> String {
        full_name(&self.service, self.port, self.subset.as_deref())
    }
}

/// Istio's name of a service, its port and a subset.
pub fn full_name(service: &str, port: u16, subset: Option<&str>) -> String {
    // An address that is no service is called by itself.
    if service.parse::<IpAddr>().is_ok() {
        return PASSTHROUGH.to_owned();
    }
    let subset = subset.unwrap_or_default();
    format!("outbound|{port}|{subset}|{service}")
}

/// Where a request is to go: what a route comes to.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// Who sends it.
    pub client: &'a Arc<Workload>,
    /// Service.
    pub service: &'a Arc<Service>,
    /// Its port.
    pub port: u16,
    /// Part of its endpoints.
    pub subset: Option<&'a Subset>,
    /// How connections are made.
    pub policy: &'a Arc<UpstreamPolicy>,
    /// The configuration that all this is from.
    pub version: Version,
}

/// Which configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// Counts the configurations.
    pub generation: u64,
    /// Counts the changes of authorization policies: connections that were made under
    /// others are not used again.
    pub policies: u64,
}

impl<'a> Destination<'a> {
    /// What a plan for a request of `client` says, of this configuration.
    pub fn of(plan: &'a Plan<'_>, client: &'a Arc<Workload>, version: Version) -> Self {
        Self {
            client,
            service: plan.service,
            port: plan.port,
            subset: plan.subset,
            policy: plan.policy,
            version,
        }
    }
}

/// A cluster.
pub struct Cluster<P> {
    /// Which.
    pub key: ClusterKey,
    /// What is open.
    pub gauges: Gauges,
    pub(super) state: ArcSwap<State<P>>,
    pub(super) changing: Mutex<Changing<P>>,
    /// Milliseconds from `created` to the next sweep; `u64::MAX` where there is none.
    pub(super) next_sweep_ms: AtomicU64,
    created: Instant,
    pub(super) turns: AtomicU64,
    /// Requests of the last while, where a retry budget asks for it.
    begun: Window,
    /// Milliseconds from `created` to the last use.
    used_ms: AtomicU64,
    /// Routes with bounds.
    pub(super) routes: RwLock<Vec<Arc<RouteGauges>>>,
    /// Requests that wait until a connection becomes free.
    pub(super) waiting: AtomicU32,
    pub(super) freed: Notify,
    /// Where the client goes while its session lasts.
    pub(super) session: Session,
}

/// What changes under a lock.
pub(super) struct Changing<P> {
    pub(super) detector: Option<Detector>,
    /// Endpoints that sweeps have taken out of service, until somebody tells of them.
    pub(super) swept_out: Vec<(EndpointAddress, Cause)>,
    /// Endpoints that clients asked for by address.
    pub(super) asked_for: HashMap<EndpointAddress, Arc<Member<P>>>,
}

impl<P: EndpointPool> Cluster<P> {
    pub(super) fn new(key: ClusterKey, destination: &Destination<'_>, now: Instant) -> Self {
        let cluster = Self {
            key,
            gauges: Gauges::default(),
            state: ArcSwap::from_pointee(State::build(destination, &HashMap::new(), now)),
            changing: Mutex::new(Changing {
                detector: None,
                swept_out: Vec::new(),
                asked_for: HashMap::new(),
            }),
            next_sweep_ms: AtomicU64::new(u64::MAX),
            created: now,
            turns: AtomicU64::new(0),
            begun: Window::default(),
            used_ms: AtomicU64::new(0),
            routes: RwLock::default(),
            waiting: AtomicU32::new(0),
            freed: Notify::new(),
            session: Session::default(),
        };
        cluster.start_detector(&mut cluster.changing.lock(), destination.policy, now);
        cluster
    }

    /// Takes over a newer configuration, and makes the sweeps that are due.
    pub fn refresh(&self, destination: &Destination<'_>, now: Instant) {
        let now_ms = self.millis(now);
        self.used_ms.store(now_ms, Relaxed);
        if let Some(interval) = destination
            .policy
            .retry_budget
            .and_then(|budget| budget.interval)
        {
            self.begun.add(now_ms, interval);
        }
        let state = self.state.load();
        let same = Arc::ptr_eq(&state.service, destination.service)
            && Arc::ptr_eq(&state.policy, destination.policy)
            && state.version.policies == destination.version.policies;
        if !same && destination.version.generation >= state.version.generation {
            drop(state);
            self.rebuild(destination, now);
        }
        self.sweep(now);
    }

    fn rebuild(&self, destination: &Destination<'_>, now: Instant) {
        let mut changing = self.changing.lock();
        let old = self.state.load_full();
        let other_outliers = destination.policy.outlier != old.policy.outlier;
        if other_outliers {
            // As in Envoy, where such a change makes a new cluster. No sweep would take
            // back whom a policy has taken out that is gone.
            old.monitors.iter().for_each(|monitor| monitor.restart());
        }
        let known: HashMap<_, _> = old
            .members
            .iter()
            .chain(&old.unhealthy)
            .map(|member| (&member.host.address, &member.host))
            .collect();
        let new = State::build(destination, &known, now);
        if new.policy.differs_in_transport(&old.policy)
            || new.version.policies != old.version.policies
        {
            let asked_for = changing.asked_for.values();
            for member in new.members.iter().chain(asked_for) {
                member.host.pool.renew();
            }
        }
        if other_outliers {
            self.start_detector(&mut changing, destination.policy, now);
        }
        self.state.store(Arc::new(new));
    }

    pub(super) fn millis(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.created);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whose it is.
    pub fn client(&self) -> Arc<Workload> {
        Arc::clone(&self.state.load().client)
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<UpstreamPolicy> {
        Arc::clone(&self.state.load().policy)
    }

    /// The endpoint at an address that the client asked for itself: one of the
    /// service where it is one, else whatever is there.
    pub fn asked_for(&self, address: EndpointAddress, now: Instant) -> Arc<Member<P>> {
        let state = self.state.load();
        let known = |member: &&Arc<Member<P>>| member.host.address == address;
        if let Some(member) = state.members.iter().find(known) {
            return Arc::clone(member);
        }
        let mut changing = self.changing.lock();
        if changing.asked_for.len() >= MAX_ASKED_FOR {
            changing
                .asked_for
                .retain(|_, member| Arc::strong_count(member) > 1 || member.host.in_flight() > 0);
        }
        let port = self.key.port;
        let member = changing.asked_for.entry(address.clone());
        let member = member.or_insert_with(|| {
            let endpoint = match &address {
                EndpointAddress::Socket(socket) => Endpoint {
                    address: Some(socket.ip()),
                    ..Endpoint::unknown(port, socket.port())
                },
                EndpointAddress::Name(host, number) => Endpoint {
                    host: Some(host.to_string()),
                    ..Endpoint::unknown(port, *number)
                },
            };
            Arc::new(Member {
                host: Arc::new(Host::new(address, now, Arc::default())),
                endpoint: Arc::new(endpoint),
            })
        });
        Arc::clone(member)
    }

    /// How long its client's session lasts without a connection.
    pub(super) fn session_affinity(&self) -> Duration {
        let state = self.state.load();
        state.service.session_affinity.unwrap_or_default()
    }

    /// How long nothing was asked of it.
    pub(super) fn idle(&self, now: Instant) -> Duration {
        let used = self.created + Duration::from_millis(self.used_ms.load(Relaxed));
        now.saturating_duration_since(used)
    }

    pub(super) fn is_for(&self, destination: &Destination<'_>) -> bool {
        let key = &self.key;
        key.port == destination.port
            && key.subset.as_deref() == destination.subset.map(|subset| subset.name.as_str())
            && key.service == destination.service.host
            && key.client == destination.client.name
    }

    /// Counts a request (for TCP: a connection) to an endpoint, until it is dropped.
    ///
    /// # Errors
    /// `connectionPool.http.http2MaxRequests` are there already.
    pub fn begin(self: &Arc<Self>, member: &Arc<Member<P>>) -> Result<Active<P>, Overflow> {
        let limit = self.state.load().policy.http.max_requests;
        if self.gauges.requests.enter(limit) {
            return Ok(Active::new(Arc::clone(self), Arc::clone(member)));
        }
        self.gauges.requests.refuse();
        Err(Overflow)
    }

    /// Counts one whatever the bound, because it is there already.
    pub fn begin_anyway(self: &Arc<Self>, member: &Arc<Member<P>>) -> Active<P> {
        self.gauges.requests.enter(None);
        Active::new(Arc::clone(self), Arc::clone(member))
    }

    /// Counts a request that waits for a connection.
    ///
    /// # Errors
    /// `connectionPool.http.http1MaxPendingRequests` do already.
    pub fn pend(self: &Arc<Self>) -> Result<Pending<P>, Overflow> {
        let limit = self.state.load().policy.http.max_pending;
        if self.gauges.pending.enter(limit) {
            return Ok(Pending::new(Arc::clone(self)));
        }
        self.gauges.pending.refuse();
        Err(Overflow)
    }

    /// Room for one more connection; `None` where `connectionPool.tcp.maxConnections` are open.
    pub fn slot(self: &Arc<Self>) -> Option<Slot<P>> {
        let limit = self.state.load().policy.tcp.max_connections;
        if self.gauges.connections.enter(limit) {
            return Some(Slot::new(Arc::clone(self)));
        }
        self.gauges.connections.refuse();
        None
    }

    /// Counts a connection whatever the bound, because it is there already.
    pub fn slot_anyway(self: &Arc<Self>) -> Slot<P> {
        self.gauges.connections.enter(None);
        Slot::new(Arc::clone(self))
    }

    /// Counts a retry.
    ///
    /// # Errors
    /// As many as `maxRetries`, or the `retryBudget`, allow are under way.
    pub fn retry(self: &Arc<Self>) -> Result<Retrying<P>, Overflow> {
        if self.gauges.retries.enter(self.max_retries()) {
            return Ok(Retrying::new(Arc::clone(self)));
        }
        self.gauges.retries.refuse();
        Err(Overflow)
    }

    /// How many retries there may be now.
    pub fn max_retries(&self) -> Option<u32> {
        let state = self.state.load();
        let Some(budget) = state.policy.retry_budget else {
            return state.policy.http.max_retries;
        };
        let active = self.gauges.requests.now() + self.gauges.pending.now();
        let begun = (budget.interval).map_or(0, |interval| {
            self.begun.count(self.used_ms.load(Relaxed), interval)
        });
        let share = (f64::from(active.max(begun)) * budget.percent / 100.0) as u32;
        Some(share.max(budget.min_concurrency))
    }

    /// Whether requests wait for a connection to become free: whoever comes now stands behind them.
    pub fn has_queue(&self) -> bool {
        self.waiting.load(SeqCst) > 0
    }

    /// A connection has become free, or has ended: the first that waits may try.
    pub fn freed(&self) {
        if self.has_queue() {
            self.freed.notify_one();
        }
    }

    /// Waits until `get` gives something; it is asked again whenever a connection becomes free.
    pub async fn wait_for<T>(&self, mut get: impl FnMut() -> Option<T>) -> T {
        struct Counted<'a>(&'a AtomicU32);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, SeqCst);
            }
        }
        self.waiting.fetch_add(1, SeqCst);
        let _counted = Counted(&self.waiting);
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // In the queue from here on: what is freed after the question is not missed.
            freed.as_mut().enable();
            if let Some(got) = get() {
                return got;
            }
            freed.await;
        }
    }
}
