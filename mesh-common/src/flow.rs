//! The account that the kernel keeps of every connection of a workload.

use crate::{SocketIp, assert_layout};

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FlowState {
    /// SYN sent.
    Connecting = 0,
    /// Established.
    Open = 1,
    /// Closed.
    Closed = 2,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseReason {
    /// It has not.
    Open = 0,
    /// In order; this end was the first to say so.
    Local = 1,
    /// In order; the other end was the first to say so.
    Remote = 2,
    /// A reset, of either end.
    Reset = 3,
    /// It never came about: nobody could be reached, or the application gave up.
    Failed = 4,
    /// The policies forbid it: it was refused, or the agent has ended it.
    Policy = 5,
    /// It never came about: nobody listens, nobody is there to go to, or no room is left for it.
    Refused = 6,
    /// The other end has not answered for as long as TCP waits.
    TimedOut = 7,
}

/// States of `enum` in include/net/tcp_states.h.
mod tcp {
    pub const ESTABLISHED: u32 = 1;
    pub const SYN_SENT: u32 = 2;
    pub const SYN_RECV: u32 = 3;
    pub const FIN_WAIT1: u32 = 4;
    pub const CLOSE_WAIT: u32 = 8;
    pub const FIN_WAIT2: u32 = 5;
    pub const TIME_WAIT: u32 = 6;
    pub const LAST_ACK: u32 = 9;
    pub const CLOSING: u32 = 11;
}

/// How a connection ended, from the TCP state before `TCP_CLOSE`, whether the other end has
/// ever sent a segment, and whether the kernel has given up on it.
#[inline(always)]
pub const fn close_reason(before: u32, is_heard: bool, has_timed_out: bool) -> CloseReason {
    match before {
        _ if has_timed_out => CloseReason::TimedOut,
        tcp::SYN_SENT if is_heard => CloseReason::Refused,
        tcp::SYN_SENT | tcp::SYN_RECV => CloseReason::Failed,
        tcp::LAST_ACK => CloseReason::Remote,
        tcp::FIN_WAIT2 | tcp::CLOSING | tcp::TIME_WAIT => CloseReason::Local,
        _ => CloseReason::Reset,
    }
}

/// What TCP's counters have beside the application's bytes: SYN and FIN take a
/// sequence number each (RFC 9293, section 3.4), and Linux counts those that
/// are acknowledged (of the end that sent the SYN first) or received.
///
/// `state` is the TCP state, `read_to_the_end` whether the other end's FIN has
/// come, which only `FIN_WAIT2` does not tell.
#[inline(always)]
pub const fn beside_bytes(state: u32, inbound: bool, read_to_the_end: bool) -> (u64, u64) {
    let syn = if inbound || state == tcp::SYN_SENT {
        0
    } else {
        1
    };
    let (fin_sent, fin_received) = match state {
        tcp::ESTABLISHED | tcp::FIN_WAIT1 | tcp::SYN_SENT | tcp::SYN_RECV => (0, 0),
        tcp::CLOSE_WAIT => (0, 1),
        tcp::FIN_WAIT2 => (1, read_to_the_end as u64),
        // LAST_ACK, CLOSING: the acknowledgement that ends the connection is that of the FIN.
        _ => (1, 1),
    };
    (syn + fin_sent, fin_received)
}

/// The same for a connection that goes on, looked at between two segments:
/// what ends it has not come yet.
pub const fn beside_bytes_so_far(state: u32, inbound: bool) -> (u64, u64) {
    match state {
        // Our own FIN is not acknowledged.
        tcp::LAST_ACK | tcp::CLOSING => beside_bytes(tcp::CLOSE_WAIT, inbound, true),
        _ => beside_bytes(state, inbound, false),
    }
}

/// How bytes travel between the agent and the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Transport {
    /// Not known (yet).
    Unknown = 0,
    /// Both ends on this node: the kernel knows both namespaces.
    SameNode = 1,
    /// HBONE, mutual TLS.
    Hbone = 2,
    /// Plain TCP.
    Plain = 3,
    /// None: the agent refuses it, as policies or the Sidecar of either end demand.
    Blocked = 4,
    /// Mutual TLS without HBONE, as sidecars of Istio speak it.
    MutualTls = 5,
    /// None: the agent refuses it, since as many are open as may be.
    NoRoom = 6,
}

impl Transport {
    /// Whether the other end has proven by mutual TLS who it is.
    pub const fn is_mutual_tls(self) -> bool {
        matches!(self, Self::Hbone | Self::MutualTls)
    }
}

/// How a connection ends to which the agent has given this [`Transport`]; `None` where it has not
/// refused it.
#[inline(always)]
pub const fn refusal(transport: u16) -> Option<CloseReason> {
    match transport {
        BLOCKED => Some(CloseReason::Policy),
        NO_ROOM => Some(CloseReason::Refused),
        _ => None,
    }
}

const BLOCKED: u16 = Transport::Blocked as u16;
const NO_ROOM: u16 = Transport::NoRoom as u16;

/// What a connection carries, as far as it was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Protocol {
    /// Not known (yet).
    Unknown = 0,
    /// Bytes.
    Tcp = 1,
    /// HTTP/1.
    Http1 = 2,
    /// HTTP/2.
    Http2 = 3,
    /// DNS over TCP.
    Dns = 4,
}

/// Value of the map `flows`; the key is the socket's cookie. Times are
/// `CLOCK_MONOTONIC` in nanoseconds, 0 where something has not happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Cookie of the network namespace of the workload.
    pub netns_cookie: u64,
    /// Cookie of the socket at the other end where that is an application of this node, else 0.
    pub peer: u64,
    /// When the connection was asked for (outbound) or accepted (inbound).
    pub opened_ns: u64,
    /// When the kernel last wrote this record.
    pub updated_ns: u64,
    /// When it ended.
    pub closed_ns: u64,
    /// Bytes that the peer has acknowledged (RFC 4898 `tcpEStatsAppHCThruOctetsAcked`).
    pub bytes_sent: u64,
    /// Bytes received (`tcpEStatsAppHCThruOctetsReceived`).
    pub bytes_received: u64,
    /// Bytes sent through the short-circuit; not part of `bytes_sent`.
    pub spliced_sent: u64,
    /// Bytes received through the short-circuit; not part of `bytes_received`.
    pub spliced_received: u64,
    /// Segments sent.
    pub segments_sent: u32,
    /// Segments received.
    pub segments_received: u32,
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: u32,
    /// Shortest round-trip time in microseconds.
    pub min_rtt_us: u32,
    /// Time from SYN to the answer in microseconds.
    pub connect_us: u32,
    /// Segments retransmitted.
    pub retransmits: u32,
    /// A [`FlowState`].
    pub state: u32,
    /// A [`CloseReason`].
    pub close_reason: u32,
    /// 0: the workload opened the connection; 1: it accepted it.
    pub inbound: u32,
    /// A [`VerdictKind`](crate::VerdictKind).
    pub verdict: u32,
    /// Who opened it, as in the map `identities`; 0 where that is not known.
    pub source_identity: u32,
    /// Inbound: a [`Transport`].
    pub transport: u32,
    /// The workload's own end; without a port where it was refused before it had one.
    pub local: SocketIp,
    /// The other end as the application sees it: original destination or true client.
    pub remote: SocketIp,
    /// Direct: the endpoint that was chosen.
    pub endpoint: SocketIp,
    /// Direct: its identity, as in the map `identities`.
    pub destination_identity: u32,
}

assert_layout!(Flow, size = 184, align = 8);

/// Value of the map `flow_paths`; the key is the socket's cookie. What the
/// agent knows of a flow that it carries for a workload.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowPath {
    /// The endpoint that was chosen.
    pub endpoint: SocketIp,
    /// Its identity, as in the map `identities`.
    pub destination_identity: u32,
    /// A [`Transport`].
    pub transport: u16,
    /// A [`Protocol`].
    pub protocol: u16,
}

assert_layout!(FlowPath, size = 28, align = 4);

/// What happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FlowEventKind {
    /// It is established.
    Opened = 0,
    /// It has ended.
    Closed = 1,
    /// It was refused, by a verdict or by the agent, or because nobody serves the workload. One
    /// that was open until then is also [`FlowEventKind::Closed`].
    Denied = 2,
}

/// Record of the ring buffer `flow_events`. It may be dropped, which is
/// counted; the map `flows` is the truth.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEvent {
    /// Cookie of the socket.
    pub flow: u64,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub at_ns: u64,
    /// A [`FlowEventKind`].
    pub kind: u16,
    /// A [`VerdictKind`](crate::VerdictKind).
    pub verdict: u16,
    /// The other end as the application sees it.
    pub remote: SocketIp,
}

assert_layout!(FlowEvent, size = 48, align = 8);

/// Index of the array `counters`, which counts since the programs were loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Flows without a record, because `flows` was full.
    FlowsDropped = 0,
    /// Events that found `flow_events` full.
    EventsDropped = 1,
    /// Connections that were refused.
    Denied = 2,
    /// Messages handed over by the short-circuit.
    HandedOver = 3,
    /// Messages that TCP carried because the receiver had enough to read.
    FellBackFull = 4,
    /// ... because bytes that went by TCP were not read yet.
    FellBackUnread = 5,
    /// ... for another reason: switched off, peer not known or gone, closing, zero-copy.
    FellBackOther = 6,
    /// Messages handed over past the agent, over a bridge; part of [`Counter::HandedOver`].
    Bridged = 7,
    /// Messages of streams that TCP carried because it was faster.
    FellBackSlower = 8,
}

/// Number of [`Counter`]s.
pub const COUNTERS: usize = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syn_and_fin_are_no_bytes() {
        // Client of a connection that it closes itself, at each step.
        assert_eq!(beside_bytes(tcp::ESTABLISHED, false, false), (1, 0));
        assert_eq!(beside_bytes(tcp::FIN_WAIT1, false, false), (1, 0));
        assert_eq!(beside_bytes(tcp::FIN_WAIT2, false, false), (2, 0));
        assert_eq!(beside_bytes(tcp::FIN_WAIT2, false, true), (2, 1));
        // Its server.
        assert_eq!(beside_bytes(tcp::ESTABLISHED, true, false), (0, 0));
        assert_eq!(beside_bytes(tcp::CLOSE_WAIT, true, true), (0, 1));
        assert_eq!(beside_bytes(tcp::LAST_ACK, true, true), (1, 1));
    }

    #[test]
    fn a_fin_counts_when_it_is_acknowledged_or_has_come() {
        assert_eq!(beside_bytes_so_far(tcp::SYN_SENT, false), (0, 0));
        assert_eq!(beside_bytes_so_far(tcp::ESTABLISHED, false), (1, 0));
        assert_eq!(beside_bytes_so_far(tcp::FIN_WAIT2, false), (2, 0));
        assert_eq!(beside_bytes_so_far(tcp::CLOSING, false), (1, 1));
        assert_eq!(beside_bytes_so_far(tcp::LAST_ACK, true), (0, 1));
    }

    #[test]
    fn the_state_before_the_end_tells_how_it_came() {
        let heard = |before| close_reason(before, true, false);
        assert_eq!(close_reason(2, false, false), CloseReason::Failed);
        assert_eq!(heard(2), CloseReason::Refused);
        assert_eq!(heard(5), CloseReason::Local);
        assert_eq!(heard(11), CloseReason::Local);
        assert_eq!(heard(9), CloseReason::Remote);
        // Established, or half closed, and gone at once.
        for aborted in [1, 4, 8] {
            assert_eq!(heard(aborted), CloseReason::Reset);
            assert_eq!(close_reason(aborted, true, true), CloseReason::TimedOut);
        }
        assert_eq!(close_reason(2, false, true), CloseReason::TimedOut);
    }
}
