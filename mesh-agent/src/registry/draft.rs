//! Services while the registry is compiled, and the endpoints that they select.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::enrol::Candidate;
use super::{Endpoint, Service, Workload};
use crate::resource::Meta;

/// A service to which endpoints and addresses can still be added.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) meta: Arc<Meta>,
    pub(super) service: Arc<Service>,
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
        let mut addresses = endpoints.iter().filter_map(|endpoint| endpoint.address);
        Self {
            v4: true,
            v6: addresses.any(|address| address.is_ipv6()),
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
            for (key, value) in workload.labels.iter() {
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
    pub(super) fn at(&self, address: IpAddr) -> Option<&'a Arc<Workload>> {
        self.by_address.get(&address)
    }
}

/// A workload as endpoints: one for each of its addresses, so that clients of
/// both families are served; by name where it has no address.
pub(super) fn endpoints(
    candidate: &Candidate,
    ports: BTreeMap<u16, u16>,
) -> impl Iterator<Item = Endpoint> {
    let workload = &candidate.workload;
    let endpoint = move |address, host| Endpoint {
        address,
        host,
        ports: ports.clone(),
        labels: workload.labels.clone(),
        locality: workload.locality.clone(),
        weight: workload.weight,
        unhealthy: None,
        workload: Some(workload.clone()),
    };
    let named = candidate
        .host
        .iter()
        .filter(|_| workload.addresses.is_empty());
    let places = (workload.addresses.iter())
        .map(|&address| (Some(address), None))
        .chain(named.map(|host| (None, Some(host.to_string()))));
    places.map(move |(address, host)| endpoint(address, host))
}
