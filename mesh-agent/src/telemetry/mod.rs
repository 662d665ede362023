//! What the agent tells of the traffic that it carries.

pub mod access_log;
pub mod callers;
pub mod connections;
pub mod expression;
mod flags;
pub mod requests;
pub mod rules;

pub use flags::{Flag, Flags};
pub use rules::Rules;

use std::collections::HashMap;
use std::sync::Arc;

use access_log::AccessLog;
use callers::Callers;
use parking_lot::Mutex;
use requests::Unreached;

use crate::registry::WorkloadName;

/// Workloads that have left and whose callers are remembered, should they come back.
const MAX_LEFT: usize = 256;

/// Where the parts of the agent that carry traffic tell of it.
#[derive(Default)]
pub struct Telemetry {
    /// A line for each request and connection.
    pub access_log: AccessLog,
    /// Requests that have reached no endpoint; the others are counted where they went.
    pub unreached: Unreached,
    /// What has come to each workload, also one that is enrolled anew.
    callers: Mutex<HashMap<WorkloadName, Arc<Callers>>>,
}

impl Telemetry {
    /// With this log, and nothing counted yet.
    pub fn new(access_log: AccessLog) -> Self {
        Self {
            access_log,
            ..Self::default()
        }
    }

    /// What has come to a workload.
    pub fn callers(&self, workload: &WorkloadName) -> Arc<Callers> {
        let mut all = self.callers.lock();
        let is_left = |callers: &Arc<Callers>| Arc::strong_count(callers) == 1;
        if all.values().filter(|callers| is_left(callers)).count() > MAX_LEFT {
            all.retain(|name, callers| name == workload || !is_left(callers));
        }
        all.entry(workload.clone()).or_default().clone()
    }
}

/// Whose view of a request or connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Of the workload that asks.
    Client,
    /// Of the workload that is asked.
    Server,
}
