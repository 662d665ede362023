//! Istio `Sidecar` (`networking.istio.io`, every version): which services a
//! workload sees, and what becomes of the rest of its connections.

mod validate;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Deserialize;
use serde_json::Value;

pub use validate::validate;

use super::destination_rule::ConnectionPool;
use super::virtual_service::Destination;

/// `Sidecar.spec`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SidecarSpec {
    /// Workloads that it is for; the whole namespace where left out.
    pub workload_selector: Option<SidecarSelector>,
    /// How connections to the workload are taken.
    pub ingress: Vec<IngressListener>,
    /// What the workload sees; everything where left out.
    pub egress: Vec<EgressListener>,
    /// What becomes of connections to anything else.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// Bounds of connections to the workload's applications.
    pub inbound_connection_pool: Option<ConnectionPool>,
}

/// `workloadSelector`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct SidecarSelector {
    /// All of these labels must be there.
    pub labels: BTreeMap<String, String>,
}

/// One of `egress`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EgressListener {
    /// The port that it is for; all others where left out.
    pub port: Option<SidecarPort>,
    /// Address of a listener; not applied.
    pub bind: Option<String>,
    /// How connections come to it; not applied.
    pub capture_mode: Option<CaptureMode>,
    /// `namespace/host`.
    pub hosts: Vec<String>,
}

/// One of `ingress`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IngressListener {
    /// The port.
    pub port: Option<SidecarPort>,
    /// Address of a listener; not applied.
    pub bind: Option<String>,
    /// How connections come to it; not applied.
    pub capture_mode: Option<CaptureMode>,
    /// Where the application listens, see [`DefaultEndpoint`].
    pub default_endpoint: Option<String>,
    /// TLS of the listener; not applied.
    pub tls: Option<Value>,
    /// Bounds of connections to the application behind this port.
    pub connection_pool: Option<ConnectionPool>,
}

/// Where an application listens that a port stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultEndpoint {
    /// At this port of the address that the client asked for.
    Own(u16),
    /// Here, on loopback.
    Loopback(SocketAddr),
}

impl DefaultEndpoint {
    /// Reads `127.0.0.1:PORT`, `[::1]:PORT`, `0.0.0.0:PORT` or `[::]:PORT`.
    pub fn parse(text: &str) -> Option<Self> {
        let endpoint: SocketAddr = text.parse().ok().filter(|at: &SocketAddr| at.port() != 0)?;
        match endpoint.ip() {
            IpAddr::V4(Ipv4Addr::LOCALHOST) | IpAddr::V6(Ipv6Addr::LOCALHOST) => {
                Some(Self::Loopback(endpoint))
            }
            ip if ip.is_unspecified() => Some(Self::Own(endpoint.port())),
            _ => None,
        }
    }

    /// The address behind the one that a client asked for.
    pub fn behind(self, asked_for: SocketAddr) -> SocketAddr {
        match self {
            Self::Own(port) => SocketAddr::new(asked_for.ip(), port),
            Self::Loopback(endpoint) => endpoint,
        }
    }
}

/// A port of a listener.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SidecarPort {
    /// Number.
    pub number: u32,
    /// Protocol; of `egress` that of the services counts.
    pub protocol: Option<String>,
    /// Name, which may tell the protocol.
    pub name: Option<String>,
    /// Deprecated, without effect in Istio, too.
    pub target_port: Option<u32>,
}

/// `captureMode`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CaptureMode {
    /// The mesh's own way.
    #[default]
    Default,
    /// Istio's way; here the mesh's own.
    Iptables,
    /// None: applications connect to the listener.
    None,
}

/// `outboundTrafficPolicy`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OutboundTrafficPolicy {
    /// Left out, it is the first of Istio's enumeration.
    pub mode: OutboundMode,
    /// Where unknown traffic goes; to the address that the application asked for where left out.
    pub egress_proxy: Option<Destination>,
}

/// `outboundTrafficPolicy.mode`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// Only services may be called.
    #[default]
    RegistryOnly,
    /// Everything may be called.
    AllowAny,
    /// As `AllowAny`, by names that requests say.
    AllowAnyDynamicDns,
}
