//! What is there: workloads, services and their endpoints, compiled from the
//! resources into one immutable value.

mod compile;
mod draft;
mod enrol;
mod group;
mod host;
mod kubernetes;
mod lookup;
mod observed;
mod protocol;
#[cfg(test)]
pub(crate) mod samples;
mod service;
mod service_entry;
#[cfg(test)]
mod tests;
mod topology;
mod vip;
mod visibility;
mod workload;

pub use compile::{Compiler, Made};
pub(crate) use host::{canonical_host, full_names};
pub use observed::Observed;
pub use protocol::of_port;
pub(crate) use service::PASSTHROUGH;
pub use service::{Distribution, Endpoint, Location, Protocol, Resolution, Service, ServicePort};
pub use topology::topology;
pub use visibility::Visibility;
pub use workload::{
    Placement, SameNode, ShortCircuit, Tunnel, WhenAgentIsDown, Workload, WorkloadName,
};

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::resource::workload_group::ProbeSpec;
use crate::resource::{Finding, ResourceSet};

/// Whether somebody serves a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Connections go somewhere, as far as is known.
    BySomebody,
    /// It is a service without endpoints: connections are refused at once.
    ByNobody,
}

/// Everything that the mesh knows of, indexed for the data path. Immutable:
/// a change of configuration makes a new one.
#[derive(Debug, Default, PartialEq)]
pub struct Registry {
    /// DNS suffix of services, `cluster.local` by default.
    pub cluster_domain: String,
    /// All workloads, in file order.
    pub workloads: Vec<Arc<Workload>>,
    /// All services, in file order.
    pub services: Vec<Arc<Service>>,
    /// Fully qualified host name (lower case; `*.suffix` for wildcards) to service.
    pub by_host: HashMap<String, Arc<Service>>,
    /// Further services with a host of `by_host`, of other namespaces.
    pub namesakes: HashMap<String, Vec<Arc<Service>>>,
    /// Services that no address leads to: only a name that a client says, or a port.
    pub without_address: Vec<Arc<Service>>,
    /// Address of an endpoint to the services that it serves.
    pub by_endpoint: HashMap<IpAddr, Vec<Arc<Service>>>,
    /// Service address to service.
    pub by_vip: HashMap<IpAddr, Arc<Service>>,
    /// Further services at an address of `by_vip`, for other ports or hosts.
    pub shared_vips: HashMap<IpAddr, Vec<Arc<Service>>>,
    /// Ranges of addresses of services, the narrowest first.
    pub by_network: Vec<(IpNet, Arc<Service>)>,
    /// Workload address to workload.
    pub by_address: HashMap<IpAddr, Arc<Workload>>,
    /// How to find out whether workloads are well.
    pub probes: HashMap<WorkloadName, Arc<ProbeSpec>>,
}

impl Registry {
    /// Compiles workloads and services once. The registry is only to be used when
    /// no finding is an error.
    pub fn compile(
        resources: &ResourceSet,
        trust_domain: &str,
        cluster_domain: &str,
    ) -> (Arc<Self>, Vec<Finding>) {
        let (registry, findings, _) =
            Compiler::default().compile(resources, trust_domain, cluster_domain);
        (registry, findings)
    }
}
