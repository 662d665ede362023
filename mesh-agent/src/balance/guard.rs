//! Things that are counted until they are dropped.

use std::sync::Arc;
use std::time::Instant;

use super::cluster::{Cluster, EndpointPool};
use super::host::Member;
use super::route::InRoute;

/// A bound is reached: the answer is 503, flag `UO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("overflow")]
pub struct Overflow;

/// A request (for TCP: a connection) that is on its way to an endpoint.
pub struct Active<P: EndpointPool> {
    cluster: Arc<Cluster<P>>,
    member: Arc<Member<P>>,
    /// Of a route with bounds.
    in_route: Option<InRoute>,
}

impl<P: EndpointPool> Active<P> {
    pub(super) fn new(cluster: Arc<Cluster<P>>, member: Arc<Member<P>>) -> Self {
        member.host.enter();
        Self {
            cluster,
            member,
            in_route: None,
        }
    }

    /// Counts it among those of its route as long as this is held.
    pub fn hold(&mut self, in_route: InRoute) {
        self.in_route = Some(in_route);
    }

    /// Tells the breaker of its route what became of it.
    pub fn report_to_route(&self, failed: bool, now: impl FnOnce() -> Instant) {
        if let Some(in_route) = &self.in_route {
            in_route.report(failed, now);
        }
    }

    /// Where it goes.
    pub fn member(&self) -> &Arc<Member<P>> {
        &self.member
    }

    /// Of which service.
    pub fn cluster(&self) -> &Arc<Cluster<P>> {
        &self.cluster
    }
}

impl<P: EndpointPool> Drop for Active<P> {
    fn drop(&mut self) {
        self.member.host.leave();
        self.cluster.gauges.requests.leave();
    }
}

macro_rules! counted {
    ($(#[$doc:meta])* $name:ident, $gauge:ident, $then:expr) => {
        $(#[$doc])*
        pub struct $name<P: EndpointPool>(Arc<Cluster<P>>);

        impl<P: EndpointPool> $name<P> {
            pub(super) fn new(cluster: Arc<Cluster<P>>) -> Self {
                Self(cluster)
            }
        }

        impl<P: EndpointPool> Drop for $name<P> {
            fn drop(&mut self) {
                self.0.gauges.$gauge.leave();
                let then: fn(&Cluster<P>) = $then;
                then(&self.0);
            }
        }
    };
}

counted!(
    /// A connection that is open, or being made.
    Slot,
    connections,
    |cluster| cluster.freed()
);
counted!(
    /// A request that waits for a connection.
    Pending,
    pending,
    |_| ()
);
counted!(
    /// A retry that is under way.
    Retrying,
    retries,
    |_| ()
);
