//! When an endpoint that fails is taken out of service, and when it comes back:
//! Envoy's outlier detection, number by number, without clock and without lock
//! while all is well.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::route::OutlierPolicy;

/// Bound of the time out of service, unless the base time is longer (Envoy's `max_ejection_time`).
const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);
/// Sweeps that are made up for at once. After so many nothing changes any more.
const MAX_MISSED_SWEEPS: u32 = 4096;

/// What became of a request or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The endpoint answered with this status (of gRPC: mapped to HTTP).
    Status(u16),
    /// A connection was made.
    Connected,
    /// No connection, or it ended without an answer.
    Failed,
    /// No answer in time.
    TimedOut,
}

/// Why an endpoint was taken out of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// So many errors in a row.
    Consecutive5xx(u32),
    /// So many 502, 503 or 504 in a row.
    ConsecutiveGateway(u32),
    /// So many failures to connect, timeouts or resets in a row.
    ConsecutiveLocal(u32),
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Consecutive5xx(count) => write!(f, "{count} errors in a row"),
            Self::ConsecutiveGateway(count) => write!(f, "{count} gateway errors in a row"),
            Self::ConsecutiveLocal(count) => write!(f, "{count} local failures in a row"),
        }
    }
}

/// What is remembered of one endpoint.
#[derive(Debug, Default)]
pub struct Monitor {
    errors: AtomicU32,
    gateway: AtomicU32,
    local: AtomicU32,
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

/// An endpoint that is out of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Why.
    pub cause: Cause,
    /// Since when.
    pub since: Instant,
    /// The sweep at which it comes back.
    pub until: Instant,
    /// How often it has been out.
    pub count: u64,
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
        if !is_error(code, policy) {
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

    /// How often it has been out of service.
    pub fn ejections(&self) -> u64 {
        self.history.lock().ejections
    }

    /// Whether it is out of service.
    pub fn is_out(&self) -> bool {
        self.history.lock().out.is_some()
    }

    fn forget(&self, cause: Cause) {
        reset(match cause {
            Cause::Consecutive5xx(_) => &self.errors,
            Cause::ConsecutiveGateway(_) => &self.gateway,
            Cause::ConsecutiveLocal(_) => &self.local,
        });
    }

    /// Returns whether it came back.
    fn sweep(&self, now: Instant, policy: &OutlierPolicy) -> bool {
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

    /// Envoy looks at this after all endpoints have been swept.
    fn calm(&self, now: Instant, policy: &OutlierPolicy) {
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
            monitor.history.lock().eject(cause, now, policy);
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

    /// Makes all sweeps that are due; returns whether an endpoint came back.
    pub fn sweep<'m>(
        &mut self,
        all: impl Iterator<Item = &'m Monitor> + Clone,
        now: Instant,
        policy: &OutlierPolicy,
    ) -> bool {
        let mut changed = false;
        for _ in 0..MAX_MISSED_SWEEPS {
            if now < self.next_sweep {
                return changed;
            }
            let at = self.next_sweep;
            for monitor in all.clone() {
                changed |= monitor.sweep(at, policy);
            }
            for monitor in all.clone() {
                monitor.calm(at, policy);
            }
            self.next_sweep = at + policy.interval;
        }
        self.next_sweep = now + policy.interval;
        changed
    }

    /// What is to be told about an endpoint that is out.
    pub fn ejection(&self, monitor: &Monitor, policy: &OutlierPolicy) -> Option<Ejection> {
        let history = *monitor.history.lock();
        let out = history.out?;
        let over = out.since + history.time_out(policy);
        let mut until = self.next_sweep;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> OutlierPolicy {
        OutlierPolicy {
            consecutive_5xx: Some(5),
            consecutive_gateway: None,
            split_local: None,
            interval: Duration::from_secs(30),
            base_ejection_time: Duration::from_secs(60),
            max_ejection_percent: 50,
            min_health_percent: 0,
            error_codes: Vec::new(),
        }
    }

    fn reports(monitor: &Monitor, policy: &OutlierPolicy, codes: &[u16]) -> Vec<Option<Cause>> {
        codes
            .iter()
            .map(|code| monitor.report(Report::Status(*code), policy))
            .collect()
    }

    #[test]
    fn five_errors_in_a_row_and_not_four_and_four() {
        let (monitor, policy) = (Monitor::default(), policy());
        let in_a_row = reports(&monitor, &policy, &[500, 503, 599, 500, 500]);
        assert_eq!(in_a_row[..4], [None; 4]);
        assert_eq!(in_a_row[4], Some(Cause::Consecutive5xx(5)));
        let monitor = Monitor::default();
        let interrupted = [500, 500, 500, 500, 200, 500, 500, 500, 500, 404];
        assert_eq!(reports(&monitor, &policy, &interrupted), [None; 10]);
    }

    #[test]
    fn failures_to_connect_are_errors_unless_they_are_counted_apart() {
        let failures = [Report::Failed, Report::TimedOut, Report::Failed];
        let limit = |policy: &OutlierPolicy| {
            let monitor = Monitor::default();
            failures
                .map(|report| monitor.report(report, policy))
                .to_vec()
        };
        let together = OutlierPolicy {
            consecutive_5xx: Some(3),
            consecutive_gateway: Some(2),
            ..policy()
        };
        assert_eq!(
            limit(&together),
            [
                None,
                Some(Cause::ConsecutiveGateway(2)),
                Some(Cause::Consecutive5xx(3))
            ]
        );
        let apart = OutlierPolicy {
            split_local: Some(3),
            ..together
        };
        assert_eq!(
            limit(&apart),
            [None, None, Some(Cause::ConsecutiveLocal(3))]
        );
        let monitor = Monitor::default();
        monitor.report(Report::Failed, &apart);
        monitor.report(Report::Failed, &apart);
        monitor.report(Report::Connected, &apart);
        assert_eq!(monitor.report(Report::Failed, &apart), None);
    }

    #[test]
    fn other_codes_can_be_errors() {
        let policy = OutlierPolicy {
            consecutive_5xx: Some(2),
            error_codes: vec![429],
            ..policy()
        };
        let monitor = Monitor::default();
        assert_eq!(reports(&monitor, &policy, &[429, 500, 429]), [None; 3]);
        assert_eq!(
            monitor.report(Report::Status(429), &policy),
            Some(Cause::Consecutive5xx(2))
        );
    }

    fn ejected_of(hosts: usize, max_ejection_percent: u32) -> usize {
        let policy = OutlierPolicy {
            max_ejection_percent,
            ..policy()
        };
        let now = Instant::now();
        let monitors: Vec<_> = (0..hosts).map(|_| Monitor::default()).collect();
        let mut detector = Detector::new(now, &policy);
        for monitor in &monitors {
            let cause = Cause::Consecutive5xx(5);
            detector.eject(monitor, monitors.iter(), cause, now, &policy);
        }
        monitors.iter().filter(|monitor| monitor.is_out()).count()
    }

    /// As measured on Envoy 1.40 with all endpoints failing.
    #[test]
    fn the_share_that_may_be_out_is_strict() {
        for (hosts, percent, out) in [
            (1, 50, 0),
            (2, 50, 1),
            (3, 50, 1),
            (4, 50, 2),
            (9, 10, 0),
            (10, 10, 1),
            (1, 100, 1),
        ] {
            assert_eq!(ejected_of(hosts, percent), out, "{percent} % of {hosts}");
        }
    }

    #[test]
    fn time_out_grows_with_each_ejection_and_ends_at_a_sweep() {
        let policy = policy();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let monitors = [Monitor::default(), Monitor::default()];
        let mut detector = Detector::new(begin, &policy);
        let cause = Cause::Consecutive5xx(5);
        let eject = |detector: &mut Detector, now| {
            detector.eject(&monitors[0], monitors.iter(), cause, now, &policy)
        };
        assert_eq!(eject(&mut detector, at(40)), Verdict::Ejected);
        assert_eq!(eject(&mut detector, at(40)), Verdict::AlreadyOut);
        let ejection = detector.ejection(&monitors[0], &policy).expect("out");
        // 60 s from 40 on are over at 100; the sweeps are at 30, 60, 90, 120.
        assert_eq!((ejection.count, ejection.until), (1, at(120)));
        assert!(!detector.sweep(monitors.iter(), at(119), &policy));
        assert!(detector.sweep(monitors.iter(), at(120), &policy));
        assert!(detector.ejection(&monitors[0], &policy).is_none());
        // The second time it is out for 120 s.
        assert_eq!(eject(&mut detector, at(130)), Verdict::Ejected);
        assert!(!detector.sweep(monitors.iter(), at(269), &policy));
        assert!(detector.sweep(monitors.iter(), at(270), &policy));
        // Each sweep in service, beginning an interval after its return, takes one off.
        detector.sweep(monitors.iter(), at(330), &policy);
        assert_eq!(eject(&mut detector, at(331)), Verdict::Ejected);
        let ejection = detector.ejection(&monitors[0], &policy).expect("out");
        assert_eq!(ejection.until, at(420));
    }

    #[test]
    fn time_out_has_a_bound() {
        let policy = OutlierPolicy {
            max_ejection_percent: 100,
            ..policy()
        };
        let mut now = Instant::now();
        let monitors = [Monitor::default()];
        let mut detector = Detector::new(now, &policy);
        for _ in 0..20 {
            let cause = Cause::Consecutive5xx(5);
            detector.eject(&monitors[0], monitors.iter(), cause, now, &policy);
            let until = detector.ejection(&monitors[0], &policy).expect("out").until;
            assert!(until - now <= MAX_EJECTION_TIME + policy.interval);
            now = until;
            assert!(detector.sweep(monitors.iter(), now, &policy));
        }
    }

    #[test]
    fn a_refused_ejection_is_counted_and_begins_anew() {
        let policy = policy();
        let now = Instant::now();
        let monitors = [Monitor::default()];
        let mut detector = Detector::new(now, &policy);
        let cause = reports(&monitors[0], &policy, &[500; 5])[4].expect("a cause");
        let verdict = detector.eject(&monitors[0], monitors.iter(), cause, now, &policy);
        assert_eq!((verdict, detector.refused), (Verdict::Refused, 1));
        assert_eq!(reports(&monitors[0], &policy, &[500; 4]), [None; 4]);
        assert!(monitors[0].report(Report::Status(500), &policy).is_some());
    }
}
