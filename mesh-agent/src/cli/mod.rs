//! `meshctl`: what people type to see what an agent does. One file per command.

mod analyze;
mod authz;
mod certificates;
mod check;
mod client;
mod config;
mod endpoints;
mod flows;
#[cfg(test)]
mod golden;
mod inbound;
mod kernel_log;
mod plaintext;
mod routes;
mod services;
mod table;
mod tls_check;
mod version;
mod workloads;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use client::Client;
pub use client::ClientError;

/// Exit code of a check that found something wrong, or of a conflict.
const FOUND: u8 = 1;
/// Exit code of a command that could not be carried out.
const ERROR: u8 = 2;

/// The command line of `meshctl`.
#[derive(Debug, Parser)]
#[command(
    name = "meshctl",
    version,
    about = "Shows what the Undermesh agent of this node does"
)]
pub struct Cli {
    #[command(flatten)]
    target: Target,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

/// Which agent is asked.
#[derive(Args, Debug)]
pub struct Target {
    /// Control socket of the agent
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "node")]
    socket: Option<PathBuf>,
    /// Node of the agent, where several share this machine
    #[arg(long, global = true, value_name = "NAME")]
    node: Option<String>,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns that fit a terminal
    #[default]
    Table,
    /// All columns
    Wide,
    /// JSON, for programs
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks the node, the agent, its configuration and its certificates
    Check,
    /// Lists workloads and whether they are enrolled
    Workloads,
    /// Lists services, their addresses and endpoints
    Services,
    /// Lists endpoints as their clients see them: load, and who is out of service, why and until when
    Endpoints(endpoints::Arguments),
    /// Shows what would become of a request, and why
    Routes(routes::Arguments),
    /// Tells what is wrong with a configuration, with Istio's codes
    Analyze(analyze::Arguments),
    /// Lists connections as the kernel counts them
    Flows(flows::Arguments),
    /// Shows or sets what the kernel programs say to the agent's log
    KernelLog(kernel_log::Arguments),
    /// Questions about authentication
    Authn {
        #[command(subcommand)]
        command: Authn,
    },
    /// Questions about authorization
    Authz {
        #[command(subcommand)]
        command: authz::Command,
    },
    /// Shows the configuration in force, its warnings, and the last one that was refused
    Config,
    /// Lists certificates, when they expire, and who uses them
    #[command(visible_alias = "certs")]
    Certificates,
    /// Shows the version of meshctl and of the agent
    Version,
}

#[derive(Debug, Subcommand)]
enum Authn {
    /// Shows which transport a workload's connections use, and whether client and server agree
    TlsCheck(tls_check::Arguments),
    /// Lists who has spoken plaintext to this node's workloads: STRICT would cut them off
    Plaintext(plaintext::Arguments),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
    #[error("{0:?} is not a name: letters, digits and . _ - * are")]
    NotAName(String),
    #[error("{0:?} is not a header, `name: value`")]
    NotAHeader(String),
    #[error("{}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
}

/// Carries out one command line and gives the exit code: 0, 1 where a check or
/// tls-check found something wrong, 2 where the command could not be carried out.
pub async fn run(cli: Cli) -> u8 {
    let stdout = io::stdout();
    let mut printer = Printer {
        output: cli.output,
        out: stdout.lock(),
    };
    match carry_out(&cli, &mut printer).await {
        Ok(code) => code,
        // The reader (`| head`) has seen enough.
        Err(CommandError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            eprintln!("meshctl: {error}");
            ERROR
        }
    }
}

async fn carry_out(cli: &Cli, printer: &mut Printer<impl Write>) -> Result<u8, CommandError> {
    let client = || Client::find(&cli.target);
    match &cli.command {
        Command::Check => return check::run(client(), printer).await,
        Command::Workloads => workloads::run(&client()?, printer).await?,
        Command::Services => services::run(&client()?, printer).await?,
        Command::Endpoints(arguments) => endpoints::run(&client()?, printer, arguments).await?,
        Command::Routes(arguments) => return routes::run(&client()?, printer, arguments).await,
        Command::Analyze(arguments) => return analyze::run(client(), printer, arguments).await,
        Command::Flows(arguments) => flows::run(&client()?, printer, arguments).await?,
        Command::KernelLog(arguments) => kernel_log::run(&client()?, printer, arguments).await?,
        Command::Authn {
            command: Authn::TlsCheck(arguments),
        } => return tls_check::run(&client()?, printer, arguments).await,
        Command::Authn {
            command: Authn::Plaintext(arguments),
        } => plaintext::run(&client()?, printer, arguments).await?,
        Command::Authz { command } => return authz::run(&client()?, printer, command).await,
        Command::Config => config::run(&client()?, printer).await?,
        Command::Certificates => certificates::run(&client()?, printer).await?,
        Command::Version => version::run(client(), printer).await?,
    }
    Ok(0)
}

/// Where answers go, and in which form.
struct Printer<W> {
    output: Output,
    out: W,
}

impl<W: Write> Printer<W> {
    /// `value` as JSON, or what `text` makes of it (`wide` or not).
    fn show<T: Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T, bool) -> String,
    ) -> io::Result<()> {
        let mut shown = match self.output {
            Output::Json => serde_json::to_string_pretty(value)?,
            Output::Table | Output::Wide => text(value, self.output == Output::Wide),
        };
        if !shown.ends_with('\n') {
            shown.push('\n');
        }
        self.text(&shown)
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

/// Addresses and the like in one cell.
fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::admin::samples::SampleAgent;
    use crate::admin::{ControlSocket, serve};

    /// Runs one command line; gives its exit code and what it prints.
    async fn meshctl(line: &str, socket: &str) -> (u8, String) {
        let words = ["meshctl", "--socket", socket].into_iter();
        let cli = Cli::try_parse_from(words.chain(line.split(' '))).unwrap();
        let mut printer = Printer {
            output: cli.output,
            out: Vec::new(),
        };
        let code = match carry_out(&cli, &mut printer).await {
            Ok(code) => code,
            Err(error) => return (ERROR, error.to_string()),
        };
        (code, String::from_utf8(printer.out).unwrap())
    }

    #[tokio::test]
    async fn commands_against_a_control_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n1.sock");
        let socket = ControlSocket::bind(&path, None).await.unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(socket, Arc::new(SampleAgent), stop.clone()));
        let path = path.to_str().unwrap();
        for (line, code, part) in [
            ("workloads", 0, "Waiting: no process 4711"),
            ("workloads -o json", 0, "\"state\": \"waiting\""),
            ("services -o wide", 0, "ENDPOINTS"),
            ("endpoints reviews", 0, "5 errors in a row"),
            ("endpoints ratings", 0, "No endpoints"),
            (
                "routes sleep reviews:80/a -H end-user:jason",
                FOUND,
                "http[1]: matches",
            ),
            ("routes nobody reviews", ERROR, "no workload nobody"),
            ("routes sleep reviews -H jason", ERROR, "is not a header"),
            ("analyze", FOUND, "Warning (VirtualService default/reviews"),
            ("analyze /nowhere", ERROR, "/nowhere: No such file"),
            ("flows --workload sleep", 0, "10.96.0.1:80"),
            ("flows --workload nobody", 0, "No flows"),
            ("authn tls-check sleep.default", FOUND, "CONFLICT"),
            (
                "authn tls-check sleep reviews -o wide",
                0,
                "0 mTLS (0 handshakes), 0 same node, 0 plaintext",
            ),
            ("authn tls-check nope", ERROR, "no workload nope"),
            ("authn tls-check no&pe", ERROR, "is not a name"),
            (
                "authz check reviews --from sleep --port 9080 --path /",
                FOUND,
                "DENIED: explicitly denied by default/no-sleep",
            ),
            ("authz report", 0, "would be denied"),
            ("config", 0, "Refused 1m5s ago"),
            ("certificates", 0, "Root"),
            ("certs -o wide", 0, "CHAIN"),
            ("version -o json", 0, "\"node\": \"n1\""),
            ("check", FOUND, "√ meshctl and agent are of one version"),
        ] {
            let (found, text) = meshctl(line, path).await;
            assert_eq!(found, code, "{line}: {text}");
            assert!(text.contains(part), "{line}: {text}");
        }
        stop.cancel();
        server.await.unwrap();

        let (code, text) = meshctl("workloads", path).await;
        assert_eq!(code, ERROR);
        assert!(text.contains("is `mesh-agent run` up?"), "{text}");
        let (code, text) = meshctl("check", path).await;
        assert_eq!(code, FOUND);
        assert!(
            text.contains("kernel is 5.18") && text.contains("× agent is running"),
            "{text}"
        );
        assert_eq!(meshctl("version", path).await.0, 0);
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
