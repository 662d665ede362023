//! Services while the registry is compiled, and the endpoints that they select.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::enrol::Candidate;
use super::{Endpoint, Service, Workload};
use crate::resource::Meta;

/// A service to which endpoints and addresses can still be added.
pub(super) struct Draft<'a> {
    pub(super) meta: &'a Meta,
    pub(super) service: Service,
    /// Ranges of addresses that belong to it.
    pub(super) networks: Vec<IpNet>,
    /// Addresses that it is to get.
    pub(super) wanted: Wanted,
}

/// Addresses that a service is to be given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

impl Wanted {
    /// IPv4, and IPv6 where an endpoint has it.
    pub(super) fn by_endpoints(endpoints: &[Arc<Endpoint>]) -> Self {
        let has_v6 = |endpoint: &Arc<Endpoint>| {
            let of_workload = endpoint.workload.iter().flat_map(|w| &w.addresses);
            endpoint
                .address
                .iter()
                .chain(of_workload)
                .any(IpAddr::is_ipv6)
        };
        Self {
            v4: true,
            v6: endpoints.iter().any(has_v6),
        }
    }
}

/// All workloads, to be selected by label.
pub(super) struct Pool<'a> {
    /// By namespace, key and value, in file order: a selector looks only at the
    /// workloads that have the rarest of its labels.
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Candidate>>,
    by_address: &'a HashMap<IpAddr, Arc<Workload>>,
}

impl<'a> Pool<'a> {
    pub(super) fn new(
        candidates: &'a [Candidate],
        by_address: &'a HashMap<IpAddr, Arc<Workload>>,
    ) -> Self {
        let mut by_label: HashMap<_, Vec<&Candidate>> = HashMap::new();
        for candidate in candidates {
            let workload = &candidate.workload;
            for (key, value) in &workload.labels {
                let label = (&*workload.name.namespace, key.as_str(), value.as_str());
                by_label.entry(label).or_default().push(candidate);
            }
        }
        Self {
            by_label,
            by_address,
        }
    }

    /// The workloads of the namespace that have all labels, in file order;
    /// none where no label is given.
    pub(super) fn select(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<&'a Candidate> {
        let with_label = labels.iter().map(|(key, value)| {
            let label = (namespace, key.as_str(), value.as_str());
            self.by_label.get(&label).map_or(&[][..], Vec::as_slice)
        });
        let Some(rarest) = with_label.min_by_key(|candidates| candidates.len()) else {
            return Vec::new();
        };
        let has_all = |candidate: &&&Candidate| {
            let own = &candidate.workload.labels;
            labels
                .iter()
                .all(|(key, value)| own.get(key) == Some(value))
        };
        rarest.iter().filter(has_all).copied().collect()
    }

    /// The workload at this address.
    pub(super) fn at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(&address)
    }
}

/// A workload as an endpoint; its first address stands for all of them.
pub(super) fn endpoint(candidate: &Candidate, ports: BTreeMap<u16, u16>) -> Endpoint {
    let workload = &candidate.workload;
    Endpoint {
        address: workload.addresses.first().copied(),
        host: candidate.host.as_ref().map(ToString::to_string),
        ports,
        labels: workload.labels.clone(),
        weight: workload.weight,
        workload: Some(workload.clone()),
    }
}
