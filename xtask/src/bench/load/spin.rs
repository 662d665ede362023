//! Other work on the node.

use std::io::Read;
use std::thread;

use anyhow::Result;

/// Computes, without a pause, until standard input ends: also when whoever started it is killed.
pub fn run() -> Result<()> {
    let end = thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
    while !end.is_finished() {
        for _ in 0..1_000_000 {
            std::hint::black_box(0);
        }
    }
    Ok(())
}
