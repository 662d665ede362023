//! How a configuration comes into force, and when that is said.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::takeover::Draining;
use super::{Agent, verdicts};
use crate::proxy::application;
use crate::resource::Finding;
use crate::snapshot::{Compiler, Snapshot};
use crate::source::{Loaded, State};

/// What was wrong with the configuration that was refused last.
pub(super) struct Refused {
    pub(super) at: Instant,
    pub(super) errors: Vec<Finding>,
}

/// A configuration that can be put in force.
pub(super) struct Compiled {
    pub(super) snapshot: Snapshot,
    /// How many resources it is made of.
    resources: usize,
    /// How long that took.
    took: Duration,
}

/// A configuration that is in force in this agent.
pub(super) struct Change {
    generation: u64,
    resources: usize,
    /// How long it took to compile it and to put it in force.
    took: Duration,
}

pub(super) fn compile(
    compiler: &mut Compiler,
    generation: u64,
    loaded: Loaded,
) -> Result<Compiled, Vec<Finding>> {
    let began = Instant::now();
    let resources = loaded?;
    let snapshot = compiler.compile(generation, &resources)?;
    tracing::debug!(generation, made = ?compiler.made(), "compiled");
    Ok(Compiled {
        snapshot,
        resources: resources.len(),
        took: began.elapsed(),
    })
}

impl Agent {
    /// Puts a configuration in force, in agents that drain as well.
    pub(super) async fn configure(&self, state: State) {
        let draining = Draining::find(&self.options.admin_socket()).with(state.texts);
        let generation = self.node.snapshot.load().generation + 1;
        let compiled = compile(&mut self.compiler.lock(), generation, state.loaded);
        if let Some(change) = self.put_in_force(compiled) {
            self.acknowledge(change, draining).await;
        }
    }

    /// Puts a configuration in force, or keeps the one before and says why.
    pub(super) fn put_in_force(&self, compiled: Result<Compiled, Vec<Finding>>) -> Option<Change> {
        let began = Instant::now();
        match compiled {
            Ok(Compiled {
                mut snapshot,
                resources,
                took,
            }) => {
                let generation = snapshot.generation;
                let destinations = snapshot.destinations();
                if let Err(error) = self
                    .node
                    .datapath
                    .set_destinations(&destinations, generation as u32)
                {
                    tracing::error!(%error, "the kernel does not know all addresses of the mesh");
                }
                for warning in &snapshot.warnings {
                    tracing::warn!("{warning}");
                }
                (snapshot.authorization)
                    .succeed(&self.node.snapshot.load().authorization, generation);
                let is_here = |name: &_| self.enrolment.is_to_be_here(&snapshot.registry, name);
                snapshot.registry = self.observing.over(&snapshot.registry, is_here);
                let snapshot = Arc::new(snapshot);
                self.replace_verdicts(&snapshot);
                application::recheck(&self.node, &snapshot);
                let is_new = snapshot.authorization.epoch == snapshot.generation;
                self.recheck_direct(is_new);
                *self.refused.lock() = None;
                let took = took + began.elapsed();
                self.enrol();
                Some(Change {
                    generation,
                    resources,
                    took,
                })
            }
            Err(errors) => {
                for error in &errors {
                    tracing::error!("configuration refused: {error}");
                }
                self.refusals.fetch_add(1, Ordering::Relaxed);
                *self.refused.lock() = Some(Refused {
                    at: Instant::now(),
                    errors,
                });
                None
            }
        }
    }

    /// Says that a configuration is in force, once it is in agents that drain, too.
    pub(super) async fn acknowledge(&self, change: Change, draining: Draining) {
        draining.tell().await;
        let Change {
            generation,
            resources,
            took,
        } = change;
        self.resources.store(resources, Ordering::Relaxed);
        self.acknowledged.store(generation, Ordering::Relaxed);
        let took_ms = took.as_micros() as f64 / 1e3;
        tracing::info!(generation, resources, took_ms, "configuration is in force");
    }

    /// Puts a configuration in force together with the verdicts that follow
    /// from it: none of an older one counts afterwards.
    pub(super) fn replace_verdicts(&self, snapshot: &Arc<Snapshot>) {
        let locals = self.enrolment.locals();
        let verdicts = verdicts::Verdicts {
            snapshot,
            locals: &locals,
            tiers: self.node.datapath.tiers(),
            ends_connections: self.ends_connections,
            short_circuit: self.options.short_circuit,
        };
        let store = || self.node.snapshot.store(snapshot.clone());
        let result = self.node.datapath.replace_verdicts(&verdicts.all(), store);
        if let Err(error) = result {
            // The snapshot counts in any case: every connection goes to the agent.
            self.node.snapshot.store(snapshot.clone());
            tracing::error!(%error, "no connection goes past the agent");
        }
    }
}
