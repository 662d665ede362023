//! What is there: workloads, services and their endpoints, compiled from the
//! resources into one immutable value.

#[cfg(test)]
pub(crate) mod samples;
mod service;
mod workload;

pub use service::{Endpoint, Location, Protocol, Resolution, Service, ServicePort};
pub use workload::{Placement, Tunnel, Workload, WorkloadName};

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Everything that the mesh knows of, indexed for the data path. Immutable:
/// a change of configuration makes a new one.
#[derive(Debug, Default)]
pub struct Registry {
    /// DNS suffix of services, `cluster.local` by default.
    pub cluster_domain: String,
    /// All workloads, in file order.
    pub workloads: Vec<Arc<Workload>>,
    /// All services, in file order.
    pub services: Vec<Arc<Service>>,
    /// Fully qualified host name (lower case; `*.suffix` for wildcards) to service.
    pub by_host: HashMap<String, Arc<Service>>,
    /// Service address to service.
    pub by_vip: HashMap<IpAddr, Arc<Service>>,
    /// Workload address to workload.
    pub by_address: HashMap<IpAddr, Arc<Workload>>,
}

impl Registry {
    /// The service whose address (`ClusterIP` or allocated) this is.
    pub fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.by_vip.get(&address)
    }

    /// The workload whose address this is.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(&address)
    }
}
