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

    /// The service with exactly this host or, where there is none, with the
    /// most specific wildcard. `host` is in lower case and fully qualified.
    pub fn service_of_host(&self, host: &str) -> Option<&Arc<Service>> {
        self.by_host.get(host).or_else(|| {
            // `*.b.c`, then `*.c` for `a.b.c`.
            let dots = host.match_indices('.').map(|(at, _)| at);
            dots.filter_map(|at| self.by_host.get(&format!("*{}", &host[at..])))
                .next()
        })
    }

    /// The service that a client in `client_namespace` means by a `Host` header
    /// (without its port): the fully qualified name, the name shortened as in
    /// Kubernetes, or an address of the service, in any case and with or
    /// without a dot at the end.
    pub fn resolve_host(&self, host: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(&host).parse::<IpAddr>() {
            return self.service_at(address.to_canonical());
        }
        if let Some(exact) = self.by_host.get(&host) {
            return Some(exact);
        }
        let domain = &self.cluster_domain;
        let labels = host.split('.').count();
        let full = match labels {
            1 => format!("{host}.{client_namespace}.svc.{domain}"),
            2 => format!("{host}.svc.{domain}"),
            3 if host.ends_with(".svc") => format!("{host}.{domain}"),
            _ => return self.service_of_host(&host),
        };
        self.by_host
            .get(&full)
            .or_else(|| self.service_of_host(&host))
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
