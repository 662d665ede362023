//! The breaker of a single route: after so many failures in a row nothing is sent for a
//! while, then one request tries whether it would be answered again.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::resource::virtual_service::limits::BreakerBounds;

/// The breaker, and what it has refused.
#[derive(Debug, Default)]
pub struct Breaker {
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// So many of the last requests have failed, one after the other.
    Closed(u32),
    /// Nothing is sent until then.
    Open(Instant),
    /// One request is under way, since then; the others are refused.
    Trying(Instant),
}

impl Default for State {
    fn default() -> Self {
        Self::Closed(0)
    }
}

impl Breaker {
    /// Whether a request may be sent.
    pub(super) fn lets_pass(&self, bounds: BreakerBounds, now: Instant) -> bool {
        let mut state = self.state.lock();
        match *state {
            State::Closed(_) => true,
            State::Open(until) if now < until => false,
            // One that has not come back for so long will not.
            State::Trying(since) if now < since + bounds.open_time => false,
            State::Open(_) | State::Trying(_) => {
                *state = State::Trying(now);
                true
            }
        }
    }

    /// Takes note of what became of a request.
    pub(super) fn report(&self, failed: bool, bounds: BreakerBounds, now: Instant) {
        let mut state = self.state.lock();
        *state = match *state {
            // A request from before it opened says nothing new.
            State::Open(until) if now < until => return,
            _ if !failed => State::Closed(0),
            State::Closed(failures) if failures + 1 < bounds.errors => State::Closed(failures + 1),
            _ => State::Open(now + bounds.open_time),
        };
    }

    /// How long nothing is sent yet; `None` where requests pass.
    pub fn open_for(&self, now: Instant) -> Option<Duration> {
        match *self.state.lock() {
            State::Closed(_) => None,
            State::Open(until) => Some(until.saturating_duration_since(now)),
            State::Trying(_) => Some(Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: BreakerBounds = BreakerBounds {
        errors: 3,
        open_time: Duration::from_secs(30),
    };

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_after_one_success() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for failed in [true, true, false, true, true] {
            assert!(breaker.lets_pass(BOUNDS, at(0)));
            breaker.report(failed, BOUNDS, at(0));
        }
        assert!(breaker.lets_pass(BOUNDS, at(0)), "no three in a row");
        breaker.report(true, BOUNDS, at(1));
        assert!(!breaker.lets_pass(BOUNDS, at(2)));
        assert_eq!(breaker.open_for(at(2)), Some(Duration::from_secs(29)));
        // The answer of a request that was sent before.
        breaker.report(false, BOUNDS, at(3));
        assert!(!breaker.lets_pass(BOUNDS, at(30)));
        assert!(breaker.lets_pass(BOUNDS, at(31)), "one tries");
        assert!(!breaker.lets_pass(BOUNDS, at(31)), "only one");
        breaker.report(true, BOUNDS, at(32));
        assert!(!breaker.lets_pass(BOUNDS, at(61)));
        assert!(breaker.lets_pass(BOUNDS, at(62)));
        breaker.report(false, BOUNDS, at(62));
        assert!(breaker.lets_pass(BOUNDS, at(62)));
        assert_eq!(breaker.open_for(at(62)), None);
    }

    #[test]
    fn a_try_that_nobody_hears_of_is_made_again() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for _ in 0..3 {
            breaker.report(true, BOUNDS, at(0));
        }
        assert!(breaker.lets_pass(BOUNDS, at(30)));
        assert!(!breaker.lets_pass(BOUNDS, at(59)));
        assert!(breaker.lets_pass(BOUNDS, at(60)));
    }
}
