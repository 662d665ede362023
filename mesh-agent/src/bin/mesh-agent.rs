//! The agent of a node.

use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh_agent::agent::{self, RunOptions, UninstallOptions};
use mesh_agent::ca::{self, CaOptions};
use tracing_subscriber::EnvFilter;

#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, about = "The Undermesh agent of a node")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enrol the workloads of a configuration and carry their connections
    Run(Box<RunOptions>),
    /// Give certificates to other agents, by Istio's API
    Ca(Box<CaOptions>),
    /// Detach all programs and remove what is pinned: workloads are on their own again
    Uninstall(UninstallOptions),
}

fn main() -> ExitCode {
    let filter =
        EnvFilter::try_from_env("UNDERMESH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let result = match Arguments::parse().command {
        Command::Run(options) => block_on(options.worker_threads, agent::run(*options)),
        Command::Ca(options) => block_on(NonZeroUsize::MIN, ca::run(*options)),
        Command::Uninstall(options) => agent::uninstall(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-agent: {}", agent::one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn block_on(
    threads: NonZeroUsize,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.get())
        .on_thread_start(agent::time_slice::shorten)
        .enable_all()
        .build()?
        .block_on(work)
}
