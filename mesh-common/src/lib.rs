//! Types and pure decisions that Undermesh's kernel programs and its agent
//! share. Everything here is `#[repr(C)]` with explicit padding: these are the
//! keys and values of the BPF maps, and `bpftool map dump` prints their fields.
#![no_std]

mod address;
mod connect;
mod flow;
mod inbound;
mod nameserver;
mod workload;

pub use address::{Ip, SocketIp};
pub use connect::{Connect, Origin, OriginRole, Socket, Tuple, connect_verdict};
pub use flow::{Flow, FlowState};
pub use inbound::{ListenerKey, ListenerKind, ListeningPort, Steer, steer};
pub use nameserver::{Nameserver, alias_of, is_alias};
pub use workload::{Destination, Workload, WorkloadKey};

/// Port of HBONE (HTTP/2 CONNECT over mutual TLS), as in Istio ambient.
pub const HBONE_PORT: u16 = 15008;

/// Port of DNS.
pub const DNS_PORT: u16 = 53;

/// Layout of the maps. A change of any type here, or of a map's kind or size,
/// raises it: maps of another layout are never reused.
pub const LAYOUT_VERSION: u32 = 1;

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
    Destination,
    Workload,
    WorkloadKey
);

/// Asserts at compile time that a type has no padding and the size that the maps expect.
macro_rules! assert_layout {
    ($type:ty, size = $size:literal, align = $align:literal) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        const _: () = assert!(core::mem::align_of::<$type>() == $align);
    };
}
pub(crate) use assert_layout;
