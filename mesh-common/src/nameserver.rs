//! Which name server a DNS question was for. An application may ask several
//! servers from one socket, so each server has an alias in 127.0.0.0/8, and
//! the agent tells them apart by the address that a question arrives at.

use crate::{Ip, assert_layout};

/// Key of the map `nameservers` (alias to the server that it stands for).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Nameserver {
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Alias, an IPv4 address in network order.
    pub alias: u32,
    /// Explicit padding, zero.
    pub reserved: u32,
}

assert_layout!(Nameserver, size = 16, align = 8);

/// Aliases are `127.192.0.0` to `127.255.255.255`: far from addresses that resolvers use.
const ALIAS_PREFIX: u32 = 0x7fc0_0000;
const ALIAS_MASK: u32 = 0xffc0_0000;

/// The alias of an IPv4 name server, in network order (Knuth's multiplicative hash, 22 bits).
#[inline(always)]
pub const fn alias_of(server: u32) -> u32 {
    (ALIAS_PREFIX | (u32::from_be(server).wrapping_mul(2_654_435_761) >> 10)).to_be()
}

/// Whether the address (network order) can be an alias.
#[inline(always)]
pub const fn is_alias(address: u32) -> bool {
    u32::from_be(address) & ALIAS_MASK == ALIAS_PREFIX
}

impl Nameserver {
    /// The key of an alias.
    #[inline(always)]
    pub const fn new(netns_cookie: u64, alias: u32) -> Self {
        Self {
            netns_cookie,
            alias,
            reserved: 0,
        }
    }

    /// The alias as an address.
    pub const fn ip(&self) -> Ip {
        Ip::v4(self.alias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_loopback_and_tell_neighbours_apart() {
        let one = alias_of(u32::from_ne_bytes([10, 96, 0, 10]));
        let other = alias_of(u32::from_ne_bytes([10, 96, 0, 11]));
        assert_ne!(one, other);
        for alias in [one, other] {
            assert!(is_alias(alias));
            assert!(Ip::v4(alias).is_loopback());
        }
        assert!(!is_alias(u32::from_ne_bytes([127, 0, 0, 53])));
    }
}
