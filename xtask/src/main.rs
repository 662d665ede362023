//! `cargo xtask <command>`: the one tool that a developer of Undermesh types.
//!
//! Each command prints what it does and ends with how long it took.

mod bench;
mod build;
mod build_ebpf;
mod demo;

mod kernel;
mod lint;
mod setup;
mod shell;
mod supervise;
mod test;

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, try and test Undermesh")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building, the demo and the tests need (Debian and Ubuntu).
    Setup,
    /// Build the kernel programs into target/bpf/undermesh.o, and with log lines into undermesh-log.o.
    BuildEbpf,
    /// Build the kernel programs, the agent, meshctl and the example application (release).
    Build,
    /// Check formatting, and clippy with warnings as errors.
    Lint,
    /// Run the unit tests and the end-to-end tests (as root).
    Test {
        /// Run only the tests whose name contains this.
        filter: Option<String>,
        /// On another kernel, such as 6.1, in a virtual machine (Debian's kernels, x86-64): the smoke
        /// test, or with a filter the end-to-end tests that it names.
        #[arg(long, value_name = "VERSION")]
        kernel: Option<String>,
        /// More for that kernel's command line, such as lockdown=confidentiality.
        #[arg(long, value_name = "OPTIONS", requires = "kernel", default_value = "")]
        kernel_options: String,
    },
    /// Fuzz every parser that reads from the network or from files.
    Fuzz {
        /// How long each target runs, seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Two nodes, a small application and the guide's steps, live (as root).
    Demo {
        /// Leave everything running until Ctrl-C, and say how to play with it.
        #[arg(long)]
        keep: bool,
    },
    /// Measure the mesh beside no mesh and beside Envoy with iptables (as root).
    Bench(bench::Options),
    /// The benchmark's own process.
    #[command(hide = true)]
    Measure(bench::Options),
    /// A client of the benchmark.
    #[command(hide = true, subcommand)]
    Load(bench::Load),
    /// The demo's own process.
    #[command(hide = true)]
    Play {
        #[arg(long)]
        keep: bool,
    },
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::BuildEbpf => "build-ebpf",
            Self::Build => "build",
            Self::Lint => "lint",
            Self::Test { .. } => "test",
            Self::Fuzz { .. } => "fuzz",
            Self::Bench(_) => "bench",
            Self::Measure(_) => "measure",
            Self::Load(_) => "load",
            Self::Demo { .. } => "demo",
            Self::Play { .. } => "play",
        }
    }

    fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Setup => setup::run(),
            Self::BuildEbpf => build_ebpf::run(),
            Self::Build => build::run(),
            Self::Lint => lint::run(),
            Self::Test {
                filter,
                kernel: Some(version),
                kernel_options,
            } => kernel::run(version, kernel_options, filter.as_deref()),
            Self::Test { filter, .. } => test::run(filter.as_deref()),
            Self::Fuzz { seconds } => test::fuzz(*seconds),
            Self::Bench(options) => bench::run(options),
            Self::Measure(options) => bench::measure(options),
            Self::Load(load) => bench::load(load),
            Self::Demo { keep } => demo::run(*keep),
            Self::Play { keep } => demo::play(*keep),
        }
    }
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let start = Instant::now();
    let result = command.run();
    let (name, seconds) = (command.name(), start.elapsed().as_secs_f32());
    match result {
        // Whoever started these says how long all took.
        Ok(())
            if matches!(
                command,
                Command::Play { .. } | Command::Measure(_) | Command::Load(_)
            ) =>
        {
            ExitCode::SUCCESS
        }
        Ok(()) => {
            println!("{name}: done in {seconds:.1} s");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{name}: failed after {seconds:.1} s: {error:#}");
            ExitCode::FAILURE
        }
    }
}
