//! Whether the workloads of this node are well, as the probes of their
//! WorkloadGroups find out.

mod check;
mod tally;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::proxy::Local;
use crate::registry::WorkloadName;
use crate::resource::workload_group::ProbeSpec;
use tally::{Change, Tally};

/// What a probe has found out: `None` for a workload that is well, else why it is not.
pub type Finding = (WorkloadName, Option<Arc<str>>);

/// What is said of a workload that has not been asked yet.
pub const UNKNOWN: &str = "no probe has succeeded yet";

/// Probes the workloads of this node.
pub struct Health {
    findings: mpsc::UnboundedSender<Finding>,
    running: Mutex<HashMap<WorkloadName, Running>>,
}

struct Running {
    probe: Arc<ProbeSpec>,
    local: Arc<Local>,
    _until_dropped: DropGuard,
}

/// How probing begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Workloads are not well until a probe has succeeded.
    Doubtful,
    /// Another agent has probed them before: they are well until a probe fails, and the first
    /// probe does not wait.
    Trusting,
}

impl Health {
    /// Nobody is probed yet. Findings come by the receiver.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Finding>) {
        let (findings, receiver) = mpsc::unbounded_channel();
        let health = Self {
            findings,
            running: Mutex::default(),
        };
        (health, receiver)
    }

    /// Probes these workloads from now on, and no others. Who is probed in the same way
    /// already goes on.
    pub fn probe(
        &self,
        wanted: impl IntoIterator<Item = (Arc<Local>, Arc<ProbeSpec>)>,
        start: Start,
    ) {
        let mut running = self.running.lock();
        let mut before = std::mem::take(&mut *running);
        for (local, probe) in wanted {
            let name = local.workload.name.clone();
            let known = before
                .remove(&name)
                .filter(|known| known.probe == probe && Arc::ptr_eq(&known.local, &local));
            let known = known.unwrap_or_else(|| self.begin(local, probe, start));
            running.insert(name, known);
        }
    }

    /// Whether a workload is probed in this way.
    pub fn is_probed(&self, name: &WorkloadName, probe: &ProbeSpec) -> bool {
        let running = self.running.lock();
        running
            .get(name)
            .is_some_and(|running| *running.probe == *probe)
    }

    fn begin(&self, local: Arc<Local>, probe: Arc<ProbeSpec>, start: Start) -> Running {
        let stop = CancellationToken::new();
        let until_dropped = stop.clone().drop_guard();
        let findings = self.findings.clone();
        let (its_local, its_probe) = (local.clone(), probe.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(&its_local, &its_probe, start, &findings) => {}
            }
        });
        Running {
            probe,
            local,
            _until_dropped: until_dropped,
        }
    }
}

/// Probes one workload for ever, and tells of changes.
async fn follow(
    local: &Local,
    probe: &ProbeSpec,
    start: Start,
    findings: &mpsc::UnboundedSender<Finding>,
) {
    let mut tally = Tally::new(probe, start == Start::Trusting);
    if start == Start::Doubtful {
        tokio::time::sleep(probe.initial_delay()).await;
    }
    let mut ticks = tokio::time::interval(probe.period());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = tokio::time::timeout(probe.timeout(), check::check(probe, local));
        let result = asked
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {:?}", probe.timeout())));
        let workload = &local.workload.name;
        let finding = match tally.take(result) {
            None => continue,
            Some(Change::Well) => {
                tracing::info!(%workload, "passes its probe: it gets connections");
                None
            }
            Some(Change::Unwell(reason)) => {
                tracing::warn!(%workload, reason, "fails its probe: it gets no connections");
                Some(reason.into())
            }
        };
        if findings.send((workload.clone(), finding)).is_err() {
            return;
        }
    }
}
