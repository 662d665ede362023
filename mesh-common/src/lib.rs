//! Types and pure decisions that Undermesh's kernel programs and its agent
//! share. Everything here is `#[repr(C)]` with explicit padding: these are the
//! keys and values of the BPF maps, and `bpftool map dump` prints their fields.
#![no_std]

mod address;
mod bridge;
mod connect;
mod flow;
mod heartbeat;
mod host;
mod identity;
mod inbound;
mod kernel;
mod knob;
mod nameserver;
mod pace;
mod patience;
mod splice;
mod verdict;
mod workload;

pub use address::{Ip, SocketIp};
pub use bridge::{Bridge, BridgeTarget, MAX_BRIDGES, bridge_index, is_read_by_agent};
pub use connect::{Connect, Origin, OriginRole, Socket, Tuple, Way, connect_verdict, way};
pub use flow::{
    COUNTERS, CloseReason, Counter, Flow, FlowEvent, FlowEventKind, FlowPath, FlowState, Protocol,
    Transport, beside_bytes, beside_bytes_so_far, close_reason, refusal,
};
pub use heartbeat::Heartbeat;
pub use host::{CgroupKey, HOST_LEVELS, Host};
pub use identity::{IDENTITY_BYTES, Identity};
pub use inbound::{ListenerKey, ListenerKind, ListeningPort, Steer, steer};
pub use kernel::KernelLayout;
pub use knob::{KNOBS, Knob};
pub use nameserver::{Nameserver, alias_of, is_alias};
pub use pace::Pace;
pub use patience::Patience;
pub use splice::{
    Guard, HandOver, HandedOver, MAX_WAITING_BYTES, Sender, Splice, SplicePeer, decide, direction,
};
pub use verdict::{
    Algorithm, Endpoint, EndpointKey, Verdict, VerdictKey, VerdictKind, choose, is_worth_joining,
    try_joining,
};
pub use workload::{Destination, Workload, WorkloadKey, workload_flag};

/// Value of the one element of the map `layout`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// [`LAYOUT_VERSION`] of the agent that made the maps.
    pub version: u32,
}

assert_layout!(Layout, size = 4, align = 4);

/// Port of HBONE (HTTP/2 CONNECT over mutual TLS), as in Istio ambient.
pub const HBONE_PORT: u16 = 15008;

/// Port of DNS.
pub const DNS_PORT: u16 = 53;

/// Layout of the maps. A change of any type here, or of a map's kind or size,
/// raises it: maps of another layout are never reused.
pub const LAYOUT_VERSION: u32 = 9;

#[cfg(feature = "user")]
macro_rules! pod {
    ($($type:ty),+) => {
        $(
            // SAFETY: `#[repr(C)]`, made of integers only, without padding bytes (asserted beside each type).
            unsafe impl aya::Pod for $type {}
        )+
    };
}

#[cfg(feature = "user")]
pod!(
    Ip,
    SocketIp,
    Origin,
    Socket,
    Tuple,
    Flow,
    ListenerKey,
    ListeningPort,
    Nameserver,
    CgroupKey,
    Heartbeat,
    Host,
    Layout,
    Destination,
    Workload,
    WorkloadKey,
    FlowPath,
    FlowEvent,
    Bridge,
    Splice,
    SplicePeer,
    VerdictKey,
    Verdict,
    EndpointKey,
    Endpoint,
    Identity,
    KernelLayout
);

/// Asserts at compile time that a type has no padding and the size that the maps expect.
macro_rules! assert_layout {
    ($type:ty, size = $size:literal, align = $align:literal) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        const _: () = assert!(core::mem::align_of::<$type>() == $align);
    };
}
pub(crate) use assert_layout;
