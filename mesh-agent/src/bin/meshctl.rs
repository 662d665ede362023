//! What people type to see what an Undermesh agent does.

use std::process::ExitCode;

use clap::Parser;
use mesh_agent::cli::{self, Cli};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    ExitCode::from(cli::run(Cli::parse()).await)
}
