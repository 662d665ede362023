//! The real agent of a node, and meshctl beside it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::{Outcome, Place, Process, binary, command, outcome};
use crate::lab::Lab;
use crate::wait::wait_until;
use crate::workload::Node;

/// How long an agent may take until it answers.
const READY_TIMEOUT: Duration = Duration::from_secs(15);

/// How much of the log is shown when a test fails, in lines.
const LOG_TAIL: usize = 60;

/// `mesh-agent run` for one node.
pub struct Agent {
    node: Node,
    process: Process,
    socket: PathBuf,
    arguments: Vec<String>,
    cgroup: PathBuf,
    log: PathBuf,
    starts: u32,
}

impl Agent {
    /// Starts the agent of a node, and returns when it answers.
    ///
    /// # Panics
    ///
    /// With the end of its log, where it does not.
    pub fn start(lab: &Lab, node: Node) -> Self {
        Self::try_start(lab, node).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Starts the agent of a node, and returns when it answers.
    pub fn try_start(lab: &Lab, node: Node) -> Result<Self> {
        let socket = lab.folder().join(format!("agent-{}.sock", node.name()));
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let arguments = [
            ("--config", path(lab.config())),
            ("--node", node.name().to_owned()),
            ("--cgroup", path(lab.cgroup(node))),
            ("--bpffs", path(lab.bpffs(node))),
            ("--admin-socket", path(socket.clone())),
            ("--ca", path(lab.ca())),
            ("--trust-domain", "cluster.local".to_owned()),
        ];
        let arguments = arguments
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect();
        let cgroup = lab.agent_cgroup(node);
        let log = lab.folder().join(format!("agent-{}.log", node.name()));
        let process = spawn(&cgroup, &arguments, log.clone())?;
        let mut agent = Self {
            node,
            process,
            socket,
            arguments,
            cgroup,
            log,
            starts: 1,
        };
        agent.ready()?;
        Ok(agent)
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The agent's admin socket.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// All it has logged since it was last started.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// `meshctl <arguments>` with this agent.
    ///
    /// # Panics
    ///
    /// Where meshctl cannot be started.
    pub fn meshctl(&self, arguments: &[&str]) -> Outcome {
        outcome(&mut self.meshctl_command(arguments)).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The same as a command.
    pub fn meshctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("meshctl"));
        command.arg("--socket").arg(&self.socket).args(arguments);
        command
    }

    /// What `meshctl <arguments> -o json` says.
    ///
    /// # Panics
    ///
    /// Where it fails or is no JSON.
    pub fn meshctl_json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self
            .meshctl(&[arguments, &["-o", "json"]].concat())
            .success();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("no JSON: {error}: {text}"))
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(&mut self) {
        self.process.terminate();
    }

    /// Starts it again after [`kill`](Self::kill) or [`stop`](Self::stop).
    ///
    /// # Panics
    ///
    /// With the end of its log, where it does not answer.
    pub fn restart(&mut self) {
        self.starts += 1;
        let log = self.log.with_extension(format!("{}.log", self.starts));
        let start = || -> Result<()> {
            self.process = spawn(&self.cgroup, &self.arguments, log)?;
            self.ready()
        };
        start().unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Waits until the agent answers and has enrolled its node's workloads.
    fn ready(&mut self) -> Result<()> {
        let mut last = String::new();
        let ready = wait_until(READY_TIMEOUT, || {
            !self.process.is_running()
                || match self.not_enrolled() {
                    Ok(none) if none.is_empty() => true,
                    Ok(names) => {
                        last = format!("not enrolled: {}", names.join(", "));
                        false
                    }
                    Err(error) => {
                        last = format!("{error:#}");
                        false
                    }
                }
        });
        if !self.process.is_running() {
            bail!(
                "the agent of node {} ended:\n{}",
                self.node.name(),
                self.tail()
            );
        }
        if !ready {
            bail!(
                "the agent of node {} is not ready within {READY_TIMEOUT:?} ({last}):\n{}",
                self.node.name(),
                self.tail()
            );
        }
        Ok(())
    }

    /// Workloads of this node whose sockets the agent does not handle (yet).
    fn not_enrolled(&self) -> Result<Vec<String>> {
        let said = outcome(&mut self.meshctl_command(&["workloads", "-o", "json"]))?;
        if said.code != 0 {
            bail!("meshctl says: {}", said.stderr.trim());
        }
        let workloads: Vec<serde_json::Value> = serde_json::from_str(&said.stdout)?;
        Ok(workloads
            .iter()
            .filter(|workload| {
                workload["node"] == self.node.name() && workload["state"] != "enrolled"
            })
            .map(|workload| format!("{} ({})", workload["name"], workload["state"]))
            .collect())
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- end of the log of agent {} ---\n{}",
                self.node.name(),
                self.tail()
            );
        }
        self.process.terminate();
    }
}

fn spawn(cgroup: &std::path::Path, arguments: &Vec<String>, log: PathBuf) -> Result<Process> {
    let place = Place {
        cgroup,
        netns: None,
        files: &[],
    };
    let mut agent = command(&binary("mesh-agent"), &place)?;
    agent.arg("run").args(arguments).env("NO_COLOR", "1");
    Process::spawn(&mut agent, log).context("run `cargo xtask build` first")
}
