//! What the kernel knows of an enrolled workload.

use crate::{Ip, assert_layout};

/// Key of the map `workloads`: a network namespace. Cookies are never reused,
/// inode numbers are (`SO_NETNS_COOKIE`, Linux 5.14).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WorkloadKey {
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
}

assert_layout!(WorkloadKey, size = 8, align = 8);

/// Value of the map `workloads`. Ports are those of the agent's listeners
/// inside the namespace; 0 where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// IPv4 address, or unspecified.
    pub ip4: Ip,
    /// IPv6 address, or unspecified.
    pub ip6: Ip,
    /// TCP listener on 127.0.0.1 for connections of the workload.
    pub outbound4_port: u16,
    /// TCP listener on ::1 for connections of the workload.
    pub outbound6_port: u16,
    /// UDP socket for DNS questions over IPv4 (any 127.0.0.0/8 address).
    pub dns4_port: u16,
    /// UDP socket for DNS questions over IPv6 (::1).
    pub dns6_port: u16,
    /// Who the workload is, as in the map `identities`.
    pub identity: u32,
    /// Bits of [`workload_flag`].
    pub flags: u32,
    /// Index of the network interface that has the addresses, or 0. A socket
    /// that is bound to a device cannot reach an address on another one.
    pub device: u32,
    /// One more than what `net.ipv4.tcp_tw_reuse` was before the workload was
    /// enrolled, or 0 where the agent did not change it.
    pub tcp_tw_reuse_before: u32,
}

assert_layout!(Workload, size = 56, align = 4);

/// Bits of [`Workload::flags`].
pub mod workload_flag {
    /// While no agent serves the workload its connections are left alone, instead of refused.
    pub const FAIL_OPEN: u32 = 1 << 0;
    /// Connections to addresses that the mesh does not know go to the agent, too.
    pub const ALL_OUTBOUND: u32 = 1 << 1;
    /// The short-circuit may take bytes from the application to the agent.
    pub const SPLICE_TO_AGENT: u32 = 1 << 8;
    /// The short-circuit may take bytes from the agent to the application.
    pub const SPLICE_FROM_AGENT: u32 = 1 << 9;
}

impl Workload {
    /// Whether it is left alone while no agent serves it.
    #[inline(always)]
    pub const fn fails_open(&self) -> bool {
        self.flags & workload_flag::FAIL_OPEN != 0
    }

    /// Whether the agent wants to see connections to addresses that the mesh does not know.
    #[inline(always)]
    pub const fn takes_all(&self) -> bool {
        self.flags & workload_flag::ALL_OUTBOUND != 0
    }

    /// Port of the agent's listener for connections to `ip`, or 0.
    #[inline(always)]
    pub const fn outbound_port(&self, ip: &Ip) -> u16 {
        if ip.is_v4() {
            self.outbound4_port
        } else {
            self.outbound6_port
        }
    }

    /// Whether `ip` and `port` are those of a listener of the agent for this
    /// workload: another instance of the program has sent the socket there.
    #[inline(always)]
    pub const fn is_outbound_listener(&self, ip: &Ip, port: u16) -> bool {
        port != 0 && port == self.outbound_port(ip) && (ip.is_loopback() || self.is_own(ip))
    }

    /// Whether `ip` and `port` are those of the agent's socket for DNS questions of this workload.
    #[inline(always)]
    pub const fn is_dns_socket(&self, ip: &Ip, port: u16) -> bool {
        let own = if ip.is_v4() {
            self.dns4_port
        } else {
            self.dns6_port
        };
        port != 0 && port == own && ip.is_loopback()
    }

    /// One of the workload's own addresses.
    #[inline(always)]
    pub const fn is_own(&self, ip: &Ip) -> bool {
        if ip.is_v4() {
            self.ip4.same(ip)
        } else {
            self.ip6.same(ip)
        }
    }
}

/// Value of the map `destinations`: addresses that the mesh knows. Any other
/// destination is left alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// Generation of the configuration that last named the address.
    pub generation: u32,
    /// Bits: [`Destination::NOBODY`].
    pub flags: u32,
}

assert_layout!(Destination, size = 8, align = 4);

impl Destination {
    /// A service without endpoints: connections are refused at once.
    pub const NOBODY: u32 = 1 << 0;

    /// Whether nobody serves the address.
    #[inline(always)]
    pub const fn has_nobody(&self) -> bool {
        self.flags & Self::NOBODY != 0
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn the_agents_listener_is_known_by_address_and_port() {
        let ip = |text: &str| Ip::from(text.parse::<IpAddr>().unwrap());
        let workload = Workload {
            ip4: ip("10.0.0.1"),
            ip6: ip("fd00::1"),
            outbound4_port: 4,
            ..Workload::default()
        };
        assert!(workload.is_outbound_listener(&ip("127.0.0.1"), 4));
        assert!(workload.is_outbound_listener(&ip("10.0.0.1"), 4));
        assert!(!workload.is_outbound_listener(&ip("10.0.0.2"), 4));
        assert!(!workload.is_outbound_listener(&ip("127.0.0.1"), 5));
        // No listener over IPv6: port 0 is not one.
        assert!(!workload.is_outbound_listener(&ip("::1"), 0));
        let workload = Workload {
            dns4_port: 5,
            ..workload
        };
        assert!(workload.is_dns_socket(&ip("127.200.0.1"), 5));
        assert!(!workload.is_dns_socket(&ip("10.0.0.1"), 5));
        assert!(!workload.is_dns_socket(&ip("127.200.0.1"), 4));
        assert!(!workload.is_dns_socket(&ip("::1"), 0));
    }
}
