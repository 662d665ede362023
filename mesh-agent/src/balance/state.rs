//! What a cluster knows of its endpoints in one configuration.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::cluster::{Destination, EndpointPool, Version};
use super::host::{EndpointAddress, Host, Member};
use super::outlier::Monitor;
use super::view::View;
use crate::registry::{Endpoint, Service, Workload, WorkloadName};
use crate::route::UpstreamPolicy;

/// What changes with configuration and health.
pub(super) struct State<P> {
    pub(super) version: Version,
    pub(super) service: Arc<Service>,
    pub(super) policy: Arc<UpstreamPolicy>,
    pub(super) client: Arc<Workload>,
    pub(super) members: Vec<Arc<Member<P>>>,
    /// Endpoints that do not pass their probe: they are never chosen.
    pub(super) unhealthy: Vec<Arc<Member<P>>>,
    /// Those of the members, each once.
    pub(super) monitors: Vec<Arc<Monitor>>,
    pub(super) view: View<P>,
}

impl<P: EndpointPool> State<P> {
    pub(super) fn build(
        destination: &Destination<'_>,
        known: &HashMap<&EndpointAddress, &Arc<Host<P>>>,
        now: Instant,
    ) -> Self {
        let node = destination.client.node.as_deref();
        let has = |endpoint: &Endpoint| {
            let subset = destination.subset;
            let is_of_subset = subset.is_none_or(|subset| endpoint.has(&subset.labels));
            is_of_subset && destination.service.is_open_to(endpoint, node)
        };
        // What is known of a workload, by whichever of its addresses.
        let mut of_workload: HashMap<&WorkloadName, Arc<Monitor>> = HashMap::new();
        let endpoints = destination.service.endpoints.iter();
        let endpoints: Vec<_> = endpoints
            .filter(|endpoint| has(endpoint))
            .filter_map(|endpoint| {
                let address = EndpointAddress::of(endpoint, destination.port)?;
                if let (Some(host), Some(workload)) = (known.get(&address), &endpoint.workload) {
                    of_workload
                        .entry(&workload.name)
                        .or_insert_with(|| Arc::clone(&host.monitor));
                }
                Some((endpoint, address))
            })
            .collect();
        let mut monitors: Vec<Arc<Monitor>> = Vec::new();
        let members: Vec<_> = endpoints
            .into_iter()
            .map(|(endpoint, address)| {
                let host = match known.get(&address) {
                    Some(known) => Arc::clone(known),
                    None => {
                        let monitor = match &endpoint.workload {
                            Some(workload) => {
                                Arc::clone(of_workload.entry(&workload.name).or_default())
                            }
                            None => Arc::default(),
                        };
                        Arc::new(Host::new(address, now, monitor))
                    }
                };
                if endpoint.unhealthy.is_none()
                    && !monitors.iter().any(|one| Arc::ptr_eq(one, &host.monitor))
                {
                    monitors.push(Arc::clone(&host.monitor));
                }
                Arc::new(Member {
                    host,
                    endpoint: Arc::clone(endpoint),
                })
            })
            .collect();
        let (members, unhealthy): (Vec<_>, Vec<_>) = (members.into_iter())
            .partition(|member: &Arc<Member<P>>| member.endpoint.unhealthy.is_none());
        Self {
            unhealthy,
            version: destination.version,
            service: Arc::clone(destination.service),
            policy: Arc::clone(destination.policy),
            client: Arc::clone(destination.client),
            view: View::build(
                &members,
                destination.client,
                destination.policy,
                destination.service.distribution,
            ),
            members,
            monitors,
        }
    }

    pub(super) fn with_new_view(&self) -> Self {
        Self {
            version: self.version,
            service: Arc::clone(&self.service),
            policy: Arc::clone(&self.policy),
            client: Arc::clone(&self.client),
            members: self.members.clone(),
            unhealthy: self.unhealthy.clone(),
            monitors: self.monitors.clone(),
            view: View::build(
                &self.members,
                &self.client,
                &self.policy,
                self.service.distribution,
            ),
        }
    }
}
