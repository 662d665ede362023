//! Istio `Sidecar` (`networking.istio.io`, every version): which services a
//! workload sees, and what becomes of the rest of its connections.

mod validate;

use std::collections::BTreeMap;

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
    /// Bounds of connections to the workload; not applied.
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
    /// Where the application listens; not applied.
    pub default_endpoint: Option<String>,
    /// TLS of the listener; not applied.
    pub tls: Option<Value>,
    /// Bounds of connections to this port; not applied.
    pub connection_pool: Option<ConnectionPool>,
}

/// A port of a listener.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SidecarPort {
    /// Number.
    pub number: u32,
    /// Protocol; that of the services counts.
    pub protocol: Option<String>,
    /// Name, for people.
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
