//! `cargo xtask build`: everything that a node and the demo run.

use anyhow::Result;

use crate::shell;

/// Where the end-to-end tests look for the project's programs, other than the release build.
const BINARIES: &str = "UNDERMESH_BIN";

/// The same as [`run`], unless the caller has said where the programs are.
pub fn unless_given() -> Result<()> {
    match std::env::var(BINARIES) {
        Ok(folder) => {
            println!("Using the programs in {folder} ({BINARIES})");
            Ok(())
        }
        Err(_) => run(),
    }
}

/// Builds the kernel programs, the agent, meshctl and the example application.
pub fn run() -> Result<()> {
    crate::build_ebpf::run()?;
    println!("Building mesh-agent, meshctl and bookinfo (release)");
    shell::run(shell::cargo().args([
        "build",
        "--release",
        "--package",
        "mesh-agent",
        "--package",
        "bookinfo",
    ]))
}
