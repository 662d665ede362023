//! Services and their endpoints.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{Visibility, Workload};
use crate::resource::{Finding, Meta};

/// A Kubernetes `Service` or one host of an Istio `ServiceEntry`.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Fully qualified host name, lower case: `reviews.default.svc.cluster.local`.
    pub host: String,
    /// Name of the resource.
    pub name: String,
    /// Namespace of the resource.
    pub namespace: String,
    /// Addresses of the service: `clusterIPs`, `ServiceEntry.addresses`, or one that the mesh allocated.
    /// Empty for headless services.
    pub vips: Vec<IpAddr>,
    /// `clusterIP: None`: the name resolves to the endpoints.
    pub headless: bool,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Endpoints, in file order.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Inside or outside of the mesh.
    pub location: Location,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// `ServiceEntry.subjectAltNames`.
    pub subject_alt_names: Vec<String>,
    /// Which endpoints its clients prefer, where no DestinationRule says.
    pub distribution: Distribution,
    /// `externalIPs`: addresses that lead to it beside its own.
    pub external_ips: Vec<IpAddr>,
    /// `sessionAffinity: ClientIP`: a client stays with its endpoint until it has made no
    /// connection for so long.
    pub session_affinity: Option<Duration>,
    /// Namespaces that see it.
    pub visibility: Visibility,
    /// File and document that it comes from, for messages.
    pub origin: String,
}

/// `trafficDistribution` of a service: near endpoints first, others while none of those
/// is in service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// All are equally near.
    #[default]
    Any,
    /// Those of the client's zone.
    SameZone,
    /// Those of the client's node.
    SameNode,
    /// Those of the client's node and no others, whatever a DestinationRule says
    /// (`internalTrafficPolicy: Local`).
    OnlySameNode,
}

impl Distribution {
    /// Annotation for it (Istio), for services whose API has no field.
    pub const ANNOTATION: &str = "networking.istio.io/traffic-distribution";

    /// What the field or else the annotation of a resource says, in Kubernetes' words.
    pub(super) fn read(field: Option<&str>, meta: &Meta, findings: &mut Vec<Finding>) -> Self {
        let annotation = meta.annotations.get(Self::ANNOTATION);
        let (place, value) = match (field, annotation) {
            (Some(value), _) => ("spec.trafficDistribution".to_owned(), value),
            (None, Some(value)) => (
                format!("metadata.annotations[{}]", Self::ANNOTATION),
                &**value,
            ),
            (None, None) => return Self::Any,
        };
        match value.to_ascii_lowercase().as_str() {
            "preferclose" | "prefersamezone" => Self::SameZone,
            "prefersamenode" => Self::SameNode,
            "any" => Self::Any,
            _ => {
                let reason = format!(
                    "has no effect: {value:?} is not PreferSameZone, PreferSameNode or PreferClose"
                );
                findings.push(Finding::warning(meta, place, reason));
                Self::Any
            }
        }
    }
}

/// Istio's names for where unknown traffic goes.
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";
const BLACK_HOLE: &str = "BlackHoleCluster";

impl Service {
    /// What stands for an address that is no service: one endpoint, the address
    /// itself, with the workload that the mesh knows there.
    pub fn passthrough(destination: SocketAddr, workload: Option<Arc<Workload>>) -> Self {
        let name = workload.as_ref().map(|workload| &workload.name);
        let port = destination.port();
        Self {
            host: destination.ip().to_string(),
            name: name.map_or(PASSTHROUGH.to_owned(), |name| name.name.to_string()),
            namespace: name.map_or(String::new(), |name| name.namespace.to_string()),
            location: if workload.is_some() {
                Location::MeshInternal
            } else {
                Location::MeshExternal
            },
            endpoints: vec![Arc::new(Endpoint {
                address: Some(destination.ip()),
                unhealthy: None,
                workload,
                ..Endpoint::unknown(port, port)
            })],
            resolution: Resolution::Static,
            ..Self::unknown(port)
        }
    }

    /// What stands for an address that is no service, where only services may
    /// be called (`REGISTRY_ONLY`).
    pub fn black_hole(port: u16) -> Self {
        Self {
            host: BLACK_HOLE.to_owned(),
            name: BLACK_HOLE.to_owned(),
            resolution: Resolution::Nowhere,
            ..Self::unknown(port)
        }
    }

    /// Whether it stands for an address of which the mesh knows nothing.
    pub fn is_passthrough(&self) -> bool {
        self.name == PASSTHROUGH
    }

    fn unknown(port: u16) -> Self {
        Self {
            host: String::new(),
            name: String::new(),
            namespace: String::new(),
            vips: Vec::new(),
            headless: true,
            ports: vec![ServicePort {
                name: String::new(),
                number: port,
                protocol: Protocol::Tcp,
            }],
            endpoints: Vec::new(),
            location: Location::MeshExternal,
            resolution: Resolution::Static,
            subject_alt_names: Vec::new(),
            distribution: Distribution::default(),
            external_ips: Vec::new(),
            session_affinity: None,
            visibility: Visibility::default(),
            origin: String::new(),
        }
    }

    /// Addresses that lead to it.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.iter().chain(&self.external_ips).copied()
    }

    /// Whether clients on this node may use an endpoint.
    pub fn is_open_to(&self, endpoint: &Endpoint, node: Option<&str>) -> bool {
        self.distribution != Distribution::OnlySameNode
            || node.is_some_and(|own| {
                let workload = endpoint.workload.as_ref();
                workload.is_some_and(|workload| workload.node.as_deref() == Some(own))
            })
    }

    /// The port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, may be empty.
    pub name: String,
    /// Number that clients use.
    pub number: u16,
    /// Declared protocol.
    pub protocol: Protocol,
}

/// Protocol that a service port declares (Istio's protocol selection:
/// `appProtocol`, then the prefix of the port's name).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Nothing declared: the first bytes tell.
    Auto,
    /// HTTP/1.1 (clients may still speak HTTP/2).
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC, that is HTTP/2 with prior knowledge.
    Grpc,
    /// TLS of the application (`https`, `tls`): opaque.
    Tls,
    /// Opaque TCP, also the ports 25, 53, 3306 and 27017 when nothing is declared.
    Tcp,
    /// Untouched.
    Udp,
}

/// One address that serves a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// IP address; `None` where only `host` is known (DNS resolution).
    pub address: Option<IpAddr>,
    /// DNS name of the endpoint (`ServiceEntry` with resolution `DNS`).
    pub host: Option<String>,
    /// Service port number to the port that the endpoint listens on.
    pub ports: BTreeMap<u16, u16>,
    /// Labels, for subsets.
    pub labels: Arc<BTreeMap<String, String>>,
    /// `region/zone/subzone`, or empty.
    pub locality: String,
    /// Load-balancing weight, at least 1.
    pub weight: u32,
    /// Why it gets no connections for now, where it does not pass its probe.
    pub unhealthy: Option<Arc<str>>,
    /// The workload behind it, where the mesh knows it.
    pub workload: Option<Arc<Workload>>,
}

impl Endpoint {
    /// An endpoint of which only ports are known: the service's, and its own.
    pub fn unknown(service_port: u16, port: u16) -> Self {
        Self {
            address: None,
            host: None,
            ports: [(service_port, port)].into(),
            labels: Arc::default(),
            locality: String::new(),
            weight: 1,
            unhealthy: None,
            workload: None,
        }
    }

    /// Socket address for a port of the service, where the endpoint has an IP address and serves that port.
    pub fn socket_address(&self, service_port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::new(
            self.address?,
            *self.ports.get(&service_port)?,
        ))
    }
}

/// `ServiceEntry.location`; Kubernetes services are inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// Workloads of the mesh, with identities.
    MeshInternal,
    /// No identity expected, plaintext unless a `DestinationRule` says otherwise.
    MeshExternal,
}

/// `ServiceEntry.resolution`; Kubernetes services are `Static`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The address that the application asked for is kept.
    None,
    /// The endpoints have addresses.
    Static,
    /// The endpoints (or the hosts) are resolved by DNS.
    Dns,
    /// The same, by every connection anew, which takes one address.
    DnsRoundRobin,
    /// The name that a client says is resolved.
    DynamicDns,
    /// There are none, and there never will be: nothing may pass.
    Nowhere,
}
