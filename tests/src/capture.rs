//! A packet capture on the wire between the nodes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::command::{Place, Process, command};
use crate::lab::Lab;
use crate::wait::wait_until;
use crate::workload::Node;

/// How long tcpdump may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the last packets may take to reach the file.
const SETTLE: Duration = Duration::from_millis(300);

/// tcpdump on the cable between node a and node b.
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts to capture, and returns when it does.
    ///
    /// # Panics
    ///
    /// Where tcpdump does not start.
    pub fn start(lab: &Lab) -> Self {
        Self::try_start(lab).unwrap_or_else(|error| panic!("no packet capture: {error:#}"))
    }

    fn try_start(lab: &Lab) -> Result<Self> {
        let file = lab.folder().join("wire.pcap");
        let netns = PathBuf::from("/run/netns").join(lab.wire_netns());
        let place = Place {
            cgroup: &lab.cgroup(Node::Outside),
            netns: Some(&netns),
            files: &[],
        };
        let mut tcpdump = command("tcpdump".as_ref(), &place)?;
        tcpdump
            .args([
                "-i",
                "a-b",
                "-s",
                "0",
                "-U",
                "--immediate-mode",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file);
        let process = Process::spawn(&mut tcpdump, lab.folder().join("tcpdump.log"))?;
        if !wait_until(START_TIMEOUT, || process.log().contains("listening on")) {
            anyhow::bail!("tcpdump says: {}", process.log());
        }
        Ok(Self { process, file })
    }

    /// Ends the capture and returns all bytes that passed.
    ///
    /// # Panics
    ///
    /// Where the file cannot be read.
    pub fn stop(mut self) -> Vec<u8> {
        // Packets are in the kernel's ring for a moment: the file's size tells when they are through.
        let mut size = 0;
        wait_until(SETTLE * 10, || {
            std::thread::sleep(SETTLE);
            let now = fs::metadata(&self.file).map_or(0, |data| data.len());
            let settled = now == size;
            size = now;
            settled
        });
        self.process.terminate();
        fs::read(&self.file).unwrap_or_else(|error| panic!("{}: {error}", self.file.display()))
    }
}

/// Whether `needle` is somewhere in `bytes`.
pub fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}
