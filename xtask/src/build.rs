//! `cargo xtask build`: everything that a node and the demo run.

use anyhow::Result;

use crate::shell;

/// Builds the kernel programs, the agent, meshctl and the example application.
pub fn run() -> Result<()> {
    crate::build_ebpf::run(false)?;
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
