//! What is open to applications that a Sidecar bounds: `meshctl endpoints --inbound`.

use serde::{Deserialize, Serialize};

use super::GaugeView;

/// What all callers together have open to one port of a workload of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundView {
    /// `<name>.<namespace>` of the workload.
    pub workload: String,
    /// The port at which the application listens.
    pub port: u16,
    /// Connections to it that are open, or being made.
    pub connections: GaugeView,
    /// Requests that wait for a connection.
    pub pending: GaugeView,
    /// Requests on their way.
    pub requests: GaugeView,
}
