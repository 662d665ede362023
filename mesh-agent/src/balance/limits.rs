//! Circuit breakers: how many connections, waiting requests, active requests
//! and retries there may be at a time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// Things of one kind that exist at a time, and how often there would have been too many.
#[derive(Debug, Default)]
pub struct Gauge {
    now: AtomicU32,
    refused: AtomicU64,
}

impl Gauge {
    /// How many there are.
    pub fn now(&self) -> u32 {
        self.now.load(SeqCst)
    }

    /// How many there would have been beyond the bound.
    pub fn refused(&self) -> u64 {
        self.refused.load(SeqCst)
    }

    /// One more, unless there are `limit`.
    pub(crate) fn enter(&self, limit: Option<u32>) -> bool {
        let Some(limit) = limit else {
            self.now.fetch_add(1, SeqCst);
            return true;
        };
        let below = |now: u32| (now < limit).then_some(now + 1);
        self.now.fetch_update(SeqCst, SeqCst, below).is_ok()
    }

    /// Counts one that there would have been beyond the bound.
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, SeqCst);
    }

    pub(crate) fn leave(&self) {
        self.now.fetch_sub(1, SeqCst);
    }
}

/// What a client has open towards one service.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Connections, those being made included.
    pub connections: Gauge,
    /// Requests that wait for a connection, those included for which one is being made.
    pub pending: Gauge,
    /// Requests on their way (for TCP: connections).
    pub requests: Gauge,
    /// Of those: retries.
    pub retries: Gauge,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_the_last_that_enters() {
        let gauge = Gauge::default();
        assert!(gauge.enter(Some(2)) && gauge.enter(Some(2)));
        assert!(!gauge.enter(Some(2)));
        gauge.leave();
        assert!(gauge.enter(Some(2)));
        assert!(gauge.enter(None));
        assert_eq!((gauge.now(), gauge.refused()), (3, 0));
    }
}
