//! Says what an agent that starts is waiting for, while that takes long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

/// How long a step takes before it is mentioned, and mentioned again.
const LONG: Duration = Duration::from_secs(5);

/// An agent on its way; nothing more is said when this is dropped.
pub(super) struct Starting {
    step: Arc<Mutex<Step>>,
    _teller: AbortOnDropHandle<()>,
}

#[derive(Clone, Copy)]
struct Step {
    name: &'static str,
    since: Instant,
}

impl Starting {
    /// From now on. What blocks the calling task does not keep others from telling.
    pub(super) fn with(name: &'static str) -> Self {
        let step = Arc::new(Mutex::new(Step::new(name)));
        let told = step.clone();
        let teller = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LONG).await;
                let Step { name, since } = *told.lock();
                let taken = since.elapsed();
                if taken >= LONG {
                    let for_s = taken.as_secs();
                    tracing::warn!(step = name, for_s, "the agent is still starting");
                }
            }
        });
        Self {
            step,
            _teller: AbortOnDropHandle::new(teller),
        }
    }

    /// One step is done, this is the next.
    pub(super) fn next(&self, name: &'static str) {
        let done = std::mem::replace(&mut *self.step.lock(), Step::new(name));
        let took_ms = done.since.elapsed().as_millis();
        tracing::debug!(step = done.name, took_ms, "a step of the start is done");
    }
}

impl Step {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            since: Instant::now(),
        }
    }
}
