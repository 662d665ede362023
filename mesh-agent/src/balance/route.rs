//! Bounds of single routes: what one of them has under way towards a destination.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::breaker::Breaker;
use super::cluster::{Cluster, EndpointPool};
use super::guard::Overflow;
use super::limits::Gauge;
use crate::resource::virtual_service::limits::BreakerBounds;
use crate::route::RouteLimits;

/// Routes that are remembered for one destination. At the bound the unused ones are forgotten.
const MAX_ROUTES: usize = 256;
/// In place of a bound, for none.
const NO_BOUND: u32 = u32::MAX;

/// A route's requests to one destination; outlives changes of configuration.
#[derive(Debug)]
pub struct RouteGauges {
    /// Which route.
    pub route: String,
    /// Requests on their way, those included that wait for a connection.
    pub requests: Gauge,
    /// Of those: that wait for a connection.
    pub pending: Gauge,
    /// Of those: retries.
    pub retries: Gauge,
    /// Nothing is sent while it is open.
    pub breaker: Breaker,
    /// Requests that the breaker has refused.
    broken: AtomicU64,
    max_requests: AtomicU32,
    max_pending: AtomicU32,
    max_retries: AtomicU32,
}

impl RouteGauges {
    /// How many requests there may be, as the last one was told.
    pub fn max_requests(&self) -> Option<u32> {
        bound(&self.max_requests)
    }

    /// How many may wait for a connection, as the last one was told.
    pub fn max_pending(&self) -> Option<u32> {
        bound(&self.max_pending)
    }

    /// How many requests the breaker has refused.
    pub fn broken(&self) -> u64 {
        self.broken.load(Relaxed)
    }

    /// How many retries there may be, as the last one was told.
    pub fn max_retries(&self) -> Option<u32> {
        bound(&self.max_retries)
    }
}

fn bound(of: &AtomicU32) -> Option<u32> {
    Some(of.load(Relaxed)).filter(|bound| *bound != NO_BOUND)
}

/// A request or a retry of a route, counted until this is dropped.
pub struct InRoute {
    gauges: Arc<RouteGauges>,
    gauge: fn(&RouteGauges) -> &Gauge,
    breaker: Option<BreakerBounds>,
}

impl InRoute {
    fn enter(
        gauges: Arc<RouteGauges>,
        gauge: fn(&RouteGauges) -> &Gauge,
        limit: Option<u32>,
    ) -> Result<Self, Overflow> {
        if gauge(&gauges).enter(limit) {
            return Ok(Self {
                gauges,
                gauge,
                breaker: None,
            });
        }
        gauge(&gauges).refuse();
        Err(Overflow)
    }
}

impl InRoute {
    /// Tells the breaker, where there is one, what became of the request.
    pub fn report(&self, failed: bool, now: impl FnOnce() -> Instant) {
        if let Some(bounds) = self.breaker {
            self.gauges.breaker.report(failed, bounds, now());
        }
    }
}

impl Drop for InRoute {
    fn drop(&mut self) {
        (self.gauge)(&self.gauges).leave();
    }
}

impl<P: EndpointPool> Cluster<P> {
    /// Counts a request of a route.
    ///
    /// # Errors
    /// As many as the route may have are on their way, or its breaker is open.
    pub fn enter_route(&self, limits: &RouteLimits, now: Instant) -> Result<InRoute, Overflow> {
        let (route, max) = (self.route(limits), limits.bounds.max_requests);
        let breaker = limits.bounds.breaker;
        let mut entered = InRoute::enter(route, |gauges| &gauges.requests, max)?;
        // The last question: whoever is let pass as the one that tries is sent.
        if breaker.is_some_and(|bounds| !entered.gauges.breaker.lets_pass(bounds, now)) {
            entered.gauges.broken.fetch_add(1, Relaxed);
            return Err(Overflow);
        }
        entered.breaker = breaker;
        Ok(entered)
    }

    /// Counts a request of a route that waits for a connection.
    ///
    /// # Errors
    /// As many as the route may have do already.
    pub fn pend_in_route(&self, limits: &RouteLimits) -> Result<InRoute, Overflow> {
        let max = limits.bounds.max_pending;
        InRoute::enter(self.route(limits), |gauges| &gauges.pending, max)
    }

    /// Counts a retry of a route.
    ///
    /// # Errors
    /// As many as the route may have are under way.
    pub fn retry_route(&self, limits: &RouteLimits) -> Result<InRoute, Overflow> {
        let max = limits.bounds.max_retries;
        InRoute::enter(self.route(limits), |gauges| &gauges.retries, max)
    }

    /// The routes with bounds that have been used.
    pub fn routes(&self) -> Vec<Arc<RouteGauges>> {
        self.routes.read().clone()
    }

    /// Only requests of routes with bounds come here.
    fn route(&self, limits: &RouteLimits) -> Arc<RouteGauges> {
        let known = |routes: &Vec<Arc<RouteGauges>>| {
            let mut routes = routes.iter();
            routes.find(|known| known.route == limits.route).cloned()
        };
        let found = known(&self.routes.read());
        let gauges = found.unwrap_or_else(|| {
            let mut routes = self.routes.write();
            if let Some(found) = known(&routes) {
                return found;
            }
            if routes.len() >= MAX_ROUTES {
                routes.retain(|route| Arc::strong_count(route) > 1);
            }
            let new = Arc::new(RouteGauges {
                route: limits.route.clone(),
                requests: Gauge::default(),
                pending: Gauge::default(),
                breaker: Breaker::default(),
                broken: AtomicU64::new(0),
                max_pending: AtomicU32::new(NO_BOUND),
                retries: Gauge::default(),
                max_requests: AtomicU32::new(NO_BOUND),
                max_retries: AtomicU32::new(NO_BOUND),
            });
            routes.push(Arc::clone(&new));
            new
        });
        let bounds = limits.bounds;
        let max_requests = bounds.max_requests.unwrap_or(NO_BOUND);
        gauges.max_requests.store(max_requests, Relaxed);
        let max_pending = bounds.max_pending.unwrap_or(NO_BOUND);
        gauges.max_pending.store(max_pending, Relaxed);
        let max_retries = bounds.max_retries.unwrap_or(NO_BOUND);
        gauges.max_retries.store(max_retries, Relaxed);
        gauges
    }
}
