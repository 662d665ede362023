//! What the data path asks the registry.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::{Registry, Service, Workload, WorkloadName};

impl Registry {
    /// The service whose address (`ClusterIP`, allocated, or in a range of a
    /// `ServiceEntry`) this is.
    pub fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        let in_network = || {
            let mut networks = self.by_network.iter();
            networks.find(|(net, _)| net.contains(&address))
        };
        (self.by_vip.get(&address)).or_else(|| in_network().map(|(_, service)| service))
    }

    /// The service to which a connection to `destination` goes: of several
    /// services with one address, the first that has the port.
    pub fn service_for(&self, destination: SocketAddr) -> Option<&Arc<Service>> {
        let first = self.service_at(destination.ip())?;
        let shared = self.shared_vips.get(&destination.ip());
        let mut all = std::iter::once(first).chain(shared.into_iter().flatten());
        all.find(|service| service.port(destination.port()).is_some())
            .or(Some(first))
    }

    /// The workload whose address this is.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(&address)
    }

    /// The workload of this name.
    pub fn workload(&self, name: &WorkloadName) -> Option<&Arc<Workload>> {
        self.workloads
            .iter()
            .find(|workload| workload.name == *name)
    }

    /// Every address that the kernel must hand to the agent: of services,
    /// their ranges, their endpoints, and workloads; sorted, each once.
    /// Loopback addresses are left out: the mesh never touches them.
    pub fn destinations(&self) -> Vec<IpNet> {
        let endpoints = self.services.iter().flat_map(|service| &service.endpoints);
        let addresses = (self.by_vip.keys().copied())
            .chain(self.by_address.keys().copied())
            .chain(endpoints.filter_map(|endpoint| endpoint.address));
        let single = addresses
            .filter(|address| !address.is_loopback())
            .map(IpNet::from);
        let ranges = self.by_network.iter().map(|(net, _)| *net);
        let unique: BTreeSet<IpNet> = single.chain(ranges).collect();
        unique.into_iter().collect()
    }
}
