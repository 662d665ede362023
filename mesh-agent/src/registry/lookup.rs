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
        self.service_for_client(destination, |_| true)
    }

    /// The same for a client that sees only some services.
    pub fn service_for_client(
        &self,
        destination: SocketAddr,
        sees: impl Fn(&Service) -> bool,
    ) -> Option<&Arc<Service>> {
        let address = destination.ip();
        let single = self.by_vip.get(&address);
        let shared = self.shared_vips.get(&address);
        let mut all = (single.into_iter().chain(shared.into_iter().flatten()))
            .filter(|service| sees(service));
        if let Some(first) = all.next() {
            let has_port = |service: &&Arc<Service>| service.port(destination.port()).is_some();
            return std::iter::once(first)
                .chain(all)
                .find(has_port)
                .or(Some(first));
        }
        let mut ranges = self.by_network.iter();
        ranges
            .find(|(net, service)| net.contains(&address) && sees(service))
            .map(|(_, service)| service)
    }

    /// The service with exactly this host that `namespace` sees: its own one,
    /// where several namespaces have one.
    pub fn named(&self, host: &str, namespace: &str) -> Option<&Arc<Service>> {
        let first = self.by_host.get(host)?;
        let namesakes = self.namesakes.get(host);
        let mut seen = std::iter::once(first)
            .chain(namesakes.into_iter().flatten())
            .filter(|service| service.visibility.includes(namespace));
        let oldest = seen.next()?;
        std::iter::once(oldest)
            .chain(seen)
            .find(|service| service.namespace == namespace)
            .or(Some(oldest))
    }

    /// What has become of a service of an older configuration.
    pub fn successor(&self, service: &Service) -> Option<&Arc<Service>> {
        let first = self.by_host.get(&service.host)?;
        let namesakes = self.namesakes.get(&service.host);
        std::iter::once(first)
            .chain(namesakes.into_iter().flatten())
            .find(|successor| successor.namespace == service.namespace)
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
            // What a name leads to is reached by the name.
            .chain(
                endpoints
                    .filter(|endpoint| endpoint.host.is_none())
                    .filter_map(|endpoint| endpoint.address),
            );
        let single = addresses
            .filter(|address| !address.is_loopback())
            .map(IpNet::from);
        let ranges = self.by_network.iter().map(|(net, _)| *net);
        let unique: BTreeSet<IpNet> = single.chain(ranges).collect();
        unique.into_iter().collect()
    }
}
