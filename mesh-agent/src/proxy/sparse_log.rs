//! Lines of the log that anybody can cause who reaches the node: so many are written, the rest is counted.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

const INTERVAL: Duration = Duration::from_secs(10);

/// Bounds lines of one kind.
#[derive(Debug)]
pub struct SparseLog {
    max: u32,
    lines: Mutex<Lines>,
}

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
    /// So many lines at most in ten seconds.
    pub fn of(max: u32) -> Self {
        Self {
            max,
            lines: Mutex::default(),
        }
    }

    /// Room for one more line; where there is none, it is counted.
    pub fn line(&self) -> Option<Line> {
        self.line_at(Instant::now())
    }

    fn line_at(&self, now: Instant) -> Option<Line> {
        let mut lines = self.lines.lock();
        let is_over = |since: Instant| now.duration_since(since) >= INTERVAL;
        if lines.since.is_none_or(is_over) {
            lines.since = Some(now);
            lines.written = 0;
        }
        if lines.written == self.max {
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
        let log = SparseLog::of(3);
        let start = Instant::now();
        for _ in 0..3 {
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
