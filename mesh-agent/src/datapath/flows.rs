//! The kernel's account of connections.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_common::{Flow, FlowState};

/// One connection of a workload, as the kernel counts it.
#[derive(Clone, Debug)]
pub struct FlowRecord {
    /// Cookie of the workload's socket.
    pub id: u64,
    /// Cookie of its namespace.
    pub netns_cookie: u64,
    /// The workload accepted the connection.
    pub inbound: bool,
    /// The workload's end.
    pub local: SocketAddr,
    /// Original destination, or true client.
    pub remote: SocketAddr,
    /// Time since it was opened; for a closed one until it closed.
    pub age: Duration,
    /// It is closed.
    pub closed: bool,
    /// It is not yet established.
    pub connecting: bool,
    /// The kernel's counters.
    pub counters: Flow,
}

impl FlowRecord {
    pub(super) fn new(id: u64, flow: Flow, now_ns: u64) -> Self {
        let closed = flow.state == FlowState::Closed as u32;
        let end = if closed { flow.updated_ns } else { now_ns };
        Self {
            id,
            netns_cookie: flow.netns_cookie,
            inbound: flow.inbound != 0,
            local: flow.local.into(),
            remote: flow.remote.into(),
            age: Duration::from_nanos(end.saturating_sub(flow.opened_ns)),
            closed,
            connecting: flow.state == FlowState::Connecting as u32,
            counters: flow,
        }
    }
}

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
pub(super) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a pointer to a value of ours; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
