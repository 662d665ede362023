//! The sweeps over a service's endpoints, and how many of them may be out.

use std::time::Instant;

use super::{Cause, Ejection, Monitor, latency, success_rate};
use crate::route::OutlierPolicy;

/// Sweeps that are made up for at once. After so many nothing changes any more.
const MAX_MISSED_SWEEPS: u32 = 4096;

/// What became of a wish to take an endpoint out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is out.
    Ejected,
    /// It was out already.
    AlreadyOut,
    /// `maxEjectionPercent` forbids it.
    Refused,
}

/// What sweeps have changed.
#[derive(Debug, Default, PartialEq)]
pub struct Swept {
    /// Whether an endpoint came back.
    pub returned: bool,
    /// Those that were taken out, by their place among all.
    pub ejected: Vec<(usize, Cause)>,
}

impl Swept {
    /// Whether other endpoints are in service now.
    pub fn has_changed(&self) -> bool {
        self.returned || !self.ejected.is_empty()
    }
}

/// The sweeps over the endpoints of one service.
#[derive(Debug)]
pub struct Detector {
    next_sweep: Instant,
    /// Ejections that `maxEjectionPercent` forbade (Envoy's `ejections_overflow`).
    pub refused: u64,
}

impl Detector {
    /// A detector that begins now.
    pub fn new(now: Instant, policy: &OutlierPolicy) -> Self {
        Self {
            next_sweep: now + policy.interval,
            refused: 0,
        }
    }

    /// When the next sweep is.
    pub fn next_sweep(&self) -> Instant {
        self.next_sweep
    }

    /// Takes `monitor`, one of `all`, out of service, if `maxEjectionPercent` allows one more.
    pub fn eject<'m>(
        &mut self,
        monitor: &Monitor,
        all: impl Iterator<Item = &'m Monitor>,
        cause: Cause,
        now: Instant,
        policy: &OutlierPolicy,
    ) -> Verdict {
        if monitor.is_out() {
            return Verdict::AlreadyOut;
        }
        let (total, out) = all.fold((0u64, 0u64), |(total, out), monitor| {
            (total + 1, out + u64::from(monitor.is_out()))
        });
        let allowed = (out + 1) * 100 <= u64::from(policy.max_ejection_percent) * total;
        if allowed {
            monitor.eject(cause, now, policy);
        } else {
            self.refused += 1;
        }
        monitor.forget(cause);
        if allowed {
            Verdict::Ejected
        } else {
            Verdict::Refused
        }
    }

    /// Makes all sweeps that are due: endpoints come back, and those that stand out go.
    pub fn sweep<'m>(
        &mut self,
        all: impl Iterator<Item = &'m Monitor> + Clone,
        now: Instant,
        policy: &OutlierPolicy,
    ) -> Swept {
        let mut swept = Swept::default();
        for _ in 0..MAX_MISSED_SWEEPS {
            if now < self.next_sweep {
                return swept;
            }
            let at = self.next_sweep;
            for monitor in all.clone() {
                swept.returned |= monitor.sweep(at, policy);
            }
            self.compare(all.clone(), at, policy, &mut swept);
            for monitor in all.clone() {
                monitor.calm(at, policy);
            }
            self.next_sweep = at + policy.interval;
        }
        self.next_sweep = now + policy.interval;
        swept
    }

    /// Takes out those that fail more often, or are slower, than the others.
    fn compare<'m>(
        &mut self,
        all: impl Iterator<Item = &'m Monitor> + Clone,
        at: Instant,
        policy: &OutlierPolicy,
        swept: &mut Swept,
    ) {
        let mut outliers = Vec::new();
        if let Some(success_rate) = &policy.success_rate {
            let rates = in_service(all.clone(), Monitor::take_success_rate);
            outliers.extend(success_rate::outliers(&rates, success_rate));
        }
        if let Some(latency) = &policy.latency {
            let medians = in_service(all.clone(), Monitor::take_latency);
            outliers.extend(latency::outliers(&medians, latency));
        }
        for (index, cause) in outliers {
            let Some(monitor) = all.clone().nth(index) else {
                continue;
            };
            if self.eject(monitor, all.clone(), cause, at, policy) == Verdict::Ejected {
                swept.ejected.push((index, cause));
            }
        }
    }

    /// What is to be told about an endpoint that is out.
    pub fn ejection(&self, monitor: &Monitor, policy: &OutlierPolicy) -> Option<Ejection> {
        monitor.ejection(self.next_sweep, policy)
    }
}

/// What `take` says of each endpoint in service, by its index; of the others it is forgotten.
fn in_service<'m, T>(
    all: impl Iterator<Item = &'m Monitor>,
    take: fn(&Monitor) -> T,
) -> Vec<(usize, T)> {
    all.map(|monitor| (monitor.is_out(), take(monitor)))
        .enumerate()
        .filter_map(|(index, (is_out, taken))| (!is_out).then_some((index, taken)))
        .collect()
}
