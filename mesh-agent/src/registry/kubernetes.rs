//! Services from Kubernetes `Service` resources.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::draft::{self, Draft, Pool, Wanted};
use super::enrol::Candidate;
use super::{
    Distribution, Endpoint, Location, Protocol, Resolution, Service, ServicePort, Visibility,
    Workload, protocol,
};
use crate::resource::scalar::{TargetPort, is_dns_label};
use crate::resource::{
    ClusterIp, Finding, InternalTrafficPolicy, IpFamily, Resource, ServicePortSpec, ServiceSpec,
    ServiceType, Transport,
};

/// Annotation by which a service says which namespaces see it, with commas (Istio).
const EXPORT_TO: &str = "networking.istio.io/exportTo";

fn visibility(resource: &Resource<ServiceSpec>, findings: &mut Vec<Finding>) -> Visibility {
    let meta = &resource.meta;
    let Some(list) = meta.annotations.get(EXPORT_TO) else {
        return Visibility::default();
    };
    let namespaces: Vec<String> = list.split(',').map(|one| one.trim().to_owned()).collect();
    let is_known =
        |value: &String| matches!(value.as_str(), "*" | "." | "~") || is_dns_label(value);
    if let Some(wrong) = namespaces.iter().find(|value| !is_known(value)) {
        let field = format!("metadata.annotations[{EXPORT_TO}]");
        let reason = format!("{wrong:?} is not a namespace, \".\", \"*\" or \"~\"");
        findings.push(Finding::error(meta, field, reason));
    }
    Visibility::new(meta, &namespaces)
}

fn distribution(
    resource: &Resource<ServiceSpec>,
    headless: bool,
    endpoints: &[Arc<Endpoint>],
    findings: &mut Vec<Finding>,
) -> Distribution {
    let Resource { meta, spec } = resource;
    let preferred = Distribution::read(spec.traffic_distribution.as_deref(), meta, findings);
    if headless || spec.internal_traffic_policy != InternalTrafficPolicy::Local {
        return preferred;
    }
    let mut workloads = endpoints.iter().filter_map(|one| one.workload.as_ref());
    if let Some(somewhere) = workloads.find(|workload| workload.node.is_none()) {
        let reason = format!(
            "Local, but nothing says on which node workload {} is, so no client reaches it: \
             it needs the annotation undermesh.io/node",
            somewhere.name
        );
        findings.push(Finding::warning(meta, "spec.internalTrafficPolicy", reason));
    }
    Distribution::OnlySameNode
}

/// The workloads that a service selects.
pub(super) fn selected<'a>(
    resource: &Resource<ServiceSpec>,
    pool: &Pool<'a>,
) -> Vec<&'a Candidate> {
    pool.select(&resource.meta.namespace, &resource.spec.selector)
}

pub(super) fn draft(
    resource: &Resource<ServiceSpec>,
    selected: &[&Candidate],
    cluster_domain: &str,
    findings: &mut Vec<Finding>,
) -> Draft {
    let Resource { meta, spec } = resource;
    let external = spec.r#type == ServiceType::ExternalName;
    let ports = ports(&spec.ports);
    let endpoints = if external {
        external_endpoint(spec, &ports)
    } else {
        endpoints(resource, selected, findings)
    };

    let listed = spec.cluster_ips();
    let headless = external || listed.contains(&ClusterIp::Headless);
    let address = |ip: &ClusterIp| match ip {
        ClusterIp::Address(address) => Some(*address),
        ClusterIp::Allocate | ClusterIp::Headless => None,
    };
    let vips: Vec<IpAddr> = listed.iter().filter_map(address).collect();
    let wanted = if headless || !vips.is_empty() {
        Wanted::default()
    } else if spec.ip_families.is_empty() {
        Wanted::by_endpoints(&endpoints)
    } else {
        Wanted {
            v4: spec.ip_families.contains(&IpFamily::IPv4),
            v6: spec.ip_families.contains(&IpFamily::IPv6),
        }
    };
    Draft {
        meta: Arc::clone(meta),
        service: Arc::new(Service {
            host: format!("{}.{}.svc.{cluster_domain}", meta.name, meta.namespace),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            vips,
            headless,
            ports,
            location: if external {
                Location::MeshExternal
            } else {
                Location::MeshInternal
            },
            resolution: if external {
                Resolution::Dns
            } else {
                Resolution::Static
            },
            subject_alt_names: Vec::new(),
            distribution: distribution(resource, headless, &endpoints, findings),
            external_ips: if headless {
                Vec::new()
            } else {
                spec.external_ips.clone()
            },
            session_affinity: spec.session_affinity().filter(|_| !headless),
            visibility: visibility(resource, findings),
            endpoints,
            origin: meta.origin.to_string(),
        }),
        networks: Vec::new(),
        wanted,
    }
}

/// The ports, TCP first: where TCP and UDP have one number (as DNS does), the
/// number stands for the TCP port.
fn tcp_first(specs: &[ServicePortSpec]) -> impl Iterator<Item = &ServicePortSpec> {
    let tcp = |spec: &&ServicePortSpec| spec.protocol == Transport::Tcp;
    specs
        .iter()
        .filter(tcp)
        .chain(specs.iter().filter(move |spec| !tcp(spec)))
}

fn ports(specs: &[ServicePortSpec]) -> Vec<ServicePort> {
    let port = |spec: &ServicePortSpec| ServicePort {
        name: spec.name.clone(),
        number: spec.port.0,
        protocol: match spec.protocol {
            Transport::Tcp => {
                protocol::declared(&spec.name, spec.app_protocol.as_deref(), spec.port.0)
            }
            // Neither travels through the mesh.
            Transport::Udp | Transport::Sctp => Protocol::Udp,
        },
    };
    tcp_first(specs).map(port).collect()
}

fn external_endpoint(spec: &ServiceSpec, ports: &[ServicePort]) -> Vec<Arc<Endpoint>> {
    let host = spec.external_name.iter().map(ToString::to_string);
    host.map(|host| {
        Arc::new(Endpoint {
            address: None,
            host: Some(host),
            ports: ports
                .iter()
                .map(|port| (port.number, port.number))
                .collect(),
            labels: Arc::default(),
            locality: String::new(),
            weight: 1,
            unhealthy: None,
            workload: None,
        })
    })
    .collect()
}

fn endpoints(
    resource: &Resource<ServiceSpec>,
    selected: &[&Candidate],
    findings: &mut Vec<Finding>,
) -> Vec<Arc<Endpoint>> {
    let Resource { meta, spec } = resource;
    if spec.selector.is_empty() {
        let reason =
            "without a selector the service has no endpoints; use a ServiceEntry to name them";
        findings.push(Finding::warning(meta, "spec.selector", reason));
        return Vec::new();
    }
    if selected.is_empty() {
        let reason = format!("selects no WorkloadEntry of namespace {}", meta.namespace);
        findings.push(Finding::warning(meta, "spec.selector", reason));
    }
    for (index, port) in spec.ports.iter().enumerate() {
        let lacks = |c: &&&Candidate| target(port, &c.workload).is_none();
        if let (Some(TargetPort::Name(name)), Some(candidate)) =
            (&port.target_port, selected.iter().find(lacks))
        {
            let reason = format!(
                "workload {} has no port of the name {name:?} in spec.ports, so it does not serve port {}",
                candidate.workload.name, port.port.0
            );
            let field = format!("spec.ports[{index}].targetPort");
            findings.push(Finding::warning(meta, field, reason));
        }
    }
    let addressed = (selected.iter()).filter(|c| !c.workload.addresses.is_empty());
    addressed
        .flat_map(|candidate| {
            let mut ports = BTreeMap::new();
            for port in tcp_first(&spec.ports) {
                if let Some(target) = target(port, &candidate.workload) {
                    ports.entry(port.port.0).or_insert(target);
                }
            }
            draft::endpoints(candidate, ports).map(Arc::new)
        })
        .collect()
}

/// The port on which the workload serves a port of the service.
fn target(port: &ServicePortSpec, workload: &Workload) -> Option<u16> {
    if let Some(&own) = workload.ports.get(&port.name) {
        return Some(own);
    }
    match &port.target_port {
        None => Some(port.port.0),
        Some(TargetPort::Number(number)) => Some(*number),
        Some(TargetPort::Name(name)) => workload.ports.get(name).copied(),
    }
}
