//! `cargo xtask setup`: installs what building, the demo and the tests need.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::build_ebpf::{BPF_LINKER_VERSION, Toolchain};
use crate::shell::{self, step};

/// A Rust compiler with a prebuilt `core` for the kernel's target, and the
/// LLVM that bpf-linker is linked with.
const BUILD: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "llvm-22-dev",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
    "gcc",
];

/// What the demo and the tests run: unmodified clients, servers and tools.
/// Their services are neither needed nor used.
const RUN: &[&str] = &[
    "iproute2",
    "bpftool",
    "nftables",
    "iptables",
    "curl",
    "openssl",
    "tcpdump",
    "nginx",
    "haproxy",
    "redis-server",
    "redis-tools",
    "nghttp2-client",
    "dnsmasq-base",
    "bind9-dnsutils",
    "python3",
    "python3-grpcio",
    "prometheus",
    "runc",
];

const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Installs what is missing; quick where nothing is.
pub fn run() -> Result<()> {
    println!("Installing what building, the demo and the tests need");
    if shell::find("apt-get").is_none() {
        return other_systems();
    }
    packages()?;
    bpf_linker()?;
    Toolchain::find().map(|toolchain| step(format!("the kernel's tool chain: {toolchain}")))
}

/// Whether `setup` would find nothing to do.
pub fn is_complete() -> bool {
    Toolchain::find().is_ok()
        && (shell::find("apt-get").is_none() || missing(RUN.iter().copied()).is_empty())
}

fn packages() -> Result<()> {
    let unknown = install(BUILD.iter().chain(RUN).copied())?;
    if !unknown.is_empty() {
        step(format!("this release has no {}", unknown.join(" ")));
        nightly()?;
    }
    Ok(())
}

/// Installs those of these packages that are missing, and returns those that
/// this release does not have.
pub fn install<'a>(packages: impl Iterator<Item = &'a str>) -> Result<Vec<&'a str>> {
    let wanted = missing(packages);
    if wanted.is_empty() {
        step("all packages are there");
        return Ok(Vec::new());
    }
    shell::require_root("installing packages")?;
    step(format!("installing {}", wanted.join(" ")));
    shell::run(shell::command("apt-get").args(["update", "-qq"]))?;
    let (known, unknown): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|package| is_known(package));
    shell::run(
        shell::command("apt-get")
            .args(["install", "--yes", "-qq", "--no-install-recommends"])
            .args(&known)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    Ok(unknown)
}

/// Without a packaged compiler for the kernel's target: rustup's nightly,
/// which builds `core` itself.
fn nightly() -> Result<()> {
    if Toolchain::compiler().is_some() {
        return Ok(());
    }
    step("installing rustup's nightly with rust-src instead");
    shell::run(shell::command("rustup").args([
        "toolchain",
        "install",
        "nightly",
        "--profile",
        "minimal",
        "--component",
        "rust-src",
    ]))
}

fn bpf_linker() -> Result<()> {
    if let Some(linker) = shell::find("bpf-linker") {
        step(format!("bpf-linker is there: {}", linker.display()));
        return Ok(());
    }
    step(format!("installing bpf-linker {BPF_LINKER_VERSION}"));
    let mut install = shell::cargo();
    install.args([
        "install",
        "--locked",
        "--quiet",
        "bpf-linker",
        "--version",
        BPF_LINKER_VERSION,
    ]);
    if Path::new(LLVM_PREFIX).is_dir() {
        install
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", LLVM_PREFIX);
    }
    shell::run(&mut install)
}

fn other_systems() -> Result<()> {
    let programs = [
        "ip",
        "bpftool",
        "nft",
        "iptables-save",
        "curl",
        "openssl",
        "tcpdump",
        "nginx",
        "haproxy",
        "redis-server",
        "redis-cli",
        "nghttp",
        "dnsmasq",
        "dig",
        "python3",
        "runc",
        "bpf-linker",
    ];
    let missing: Vec<_> = programs
        .into_iter()
        .filter(|program| shell::find(program).is_none())
        .collect();
    if !missing.is_empty() {
        bail!(
            "setup installs on Debian and Ubuntu only; missing here: {}",
            missing.join(" ")
        );
    }
    Toolchain::find().context("setup installs on Debian and Ubuntu only")?;
    Ok(())
}

/// Packages that dpkg does not list as installed.
fn missing<'a>(packages: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let installed = shell::output(
        shell::command("dpkg-query")
            .args(["--show", "--showformat=${db:Status-Status} ${Package}\n"]),
    )
    .unwrap_or_default();
    packages
        .filter(|package| {
            !installed
                .lines()
                .any(|line| line.strip_prefix("installed ") == Some(package))
        })
        .collect()
}

fn is_known(package: &str) -> bool {
    shell::output(shell::command("apt-cache").args(["show", package]))
        .is_some_and(|text| !text.is_empty())
}
