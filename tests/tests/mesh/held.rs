//! Connections that programs of workloads hold open.

use std::io::Write;
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use mesh_tests::{Process, Workload, wait_until};

/// Client and server of such connections.
pub const HELD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/held.py");
/// How long an answer may take.
const LIVE: Duration = Duration::from_secs(5);
/// How long a program may take to start on a busy machine.
const STARTED: Duration = Duration::from_secs(15);

/// A connection that a program of a workload holds open.
pub struct Held {
    process: Process,
    kind: &'static str,
    input: ChildStdin,
}

impl Held {
    pub fn open(from: &Workload, kind: &'static str, address: &str, port: u16) -> Self {
        let name = address.replace(':', "_");
        let log = from.file(&format!("held-{kind}-{name}-{port}.log"), "");
        let mut command: Command = from.command("python3");
        command.args([HELD, "hold", kind, address, &port.to_string()]);
        command.stdin(Stdio::piped());
        let mut process = Process::spawn(&mut command, log).expect("python starts");
        let input = process.stdin().expect("piped");
        let mut held = Self {
            process,
            kind,
            input,
        };
        held.until("open", STARTED);
        held.echoes("first");
        held
    }

    /// Waits for a line that begins so.
    fn until(&mut self, start: &str, limit: Duration) {
        let process = &mut self.process;
        let found = wait_until(limit, || {
            process.log().lines().any(|line| line.starts_with(start))
        });
        let log = process.log();
        assert!(found, "{}: no {start:?} in {limit:?}: {log}", self.kind);
    }

    pub fn echoes(&mut self, word: &str) {
        self.input
            .write_all(format!("{word}\n").as_bytes())
            .expect("python reads");
        self.until(&format!("echo {word}"), LIVE);
    }

    /// The program hears that nothing more is to be said, and the other end, too.
    pub fn close(self) {
        let Self { mut process, .. } = self;
        process.kill();
    }

    /// However.
    pub fn ends(&mut self, limit: Duration) {
        self.until("ended", limit);
    }

    /// Not in order: with a reset, or aborted, whichever end was the first.
    pub fn is_cut(&mut self, limit: Duration) {
        self.until("ended ECONN", limit);
    }
}
