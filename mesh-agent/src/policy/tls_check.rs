//! What a client's connections to each service would be: the servers'
//! PeerAuthentication against the client's DestinationRules, without I/O.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{MtlsMode, PeerAuthentications};
use crate::registry::{Location, Protocol, Registry, Service, ServicePort, Workload};

/// Most workloads that an error message lists.
const MAX_LISTED: usize = 10;

/// Namespace that a workload's name without one means.
const DEFAULT_NAMESPACE: &str = "default";

/// What a DestinationRule says about TLS (`trafficPolicy.tls.mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationTls {
    /// Nothing: mutual TLS wherever the server takes it.
    Auto,
    /// `DISABLE`.
    Disable,
    /// `ISTIO_MUTUAL`.
    IstioMutual,
    /// `SIMPLE` and `MUTUAL`: TLS with certificates that are not the mesh's.
    Originate,
}

/// The DestinationRule that is in force for a port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRule {
    /// `<name>/<namespace>`.
    pub name: String,
    /// What it says for the host as a whole.
    pub tls: DestinationTls,
    /// What it says for each subset, by name.
    pub subsets: Vec<(String, DestinationTls)>,
}

/// Whether client and server agree, and on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsCheckStatus {
    /// Every endpoint takes mutual TLS only.
    Strict,
    /// At least one endpoint takes plaintext too.
    Permissive,
    /// Plaintext only.
    Disable,
    /// The client speaks what the server refuses.
    Conflict,
    /// The service has no endpoint, so there is no server to ask.
    #[serde(rename = "-")]
    Unknown,
}

/// What was seen on the wire within the last minute, of connections that were open then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Connections with mutual TLS.
    pub mutual_tls: u64,
    /// Mutual TLS handshakes within the minute; one serves many connections.
    pub handshakes: u64,
    /// Connections between two workloads of one node, whose ends the kernel knows.
    pub same_node: u64,
    /// Connections in the clear.
    pub plaintext: u64,
}

/// One line of `meshctl authn tls-check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsCheckRow {
    /// Host of the service, `host|subset` for a subset.
    pub host: String,
    /// Port of the service.
    pub port: u16,
    /// Whether client and server agree, and on what.
    pub status: TlsCheckStatus,
    /// What the servers take: `mTLS`, `mTLS/HTTP`, `HTTP`, `-`.
    pub server: String,
    /// What the client sends: `mTLS`, `HTTP`, `TLS`.
    pub client: String,
    /// `<name>/<namespace>` of the PeerAuthentication that decided, `<name>/` where it
    /// holds for the whole mesh, separated by commas where endpoints differ, `-` for none.
    pub authn_policy: String,
    /// `<name>/<namespace>` of the DestinationRule, `-` for none.
    pub destination_rule: String,
    /// Whether the client's side follows the server's rather than a DestinationRule.
    pub auto_mtls: bool,
    /// What was seen; nothing where the client is not of the agent's node.
    pub observed: Option<Observed>,
}

/// A name that nothing bears.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsCheckError {
    /// No workload of that name.
    #[error("no workload {asked}; known are: {known}")]
    NoWorkload {
        /// `<name>.<namespace>`.
        asked: String,
        /// Some of those that exist.
        known: String,
    },
    /// No service of that name.
    #[error("no service {0}; `meshctl services` lists them")]
    NoService(String),
}

/// What [`tls_check`] decides by.
pub struct TlsCheck<'a> {
    /// Workloads and services.
    pub registry: &'a Registry,
    /// The servers' side.
    pub peer_authentication: &'a PeerAuthentications,
    /// Namespace whose PeerAuthentication holds for the mesh (`istio-system`).
    pub root_namespace: &'a str,
}

/// The rows for `workload` (`<name>[.<namespace>]`, namespace `default` where it is
/// left out) and all services, or the one called `service`, by host and port.
/// `rule_of` is the client's side: the DestinationRule in force for a port.
pub fn tls_check(
    of: &TlsCheck<'_>,
    workload: &str,
    service: Option<&str>,
    rule_of: impl Fn(&Service, u16) -> Option<DestinationRule>,
) -> Result<Vec<TlsCheckRow>, TlsCheckError> {
    let client = find_workload(of.registry, workload)?;
    let services: Vec<&Service> = match service {
        None => of.registry.services.iter().map(Arc::as_ref).collect(),
        Some(name) => vec![find_service(of.registry, client, name)?],
    };
    let mode_of = |server: &Workload, port| of.peer_authentication.mode(server, port);
    let mut rows = Vec::new();
    for service in services {
        for port in &service.ports {
            if port.protocol == Protocol::Udp {
                continue;
            }
            let server = ServerSide::of(service, port, of.root_namespace, mode_of);
            let rule = rule_of(service, port.number);
            rows.extend(rows_of(client, service, port, &server, rule.as_ref()));
        }
    }
    rows.sort_by(|a, b| (&a.host, a.port).cmp(&(&b.host, b.port)));
    Ok(rows)
}

/// The workload that `text` (`<name>[.<namespace>]`) names.
///
/// # Errors
/// Where there is none.
pub fn find_workload<'a>(
    registry: &'a Registry,
    text: &str,
) -> Result<&'a Workload, TlsCheckError> {
    let in_default = format!("{text}.{DEFAULT_NAMESPACE}");
    // Names may contain dots, so whole names are compared, the longer reading last.
    [text, &in_default]
        .iter()
        .find_map(|wanted| {
            registry
                .workloads
                .iter()
                .find(|workload| workload.name.to_string() == **wanted)
        })
        .map(Arc::as_ref)
        .ok_or_else(|| TlsCheckError::NoWorkload {
            asked: if text.contains('.') {
                text.to_owned()
            } else {
                in_default
            },
            known: some_of(registry.workloads.iter().map(|w| w.name.to_string())),
        })
}

fn some_of(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.take(MAX_LISTED + 1).collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    if names.len() > MAX_LISTED {
        names[MAX_LISTED] = "...".to_owned();
    }
    names.join(", ")
}

/// The service that `text` names: its host, or a Kubernetes short form as seen from `client`.
fn find_service<'a>(
    registry: &'a Registry,
    client: &Workload,
    text: &str,
) -> Result<&'a Service, TlsCheckError> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let domain = &registry.cluster_domain;
    [
        name.clone(),
        format!("{name}.{}.svc.{domain}", client.name.namespace),
        format!("{name}.svc.{domain}"),
        format!("{name}.{domain}"),
    ]
    .iter()
    .find_map(|host| registry.by_host.get(host))
    .map(Arc::as_ref)
    .ok_or_else(|| TlsCheckError::NoService(text.to_owned()))
}

/// What the endpoints of one port take, together.
struct ServerSide {
    modes: Vec<MtlsMode>,
    policies: BTreeSet<String>,
}

impl ServerSide {
    fn of<'p>(
        service: &Service,
        port: &ServicePort,
        root_namespace: &str,
        mode_of: impl Fn(&Workload, u16) -> (MtlsMode, Option<&'p str>),
    ) -> Self {
        let mut side = Self {
            modes: Vec::new(),
            policies: BTreeSet::new(),
        };
        for endpoint in &service.endpoints {
            let Some(&endpoint_port) = endpoint.ports.get(&port.number) else {
                continue;
            };
            match &endpoint.workload {
                Some(workload) if workload.is_meshed() => {
                    let (mode, policy) = mode_of(workload, endpoint_port);
                    side.modes.push(mode);
                    side.policies
                        .extend(policy.map(|name| policy_name(name, root_namespace)));
                }
                // Nobody there who could terminate mutual TLS.
                _ => side.modes.push(MtlsMode::Disable),
            }
        }
        if side.modes.is_empty() && service.location == Location::MeshExternal {
            side.modes.push(MtlsMode::Disable);
        }
        side
    }

    fn all(&self, mode: MtlsMode) -> bool {
        !self.modes.is_empty() && self.modes.iter().all(|&other| other == mode)
    }

    fn any(&self, mode: MtlsMode) -> bool {
        self.modes.contains(&mode)
    }

    fn text(&self) -> &'static str {
        if self.modes.is_empty() {
            "-"
        } else if self.all(MtlsMode::Strict) {
            "mTLS"
        } else if self.all(MtlsMode::Disable) {
            "HTTP"
        } else {
            "mTLS/HTTP"
        }
    }
}

/// `default/istio-system` reads `default/`: a policy of the root namespace holds for the mesh.
fn policy_name(name: &str, root_namespace: &str) -> String {
    match name.strip_suffix(root_namespace) {
        Some(stem) if stem.ends_with('/') => stem.to_owned(),
        _ => name.to_owned(),
    }
}

/// What the client sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sends {
    Mtls,
    Plaintext,
    OwnTls,
}

fn rows_of(
    client: &Workload,
    service: &Service,
    port: &ServicePort,
    server: &ServerSide,
    rule: Option<&DestinationRule>,
) -> Vec<TlsCheckRow> {
    let whole = rule.map_or(DestinationTls::Auto, |rule| rule.tls);
    let row = |host: String, tls| row_of(client, host, port.number, server, tls, rule);
    let mut rows = vec![row(service.host.clone(), whole)];
    for (subset, tls) in rule.iter().flat_map(|rule| &rule.subsets) {
        rows.push(row(format!("{}|{subset}", service.host), *tls));
    }
    rows
}

fn row_of(
    client: &Workload,
    host: String,
    port: u16,
    server: &ServerSide,
    tls: DestinationTls,
    rule: Option<&DestinationRule>,
) -> TlsCheckRow {
    let enrolled = client.is_meshed();
    let sends = match tls {
        // DestinationRules are applied by the mesh: outside of it there is nobody to do so.
        _ if !enrolled => Sends::Plaintext,
        DestinationTls::Disable => Sends::Plaintext,
        DestinationTls::IstioMutual => Sends::Mtls,
        DestinationTls::Originate => Sends::OwnTls,
        DestinationTls::Auto if server.modes.is_empty() || server.all(MtlsMode::Disable) => {
            Sends::Plaintext
        }
        DestinationTls::Auto => Sends::Mtls,
    };
    // Automatic mutual TLS decides per endpoint, so it never meets one that refuses it.
    let per_endpoint = enrolled && tls == DestinationTls::Auto;
    let refused = match sends {
        Sends::Mtls => !per_endpoint && server.any(MtlsMode::Disable),
        Sends::Plaintext | Sends::OwnTls => server.any(MtlsMode::Strict),
    };
    let status = if refused {
        TlsCheckStatus::Conflict
    } else if server.modes.is_empty() {
        TlsCheckStatus::Unknown
    } else if server.all(MtlsMode::Strict) {
        TlsCheckStatus::Strict
    } else if server.all(MtlsMode::Disable) {
        TlsCheckStatus::Disable
    } else {
        TlsCheckStatus::Permissive
    };
    TlsCheckRow {
        host,
        port,
        status,
        server: server.text().to_owned(),
        client: match sends {
            Sends::Mtls => "mTLS",
            Sends::Plaintext => "HTTP",
            Sends::OwnTls => "TLS",
        }
        .to_owned(),
        authn_policy: or_dash(
            server
                .policies
                .iter()
                .cloned()
                .collect::<Vec<_>>()
                .join(","),
        ),
        destination_rule: or_dash(rule.map(|rule| rule.name.clone()).unwrap_or_default()),
        auto_mtls: per_endpoint,
        observed: None,
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests;
