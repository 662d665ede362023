//! The kernel's account of connections.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_common::{
    CloseReason, Flow, FlowState, Protocol, Transport, VerdictKind, beside_bytes_so_far,
};

use crate::netns::TcpCounters;

/// What the agent knows of a flow that it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowPath {
    /// The endpoint that was chosen.
    pub endpoint: Option<SocketAddr>,
    /// Who that is, where it is known.
    pub destination_identity: Option<String>,
    /// How its bytes travel there.
    pub transport: Transport,
    /// What was recognised.
    pub protocol: Protocol,
}

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
    /// Endpoint of a direct verdict.
    pub endpoint: Option<SocketAddr>,
    /// What the agent has noted of it.
    pub path: Option<FlowPath>,
    /// Who opened it.
    pub source_identity: Option<String>,
    /// Who accepted it.
    pub destination_identity: Option<String>,
    /// What the kernel did with it.
    pub verdict: VerdictKind,
    /// Inbound: how it came to this node.
    pub transport: Transport,
    /// Time since it was opened; for a closed one until it closed.
    pub age: Duration,
    /// How far it has come.
    pub state: FlowState,
    /// How it ended.
    pub close_reason: CloseReason,
    /// The kernel's counters.
    pub counters: Flow,
}

impl FlowRecord {
    pub(super) fn new(
        id: u64,
        flow: Flow,
        path: Option<FlowPath>,
        source_identity: Option<String>,
        destination_identity: Option<String>,
        now_ns: u64,
    ) -> Self {
        let end = match flow.closed_ns {
            0 => now_ns,
            closed => closed,
        };
        Self {
            id,
            netns_cookie: flow.netns_cookie,
            inbound: flow.inbound != 0,
            local: flow.local.into(),
            remote: flow.remote.into(),
            endpoint: (!flow.endpoint.ip.is_unspecified()).then(|| flow.endpoint.into()),
            path,
            source_identity,
            destination_identity,
            verdict: match flow.verdict {
                verdict if verdict == VerdictKind::Direct as u32 => VerdictKind::Direct,
                verdict if verdict == VerdictKind::Proxy as u32 => VerdictKind::Proxy,
                verdict if verdict == VerdictKind::Deny as u32 => VerdictKind::Deny,
                _ => VerdictKind::Pass,
            },
            transport: transport(flow.transport),
            age: Duration::from_nanos(end.saturating_sub(flow.opened_ns)),
            state: match flow.state {
                state if state == FlowState::Closed as u32 => FlowState::Closed,
                state if state == FlowState::Open as u32 => FlowState::Open,
                _ => FlowState::Connecting,
            },
            close_reason: close_reason(flow.close_reason),
            counters: flow,
        }
    }

    /// Puts what TCP counts now in the place of what it had counted when the
    /// kernel programs last looked.
    pub fn refresh(&mut self, state: u32, now: &TcpCounters) {
        let (sent, received) = beside_bytes_so_far(state, self.inbound);
        let counters = &mut self.counters;
        counters.bytes_sent = now.bytes_acked.saturating_sub(sent);
        counters.bytes_received = now.bytes_received.saturating_sub(received);
        counters.segments_sent = now.segments_sent;
        counters.segments_received = now.segments_received;
        counters.rtt_us = now.rtt_us;
        counters.min_rtt_us = now.min_rtt_us.unwrap_or(counters.min_rtt_us);
        counters.retransmits = now.retransmits;
    }
}

impl FlowPath {
    /// Whether the agent lets nothing pass.
    pub fn is_refused(&self) -> bool {
        mesh_common::refusal(self.transport as u16).is_some()
    }

    pub(super) fn new(path: mesh_common::FlowPath, identity: Option<String>) -> Self {
        Self {
            endpoint: (!path.endpoint.ip.is_unspecified()).then(|| path.endpoint.into()),
            destination_identity: identity,
            transport: transport(path.transport.into()),
            protocol: [
                Protocol::Tcp,
                Protocol::Http1,
                Protocol::Http2,
                Protocol::Dns,
            ]
            .into_iter()
            .find(|protocol| *protocol as u16 == path.protocol)
            .unwrap_or(Protocol::Unknown),
        }
    }
}

/// The transport of a number that a kernel program has copied.
pub(super) fn transport(number: u32) -> Transport {
    [
        Transport::SameNode,
        Transport::Hbone,
        Transport::Plain,
        Transport::Blocked,
        Transport::MutualTls,
        Transport::NoRoom,
    ]
    .into_iter()
    .find(|transport| *transport as u32 == number)
    .unwrap_or(Transport::Unknown)
}

fn close_reason(number: u32) -> CloseReason {
    [
        CloseReason::Local,
        CloseReason::Remote,
        CloseReason::Reset,
        CloseReason::Failed,
        CloseReason::Policy,
        CloseReason::Refused,
        CloseReason::TimedOut,
    ]
    .into_iter()
    .find(|reason| *reason as u32 == number)
    .unwrap_or(CloseReason::Open)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_an_open_flow_has_the_counters_of_now() {
        let then = Flow {
            bytes_sent: 3,
            min_rtt_us: 20,
            spliced_sent: 7,
            ..Flow::default()
        };
        let now = TcpCounters {
            bytes_acked: 6,
            bytes_received: 9,
            rtt_us: 40,
            min_rtt_us: None,
            ..TcpCounters::default()
        };
        const ESTABLISHED: u32 = 1;
        let mut record = FlowRecord::new(1, then, None, None, None, 0);
        record.refresh(ESTABLISHED, &now);
        let expected = Flow {
            bytes_sent: 5,
            bytes_received: 9,
            rtt_us: 40,
            ..then
        };
        assert_eq!(record.counters, expected);
    }
}
