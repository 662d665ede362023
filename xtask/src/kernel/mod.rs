//! `cargo xtask test --kernel 6.1`: the smoke test on another kernel, in a
//! virtual machine that has nothing but memory. The kernel is Debian's package,
//! unpacked and not installed; the programs are this machine's own.

mod image;
mod machine;
mod package;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::shell::{self, step};

/// Where kernels, the machine's memory image and its console's log are.
const FOLDER: &str = "target/kernels";

const PACKAGES: &[&str] = &["qemu-system-x86", "cpio", "kmod", "binutils"];

/// What must hold on every kernel, by the names of the end-to-end tests:
/// interception both ways and both address families, names, mutual TLS between
/// two nodes, routing, TCP, every kind of socket, fail closed, and what people see.
const SMOKE: &[&str] = &[
    "interception::an_application_sees_the_address_that_it_asked_for",
    "interception::a_server_sees_the_true_address_of_its_client",
    "interception::no_port_is_reserved_in_a_workload",
    "dns::short_names_full_names_and_addresses_all_work",
    "mtls::a_capture_between_the_nodes_shows_no_byte_of_the_application",
    "mtls::the_tunnel_refuses_clients_without_a_certificate_and_shows_the_workloads_own",
    "routing::every_way_to_write_the_host_is_routed",
    "protocols::a_server_may_speak_first",
    "lifetime::when_the_clients_agent_is_killed_connections_are_refused_and_nothing_passes_in_the_clear",
    "edges::every_way_to_connect_is_captured",
    "edges::no_mptcp_socket_gets_around_the_agent",
    "kernels::by_default_an_application_may_have_the_kernel_do_its_tls",
    "meshctl::check_has_a_tick_for_everything_that_is_well",
    "bpftool::every_pinned_map_has_btf_and_dumps_named_fields",
    "bpftool::the_kernel_programs_say_why",
];

/// Runs the smoke test, or the tests whose name contains `filter`, on a kernel `version`, such as
/// `6.1`, with `options` on its command line.
pub fn run(version: &str, options: &str, filter: Option<&str>) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "other kernels are tried on x86-64 machines only"
    );
    if !crate::setup::is_complete() {
        crate::setup::run()?;
    }
    crate::setup::install(PACKAGES.iter().copied())?;
    let folder = shell::root().join(FOLDER);
    let kernel = package::find(&folder, version)?;
    crate::build::unless_given()?;
    let tests = test_program()?;

    println!("Making the machine's memory image");
    let image = image::make(&folder, &kernel, &tests, &arguments(filter))?;
    println!("Running the end-to-end tests on Linux {}", kernel.release);
    machine::run(&folder, &kernel, options, &image)
}

fn arguments(filter: Option<&str>) -> Vec<String> {
    let chosen: Vec<&str> = match filter {
        Some(filter) => vec![filter],
        None => [SMOKE, &["--exact"]].concat(),
    };
    chosen
        .into_iter()
        .chain(["--test-threads=1"])
        .map(str::to_owned)
        .collect()
}

/// Builds the end-to-end tests and says where they are.
fn test_program() -> Result<PathBuf> {
    println!("Building the end-to-end tests");
    let mut build = shell::cargo();
    build.args([
        "test",
        "--package",
        "mesh-tests",
        "--test",
        "mesh",
        "--no-run",
    ]);
    build.arg("--message-format=json-render-diagnostics");
    let messages = shell::output(&mut build).context("the end-to-end tests do not build")?;
    let program = messages.lines().rev().find_map(|line| {
        let rest = line.split_once("\"executable\":\"")?.1;
        Some(PathBuf::from(rest.split_once('"')?.0))
    });
    program.context("cargo does not say where the end-to-end tests are")
}

/// A kernel that has been unpacked.
pub struct Kernel {
    /// Such as `6.1.0-56-cloud-amd64`.
    release: String,
    /// Holds `boot/` and `lib/modules/`.
    folder: PathBuf,
}

impl Kernel {
    fn boot_image(&self) -> PathBuf {
        self.folder
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }
}

/// Empties a folder of ours, or makes it.
fn fresh(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {}", folder.display()));
        }
        _ => {}
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// Runs a program that has nothing to say, and shows what it said where it fails.
fn quietly(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn said(what: impl std::fmt::Display) {
    step(what);
}
