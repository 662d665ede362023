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
}

assert_layout!(Workload, size = 40, align = 4);

impl Workload {
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
}

assert_layout!(Destination, size = 4, align = 4);
