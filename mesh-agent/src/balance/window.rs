//! How many requests there were within a time.

use std::time::Duration;

use parking_lot::Mutex;

/// Parts of the time: what is older than it is forgotten part by part.
const PARTS: usize = 16;

/// Counts of the last while.
#[derive(Debug, Default)]
pub(super) struct Window(Mutex<[(u64, u32); PARTS]>);

impl Window {
    /// One more, `now_ms` after some beginning.
    pub(super) fn add(&self, now_ms: u64, length: Duration) {
        let number = part(now_ms, length);
        let mut parts = self.0.lock();
        let (of, count) = &mut parts[number as usize % PARTS];
        if *of == number {
            *count = count.saturating_add(1);
        } else {
            (*of, *count) = (number, 1);
        }
    }

    /// How many there were.
    pub(super) fn count(&self, now_ms: u64, length: Duration) -> u32 {
        let number = part(now_ms, length);
        let parts = self.0.lock();
        (parts.iter())
            .filter(|(of, _)| number.saturating_sub(*of) < PARTS as u64 && *of <= number)
            .fold(0, |sum: u32, (_, count)| sum.saturating_add(*count))
    }
}

/// Number of the part that a time lies in.
fn part(now_ms: u64, length: Duration) -> u64 {
    let length_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    // From 1: 0 is that of a count which was never used, and too old.
    now_ms / (length_ms / PARTS as u64).max(1) + PARTS as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_while_counts() {
        let window = Window::default();
        let length = Duration::from_secs(16);
        assert_eq!(window.count(0, length), 0);
        for second in 0..10 {
            window.add(second * 1000, length);
            window.add(second * 1000 + 1, length);
        }
        assert_eq!(window.count(9_500, length), 20);
        assert_eq!(window.count(15_999, length), 20);
        assert_eq!(window.count(16_000, length), 18);
        assert_eq!(window.count(24_000, length), 2);
        assert_eq!(window.count(60_000, length), 0);
        window.add(60_000, length);
        assert_eq!(window.count(60_000, length), 1);
    }
}
