//! What the control socket answers. The same types are written by the agent
//! and read by `meshctl`, and are what `-o json` prints.

mod check;
mod clusters;
mod config;
mod flows;
mod identity;
mod inbound;
mod inventory;
mod routes;

use serde::{Deserialize, Serialize};

use super::authz::{AuthzAnswer, AuthzQuestion, AuthzReport};
use super::metrics::Traffic;

pub use crate::policy::tls_check::{Observed, TlsCheckError, TlsCheckRow, TlsCheckStatus};
pub use check::{CheckItem, CheckStatus};
pub use clusters::{ClusterEndpointView, ClusterView, EjectionView, GaugeView, RouteGaugesView};
pub use config::{ConfigView, FindingView, RefusedView};
pub use flows::{Direction, FlowState, FlowView, Security};
pub use identity::{CertificateKind, CertificateView, PlaintextView};
pub use inbound::InboundView;
pub use inventory::{
    EndpointView, PortView, ServiceView, TunnelProtocol, WorkloadState, WorkloadView,
};
pub use routes::{RouteDestinationView, RouteQuestion, RouteView, RuleView};

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
    /// What is open to this node's applications, where a Sidecar bounds it.
    fn inbound(&self) -> Vec<InboundView>;
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
    /// Somebody has been answered: what that took for a while can be given back.
    fn answered(&self);
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
    /// Connections of clients that had too many.
    pub clients_refused: u64,
    /// Tunnels that were reset, since too much was held that nobody took.
    pub tunnels_reset: u64,
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

/// The body of an answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// One sentence.
    pub error: String,
}
