//! `cargo xtask test`: unit tests, then the end-to-end tests.

use anyhow::{Result, bail};

use crate::shell;
use crate::supervise::{Ended, supervise};

/// How many end-to-end tests run at once. Each has namespaces, control groups
/// and agents of its own; more at once would only make their deadlines tight.
const END_TO_END_THREADS: &str = "--test-threads=2";

/// Runs all tests, or those whose name contains `filter`.
pub fn run(filter: Option<&str>) -> Result<()> {
    shell::require_root("the end-to-end tests")?;
    if !crate::setup::is_complete() {
        crate::setup::run()?;
    }
    crate::build::unless_given()?;

    println!("Running the unit tests");
    shell::run(
        shell::cargo()
            .args([
                "test",
                "--workspace",
                "--exclude",
                "mesh-ebpf",
                "--exclude",
                "mesh-tests",
            ])
            .args(filter),
    )?;
    println!("Running the end-to-end tests");
    let ended = supervise(
        shell::cargo()
            .args(["test", "--package", "mesh-tests"])
            .args(filter)
            .args(["--", END_TO_END_THREADS]),
    )?;
    match ended {
        Ended::Finished => Ok(()),
        Ended::Interrupted => bail!("interrupted; everything has been removed"),
    }
}
