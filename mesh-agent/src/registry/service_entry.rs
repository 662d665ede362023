//! Services from Istio `ServiceEntry` resources: one for each host.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::draft::{self, Draft, Pool, Wanted};
use super::enrol::{self, Candidate};
use super::{
    Distribution, Endpoint, Location, Resolution, Service, ServicePort, Visibility, Workload,
    protocol,
};
use crate::resource::scalar::HostName;
use crate::resource::{
    Address, Finding, LocationSpec, ResolutionSpec, Resource, ServiceEntryPort, ServiceEntrySpec,
    WorkloadEntrySpec,
};

/// Label by which an entry declines an allocated address (Istio).
const AUTO_ALLOCATE: &str = "networking.istio.io/enable-autoallocate-ip";

/// The workloads behind an entry: those that it selects, or for each endpoint that it
/// writes the one that has its address.
pub(super) enum Behind<'a> {
    Selected(Vec<&'a Candidate>),
    Written(Vec<Option<&'a Arc<Workload>>>),
}

impl<'a> Behind<'a> {
    pub(super) fn new(resource: &Resource<ServiceEntrySpec>, pool: &Pool<'a>) -> Self {
        let Resource { meta, spec } = resource;
        match &spec.workload_selector {
            Some(selector) => Self::Selected(pool.select(&meta.namespace, &selector.labels)),
            None => {
                let at = |endpoint: &WorkloadEntrySpec| match endpoint.address {
                    Some(Address::Ip(address)) => pool.at(address),
                    _ => None,
                };
                Self::Written(spec.endpoints.iter().map(at).collect())
            }
        }
    }

    /// All of them in their places.
    pub(super) fn workloads(&self) -> Vec<Option<&'a Arc<Workload>>> {
        match self {
            Self::Selected(candidates) => (candidates.iter())
                .map(|candidate| Some(&candidate.workload))
                .collect(),
            Self::Written(workloads) => workloads.clone(),
        }
    }
}

pub(super) fn drafts(
    resource: &Resource<ServiceEntrySpec>,
    behind: &Behind<'_>,
    trust_domain: &Arc<str>,
    findings: &mut Vec<Finding>,
) -> Vec<Draft> {
    let Resource { meta, spec } = resource;
    let endpoints = endpoints(resource, behind, trust_domain, findings);
    let vips: Vec<_> = spec
        .addresses
        .iter()
        .filter_map(|net| net.single())
        .collect();
    let ranges = spec.addresses.iter().filter(|net| net.single().is_none());
    let networks: Vec<_> = ranges.map(|net| net.0).collect();
    let distribution = Distribution::read(None, meta, findings);
    let declined = (meta.labels.get(AUTO_ALLOCATE)).is_some_and(|value| value == "false");
    let draft = |host: &HostName| {
        let endpoints = match endpoints.as_slice() {
            [] if by_name(spec) => vec![Arc::new(itself(host, &spec.ports))],
            endpoints => endpoints.to_vec(),
        };
        // As in Istio: a wildcard has no name that DNS could answer, and
        // resolution NONE needs the address that the application knows.
        let allocate = spec.addresses.is_empty()
            && spec.resolution != ResolutionSpec::None
            && !host.is_wildcard()
            && !declined;
        Draft {
            meta: Arc::clone(meta),
            wanted: if allocate {
                Wanted::by_endpoints(&endpoints)
            } else {
                Wanted::default()
            },
            networks: networks.clone(),
            service: Arc::new(Service {
                host: host.to_string(),
                name: meta.name.clone(),
                namespace: meta.namespace.clone(),
                vips: vips.clone(),
                headless: false,
                ports: spec.ports.iter().map(port).collect(),
                endpoints,
                location: match spec.location {
                    LocationSpec::MeshInternal => Location::MeshInternal,
                    LocationSpec::MeshExternal => Location::MeshExternal,
                },
                resolution: resolution(spec),
                subject_alt_names: spec.subject_alt_names.clone(),
                distribution,
                external_ips: Vec::new(),
                session_affinity: None,
                visibility: Visibility::new(meta, &spec.export_to),
                origin: meta.origin.to_string(),
            }),
        }
    };
    spec.hosts.iter().map(draft).collect()
}

fn resolution(spec: &ServiceEntrySpec) -> Resolution {
    match spec.resolution {
        ResolutionSpec::None => Resolution::None,
        ResolutionSpec::Static => Resolution::Static,
        ResolutionSpec::Dns => Resolution::Dns,
        ResolutionSpec::DynamicDns => Resolution::DynamicDns,
        ResolutionSpec::DnsRoundRobin => Resolution::DnsRoundRobin,
    }
}

fn by_name(spec: &ServiceEntrySpec) -> bool {
    matches!(
        resolution(spec),
        Resolution::Dns | Resolution::DnsRoundRobin
    )
}

fn port(spec: &ServiceEntryPort) -> ServicePort {
    ServicePort {
        name: spec.name.clone(),
        number: spec.number.0,
        protocol: protocol::of_port(spec.protocol, &spec.name, spec.number.0),
    }
}

/// A host that DNS resolves, as the only endpoint of itself.
fn itself(host: &HostName, ports: &[ServiceEntryPort]) -> Endpoint {
    Endpoint {
        address: None,
        host: Some(host.to_string()),
        ports: targets(ports, |_| None),
        labels: Arc::default(),
        locality: String::new(),
        weight: 1,
        unhealthy: None,
        workload: None,
    }
}

/// Ports of the service to ports of an endpoint, which may have its `own` by name.
fn targets(ports: &[ServiceEntryPort], own: impl Fn(&str) -> Option<u16>) -> BTreeMap<u16, u16> {
    let target = |port: &ServiceEntryPort| {
        let default = port.target_port.unwrap_or(port.number).0;
        (port.number.0, own(&port.name).unwrap_or(default))
    };
    ports.iter().map(target).collect()
}

fn endpoints(
    resource: &Resource<ServiceEntrySpec>,
    behind: &Behind<'_>,
    trust_domain: &Arc<str>,
    findings: &mut Vec<Finding>,
) -> Vec<Arc<Endpoint>> {
    let Resource { meta, spec } = resource;
    let selected = match behind {
        Behind::Selected(selected) => selected,
        Behind::Written(workloads) => {
            let written = workloads.iter().enumerate();
            return written
                .map(|(index, workload)| {
                    Arc::new(written_endpoint(resource, index, *workload, trust_domain))
                })
                .collect();
        }
    };
    if selected.is_empty() {
        let reason = format!("selects no WorkloadEntry of namespace {}", meta.namespace);
        findings.push(Finding::warning(meta, "spec.workloadSelector", reason));
    }
    let usable = selected.iter().filter(|candidate| {
        // Only DNS makes an endpoint of a workload that has just a name.
        !candidate.workload.addresses.is_empty() || by_name(spec)
    });
    usable
        .flat_map(|candidate| {
            let own = |name: &str| candidate.workload.ports.get(name).copied();
            let ports = targets(&spec.ports, own);
            draft::endpoints(candidate, ports).map(|mut endpoint| {
                if spec.location == LocationSpec::MeshExternal {
                    endpoint.workload = None;
                }
                Arc::new(endpoint)
            })
        })
        .collect()
}

fn written_endpoint(
    resource: &Resource<ServiceEntrySpec>,
    index: usize,
    known: Option<&Arc<Workload>>,
    trust_domain: &Arc<str>,
) -> Endpoint {
    let Resource { meta, spec } = resource;
    let endpoint = &spec.endpoints[index];
    let (address, host) = match &endpoint.address {
        Some(Address::Ip(address)) => (Some(*address), None),
        Some(Address::Host(host)) => (None, Some(host.to_string())),
        None => (None, None),
    };
    // Outside of the mesh no identity is expected, whoever is there.
    let workload = address
        .filter(|_| spec.location == LocationSpec::MeshInternal)
        .and_then(|_| {
            known.cloned().or_else(|| {
                let name = format!("{}-{index}", meta.name);
                let workload = enrol::endpoint_workload(meta, &name, endpoint, trust_domain);
                workload.is_meshed().then(|| Arc::new(workload))
            })
        });
    Endpoint {
        address,
        host,
        ports: targets(&spec.ports, |name| {
            endpoint.ports.get(name).map(|port| port.0)
        }),
        labels: Arc::new(endpoint.labels.clone()),
        locality: endpoint.locality.clone(),
        weight: endpoint.weight.max(1),
        unhealthy: None,
        workload,
    }
}
