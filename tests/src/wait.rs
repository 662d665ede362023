//! Waiting for a condition with a deadline, instead of sleeping.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Whether `condition` came true within `deadline`.
pub fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// Waits for what `probe` finds, and returns how long that took.
///
/// # Panics
///
/// With the last thing that `probe` said, where the deadline passes first.
pub fn eventually(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<(), String>,
) -> Duration {
    let start = Instant::now();
    let mut last = String::new();
    let came = wait_until(deadline, || match probe() {
        Ok(()) => true,
        Err(said) => {
            last = said;
            false
        }
    });
    assert!(came, "{what}: not within {deadline:?}; last seen: {last}");
    start.elapsed()
}
