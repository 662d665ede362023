//! The decision for a connection that arrives at a workload from outside.

use crate::{HBONE_PORT, Ip, assert_layout};

/// Which listener of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ListenerKind {
    /// Everything that arrives for a port of the application.
    Inbound = 0,
    /// HBONE, port 15008.
    Hbone = 1,
    /// Connections of the workload, for sockets that cannot reach loopback
    /// because they are bound to a device.
    Outbound = 2,
}

/// Key of the SOCKHASH `listeners`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// A [`ListenerKind`].
    pub kind: u16,
    /// 4 or 6.
    pub ip_version: u16,
    /// Explicit padding, zero.
    pub reserved: u32,
}

assert_layout!(ListenerKey, size = 16, align = 8);

/// Key of the map `listening`: ports on which an application of the namespace
/// listens; the value counts its listening sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListeningPort {
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Port, host order.
    pub port: u16,
    /// Explicit padding, zero.
    pub reserved: [u16; 3],
}

assert_layout!(ListeningPort, size = 16, align = 8);

/// What becomes of a connection request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer {
    /// The kernel's own look-up decides.
    Pass,
    /// To a listener of the agent, if the port is served by an application.
    Application,
    /// To the agent's HBONE listener.
    Hbone,
}

/// Decides by address. The interface would be wrong: a namespace that connects
/// to its own address arrives at the interface that owns it, not at `lo`
/// (`orig_oif` in net/ipv4/route.c).
#[inline(always)]
pub const fn steer(remote: &Ip, local: &Ip, local_port: u16) -> Steer {
    if local.is_loopback() || remote.same(local) {
        Steer::Pass
    } else if local_port == HBONE_PORT {
        Steer::Hbone
    } else {
        Steer::Application
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn decide(remote: &str, local: &str, port: u16) -> Steer {
        steer(
            &remote.parse::<IpAddr>().unwrap().into(),
            &local.parse::<IpAddr>().unwrap().into(),
            port,
        )
    }

    #[test]
    fn connections_within_the_namespace_pass() {
        assert_eq!(decide("10.0.0.1", "10.0.0.1", 80), Steer::Pass);
        assert_eq!(decide("127.0.0.1", "127.0.0.1", 80), Steer::Pass);
        assert_eq!(decide("10.0.0.1", "127.0.0.1", 4711), Steer::Pass);
        assert_eq!(decide("fd00::1", "::1", 15008), Steer::Pass);
    }

    #[test]
    fn connections_from_outside_are_steered() {
        assert_eq!(decide("10.0.0.2", "10.0.0.1", 80), Steer::Application);
        assert_eq!(decide("fd00::2", "fd00::1", 15008), Steer::Hbone);
    }
}
