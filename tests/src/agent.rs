//! The real agent of a node, and meshctl beside it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::{Outcome, Place, Process, binary, command, outcome};
use crate::lab::Lab;
use crate::wait::wait_until;
use crate::workload::{Node, Workload};

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
    netns: Option<PathBuf>,
    files: Vec<(PathBuf, &'static str)>,
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

    /// The same with more arguments.
    ///
    /// # Panics
    ///
    /// With the end of its log, where it does not.
    pub fn start_with(lab: &Lab, node: Node, more: &[&str]) -> Self {
        Self::start_in(lab, node, None, more).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Starts the agent of a node, and returns when it answers.
    pub fn try_start(lab: &Lab, node: Node) -> Result<Self> {
        Self::start_in(lab, node, None, &[])
    }

    /// Starts the agent of a node whose own network namespace is that of
    /// `host`, and returns when it answers.
    pub fn start_in(lab: &Lab, node: Node, host: Option<&Workload>, more: &[&str]) -> Result<Self> {
        Self::start_at(lab, node, host, Vec::new(), more)
    }

    /// The same with files that replace those of the machine, as (ours, the machine's).
    /// The workloads have to be there already.
    ///
    /// # Panics
    ///
    /// With the end of its log, where it does not answer.
    pub fn start_with_files(
        lab: &Lab,
        node: Node,
        files: Vec<(PathBuf, &'static str)>,
        more: &[&str],
    ) -> Self {
        Self::start_at(lab, node, None, files, more).unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn start_at(
        lab: &Lab,
        node: Node,
        host: Option<&Workload>,
        files: Vec<(PathBuf, &'static str)>,
        more: &[&str],
    ) -> Result<Self> {
        let socket = lab.folder().join(format!("agent-{}.sock", node.name()));
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let arguments = [
            ("--config", path(lab.config())),
            ("--node", node.name().to_owned()),
            ("--cgroup", path(lab.cgroup(node))),
            ("--bpffs", path(lab.bpffs(node))),
            ("--admin-socket", path(socket.clone())),
            // Many agents run beside each other.
            ("--metrics-address", "off".to_owned()),
            ("--ca", path(lab.ca())),
            ("--trust-domain", "cluster.local".to_owned()),
        ];
        // An agent has one authority.
        let is_elsewhere = more.contains(&"--ca-address");
        let arguments: Vec<String> = arguments
            .into_iter()
            .filter(|(flag, _)| *flag != "--ca" || !is_elsewhere)
            // What is given replaces what all have.
            .filter(|(flag, _)| !more.contains(flag))
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .chain(more.iter().map(|argument| (*argument).to_owned()))
            .collect();
        let netns = host.map(Workload::netns_path);
        let cgroup = lab.agent_cgroup(node);
        let log = lab.folder().join(format!("agent-{}.log", node.name()));
        let process = spawn(&cgroup, netns.as_deref(), &files, &arguments, log.clone())?;
        let mut agent = Self {
            node,
            process,
            socket,
            arguments,
            cgroup,
            netns,
            files,
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

    /// Memory that it holds, as the kernel counts it.
    ///
    /// # Panics
    ///
    /// Where it does not run.
    pub fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS")
    }

    /// The most memory that it has held, since its start or since [`forget_peak`](Self::forget_peak).
    ///
    /// # Panics
    ///
    /// Where it does not run.
    pub fn peak_kib(&self) -> u64 {
        self.memory_kib("VmHWM")
    }

    /// The peak counts from here (proc(5)).
    ///
    /// # Panics
    ///
    /// Where it does not run.
    pub fn forget_peak(&self) {
        let path = format!("/proc/{}/clear_refs", self.id());
        std::fs::write(&path, "5").unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// A line of `/proc/PID/status` that is in kibibytes.
    ///
    /// # Panics
    ///
    /// Where it does not run, or there is no such line.
    pub fn memory_kib(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.id());
        let status =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|number| number.parse().ok())
            .expect(&status)
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

    /// Sends it a signal.
    pub fn signal(&self, number: i32) {
        self.process.signal(number);
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
            self.process = spawn(
                &self.cgroup,
                self.netns.as_deref(),
                &self.files,
                &self.arguments,
                log,
            )?;
            self.ready()
        };
        start().unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Starts another agent beside this one, which takes over, and gives the
    /// process of the one before.
    ///
    /// # Panics
    ///
    /// With the end of its log, where it does not take over.
    pub fn take_over(&mut self, more: &[&str]) -> Process {
        let mut second = self
            .second(more)
            .unwrap_or_else(|error| panic!("{error:#}"));
        let runs = wait_until(READY_TIMEOUT, || {
            second.log().contains("agent is running") || !second.is_running()
        });
        assert!(runs && second.is_running(), "{}", second.log());
        std::mem::replace(&mut self.process, second)
    }

    /// Starts another agent with the same arguments and more beside this one.
    pub fn second(&mut self, more: &[&str]) -> Result<Process> {
        self.starts += 1;
        let log = self.log.with_extension(format!("{}.log", self.starts));
        let mut arguments = self.arguments.clone();
        // An argument that is given again replaces the one before.
        for argument in more {
            match arguments.iter().position(|known| known == argument) {
                Some(at) if argument.starts_with("--") => drop(arguments.drain(at..at + 2)),
                _ => {}
            }
            arguments.push((*argument).to_owned());
        }
        spawn(
            &self.cgroup,
            self.netns.as_deref(),
            &self.files,
            &arguments,
            log,
        )
    }

    /// `mesh-agent uninstall` of what this agent has made.
    ///
    /// # Panics
    ///
    /// Where it cannot be started.
    pub fn uninstall(&self, more: &[&str]) -> Outcome {
        let of_run = ["--bpffs", "--node", "--admin-socket", "--ca"];
        let mut command = Command::new(binary("mesh-agent"));
        command.arg("uninstall");
        for pair in self.arguments.chunks(2) {
            if of_run.contains(&pair[0].as_str()) {
                command.args(pair);
            }
        }
        outcome(command.args(more)).unwrap_or_else(|error| panic!("{error:#}"))
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

fn spawn(
    cgroup: &std::path::Path,
    netns: Option<&std::path::Path>,
    files: &[(PathBuf, &'static str)],
    arguments: &[String],
    log: PathBuf,
) -> Result<Process> {
    let place = Place {
        cgroup,
        netns,
        files,
    };
    let mut agent = command(&binary("mesh-agent"), &place)?;
    agent.arg("run").args(arguments).env("NO_COLOR", "1");
    Process::spawn(&mut agent, log).context("run `cargo xtask build` first")
}
