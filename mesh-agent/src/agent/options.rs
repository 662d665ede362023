//! Command line of `mesh-agent`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use crate::admin::SOCKET_DIRECTORY;
use crate::admin::metrics::MetricsAddress;
use crate::datapath::AttachOrder;
use crate::identity::certificate_service::ServiceOptions;
use crate::policy::PathNormalization;
use crate::proxy::hbone::{DEFAULT_MAX_CONNECTIONS, DEFAULT_MAX_MIB};
use crate::proxy::node_probes::ProbePolicy;
use crate::registry::{ShortCircuit, WhenAgentIsDown};
use crate::route::OutboundPolicy;
use crate::snapshot::{Options, SameNode};
use crate::telemetry::access_log::Encoding;

/// Where programs, maps and links are pinned.
const BPFFS: &str = "/sys/fs/bpf/undermesh";
/// Where the certificate authority's files are.
const CA: &str = "/var/lib/undermesh/ca";
/// Shortest life of a certificate: renewal at half of it must not be a busy loop.
const MIN_CERT_LIFETIME: Duration = Duration::from_secs(2);

/// `mesh-agent run`.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    /// Directory of YAML files: Kubernetes Services and Istio resources
    #[arg(long, value_name = "DIR")]
    pub config: PathBuf,
    /// Name of this node [default: the host name]
    #[arg(long, value_name = "NAME", default_value_t = host_name(), hide_default_value = true)]
    pub node: String,
    /// cgroup2 directory of the workloads [default: the root of the hierarchy]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Directory on a bpffs for programs, maps and links
    #[arg(long, value_name = "DIR", default_value = BPFFS)]
    pub bpffs: PathBuf,
    /// Control socket for meshctl [default: /run/undermesh/NODE.sock]
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Where Prometheus finds /metrics, or off
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15020")]
    pub metrics_address: MetricsAddress,
    /// Name of the cluster in the labels of metrics, as Istio's clusterName
    #[arg(long, value_name = "NAME", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// File that gets a line for each request and connection, as Istio's accessLogFile; - or
    /// /dev/stdout for the agent's output [default: none]
    #[arg(long, alias = "access-log", value_name = "FILE")]
    pub access_log_file: Option<PathBuf>,
    /// How those lines are written, in Istio's default formats
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub access_log_encoding: Encoding,
    /// What those lines say, in Envoy's commands (Istio's accessLogFormat): a text, or with the
    /// encoding JSON an object [default: Istio's 24 fields]
    #[arg(long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub access_log_format: Option<String>,
    /// Group that may open the control socket, beside root
    #[arg(long, value_name = "GROUP")]
    pub admin_group: Option<String>,
    /// Directory of the certificate authority; nodes of one mesh share its content
    #[arg(long, value_name = "DIR", default_value = CA)]
    pub ca: PathBuf,
    /// Where certificates come from, where not from --ca
    #[command(flatten)]
    pub ca_service: CaServiceOptions,
    /// Trust domain of all identities
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: String,
    /// DNS suffix of services
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Namespace whose security policies hold for the whole mesh
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    pub root_namespace: String,
    /// Whether the kernel programs run before or behind those that others have attached to the
    /// cgroup, first or last [default: first where the kernel can do that]
    #[arg(long, value_name = "ORDER", value_parser = attach_order)]
    pub attach: Option<AttachOrder>,
    /// Threads that carry traffic [default: half of the cores that the agent may use]
    #[arg(long, value_name = "NUMBER", default_value_t = worker_threads(), hide_default_value = true)]
    pub worker_threads: NonZeroUsize,
    /// How long open connections may go on when another agent takes over, such as 10m
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub drain_timeout: Duration,
    /// What becomes of the connections of enrolled workloads while no agent runs; the annotation
    /// undermesh.io/fail-open of a workload beats it
    #[arg(long, value_name = "WHAT", default_value = "refuse", value_parser = when_agent_is_down)]
    pub when_agent_is_down: WhenAgentIsDown,
    /// Further name of the trust domain, in policies and in peers' certificates (may be repeated)
    #[arg(long = "trust-domain-alias", value_name = "NAME")]
    pub trust_domain_aliases: Vec<String>,
    /// How paths are normalised before policies compare them and applications get them: NONE,
    /// BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES, as in Istio
    #[arg(long, value_name = "HOW", default_value = "BASE")]
    pub path_normalization: PathNormalization,
    /// How connections between two workloads of this node travel: attest (the kernel knows both
    /// ends) or encrypt (mutual TLS, as between nodes)
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub same_node: SameNode,
    /// Connections in the clear that root of the node's own network namespace makes to its
    /// workloads, such as kubelet's probes: pass (whatever the policies say) or check (like any other)
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub node_probes: ProbePolicy,
    /// How long an agent may hang until its workloads are treated as without an agent, such as 30s; 0s: for ever
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub hung_after: Duration,
    /// What becomes of connections to what is no service, where no Sidecar says: ALLOW_ANY (they go
    /// where the application wanted) or REGISTRY_ONLY (they are refused)
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub outbound_traffic_policy: OutboundPolicy,
    /// How often names of endpoints (resolution DNS) are resolved again, such as 60s
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = refresh_rate)]
    pub dns_refresh_rate: Duration,
    /// Whether bytes that stay on the node bypass the TCP/IP stack, where a workload does not say: auto, on, off
    #[arg(long, value_name = "SETTING", default_value_t)]
    pub short_circuit: ShortCircuit,
    /// Connections (HBONE) that one client, an identity at an address, may have to this node
    #[arg(long, value_name = "NUMBER", default_value_t = DEFAULT_MAX_CONNECTIONS)]
    pub max_client_connections: NonZeroUsize,
    /// What the tunnels of this node hold and nobody takes, all together, in MiB; above it
    /// those of the client that holds most are reset
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_MAX_MIB)]
    pub max_tunnel_memory: NonZeroUsize,
    /// Life of workload certificates, such as 24h or 30s; renewed at half of it
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = cert_lifetime)]
    pub cert_lifetime: Duration,
}

/// An authority elsewhere.
#[derive(Args, Clone, Debug)]
pub struct CaServiceOptions {
    /// Take certificates from the authority at this address, by Istio's API, instead of --ca;
    /// keys are made here and stay in memory
    #[arg(
        long,
        value_name = "HOST:PORT",
        conflicts_with = "ca",
        requires = "ca_root_cert"
    )]
    pub ca_address: Option<String>,
    /// Roots that the authority's own certificate is verified against
    #[arg(long, value_name = "FILE", requires = "ca_address")]
    pub ca_root_cert: Option<PathBuf>,
    /// Name that the authority's certificate must bear [default: the host of --ca-address]
    #[arg(long, value_name = "NAME", requires = "ca_address")]
    pub ca_server_name: Option<String>,
    /// Lists of certificates that the authority has revoked; read again when it changes
    #[arg(long, value_name = "FILE", requires = "ca_address")]
    pub ca_crl: Option<PathBuf>,
    /// File of the bearer token that is shown to the authority; read for each request
    #[arg(long, value_name = "FILE", requires = "ca_address")]
    pub ca_token: Option<PathBuf>,
    /// Certificate that is shown to the authority, followed by those above it
    #[arg(long, value_name = "FILE", requires_all = ["ca_address", "ca_client_key"])]
    pub ca_client_cert: Option<PathBuf>,
    /// Key of --ca-client-cert
    #[arg(long, value_name = "FILE", requires = "ca_client_cert")]
    pub ca_client_key: Option<PathBuf>,
}

impl CaServiceOptions {
    /// How the authority is reached; `None` where there is none.
    ///
    /// # Errors
    /// Where the flags do not fit each other.
    pub fn service(&self) -> anyhow::Result<Option<ServiceOptions>> {
        let (Some(address), Some(root_cert)) = (&self.ca_address, &self.ca_root_cert) else {
            return Ok(None);
        };
        let Some((host, _)) = address
            .rsplit_once(':')
            .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        else {
            bail!("--ca-address {address}: not a host and a port, such as istiod:15012");
        };
        if self.ca_token.is_none() && self.ca_client_cert.is_none() {
            bail!(
                "--ca-address needs --ca-token or --ca-client-cert: the authority has to know who asks"
            );
        }
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Ok(Some(ServiceOptions {
            address: address.clone(),
            server_name: self
                .ca_server_name
                .clone()
                .unwrap_or_else(|| host.to_owned()),
            root_cert: root_cert.clone(),
            token: self.ca_token.clone(),
            own: self.ca_client_cert.clone().zip(self.ca_client_key.clone()),
            crl: self.ca_crl.clone(),
        }))
    }
}

impl RunOptions {
    /// Path of the control socket.
    pub fn admin_socket(&self) -> PathBuf {
        admin_socket(self.admin_socket.as_ref(), &self.node)
    }

    /// What the configuration does not say about the mesh.
    pub(super) fn of_mesh(&self) -> Options {
        Options {
            trust_domain: self.trust_domain.clone(),
            cluster_domain: self.cluster_domain.clone(),
            root_namespace: self.root_namespace.clone(),
            trust_domain_aliases: self.trust_domain_aliases.clone(),
            path_normalization: self.path_normalization,
            same_node: self.same_node,
            outbound_traffic_policy: self.outbound_traffic_policy,
        }
    }
}

impl UninstallOptions {
    /// Path of the control socket.
    pub fn admin_socket(&self) -> PathBuf {
        admin_socket(self.admin_socket.as_ref(), &self.node)
    }
}

fn admin_socket(named: Option<&PathBuf>, node: &str) -> PathBuf {
    named
        .cloned()
        .unwrap_or_else(|| PathBuf::from(SOCKET_DIRECTORY).join(format!("{node}.sock")))
}

/// `mesh-agent uninstall`.
#[derive(Args, Clone, Debug)]
pub struct UninstallOptions {
    /// Directory on a bpffs that the agent was run with
    #[arg(long, value_name = "DIR", default_value = BPFFS)]
    pub bpffs: PathBuf,
    /// Name of the node that the agent was run with [default: the host name]
    #[arg(long, value_name = "NAME", default_value_t = host_name(), hide_default_value = true)]
    pub node: String,
    /// Control socket that the agent was run with [default: /run/undermesh/NODE.sock]
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Directory of the certificate authority that the agent was run with, for --purge
    #[arg(long, value_name = "DIR", default_value = CA)]
    pub ca: PathBuf,
    /// Remove the certificate authority too: nodes that share it can no longer prove who they are
    #[arg(long)]
    pub purge: bool,
    /// Also while an agent runs: its workloads are on their own at once
    #[arg(long)]
    pub force: bool,
}

/// The applications of the node need the other half, and threads that share
/// little traffic spend more time waking each other than they win: two on two
/// cores answered a third less requests than one.
fn worker_threads() -> NonZeroUsize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(cores / 2).unwrap_or(NonZeroUsize::MIN)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name.to_owned()
    }
}

fn attach_order(text: &str) -> Result<AttachOrder, String> {
    match text {
        "first" => Ok(AttachOrder::First),
        "last" => Ok(AttachOrder::Last),
        _ => Err("neither \"first\" nor \"last\"".to_owned()),
    }
}

fn when_agent_is_down(text: &str) -> Result<WhenAgentIsDown, String> {
    match text {
        "refuse" => Ok(WhenAgentIsDown::Refuse),
        "pass" => Ok(WhenAgentIsDown::Pass),
        _ => Err("neither \"refuse\" nor \"pass\"".to_owned()),
    }
}

/// A number and a unit: `h`, `m` or `s`.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = || {
        let unit = text.chars().last()?;
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        let seconds = match unit {
            'h' => number.checked_mul(3600)?,
            'm' => number.checked_mul(60)?,
            's' => number,
            _ => return None,
        };
        Some(Duration::from_secs(seconds))
    };
    parsed().ok_or_else(|| "not a duration such as 24h, 90m or 30s".to_owned())
}

fn refresh_rate(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        rate if rate.is_zero() => Err("shorter than 1 s".to_owned()),
        rate => Ok(rate),
    }
}

pub(crate) fn cert_lifetime(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        lifetime if lifetime >= MIN_CERT_LIFETIME => Ok(lifetime),
        _ => Err(format!("shorter than {} s", MIN_CERT_LIFETIME.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_have_a_unit_and_a_bound() {
        assert_eq!(cert_lifetime("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(cert_lifetime("10s"), Ok(Duration::from_secs(10)));
        for wrong in ["", "h", "10", "1s", "-3h", "1d", "99999999999999999999h"] {
            assert!(cert_lifetime(wrong).is_err(), "{wrong}");
        }
    }
}
