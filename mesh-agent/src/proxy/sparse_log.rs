//! Lines of the log that anybody can cause who reaches the node: so many are written, the rest is counted.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// So many lines are written in [`INTERVAL`].
const MAX_LINES: u32 = 100;
const INTERVAL: Duration = Duration::from_secs(10);

/// Bounds lines of one kind.
#[derive(Debug, Default)]
pub struct SparseLog(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

/// A line may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// How many were left out before it, if any.
    pub left_out: Option<u64>,
}

impl SparseLog {
    /// Room for one more line; where there is none, it is counted.
    pub fn line(&self) -> Option<Line> {
        self.line_at(Instant::now())
    }

    fn line_at(&self, now: Instant) -> Option<Line> {
        let mut lines = self.0.lock();
        let is_over = |since: Instant| now.duration_since(since) >= INTERVAL;
        if lines.since.is_none_or(is_over) {
            lines.since = Some(now);
            lines.written = 0;
        }
        if lines.written == MAX_LINES {
            lines.left_out += 1;
            return None;
        }
        lines.written += 1;
        let left_out = std::mem::take(&mut lines.left_out);
        Some(Line {
            left_out: (left_out > 0).then_some(left_out),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_told_with_the_next_line() {
        let log = SparseLog::default();
        let start = Instant::now();
        for _ in 0..MAX_LINES {
            assert_eq!(log.line_at(start), Some(Line { left_out: None }));
        }
        for _ in 0..7 {
            assert_eq!(log.line_at(start + INTERVAL / 2), None);
        }
        let later = log.line_at(start + INTERVAL);
        assert_eq!(later, Some(Line { left_out: Some(7) }));
        assert_eq!(log.line_at(start + INTERVAL), Some(Line { left_out: None }));
    }
}
