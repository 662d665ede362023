//! When the agent rests, so that it can give back what it does not need then.

use std::time::{Duration, Instant};

use super::memory;

/// How long after a change its memory is given back: one change often follows another.
const AFTER_CHANGE: Duration = Duration::from_millis(500);
/// How long after the last connection began or ended, or somebody was answered last. Longer,
/// because the next one takes the code back page by page.
const AFTER_TRAFFIC: Duration = Duration::from_secs(5);
/// How long after connections began or ended, however busy the agent is, memory is given back at the latest: a burst,
/// or a flood, may be over though others go on.
const AFTER_TRAFFIC_AT_LATEST: Duration = Duration::from_secs(30);
/// Who uses less than this part of a processor rests: a hundred requests or so per second.
const AT_REST: u32 = 100;

/// A point in time, and how much time of the processors the agent has used until then.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    used: Duration,
}

impl Moment {
    fn now() -> Self {
        let mut used = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: writes the time into the place that it is given.
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut used) };
        let nanoseconds = u32::try_from(used.tv_nsec).unwrap_or_default();
        Self {
            at: Instant::now(),
            used: Duration::new(used.tv_sec.unsigned_abs(), nanoseconds),
        }
    }

    /// Connections that live long neither begin nor end, and need the agent all the same.
    fn is_at_rest_since(&self, before: &Self) -> bool {
        let (time, used) = (self.at - before.at, self.used.saturating_sub(before.used));
        used < time / AT_REST
    }
}

/// Gives back what the start, a configuration, the enrolment of workloads or traffic took
/// for a while, as soon as nothing of the kind happens any more.
#[cfg_attr(test, derive(Default))]
pub(super) struct Rest {
    after_change: Option<Moment>,
    after_traffic: Option<Moment>,
    /// The first traffic since memory was given back.
    busy_since: Option<Instant>,
}

/// What is to be given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    memory: bool,
    /// Not while there is traffic: its code would be read again at once.
    code: bool,
}

impl Rest {
    /// From now on. The start is what there is to rest from first.
    pub(super) fn new() -> Self {
        Self {
            after_change: Some(Moment::now()),
            after_traffic: None,
            busy_since: None,
        }
    }

    /// A configuration or the workloads have changed.
    pub(super) fn changed(&mut self) {
        self.after_change = Some(Moment::now());
    }

    /// Connections have begun or ended, or somebody has been answered.
    pub(super) fn busy(&mut self) {
        self.busy_at(Moment::now());
    }

    fn busy_at(&mut self, now: Moment) {
        self.after_traffic = Some(now);
        self.busy_since.get_or_insert(now.at);
    }

    /// Called regularly.
    pub(super) fn look(&mut self) {
        let due = self.due(Moment::now());
        if due.memory {
            memory::give_back_memory();
        }
        if due.code {
            memory::give_back_code();
        }
    }

    fn due(&mut self, now: Moment) -> Due {
        let passed = |since: &mut Option<Moment>, time| {
            since.take_if(|since| now.at.saturating_duration_since(since.at) >= time)
        };
        let changed = passed(&mut self.after_change, AFTER_CHANGE);
        let calm = passed(&mut self.after_traffic, AFTER_TRAFFIC);
        let mut ended = changed.iter().chain(&calm);
        let rests = ended.any(|since| now.is_at_rest_since(since));
        if !rests && (changed.is_some() || calm.is_some()) {
            self.after_traffic = Some(now);
        }
        let is_late = |since| now.at.saturating_duration_since(since) >= AFTER_TRAFFIC_AT_LATEST;
        // Once no connection begins or ends any more, what the last ones took is not needed, whatever
        // those that are left have to do.
        let is_over = |since| calm.is_some() || is_late(since);
        let memory = changed.is_some() || rests || self.busy_since.is_some_and(is_over);
        if memory {
            self.busy_since = None;
        }
        Due {
            memory,
            code: rests,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Due = Due {
        memory: false,
        code: false,
    };
    const MEMORY: Due = Due {
        memory: true,
        code: false,
    };
    const ALL: Due = Due {
        memory: true,
        code: true,
    };

    fn rest_at(start: Moment) -> Rest {
        Rest {
            after_change: Some(start),
            ..Rest::default()
        }
    }

    /// So much later, after so much work.
    fn later(moment: Moment, ms: u64, worked_ms: u64) -> Moment {
        Moment {
            at: moment.at + Duration::from_millis(ms),
            used: moment.used + Duration::from_millis(worked_ms),
        }
    }

    #[test]
    fn everything_is_given_back_once_when_nothing_happens_any_more() {
        let start = Moment::now();
        let mut rest = rest_at(start);
        assert_eq!(rest.due(later(start, 499, 0)), NOTHING);
        assert_eq!(rest.due(later(start, 500, 1)), ALL);
        assert_eq!(rest.due(later(start, 60_000, 1)), NOTHING);
        let traffic = later(start, 70_000, 500);
        rest.after_traffic = Some(traffic);
        assert_eq!(rest.due(later(traffic, 4_999, 0)), NOTHING);
        assert_eq!(rest.due(later(traffic, 5_000, 0)), ALL);
        assert_eq!(rest.due(later(traffic, 60_000, 0)), NOTHING);
    }

    #[test]
    fn traffic_keeps_its_code_and_a_change_under_it_gives_its_memory_back() {
        let start = Moment::now();
        let mut rest = rest_at(start);
        let busy = later(start, 500, 250);
        assert_eq!(rest.due(busy), MEMORY);
        let still = later(busy, 5_000, 2_000);
        assert_eq!(rest.due(still), NOTHING);
        assert_eq!(rest.due(later(still, 4_000, 0)), NOTHING);
        assert_eq!(rest.due(later(still, 5_000, 49)), ALL);
    }

    #[test]
    fn traffic_that_goes_on_keeps_its_code_and_gives_memory_back_in_time() {
        let start = Moment::now();
        let mut rest = Rest::default();
        // Connections begin and end all the time.
        let mut given_back = Vec::new();
        for second in 0..100 {
            let now = later(start, 1000 * second, 200 * second);
            rest.busy_at(now);
            let due = rest.due(now);
            assert!(!due.code);
            if due.memory {
                given_back.push(second);
            }
        }
        assert_eq!(given_back, [30, 61, 92]);
    }

    #[test]
    fn what_connections_took_is_given_back_once_though_those_that_are_left_are_busy() {
        let start = Moment::now();
        let mut rest = Rest::default();
        rest.busy_at(start);
        assert_eq!(rest.due(later(start, 4_900, 1_000)), NOTHING);
        assert_eq!(rest.due(later(start, 5_100, 1_100)), MEMORY);
        for second in 6..60 {
            let now = later(start, 1000 * second, 200 * second);
            assert_eq!(rest.due(now), NOTHING);
        }
    }

    #[test]
    fn time_that_is_used_counts() {
        let before = Moment::now();
        let end = before.at + Duration::from_millis(50);
        while Instant::now() < end {
            std::hint::black_box(0);
        }
        assert!(!Moment::now().is_at_rest_since(&before));
    }
}
