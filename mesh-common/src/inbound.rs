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

/// Key of the map `listening`: ports of the namespace that connections from outside are taken
/// at. Of those on which an application listens the value counts the listening sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListeningPort {
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Port, host order.
    pub port: u16,
    /// 1 where the configuration says so, whoever listens. An entry apart, which only the
    /// agent writes: the kernel counts the other one.
    pub configured: u16,
    /// Explicit padding, zero.
    pub reserved: [u16; 2],
}

assert_layout!(ListeningPort, size = 16, align = 8);

impl ListeningPort {
    /// A port on which an application may listen.
    pub const fn listened(netns_cookie: u64, port: u16) -> Self {
        Self {
            netns_cookie,
            port,
            configured: 0,
            reserved: [0; 2],
        }
    }

    /// A port that the configuration has something behind.
    pub const fn configured(netns_cookie: u64, port: u16) -> Self {
        Self {
            configured: 1,
            ..Self::listened(netns_cookie, port)
        }
    }
}

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
