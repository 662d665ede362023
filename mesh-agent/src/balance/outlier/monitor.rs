//! What is remembered of one endpoint: what it answered, and when it was out of service.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::latency::Histogram;
use super::success_rate::Tally;
use super::{Cause, Ejection, Report};
use crate::route::OutlierPolicy;

/// Bound of the time out of service, unless the base time is longer (Envoy's `max_ejection_time`).
pub(super) const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);

/// What is remembered of one endpoint.
#[derive(Debug, Default)]
pub struct Monitor {
    errors: AtomicU32,
    gateway: AtomicU32,
    local: AtomicU32,
    /// Answers, where success rates are compared.
    tally: Tally,
    /// Times to answer, where they are compared.
    latencies: OnceLock<Box<Histogram>>,
    history: Mutex<History>,
}

#[derive(Clone, Copy, Debug, Default)]
struct History {
    out: Option<Out>,
    returned: Option<Instant>,
    /// Factor of the base time: grows with each ejection, shrinks with each sweep in service.
    multiplier: u32,
    ejections: u64,
}

#[derive(Clone, Copy, Debug)]
struct Out {
    since: Instant,
    cause: Cause,
}

impl Monitor {
    /// Takes a report. `Some` where the endpoint is to be taken out of service, if that may be.
    pub fn report(&self, report: Report, policy: &OutlierPolicy) -> Option<Cause> {
        let code = match (report, policy.split_local) {
            (Report::Status(code), _) => code,
            (Report::Connected, None) => return None,
            (Report::Connected, Some(_)) => {
                reset(&self.local);
                return None;
            }
            (Report::Failed, None) => 503,
            (Report::TimedOut, None) => 504,
            (Report::Failed | Report::TimedOut, Some(limit)) => {
                let reached = count(&self.local) == limit;
                return reached.then_some(Cause::ConsecutiveLocal(limit));
            }
        };
        let is_error = is_error(code, policy);
        if policy.success_rate.is_some() {
            self.tally.count(is_error);
        }
        if !is_error {
            reset(&self.errors);
            reset(&self.gateway);
            return None;
        }
        let mut cause = None;
        if matches!(code, 502..=504) {
            let reached = count(&self.gateway);
            cause = policy
                .consecutive_gateway
                .filter(|limit| reached == *limit)
                .map(Cause::ConsecutiveGateway);
        } else {
            reset(&self.gateway);
        }
        let reached = count(&self.errors);
        cause.or_else(|| {
            policy
                .consecutive_5xx
                .filter(|limit| reached == *limit)
                .map(Cause::Consecutive5xx)
        })
    }

    /// Takes note of how long an answer took to begin.
    pub fn took(&self, time: Duration) {
        self.latencies.get_or_init(Box::default).count(time);
    }

    /// Volume and success rate since the last sweep; counted anew from here on.
    pub(super) fn take_success_rate(&self) -> (u32, f64) {
        self.tally.take()
    }

    /// Volume and median latency since the last sweep; counted anew from here on.
    pub(super) fn take_latency(&self) -> (u32, Duration) {
        let latencies = self.latencies.get();
        latencies.map_or((0, Duration::ZERO), |latencies| latencies.take())
    }

    /// How often it has been out of service.
    pub fn ejections(&self) -> u64 {
        self.history.lock().ejections
    }

    /// Whether it is out of service.
    pub fn is_out(&self) -> bool {
        self.history.lock().out.is_some()
    }

    pub(super) fn forget(&self, cause: Cause) {
        reset(match cause {
            Cause::Consecutive5xx(_) => &self.errors,
            Cause::ConsecutiveGateway(_) => &self.gateway,
            Cause::ConsecutiveLocal(_) => &self.local,
            // Of the last interval only, and forgotten with it.
            Cause::SuccessRate { .. } | Cause::Latency { .. } => return,
        });
    }

    /// Takes it out of service.
    pub(super) fn eject(&self, cause: Cause, now: Instant, policy: &OutlierPolicy) {
        self.history.lock().eject(cause, now, policy);
    }

    /// What is to be told of it while it is out, where the next sweep is known.
    pub(super) fn ejection(&self, next_sweep: Instant, policy: &OutlierPolicy) -> Option<Ejection> {
        let history = *self.history.lock();
        let out = history.out?;
        let over = out.since + history.time_out(policy);
        let mut until = next_sweep;
        if over > until {
            let interval = policy.interval.as_nanos().max(1);
            let missing = (over - until).as_nanos().div_ceil(interval);
            until += policy
                .interval
                .saturating_mul(u32::try_from(missing).unwrap_or(u32::MAX));
        }
        Some(Ejection {
            cause: out.cause,
            since: out.since,
            until,
            count: history.ejections,
        })
    }

    /// Returns whether it came back.
    pub(super) fn sweep(&self, now: Instant, policy: &OutlierPolicy) -> bool {
        let mut history = self.history.lock();
        let Some(out) = history.out else { return false };
        if now.saturating_duration_since(out.since) < history.time_out(policy) {
            return false;
        }
        history.out = None;
        history.returned = Some(now);
        // Few new errors shall not take it out again.
        for counter in [&self.errors, &self.gateway, &self.local] {
            reset(counter);
        }
        true
    }

    /// Begins anew: in service, with nothing counted.
    pub(in crate::balance) fn restart(&self) {
        for counter in [&self.errors, &self.gateway, &self.local] {
            reset(counter);
        }
        let _ = (self.take_success_rate(), self.take_latency());
        let mut history = self.history.lock();
        *history = History {
            ejections: history.ejections,
            ..History::default()
        };
    }

    /// Envoy looks at this after all endpoints have been swept.
    pub(super) fn calm(&self, now: Instant, policy: &OutlierPolicy) {
        let mut history = self.history.lock();
        let long_ago = |at: Instant| now.saturating_duration_since(at) >= policy.interval;
        if history.out.is_none() && history.returned.is_some_and(long_ago) {
            history.multiplier = history.multiplier.saturating_sub(1);
        }
    }
}

impl History {
    fn time_out(&self, policy: &OutlierPolicy) -> Duration {
        let limit = MAX_EJECTION_TIME.max(policy.base_ejection_time);
        policy
            .base_ejection_time
            .saturating_mul(self.multiplier)
            .min(limit)
    }

    fn eject(&mut self, cause: Cause, now: Instant, policy: &OutlierPolicy) {
        self.out = Some(Out { since: now, cause });
        self.ejections += 1;
        let base = policy.base_ejection_time;
        let limit = MAX_EJECTION_TIME.max(base) + base;
        if base.saturating_mul(self.multiplier) < limit {
            self.multiplier += 1;
        }
    }
}

fn is_error(code: u16, policy: &OutlierPolicy) -> bool {
    if policy.error_codes.is_empty() {
        (500..600).contains(&code)
    } else {
        policy.error_codes.contains(&code)
    }
}

fn count(counter: &AtomicU32) -> u32 {
    counter.fetch_add(1, Relaxed).wrapping_add(1)
}

/// Written only where there is something to forget: success is the common case.
fn reset(counter: &AtomicU32) {
    if counter.load(Relaxed) != 0 {
        counter.store(0, Relaxed);
    }
}
