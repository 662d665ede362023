//! Addresses for services that have none of their own.
//!
//! Several agents must give one service the same address without talking to
//! each other. So the address follows from the host's name, and only where two
//! names fall on one address does the order matter: callers ask in the order of
//! the names.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// 240.240.0.0/16, as Istio allocates from; reserved for future use (RFC 1112,
/// section 4), so no host has such an address.
const V4_NETWORK: u32 = 0xf0f0_0000;
/// Addresses of it that are used: all but the first and the last.
const V4_USED: u32 = (1 << 16) - 2;
/// 2001:2::/48, as Istio allocates from; reserved for benchmarks (RFC 5180).
const V6_NETWORK: u128 = 0x2001_0002 << 96;
/// Tries to find a free address among 2^64.
const V6_TRIES: u64 = 1024;

/// Hands out addresses, none of them twice.
#[derive(Debug, Default)]
pub(super) struct Allocator {
    taken: HashSet<IpAddr>,
}

impl Allocator {
    /// Addresses that are in use and are not to be handed out.
    pub(super) fn new(taken: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            taken: taken.into_iter().collect(),
        }
    }

    /// An IPv4 address for `host`; `None` where all are in use.
    pub(super) fn v4(&mut self, host: &str) -> Option<IpAddr> {
        let first = (hash(host) % u64::from(V4_USED)) as u32;
        self.first_free((0..V4_USED).map(|n| {
            let host_part = 1 + (first + n) % V4_USED;
            Ipv4Addr::from_bits(V4_NETWORK | host_part).into()
        }))
    }

    /// An IPv6 address for `host`; `None` where none was found.
    pub(super) fn v6(&mut self, host: &str) -> Option<IpAddr> {
        let first = hash(host);
        self.first_free((0..V6_TRIES).map(|n| {
            // Zero would be the anycast address of the network's routers.
            let host_part = first.wrapping_add(n).max(1);
            Ipv6Addr::from_bits(V6_NETWORK | u128::from(host_part)).into()
        }))
    }

    fn first_free(&mut self, mut candidates: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
        candidates.find(|&candidate| self.taken.insert(candidate))
    }
}

/// FNV-1a with 64 bits: the same in every version of the agent, unlike the
/// standard library's hashers.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_address_of_a_name_never_changes() {
        let mut allocator = Allocator::default();
        let host = "reviews.default.svc.cluster.local";
        assert_eq!(allocator.v4(host).unwrap().to_string(), "240.240.202.45");
        assert_eq!(
            allocator.v6(host).unwrap().to_string(),
            "2001:2::c58a:77c8:e85e:edec"
        );
    }

    #[test]
    fn all_addresses_can_be_given_and_then_no_more() {
        let all = (1..=V4_USED).map(|n| Ipv4Addr::from_bits(V4_NETWORK | n).into());
        let mut allocator = Allocator::new(all.skip(1));
        assert_eq!(allocator.v4("a").unwrap().to_string(), "240.240.0.1");
        assert_eq!(allocator.v4("b"), None);
    }

    proptest! {
        #[test]
        fn no_two_hosts_share_an_address(
            hosts in prop::collection::btree_set("[a-z]{1,8}(\\.[a-z]{1,8}){0,3}", 0..300),
            in_use in prop::collection::vec(any::<u16>(), 0..50),
        ) {
            let v4: IpNet = "240.240.0.0/16".parse().unwrap();
            let v6: IpNet = "2001:2::/48".parse().unwrap();
            let in_use = in_use.into_iter()
                .map(|n| Ipv4Addr::from_bits(V4_NETWORK | u32::from(n)).into());
            let mut given: BTreeSet<IpAddr> = in_use.clone().collect();
            let mut allocator = Allocator::new(in_use);
            for host in &hosts {
                let (a, b) = (allocator.v4(host).unwrap(), allocator.v6(host).unwrap());
                prop_assert!(v4.contains(&a) && v6.contains(&b));
                prop_assert!(given.insert(a) && given.insert(b));
            }
        }

        #[test]
        fn addresses_do_not_depend_on_other_hosts(
            host in "[a-z]{1,12}",
            others in prop::collection::btree_set("[0-9]{1,12}", 0..20),
        ) {
            let alone = Allocator::default().v4(&host).unwrap();
            let mut allocator = Allocator::default();
            let clash = others.iter().any(|other| allocator.v4(other) == Some(alone));
            prop_assume!(!clash);
            prop_assert_eq!(allocator.v4(&host), Some(alone));
        }
    }
}
