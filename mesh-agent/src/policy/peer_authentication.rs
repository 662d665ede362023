//! Istio `PeerAuthentication`: which transport a workload's ports accept.

use crate::registry::Workload;

/// Effective mode of a port (`UNSET` has been resolved to what it inherits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Plaintext only.
    Disable,
    /// Plaintext and mutual TLS.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// All PeerAuthentication resources, compiled.
#[derive(Clone, Debug, Default)]
pub struct PeerAuthentications {}

impl PeerAuthentications {
    /// The mode of `port` (a port of the workload, not of a service), with the
    /// name `<name>/<namespace>` of the resource that decided, `None` for the default.
    /// Precedence: port, workload, namespace, mesh.
    pub fn mode(&self, _workload: &Workload, _port: u16) -> (MtlsMode, Option<&str>) {
        (MtlsMode::Permissive, None)
    }
}
