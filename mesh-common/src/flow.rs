//! The account that the kernel keeps of every connection of a workload.

use crate::{SocketIp, assert_layout};

/// What is known of a connection's end.
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

/// Value of the map `flows`; the key is the socket's cookie. Times are
/// `CLOCK_MONOTONIC` in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Cookie of the network namespace of the workload.
    pub netns_cookie: u64,
    /// When the connection was asked for (outbound) or accepted (inbound).
    pub opened_ns: u64,
    /// When the kernel last wrote this record.
    pub updated_ns: u64,
    /// Bytes that the peer has acknowledged (RFC 4898 `tcpEStatsAppHCThruOctetsAcked`).
    pub bytes_sent: u64,
    /// Bytes received (`tcpEStatsAppHCThruOctetsReceived`).
    pub bytes_received: u64,
    /// Segments sent.
    pub segments_sent: u32,
    /// Segments received.
    pub segments_received: u32,
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: u32,
    /// Segments retransmitted.
    pub retransmits: u32,
    /// A [`FlowState`].
    pub state: u32,
    /// 0: the workload opened the connection; 1: it accepted it.
    pub inbound: u32,
    /// The workload's own end.
    pub local: SocketIp,
    /// The other end as the application sees it: original destination or true client.
    pub remote: SocketIp,
}

assert_layout!(Flow, size = 104, align = 8);
