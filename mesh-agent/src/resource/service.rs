//! Kubernetes `Service` (v1).

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;

use super::scalar::{HostName, Port, TargetPort, is_dns_label};
use super::{Finding, Meta};

/// `Service.spec`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ServiceSpec {
    /// Kind of service.
    pub r#type: ServiceType,
    /// Address of the service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<ClusterIp>,
    /// Addresses of the service, the first equal to `clusterIP`.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<ClusterIp>,
    /// Address families wanted, first the preferred one.
    pub ip_families: Vec<IpFamily>,
    /// Ports.
    pub ports: Vec<ServicePortSpec>,
    /// Labels of the workloads that serve it.
    pub selector: BTreeMap<String, String>,
    /// Host to which a service of type `ExternalName` leads.
    pub external_name: Option<HostName>,

    /// Further addresses, from outside of the cluster.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<IpAddr>,
    /// Whether a client stays with an endpoint.
    pub session_affinity: SessionAffinity,
    /// How long it does.
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// Which endpoints clients may use.
    pub internal_traffic_policy: InternalTrafficPolicy,
    /// Which endpoints clients prefer.
    pub traffic_distribution: Option<String>,

    /// Read for completeness: families follow from `ipFamilies` and the endpoints.
    pub ip_family_policy: Option<String>,
    /// Read for completeness: the mesh does not know of readiness.
    pub publish_not_ready_addresses: Option<bool>,
    /// Concerns only traffic that enters through a load balancer or node port.
    pub external_traffic_policy: Option<String>,
    /// Concerns only traffic that enters through a load balancer or node port.
    pub health_check_node_port: Option<u32>,
    /// Concerns only traffic that enters through a load balancer or node port.
    pub allocate_load_balancer_node_ports: Option<bool>,
    /// Concerns only traffic that enters through a load balancer or node port.
    pub load_balancer_class: Option<String>,
    /// Concerns only traffic that enters through a load balancer or node port.
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: Option<String>,
    /// Concerns only traffic that enters through a load balancer or node port.
    pub load_balancer_source_ranges: Vec<String>,
}

/// `Service.spec.type`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum ServiceType {
    /// An address inside the cluster.
    #[default]
    ClusterIP,
    /// As `ClusterIP` for the mesh.
    NodePort,
    /// As `ClusterIP` for the mesh.
    LoadBalancer,
    /// Another name for a host.
    ExternalName,
}

/// `Service.spec.sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum SessionAffinity {
    /// Every connection may go elsewhere.
    #[default]
    None,
    /// A client stays with its endpoint.
    ClientIP,
}

/// `Service.spec.sessionAffinityConfig`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SessionAffinityConfig {
    /// Of `ClientIP`.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// `Service.spec.sessionAffinityConfig.clientIP`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClientIpConfig {
    /// Time without a connection after which a client may go elsewhere.
    pub timeout_seconds: Option<u64>,
}

/// `timeoutSeconds` where it is left out, as in Kubernetes.
const AFFINITY_SECONDS: u64 = 3 * 60 * 60;
/// The longest that Kubernetes takes.
const MAX_AFFINITY_SECONDS: u64 = 24 * 60 * 60;

/// `Service.spec.internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum InternalTrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Those of the client's node.
    Local,
}

/// `Service.spec.ipFamilies[]`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum IpFamily {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

/// `clusterIP`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub enum ClusterIp {
    /// An empty text: to be allocated.
    Allocate,
    /// `None`: a headless service.
    Headless,
    /// This address.
    Address(IpAddr),
}

impl TryFrom<String> for ClusterIp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "" => Ok(Self::Allocate),
            "None" => Ok(Self::Headless),
            text => text
                .parse()
                .map(Self::Address)
                .map_err(|_| format!("{text:?} is neither an IP address nor None")),
        }
    }
}

/// `Service.spec.ports[]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePortSpec {
    /// Name; required where there are several ports.
    #[serde(default)]
    pub name: String,
    /// Port of the service.
    pub port: Port,
    /// Port of the workload, `port` where left out.
    pub target_port: Option<TargetPort>,
    /// Transport.
    #[serde(default)]
    pub protocol: Transport,
    /// What is spoken on it.
    pub app_protocol: Option<String>,
    /// Concerns only traffic that enters through a node port.
    pub node_port: Option<Port>,
}

/// `Service.spec.ports[].protocol`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl ServiceSpec {
    /// `clusterIPs`, or `clusterIP` where that is the only one.
    pub fn cluster_ips(&self) -> &[ClusterIp] {
        if self.cluster_ips.is_empty() {
            self.cluster_ip.as_slice()
        } else {
            &self.cluster_ips
        }
    }

    /// How long a client stays with its endpoint after its last connection; `None` where it does not.
    pub fn session_affinity(&self) -> Option<Duration> {
        let config = self.session_affinity_config.and_then(|one| one.client_ip);
        let seconds = config.and_then(|config| config.timeout_seconds);
        (self.session_affinity == SessionAffinity::ClientIP)
            .then(|| Duration::from_secs(seconds.unwrap_or(AFFINITY_SECONDS)))
    }

    /// What the types of the fields cannot say.
    pub(super) fn check(&self, meta: &Meta, findings: &mut Vec<Finding>) {
        if !is_dns_label(&meta.name) {
            findings.push(Finding::error(
                meta,
                "metadata.name",
                "the name of a Service is one part of a host name: lower-case letters, digits and \"-\"",
            ));
        }
        self.check_addresses(meta, findings);
        self.check_ports(meta, findings);
        self.check_affinity(meta, findings);
    }

    fn check_addresses(&self, meta: &Meta, findings: &mut Vec<Finding>) {
        if let (Some(one), [first, ..]) = (self.cluster_ip, self.cluster_ips.as_slice())
            && one != *first
        {
            findings.push(Finding::error(
                meta,
                "spec.clusterIPs[0]",
                "must be the same as spec.clusterIP",
            ));
        }
        let addresses = self.cluster_ips();
        if addresses.len() > 1 && addresses.contains(&ClusterIp::Headless) {
            findings.push(Finding::error(
                meta,
                "spec.clusterIPs",
                "None cannot stand beside other addresses",
            ));
        }
        match (self.r#type, &self.external_name) {
            (ServiceType::ExternalName, None) => findings.push(Finding::error(
                meta,
                "spec.externalName",
                "a Service of type ExternalName needs the name",
            )),
            (ServiceType::ExternalName, Some(host)) if host.is_wildcard() => {
                findings.push(Finding::error(
                    meta,
                    "spec.externalName",
                    "must be one host, not a wildcard",
                ));
            }
            _ => {}
        }
    }

    fn check_ports(&self, meta: &Meta, findings: &mut Vec<Finding>) {
        let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
        for (index, port) in self.ports.iter().enumerate() {
            let field = |name: &str| format!("spec.ports[{index}].{name}");
            if port.name.is_empty() {
                if self.ports.len() > 1 {
                    findings.push(Finding::error(
                        meta,
                        field("name"),
                        "is required where a Service has several ports",
                    ));
                }
            } else if !is_dns_label(&port.name) {
                findings.push(Finding::error(
                    meta,
                    field("name"),
                    format!(
                        "{:?} is not the name of a port: lower-case letters, digits and \"-\"",
                        port.name
                    ),
                ));
            } else if !names.insert(&port.name) {
                findings.push(Finding::error(
                    meta,
                    field("name"),
                    format!("{:?} is the name of another port already", port.name),
                ));
            }
            if !numbers.insert((port.port, port.protocol)) {
                findings.push(Finding::error(
                    meta,
                    field("port"),
                    format!("{} is listed already", port.port.0),
                ));
            }
            if port.protocol == Transport::Sctp {
                findings.push(Finding::warning(
                    meta,
                    field("protocol"),
                    "SCTP does not travel through the mesh",
                ));
            }
        }
        if self.ports.is_empty() && self.r#type != ServiceType::ExternalName {
            let headless = self.cluster_ips().contains(&ClusterIp::Headless);
            if !headless {
                findings.push(Finding::error(
                    meta,
                    "spec.ports",
                    "a Service needs at least one port",
                ));
            }
        }
    }

    fn check_affinity(&self, meta: &Meta, findings: &mut Vec<Finding>) {
        let field = "spec.sessionAffinityConfig";
        let config = self.session_affinity_config.and_then(|one| one.client_ip);
        match (config, self.session_affinity) {
            (Some(_), SessionAffinity::None) => {
                let reason = "has no effect: spec.sessionAffinity is not ClientIP";
                findings.push(Finding::warning(meta, field, reason));
            }
            (Some(config), SessionAffinity::ClientIP) => {
                let seconds = config.timeout_seconds.unwrap_or(AFFINITY_SECONDS);
                if !(1..=MAX_AFFINITY_SECONDS).contains(&seconds) {
                    findings.push(Finding::error(
                        meta,
                        format!("{field}.clientIP.timeoutSeconds"),
                        format!("{seconds} is not within 1 to {MAX_AFFINITY_SECONDS}"),
                    ));
                }
            }
            (None, _) => {}
        }
        if self.cluster_ips().contains(&ClusterIp::Headless) {
            let has_no_address = [
                ("externalIPs", !self.external_ips.is_empty()),
                (
                    "sessionAffinity",
                    self.session_affinity != SessionAffinity::None,
                ),
                (
                    "internalTrafficPolicy",
                    self.internal_traffic_policy != InternalTrafficPolicy::Cluster,
                ),
            ];
            for (field, _) in has_no_address.iter().filter(|(_, is_set)| *is_set) {
                let reason = "has no effect on a headless Service, which has no address";
                findings.push(Finding::warning(meta, format!("spec.{field}"), reason));
            }
        }
    }
}
