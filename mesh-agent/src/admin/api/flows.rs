//! Connections as the kernel counts them: `meshctl flows`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Which end of a connection the workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The workload connected.
    Outbound,
    /// The workload accepted.
    Inbound,
}

/// How the bytes of a flow are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Security {
    /// Mutual TLS between the nodes.
    #[serde(rename = "mutual_tls")]
    MutualTls,
    /// Both ends on this node, identified by the kernel; no wire, no TLS.
    #[serde(rename = "same_node")]
    SameNode,
    /// In the clear.
    #[serde(rename = "plaintext")]
    Plaintext,
    /// Not decided (yet).
    #[serde(rename = "-")]
    Unknown,
}

/// Whether a flow is still open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum FlowState {
    /// Established, or being established.
    Open,
    /// Ended, and how.
    Closed(String),
}

/// One TCP connection, or UDP exchange, as the kernel counts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// Socket cookie: unique while the kernel runs.
    pub id: u64,
    /// `<name>.<namespace>` of the workload whose socket it is.
    pub workload: String,
    /// Which end the workload is.
    pub direction: Direction,
    /// Address of the connecting application.
    pub source: SocketAddr,
    /// Original destination.
    pub destination: SocketAddr,
    /// Endpoint that was chosen.
    pub endpoint: Option<SocketAddr>,
    /// Host of the service that the destination belongs to; of an accepted connection the hosts
    /// of all that lead to the port, with commas between.
    pub service: Option<String>,
    /// `http`, `h2`, `tcp`, `dns`, or `-`: as recognised, else as a service declares.
    pub protocol: String,
    /// How the bytes are protected.
    pub security: Security,
    /// SPIFFE identity of the connecting side, where it is known.
    pub source_identity: Option<String>,
    /// SPIFFE identity of the accepting side, where it is known.
    pub destination_identity: Option<String>,
    /// Bytes of payload that the workload sent.
    pub bytes_sent: u64,
    /// Bytes of payload that the workload received.
    pub bytes_received: u64,
    /// Those of the bytes sent that took the short-circuit.
    pub short_circuit_sent: u64,
    /// Those of the bytes received that took the short-circuit.
    pub short_circuit_received: u64,
    /// TCP segments sent.
    pub segments_sent: u64,
    /// TCP segments received.
    pub segments_received: u64,
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: u32,
    /// Smallest round-trip time seen, microseconds.
    pub min_rtt_us: Option<u32>,
    /// Segments sent again.
    pub retransmits: u32,
    /// Time from SYN to answer, microseconds; of connections that the workload opened.
    pub connect_us: Option<u32>,
    /// Milliseconds since the flow began.
    pub age_ms: u64,
    /// Open, or how it ended.
    #[serde(flatten)]
    pub state: FlowState,
    /// What the kernel was told to do: `pass`, `proxy`, `direct`, `deny`.
    pub verdict: String,
}
