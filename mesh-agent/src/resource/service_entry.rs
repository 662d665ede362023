//! Istio `ServiceEntry`: hosts that are not Kubernetes services.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

use super::report::Report;
use super::scalar::{HostName, Network, Port};
use super::workload_entry::{Address, WorkloadEntrySpec};
use super::{Finding, Meta};

/// Most hosts that one entry may have (as in Istio).
const MAX_HOSTS: usize = 256;

/// `ServiceEntry.spec`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceEntrySpec {
    /// Names of the service.
    pub hosts: Vec<HostName>,
    /// Addresses and ranges of the service.
    #[serde(default)]
    pub addresses: Vec<Network>,
    /// Ports.
    #[serde(default)]
    pub ports: Vec<ServiceEntryPort>,
    /// Inside or outside of the mesh.
    #[serde(default)]
    pub location: LocationSpec,
    /// How endpoints are found.
    #[serde(default)]
    pub resolution: ResolutionSpec,
    /// Endpoints, written here.
    #[serde(default)]
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Endpoints are the workloads of the namespace with these labels.
    #[serde(default)]
    pub workload_selector: Option<EndpointSelector>,
    /// Namespaces that see the entry; all where left out.
    #[serde(default)]
    pub export_to: Vec<String>,
    /// Identities that the endpoints may present.
    #[serde(default)]
    pub subject_alt_names: Vec<String>,
}

/// `ServiceEntry.spec.ports[]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceEntryPort {
    /// Port that clients use.
    pub number: Port,
    /// What is spoken on it.
    #[serde(default)]
    pub protocol: PortProtocol,
    /// Name.
    pub name: String,
    /// Port of the endpoints, `number` where left out.
    pub target_port: Option<Port>,
}

/// `ServiceEntry.spec.ports[].protocol`; Istio takes any case.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub enum PortProtocol {
    /// Left out: the port's name tells, or the first bytes.
    #[default]
    Unset,
    /// HTTP/1.1, also gRPC-Web.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// TLS of the application, also HTTPS.
    Tls,
    /// TCP, and the databases' protocols on it.
    Tcp,
    /// UDP.
    Udp,
}

impl TryFrom<String> for PortProtocol {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(match text.to_ascii_uppercase().as_str() {
            "" => Self::Unset,
            "HTTP" | "GRPC-WEB" => Self::Http,
            "HTTP2" => Self::Http2,
            "GRPC" => Self::Grpc,
            "HTTPS" | "TLS" => Self::Tls,
            "TCP" | "MONGO" | "REDIS" | "MYSQL" => Self::Tcp,
            "UDP" => Self::Udp,
            _ => {
                return Err(format!(
                    "{text:?} is not one of HTTP, HTTP2, HTTPS, GRPC, GRPC-WEB, TLS, TCP, MONGO, REDIS, MYSQL, UDP"
                ));
            }
        })
    }
}

/// `ServiceEntry.spec.location`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LocationSpec {
    /// Outside.
    #[default]
    MeshExternal,
    /// Inside.
    MeshInternal,
}

/// `ServiceEntry.spec.resolution`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ResolutionSpec {
    /// Connections go where the application wanted.
    #[default]
    None,
    /// Endpoints with addresses.
    Static,
    /// Endpoints, or the hosts themselves, are resolved by DNS.
    Dns,
    /// As `Dns`, with one endpoint at most.
    DnsRoundRobin,
    /// Resolves the name that the client asked for.
    DynamicDns,
}

/// `ServiceEntry.spec.workloadSelector`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointSelector {
    /// All of these labels must be there.
    pub labels: BTreeMap<String, String>,
}

impl ServiceEntrySpec {
    /// What the types of the fields cannot say.
    pub(super) fn check(&self, meta: &Meta, findings: &mut Vec<Finding>) {
        let mut error =
            |field: &str, reason: &str| findings.push(Finding::error(meta, field, reason));
        if self.hosts.is_empty() || self.hosts.len() > MAX_HOSTS {
            error("spec.hosts", "must have 1 to 256 hosts");
        }
        if !self.endpoints.is_empty() && self.workload_selector.is_some() {
            error(
                "spec.workloadSelector",
                "cannot stand beside spec.endpoints: one or the other",
            );
        }
        if (self.workload_selector.as_ref()).is_some_and(|selector| selector.labels.is_empty()) {
            error(
                "spec.workloadSelector.labels",
                "must have at least one label",
            );
        }
        let wildcard = self.hosts.iter().any(HostName::is_wildcard);
        let by_name = matches!(
            self.resolution,
            ResolutionSpec::Dns | ResolutionSpec::DnsRoundRobin
        );
        match self.resolution {
            ResolutionSpec::None if !self.endpoints.is_empty() => error(
                "spec.endpoints",
                "resolution NONE keeps the address that the client asked for; endpoints need STATIC or DNS",
            ),
            ResolutionSpec::DnsRoundRobin if self.endpoints.len() > 1 => error(
                "spec.endpoints",
                "resolution DNS_ROUND_ROBIN takes one endpoint at most",
            ),
            ResolutionSpec::DynamicDns => self.check_dynamic(&mut error),
            _ => {}
        }
        if by_name && wildcard && self.endpoints.is_empty() && self.workload_selector.is_none() {
            error(
                "spec.hosts",
                "a wildcard cannot be resolved by DNS: name the endpoints, or use resolution NONE",
            );
        }
        if by_name && self.addresses.iter().any(|net| net.single().is_none()) {
            error(
                "spec.addresses",
                "a range of addresses needs resolution NONE or STATIC",
            );
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let path = format!("spec.endpoints[{index}]");
            if self.resolution == ResolutionSpec::Static
                && matches!(endpoint.address, Some(Address::Host(_)))
            {
                findings.push(Finding::error(
                    meta,
                    format!("{path}.address"),
                    "resolution STATIC needs an IP address",
                ));
            }
            endpoint.check(meta, &path, findings);
        }
        self.check_ports(meta, findings);
        self.tell_ineffective(meta, findings);
        let mut report = Report::new(meta);
        report.export_to(&self.export_to);
        findings.extend(report.into_findings());
    }

    /// The name that a client says is resolved, so it has to say one.
    fn check_dynamic(&self, error: &mut impl FnMut(&str, &str)) {
        if !self.hosts.iter().all(HostName::is_wildcard) {
            error("spec.hosts", "resolution DYNAMIC_DNS is for wildcards only");
        }
        if !self.endpoints.is_empty() || self.workload_selector.is_some() {
            error(
                "spec.endpoints",
                "resolution DYNAMIC_DNS resolves the name that the client asked for: there are no endpoints",
            );
        }
        if !self.addresses.is_empty() {
            error(
                "spec.addresses",
                "resolution DYNAMIC_DNS knows services by name, not by address",
            );
        }
        let says_a_name = |port: &ServiceEntryPort| {
            matches!(
                port.protocol,
                PortProtocol::Http | PortProtocol::Http2 | PortProtocol::Grpc | PortProtocol::Tls
            )
        };
        if !self.ports.iter().all(says_a_name) {
            error(
                "spec.ports",
                "resolution DYNAMIC_DNS needs a protocol in which clients say a name: HTTP, HTTP2, GRPC or TLS",
            );
        }
    }

    fn check_ports(&self, meta: &Meta, findings: &mut Vec<Finding>) {
        let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
        for (index, port) in self.ports.iter().enumerate() {
            if port.name.is_empty() || !names.insert(&port.name) {
                findings.push(Finding::error(
                    meta,
                    format!("spec.ports[{index}].name"),
                    "must be given, and differ from the other ports' names",
                ));
            }
            if !numbers.insert(port.number) {
                findings.push(Finding::error(
                    meta,
                    format!("spec.ports[{index}].number"),
                    format!("{} is listed already", port.number.0),
                ));
            }
        }
    }

    fn tell_ineffective(&self, meta: &Meta, findings: &mut Vec<Finding>) {
        let mut warn =
            |field: &str, reason: &str| findings.push(Finding::warning(meta, field, reason));
        if self.ports.is_empty() {
            warn("spec.ports", "without a port nothing is matched");
        }
        let by_port_alone = (self.ports.iter()).any(|port| port.protocol == PortProtocol::Tcp);
        if by_port_alone && self.addresses.is_empty() && self.resolution == ResolutionSpec::None {
            let reason = "without an address all connections to the ports that are not HTTP or TLS, \
                          wherever they go, are taken for this host's";
            findings.push(Finding::warning(meta, "spec.addresses", reason).with_code("IST0134"));
        }
        let mut warn =
            |field: &str, reason: &str| findings.push(Finding::warning(meta, field, reason));
        if self.workload_selector.is_some() && self.location == LocationSpec::MeshExternal {
            warn(
                "spec.location",
                "workloads of the mesh are selected, but without MESH_INTERNAL no identity is expected of them",
            );
        }
    }
}
