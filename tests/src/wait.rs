//! Waiting for a condition with a deadline, instead of sleeping.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How many times longer than usual everything may take, as on an emulated machine.
const PATIENCE: &str = "UNDERMESH_PATIENCE";

fn patience() -> u32 {
    let patience = std::env::var(PATIENCE).ok();
    patience.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Whether `condition` came true within `deadline` (times `UNDERMESH_PATIENCE`, where that is set).
pub fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = deadline * patience();
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
