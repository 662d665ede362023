//! `cargo xtask lint`: formatting, and clippy with warnings as errors.

use anyhow::Result;

use crate::shell;

/// mesh-ebpf is for another target: the kernel's tool chain checks it in `build-ebpf`.
pub fn run() -> Result<()> {
    println!("Checking formatting");
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    // The agent embeds the kernel object: there is no checking it without.
    crate::build_ebpf::run()?;
    println!("Running clippy over the workspace");
    shell::run(shell::cargo().args([
        "clippy",
        "--workspace",
        "--exclude",
        "mesh-ebpf",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))
}
