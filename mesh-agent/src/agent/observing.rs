//! What is found out while a configuration is in force, put over it: who
//! passes its probe, and where names lead.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::Agent;
use crate::health::{self, Health, Start};
use crate::proxy::Locals;
use crate::registry::{Observed, Registry, WorkloadName};
use crate::resolve::{self, Names, System};
use crate::snapshot::Snapshot;

/// Finds out, and remembers.
pub(super) struct Observing {
    health: Health,
    names: Names<System>,
    start: Mutex<Start>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// As it was configured.
    configured: Arc<Registry>,
    observed: Observed,
}

/// What comes from those who find out.
pub(super) struct Observations {
    health: mpsc::UnboundedReceiver<health::Finding>,
    names: mpsc::UnboundedReceiver<resolve::Answer>,
}

/// Something new.
pub(super) enum Observation {
    Health(health::Finding),
    Name(resolve::Answer),
}

impl Observations {
    /// Waits for something new.
    pub(super) async fn next(&mut self) -> Observation {
        tokio::select! {
            Some(finding) = self.health.recv() => Observation::Health(finding),
            Some(answer) = self.names.recv() => Observation::Name(answer),
            else => std::future::pending().await,
        }
    }
}

impl Observing {
    pub(super) fn new(refresh_rate: std::time::Duration, start: Start) -> (Self, Observations) {
        let (health, findings) = Health::new();
        let (names, answers) = Names::new(System, refresh_rate);
        let observing = Self {
            health,
            names,
            start: Mutex::new(start),
            state: Mutex::default(),
        };
        let observations = Observations {
            health: findings,
            names: answers,
        };
        (observing, observations)
    }

    /// A new configuration with what is known. A workload of this node (`is_here`) that
    /// nobody has asked yet is not taken for well.
    pub(super) fn over(
        &self,
        configured: &Arc<Registry>,
        is_here: impl Fn(&WorkloadName) -> bool,
    ) -> Arc<Registry> {
        let mut state = self.state.lock();
        let State {
            configured: before,
            observed,
        } = &mut *state;
        *before = configured.clone();
        let probes = &configured.probes;
        (observed.unhealthy).retain(|name, _| probes.contains_key(name) && is_here(name));
        if *self.start.lock() == Start::Doubtful {
            let unknown = (probes.iter())
                .filter(|(name, probe)| is_here(name) && !self.health.is_probed(name, probe));
            for (name, _) in unknown {
                (observed.unhealthy).insert(name.clone(), health::UNKNOWN.into());
            }
        }
        self.names.follow(configured.names_to_resolve());
        let wanted: std::collections::HashSet<&str> = configured.names_to_resolve().collect();
        observed.resolved.retain(|name, _| wanted.contains(&**name));
        if *observed == Observed::default() {
            return configured.clone();
        }
        Arc::new(configured.with(observed))
    }

    /// Probes the workloads that are enrolled now.
    pub(super) fn probe(&self, locals: &Locals) {
        let configured = self.state.lock().configured.clone();
        let wanted = (locals.names()).filter_map(|name| {
            let probe = configured.probes.get(name)?.clone();
            Some((locals.named(name)?.clone(), probe))
        });
        let mut start = self.start.lock();
        self.health.probe(wanted, *start);
        // Only what the agent before has probed is trusted.
        *start = Start::Doubtful;
    }

    /// The registry with something new; `None` where nothing changes.
    fn with(&self, observation: Observation) -> Option<Registry> {
        let mut state = self.state.lock();
        let State {
            configured,
            observed,
        } = &mut *state;
        let before = observed.clone();
        match observation {
            Observation::Health((name, _)) if !configured.probes.contains_key(&name) => {}
            Observation::Health((name, None)) => {
                observed.unhealthy.remove(&name);
            }
            Observation::Health((name, Some(reason))) => {
                observed.unhealthy.insert(name, reason);
            }
            Observation::Name((name, addresses)) => {
                observed.resolved.insert(name, addresses);
            }
        }
        (*observed != before).then(|| configured.with(observed))
    }
}

impl Agent {
    /// Puts what has been found out in force, with the verdicts that follow from it.
    pub(super) fn observe(&self, observation: Observation) {
        if let Some(registry) = self.observing.with(observation) {
            let snapshot = Snapshot {
                registry: Arc::new(registry),
                ..Snapshot::clone(&self.node.snapshot.load())
            };
            self.replace_verdicts(&Arc::new(snapshot));
        }
    }
}
