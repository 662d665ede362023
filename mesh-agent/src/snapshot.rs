//! One immutable state of the whole configuration. The data path holds a
//! snapshot per connection or request and never a lock.

mod across;
mod compiler;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use ipnet::IpNet;

pub use compiler::{Compiler, Made};

use crate::policy::{Authorization, PathNormalization, PeerAuthentications};
pub use crate::registry::SameNode;
use crate::registry::{Protocol, Registry, Resolution, Served, Service, Workload};
use crate::resource::{Finding, ResourceSet};
use crate::route::{OutboundPolicy, Routes};
use crate::telemetry::Rules;

/// All that the agent decides by, compiled from the resources.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts the configurations that have been put in force, from 1.
    pub generation: u64,
    /// Workloads, services, endpoints.
    pub registry: Arc<Registry>,
    /// HTTP routes and destination rules.
    pub routes: Arc<Routes>,
    /// PeerAuthentication.
    pub peer_authentication: PeerAuthentications,
    /// AuthorizationPolicy.
    pub authorization: Authorization,
    /// Telemetry.
    pub telemetry: Arc<Rules>,
    /// How connections between two workloads of one node travel, where neither says it.
    pub same_node: SameNode,
    /// Fields that are not applied, and the like.
    pub warnings: Vec<Finding>,
}

/// What a configuration does not say about the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// DNS suffix of services.
    pub cluster_domain: String,
    /// Namespace whose security policies apply to the whole mesh.
    pub root_namespace: String,
    /// Further names of the trust domain.
    pub trust_domain_aliases: Vec<String>,
    /// The form in which policies compare paths.
    pub path_normalization: PathNormalization,
    /// How connections between two workloads of one node travel.
    pub same_node: SameNode,
    /// What becomes of connections to what is no service.
    pub outbound_traffic_policy: OutboundPolicy,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            trust_domain_aliases: Vec::new(),
            path_normalization: PathNormalization::default(),
            same_node: SameNode::default(),
            outbound_traffic_policy: OutboundPolicy::default(),
        }
    }
}

impl Snapshot {
    /// Which configuration this is, for what is remembered of endpoints.
    pub fn version(&self) -> crate::balance::Version {
        crate::balance::Version {
            generation: self.generation,
            policies: self.authorization.epoch,
        }
    }

    /// Compiles a configuration once.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn compile(
        generation: u64,
        resources: &ResourceSet,
        options: &Options,
    ) -> Result<Self, Vec<Finding>> {
        Compiler::new(options.clone()).compile(generation, resources)
    }

    /// How connections between these two travel on their node: encrypted, where
    /// one of them demands it.
    pub fn same_node(&self, one: &Workload, other: &Workload) -> SameNode {
        let demand = |workload: &Workload| workload.same_node.unwrap_or(self.same_node);
        demand(one).max(demand(other))
    }

    /// Every address that the kernel must hand to the agent, and whether
    /// somebody serves it.
    pub fn destinations(&self) -> Vec<(IpNet, Served)> {
        let networks = self.registry.destinations().into_iter();
        networks
            .map(|network| (network, self.served(network)))
            .collect()
    }

    fn served(&self, network: IpNet) -> Served {
        let is_single = network.prefix_len() == network.max_prefix_len();
        let first = self.registry.by_vip.get(&network.addr());
        let Some(first) = first.filter(|_| is_single) else {
            return Served::BySomebody;
        };
        let shared = self.registry.shared_vips.get(&network.addr());
        let mut services = std::iter::once(first).chain(shared.into_iter().flatten());
        if services.all(|service| self.has_nobody(service)) {
            Served::ByNobody
        } else {
            Served::BySomebody
        }
    }

    /// Where HTTP is declared, the client gets an answer that says so (503, as in Istio).
    fn has_nobody(&self, service: &Service) -> bool {
        let is_http =
            |protocol| matches!(protocol, Protocol::Http | Protocol::Http2 | Protocol::Grpc);
        service.endpoints.is_empty()
            && service.resolution == Resolution::Static
            && !service.ports.iter().any(|port| is_http(port.protocol))
            && !self.routes.may_divert(&service.host)
    }
}
