//! What the agent has found out since the configuration was read, put over
//! what the configuration says: who is well, and where names lead.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Endpoint, Registry, Resolution, Service, WorkloadName};

impl Service {
    /// Whether each address of a name is an endpoint of its own. Else a name is one
    /// endpoint, and every new connection asks for it.
    fn is_spread_by_name(&self) -> bool {
        self.resolution == Resolution::Dns
    }
}

/// What has been found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Workloads that do not pass their probe, and why.
    pub unhealthy: HashMap<WorkloadName, Arc<str>>,
    /// Addresses of the names of endpoints, in the order of the answer.
    pub resolved: HashMap<Arc<str>, Vec<IpAddr>>,
}

impl Observed {
    fn concerns(&self, endpoint: &Endpoint) -> bool {
        let is_sick = (endpoint.workload.as_ref())
            .is_some_and(|workload| self.unhealthy.contains_key(&workload.name));
        let has_addresses = endpoint.address.is_none()
            && (endpoint.host.as_deref()).is_some_and(|host| self.resolved.contains_key(host));
        is_sick || has_addresses
    }

    fn endpoints(&self, service: &Service) -> Vec<Arc<Endpoint>> {
        let mut endpoints = Vec::with_capacity(service.endpoints.len());
        for endpoint in &service.endpoints {
            if !self.concerns(endpoint) {
                endpoints.push(Arc::clone(endpoint));
                continue;
            }
            let workload = endpoint.workload.as_ref();
            let changed = Endpoint {
                unhealthy: workload
                    .and_then(|workload| self.unhealthy.get(&workload.name))
                    .cloned(),
                ..Endpoint::clone(endpoint)
            };
            let addresses = (endpoint.host.as_deref())
                .filter(|_| endpoint.address.is_none() && service.is_spread_by_name())
                .and_then(|host| self.resolved.get(host));
            let Some(addresses) = addresses else {
                endpoints.push(Arc::new(changed));
                continue;
            };
            endpoints.extend(addresses.iter().map(|&address| {
                Arc::new(Endpoint {
                    address: Some(address),
                    ..changed.clone()
                })
            }));
        }
        endpoints
    }
}

impl Registry {
    /// This registry, as it was configured, with what has been found out.
    #[must_use]
    pub fn with(&self, observed: &Observed) -> Self {
        let mut replaced: HashMap<*const Service, Arc<Service>> = HashMap::new();
        for service in &self.services {
            if (service.endpoints.iter()).any(|endpoint| observed.concerns(endpoint)) {
                let changed = Service {
                    endpoints: observed.endpoints(service),
                    ..Service::clone(service)
                };
                replaced.insert(Arc::as_ptr(service), Arc::new(changed));
            }
        }
        self.replacing(&replaced)
    }

    /// This registry with the services of an older one where nothing has changed: what hangs
    /// on them need not be made anew.
    #[must_use]
    pub(super) fn reusing(self, before: &Self) -> Self {
        let mut replaced: HashMap<*const Service, Arc<Service>> = HashMap::new();
        for service in &self.services {
            let known = (before.successor(service))
                .filter(|known| !Arc::ptr_eq(known, service) && *known == service);
            if let Some(known) = known {
                replaced.insert(Arc::as_ptr(service), Arc::clone(known));
            }
        }
        if replaced.is_empty() {
            return self;
        }
        self.replacing(&replaced)
    }

    fn replacing(&self, replaced: &HashMap<*const Service, Arc<Service>>) -> Self {
        let one = |service: &Arc<Service>| {
            Arc::clone(replaced.get(&Arc::as_ptr(service)).unwrap_or(service))
        };
        let all = |services: &Vec<Arc<Service>>| services.iter().map(one).collect();
        Self {
            cluster_domain: self.cluster_domain.clone(),
            workloads: self.workloads.clone(),
            services: all(&self.services),
            by_host: (self.by_host.iter())
                .map(|(host, service)| (host.clone(), one(service)))
                .collect(),
            namesakes: (self.namesakes.iter())
                .map(|(host, services)| (host.clone(), all(services)))
                .collect(),
            without_address: all(&self.without_address),
            by_endpoint: (self.by_endpoint.iter())
                .map(|(address, services)| (*address, all(services)))
                .collect(),
            by_vip: (self.by_vip.iter())
                .map(|(vip, service)| (*vip, one(service)))
                .collect(),
            shared_vips: (self.shared_vips.iter())
                .map(|(vip, services)| (*vip, all(services)))
                .collect(),
            by_network: (self.by_network.iter())
                .map(|(network, service)| (*network, one(service)))
                .collect(),
            by_address: self.by_address.clone(),
            probes: self.probes.clone(),
        }
    }

    /// Names of endpoints that have to be resolved.
    pub fn names_to_resolve(&self) -> impl Iterator<Item = &str> {
        let services = (self.services.iter()).filter(|service| service.is_spread_by_name());
        let endpoints = services.flat_map(|service| &service.endpoints);
        endpoints
            .filter(|endpoint| endpoint.address.is_none())
            .filter_map(|endpoint| endpoint.host.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use crate::resource::parse;

    const MESH: &str = r"
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: a}, spec: {address: 10.0.0.1, labels: {app: web}}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: b}, spec: {address: 10.0.0.2, labels: {app: web}}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, name: http}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: all}, spec: {hosts: [all.example.com], resolution: DNS, ports: [{number: 80, name: http}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: one}, spec: {hosts: [one.example.com], resolution: DNS_ROUND_ROBIN, endpoints: [{address: all.example.com}], ports: [{number: 80, name: http}]}}
";

    fn configured() -> Arc<Registry> {
        let resources = parse([("a.yaml", MESH)]).expect("no errors");
        Registry::compile(&resources, "cluster.local", "cluster.local").0
    }

    #[test]
    fn what_is_found_out_is_seen_by_every_way_to_a_service() {
        let configured = configured();
        let mut observed = Observed::default();
        let sick = configured.workloads[0].name.clone();
        observed.unhealthy.insert(sick, "connection refused".into());
        let registry = configured.with(&observed);
        let destination = "10.96.0.1:80".parse().expect("an address");
        let by_host = &registry.by_host["web.default.svc.cluster.local"];
        let by_vip = registry.service_for(destination).expect("a service");
        assert!(Arc::ptr_eq(by_host, by_vip) && Arc::ptr_eq(by_host, &registry.services[0]));
        let reasons: Vec<_> = (by_host.endpoints.iter())
            .map(|endpoint| endpoint.unhealthy.as_deref())
            .collect();
        assert_eq!(reasons, [Some("connection refused"), None]);
        // Nothing else was made anew.
        assert!(Arc::ptr_eq(&registry.services[1], &configured.services[1]));
    }

    #[test]
    fn a_name_becomes_its_addresses() {
        let configured = configured();
        let names: Vec<_> = configured.names_to_resolve().collect();
        assert_eq!(names, ["all.example.com"]);
        let addresses = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().expect("an address"));
        let mut observed = Observed::default();
        observed
            .resolved
            .insert("all.example.com".into(), addresses.to_vec());
        let registry = configured.with(&observed);
        let of = |host: &str| -> Vec<_> {
            let endpoints = &registry.by_host[host].endpoints;
            endpoints
                .iter()
                .filter_map(|endpoint| endpoint.address)
                .collect()
        };
        assert_eq!(of("all.example.com"), addresses);
        assert!(of("one.example.com").is_empty());
    }
}
