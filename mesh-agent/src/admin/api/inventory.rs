//! What the mesh knows: workloads and services.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A workload as `meshctl workloads` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadView {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Node, empty where it is not known.
    pub node: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Where its sockets are, such as `netns/reviews-v1`; empty when not on this node.
    pub placement: String,
    /// SPIFFE identity.
    pub identity: String,
    /// How it is reached from another node.
    pub protocol: TunnelProtocol,
    /// Whether its sockets are handled by this agent.
    #[serde(flatten)]
    pub state: WorkloadState,
}

/// How connections to a workload travel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TunnelProtocol {
    /// HTTP/2 CONNECT over mutual TLS.
    #[serde(rename = "HBONE")]
    Hbone,
    /// Mutual TLS to the application's own port, which a sidecar of Istio ends.
    #[serde(rename = "mTLS")]
    MutualTls,
    /// Plain TCP.
    #[serde(rename = "TCP")]
    Tcp,
}

/// Whether a workload's sockets are handled by this agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum WorkloadState {
    /// They are.
    Enrolled,
    /// It runs on another node, or is not in the mesh.
    Remote,
    /// Its namespace is not there yet.
    Waiting(String),
    /// Enrolment failed; it is tried again.
    Failed(String),
}

/// A service as `meshctl services` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Fully qualified host name.
    pub host: String,
    /// Service addresses, empty for headless services.
    pub vips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<PortView>,
    /// Endpoints of every port.
    pub endpoints: Vec<EndpointView>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortView {
    /// Number that clients use.
    pub number: u16,
    /// Declared protocol, `auto` where the first bytes tell.
    pub protocol: String,
}

/// One address that serves a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// `address:port`, or `host:port` for endpoints that are resolved by DNS.
    pub address: String,
    /// `<name>.<namespace>` of the workload, where the mesh knows it.
    pub workload: Option<String>,
    /// Whether it takes part in load balancing.
    pub healthy: bool,
}
