//! What the control socket answers. The same types are written by the agent
//! and read by `meshctl`, and are what `-o json` prints.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::authz::{AuthzAnswer, AuthzQuestion, AuthzReport};
use super::metrics::Traffic;

pub use crate::policy::tls_check::{Observed, TlsCheckError, TlsCheckRow, TlsCheckStatus};

/// What a running agent can be asked. Every method returns a view of this
/// moment; they may read BPF maps and are called off the data path.
pub trait Agent: Send + Sync + 'static {
    /// Version and node of the agent.
    fn version(&self) -> VersionView;
    /// All workloads that the mesh knows.
    fn workloads(&self) -> Vec<WorkloadView>;
    /// All services.
    fn services(&self) -> Vec<ServiceView>;
    /// What each client of this node knows of the services it has used.
    fn endpoints(&self) -> Vec<ClusterView>;
    /// What would become of a request.
    ///
    /// # Errors
    /// One sentence, where no such workload or service is known.
    fn route(&self, question: &RouteQuestion) -> Result<RouteView, String>;
    /// Flows of this node's workloads, from the BPF maps.
    fn flows(&self) -> Vec<FlowView>;
    /// The transport between `workload` (`<name>[.<namespace>]`) and every
    /// service, or the one that is named.
    fn tls_check(
        &self,
        workload: &str,
        service: Option<&str>,
    ) -> Result<Vec<TlsCheckRow>, TlsCheckError>;
    /// Checks that only the agent can make: programs attached, maps pinned.
    /// What follows from the other views is added by the control socket.
    fn checks(&self) -> Vec<CheckItem>;
    /// What the kernel programs say to the agent's log.
    fn kernel_log(&self) -> KernelLogView;
    /// Changes it.
    ///
    /// # Errors
    /// One sentence, where there is no such level, or the kernel refuses the programs.
    fn set_kernel_log(&self, level: &str) -> Result<KernelLogView, String>;
    /// The configuration in force and what was wrong with the last one.
    fn config(&self) -> ConfigView;
    /// What has been counted.
    fn counters(&self) -> CountersView;
    /// Requests and connections of this node's clients, by how they ended.
    fn traffic(&self) -> Traffic;
    /// Certificates in use, the CA's first.
    fn certificates(&self) -> Vec<CertificateView>;
    /// Whether a connection or a request may reach a workload, and why; the
    /// error says what cannot be answered.
    fn authz_check(&self, question: &AuthzQuestion) -> Result<AuthzAnswer, String>;
    /// Who was denied, would be, and was to be audited.
    fn authz_report(&self) -> Vec<AuthzReport>;
    /// Who has spoken plaintext to the node's workloads within `minutes`, where
    /// STRICT is not in force.
    fn plaintext(&self, minutes: u32) -> Vec<PlaintextView>;
}

/// A client that speaks plaintext to a workload: `meshctl authn plaintext`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaintextView {
    /// Name of the workload.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its port.
    pub port: u16,
    /// The effective mode: `PERMISSIVE` or `DISABLE`.
    pub mode: String,
    /// `<name>/<namespace>` of the PeerAuthentication that decides, `-` for none.
    pub authn_policy: String,
    /// The client, `<name>.<namespace>` where the mesh knows it, else its address.
    pub client: String,
    /// Connections since the agent started.
    pub connections: u64,
    /// Seconds since the last of them.
    pub last_seen_s: u64,
}

/// What the agent and its kernel programs have counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountersView {
    /// Connections that the agent carries now.
    pub connections: u64,
    /// Flows without a record, because the map `flows` was full.
    pub flows_dropped: u64,
    /// Events of flows that were lost, because the ring was full.
    pub events_dropped: u64,
    /// Connections that the kernel programs refused.
    pub denied: u64,
    /// Flows that were established.
    pub flows_opened: u64,
    /// Flows that have ended.
    pub flows_closed: u64,
    /// Flows whose records were removed early, to make room.
    pub flows_evicted: u64,
    /// Lines that the access log has.
    pub log_lines: u64,
    /// Lines that it has not, because the file was too slow or refused them.
    pub log_lines_dropped: u64,
    /// Configurations that were refused.
    pub configurations_refused: u64,
}

/// `meshctl kernel-log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLogView {
    /// off, error, warn, info, debug or trace.
    pub level: String,
}

/// `meshctl version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionView {
    /// Version of the agent (semantic versioning).
    pub version: String,
    /// Name of the node that the agent serves.
    pub node: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Release of the kernel that it runs on.
    pub kernel: String,
    /// Seconds since the agent started.
    pub uptime_s: u64,
}

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

/// A request whose way is asked for: `meshctl routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteQuestion {
    /// `<name>[.<namespace>]` of the client.
    pub workload: String,
    /// Host and port as the client writes them.
    pub authority: String,
    /// Method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Headers.
    pub headers: Vec<(String, String)>,
}

/// What would become of a request, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteView {
    /// Service that the request is for.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// `VirtualService namespace/name` whose rules decide.
    pub rules_of: Option<String>,
    /// Rules that were looked at, in order.
    pub rules: Vec<RuleView>,
    /// What happens, in words.
    pub outcome: String,
    /// Where it may go.
    pub destinations: Vec<RouteDestinationView>,
}

/// A rule that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    /// Field of the resource, `http[0]`.
    pub field: String,
    /// Name, where it has one.
    pub name: String,
    /// Why it does not match; `None` for the one that does.
    pub mismatch: Option<String>,
}

/// A place where a request may go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteDestinationView {
    /// Host of the service.
    pub host: String,
    /// Subset.
    pub subset: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Share of the requests, in percent.
    pub percent: f64,
    /// `name/namespace` of the DestinationRule that applies.
    pub destination_rule: Option<String>,
    /// Number of endpoints.
    pub endpoints: usize,
    /// Why it would be refused.
    pub problem: Option<String>,
    /// Requests are only copied there.
    pub mirror: bool,
}

/// What a client knows of one port of a service, or of a subset of it: `meshctl endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// `<name>.<namespace>` of the client.
    pub client: String,
    /// Host of the service.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// Subset, where a route names one.
    pub subset: Option<String>,
    /// Connections that are open, or being made.
    pub connections: GaugeView,
    /// Requests that wait for a connection.
    pub pending: GaugeView,
    /// Requests (for TCP: connections) on their way.
    pub requests: GaugeView,
    /// Retries under way.
    pub retries: GaugeView,
    /// Ejections that `maxEjectionPercent` forbade.
    pub refused_ejections: u64,
    /// Routes that have bounds of their own.
    #[serde(default)]
    pub routes: Vec<RouteGaugesView>,
    /// Endpoints.
    pub endpoints: Vec<ClusterEndpointView>,
}

/// What a route with bounds of its own has under way to a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteGaugesView {
    /// `namespace/name of the VirtualService/name of the route`.
    pub route: String,
    /// Requests on their way, those included that wait for a connection.
    pub requests: GaugeView,
    /// Of those: that wait for a connection.
    #[serde(default = "GaugeView::none")]
    pub pending: GaugeView,
    /// Retries under way.
    pub retries: GaugeView,
    /// How long its breaker sends nothing yet, in seconds; `None` where requests pass.
    #[serde(default)]
    pub open_s: Option<u64>,
    /// Requests that the breaker has refused.
    #[serde(default)]
    pub broken: u64,
}

/// How many there are of something that is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GaugeView {
    /// Now.
    pub now: u32,
    /// At most; `None` without bound.
    pub limit: Option<u32>,
    /// How often there would have been more.
    pub refused: u64,
}

impl GaugeView {
    /// Where an agent does not tell.
    fn none() -> Self {
        Self {
            now: 0,
            limit: None,
            refused: 0,
        }
    }
}

/// An endpoint as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterEndpointView {
    /// `address:port`, or `host:port` for endpoints that are resolved by DNS.
    pub address: String,
    /// `<name>.<namespace>` of the workload, where the mesh knows it.
    pub workload: Option<String>,
    /// Requests (for TCP: connections) on their way to it.
    pub active: u32,
    /// All that ever were.
    pub total: u64,
    /// Why it does not pass its probe, where it does not.
    #[serde(default)]
    pub unhealthy: Option<String>,
    /// How often it was taken out of service.
    #[serde(default)]
    pub ejections: u64,
    /// Why and how long it is out of service, where it is.
    pub ejected: Option<EjectionView>,
}

/// An endpoint out of service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EjectionView {
    /// Why.
    pub reason: String,
    /// Seconds since it was taken out.
    pub since_s: u64,
    /// Seconds until it comes back.
    pub until_s: u64,
    /// How often it has been out.
    pub count: u64,
}

/// Which end of a connection the workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The workload connected.
    Outbound,
    /// The workload accepted.
    Inbound,
}

/// How the bytes of a flow are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Security {
    /// Mutual TLS between the nodes.
    #[serde(rename = "mutual_tls")]
    MutualTls,
    /// Both ends on this node, identified by the kernel; no wire, no TLS.
    #[serde(rename = "same_node")]
    SameNode,
    /// In the clear.
    #[serde(rename = "plaintext")]
    Plaintext,
    /// Not decided (yet).
    #[serde(rename = "-")]
    Unknown,
}

/// Whether a flow is still open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum FlowState {
    /// Established, or being established.
    Open,
    /// Ended, and how.
    Closed(String),
}

/// One TCP connection, or UDP exchange, as the kernel counts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// Socket cookie: unique while the kernel runs.
    pub id: u64,
    /// `<name>.<namespace>` of the workload whose socket it is.
    pub workload: String,
    /// Which end the workload is.
    pub direction: Direction,
    /// Address of the connecting application.
    pub source: SocketAddr,
    /// Original destination.
    pub destination: SocketAddr,
    /// Endpoint that was chosen.
    pub endpoint: Option<SocketAddr>,
    /// Host of the service that the destination belongs to.
    pub service: Option<String>,
    /// `http`, `h2`, `tcp`, `dns`, or `-`.
    pub protocol: String,
    /// How the bytes are protected.
    pub security: Security,
    /// SPIFFE identity of the connecting side, where it is known.
    pub source_identity: Option<String>,
    /// SPIFFE identity of the accepting side, where it is known.
    pub destination_identity: Option<String>,
    /// Bytes of payload that the workload sent.
    pub bytes_sent: u64,
    /// Bytes of payload that the workload received.
    pub bytes_received: u64,
    /// Those of the bytes sent that took the short-circuit.
    pub short_circuit_sent: u64,
    /// Those of the bytes received that took the short-circuit.
    pub short_circuit_received: u64,
    /// TCP segments sent.
    pub segments_sent: u64,
    /// TCP segments received.
    pub segments_received: u64,
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: u32,
    /// Smallest round-trip time seen, microseconds.
    pub min_rtt_us: Option<u32>,
    /// Segments sent again.
    pub retransmits: u32,
    /// Time from SYN to answer, microseconds; of connections that the workload opened.
    pub connect_us: Option<u32>,
    /// Milliseconds since the flow began.
    pub age_ms: u64,
    /// Open, or how it ended.
    #[serde(flatten)]
    pub state: FlowState,
    /// What the kernel was told to do: `pass`, `proxy`, `direct`, `deny`.
    pub verdict: String,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Works, but somebody should look at it.
    Warning,
    /// Does not work.
    Failed,
}

/// One line of `meshctl check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckItem {
    /// Heading under which it is shown.
    pub section: String,
    /// What is checked, as the sentence that should be true.
    pub name: String,
    /// How it came out.
    pub status: CheckStatus,
    /// What was found, may be empty.
    pub detail: String,
    /// What to do, where there is something to do.
    pub hint: Option<String>,
}

impl CheckItem {
    /// A check that passed.
    pub fn ok(section: &str, name: &str, detail: impl Into<String>) -> Self {
        Self {
            section: section.to_owned(),
            name: name.to_owned(),
            status: CheckStatus::Ok,
            detail: detail.into(),
            hint: None,
        }
    }

    /// A check that somebody should look at.
    pub fn warning(
        section: &str,
        name: &str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status: CheckStatus::Warning,
            hint: Some(hint.into()),
            ..Self::ok(section, name, detail)
        }
    }

    /// A check that failed.
    pub fn failed(
        section: &str,
        name: &str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status: CheckStatus::Failed,
            hint: Some(hint.into()),
            ..Self::ok(section, name, detail)
        }
    }
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigView {
    /// Where it comes from: a directory, or `kubernetes`.
    pub source: String,
    /// Counts the configurations that have been put in force, from 1.
    pub generation: u64,
    /// Number of resources in force.
    pub resources: usize,
    /// Fields that are not applied or have no effect.
    pub warnings: Vec<FindingView>,
    /// Why the last configuration was refused, where it was; the one before stays in force.
    pub refused: Option<RefusedView>,
}

/// A configuration that was not put in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedView {
    /// Seconds since it was refused.
    pub age_s: u64,
    /// What is wrong with it.
    pub errors: Vec<FindingView>,
}

/// Something to tell the operator about a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingView {
    /// File below the configuration directory.
    pub file: String,
    /// Position of the document in the file, from 1.
    pub document: usize,
    /// `kind namespace/name`, as far as it could be read.
    pub object: String,
    /// Path of the field, empty for the document as a whole.
    pub field: String,
    /// What is wrong, and what would be right.
    pub reason: String,
    /// Istio's code for it, where there is one.
    pub code: Option<String>,
}

impl From<&crate::resource::Finding> for FindingView {
    fn from(finding: &crate::resource::Finding) -> Self {
        Self {
            file: finding.origin.file.to_string(),
            document: finding.origin.document,
            object: finding.object.clone(),
            field: finding.field.clone(),
            reason: finding.reason.clone(),
            code: finding.code.map(str::to_owned),
        }
    }
}

/// Place of a certificate in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CertificateKind {
    /// Trust anchor.
    Root,
    /// Between a root and the leaves.
    Intermediate,
    /// Certificate of a workload.
    Leaf,
}

/// A certificate in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// SPIFFE identity, or the subject of a root.
    pub identity: String,
    /// Root or leaf.
    pub kind: CertificateKind,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Start of validity, seconds since 1970-01-01 UTC.
    pub not_before: u64,
    /// End of validity, seconds since 1970-01-01 UTC.
    pub not_after: u64,
    /// `<name>.<namespace>` of the node's workloads that use it.
    pub workloads: Vec<String>,
    /// Subjects of the certificates above it, the root last.
    pub chain: Vec<String>,
}

/// The body of an answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// One sentence.
    pub error: String,
}
