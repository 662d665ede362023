//! Programs that load the mesh until a file appears, and say in the end what they have counted.

use std::path::PathBuf;
use std::time::Duration;

use mesh_tests::{Process, Workload, wait_until};
use serde_json::Value;

/// How long the load may take to begin, to make some connections, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Load {
    process: Process,
    stop: PathBuf,
}

impl Load {
    /// Runs a Python script of the tests' data, whose last argument will be the file that ends it, and waits
    /// until it says `begun`.
    pub fn start(from: &Workload, script: &str, arguments: &[&str], begun: &str) -> Self {
        let log = from.file("load.log", "");
        let stop = log.with_extension("stop");
        let mut command = from.command("/usr/bin/python3");
        command.arg(script).args(arguments).arg(&stop);
        let process = Process::spawn(&mut command, log).expect("python starts");
        let has_begun = wait_until(PATIENCE, || process.log().contains(begun));
        assert!(has_begun, "{}", process.log());
        Self { process, stop }
    }

    /// New connections since its start, where it says them.
    fn new_ones(&self) -> u64 {
        let log = self.process.log();
        let said = log.lines().rev().find_map(|line| line.strip_prefix("new "));
        said.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// Waits for so many more.
    pub fn makes(&self, more: u64) {
        let before = self.new_ones();
        let made = wait_until(PATIENCE, || self.new_ones() >= before + more);
        assert!(made, "{}", self.process.log());
    }

    /// Ends the load and gives what it has counted.
    pub fn stop(mut self) -> Value {
        std::fs::write(&self.stop, "").expect("the lab's folder is writable");
        let has_ended = wait_until(PATIENCE, || !self.process.is_running());
        let log = self.process.log();
        assert!(has_ended, "{log}");
        let line = log.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {log}"))
    }
}
