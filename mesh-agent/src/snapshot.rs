//! One immutable state of the whole configuration. The data path holds a
//! snapshot per connection or request and never a lock.

use std::sync::Arc;

use crate::policy::PeerAuthentications;
use crate::registry::Registry;
use crate::resource::Finding;
use crate::route::Routes;

/// All that the agent decides by, compiled from the resources.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts the configurations that have been put in force, from 1.
    pub generation: u64,
    /// Workloads, services, endpoints.
    pub registry: Arc<Registry>,
    /// HTTP routes and destination rules.
    pub routes: Arc<Routes>,
    /// PeerAuthentication.
    pub peer_authentication: PeerAuthentications,
    /// Fields that are not applied, and the like.
    pub warnings: Vec<Finding>,
}
