//! `cargo xtask test`: unit tests, then the end-to-end tests.

use anyhow::{Result, bail};

use crate::shell;
use crate::supervise::{Ended, supervise};

/// How many end-to-end tests run at once. Each has namespaces, control groups
/// and agents of its own; more at once would only make their deadlines tight.
const END_TO_END_THREADS: &str = "--test-threads=2";
/// Tells the end-to-end tests that Envoy is there, so that none is skipped unseen.
const ENVOY_REQUIRED: &str = "UNDERMESH_ENVOY_REQUIRED";

/// Runs all tests, or those whose name contains `filter`.
pub fn run(filter: Option<&str>) -> Result<()> {
    // Said at once, not after the build.
    mesh_tests::check()?;
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
    let mut tests = shell::cargo();
    tests
        .args(["test", "--package", "mesh-tests"])
        .args(filter)
        .args(["--", END_TO_END_THREADS]);
    match crate::bench::fetch_envoy() {
        Ok(()) => {
            tests.env(ENVOY_REQUIRED, "1");
        }
        Err(error) => shell::step(format!("tests with Envoy are skipped: {error:#}")),
    }
    let ended = supervise(&mut tests)?;
    match ended {
        Ended::Finished => Ok(()),
        Ended::Interrupted => bail!("interrupted; everything has been removed"),
    }
}

/// Runs the `fuzz_*` tests of the agent, each for so long.
pub fn fuzz(seconds: u32) -> Result<()> {
    shell::run(
        shell::cargo()
            .args(["test", "--package", "mesh-agent", "--lib", "fuzz_"])
            .args(["--", "--nocapture"])
            .env("UNDERMESH_FUZZ_SECONDS", seconds.to_string()),
    )
}
