//! Addresses in one canonical form: 16 bytes, IPv4 as `::ffff:a.b.c.d`
//! (RFC 4291, section 2.5.5.2), so that a key never depends on the family of
//! the socket that it was read from.

use crate::assert_layout;

/// An IP address. Each word holds its four bytes in network order, as the
/// kernel's BPF contexts give them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ip {
    /// The address, first word first.
    pub words: [u32; 4],
}

assert_layout!(Ip, size = 16, align = 4);

/// `::ffff:0:0`'s third word in network order.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Ip {
    /// `0.0.0.0` and `::` are both "no address": this one.
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };

    /// From an IPv4 address in network order.
    #[inline(always)]
    pub const fn v4(address: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, address],
        }
    }

    /// From an IPv6 address, four words in network order.
    #[inline(always)]
    pub const fn v6(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The IPv4 address in network order, if this is one (mapped or not).
    #[inline(always)]
    pub const fn as_v4(&self) -> Option<u32> {
        if self.is_v4() {
            Some(self.words[3])
        } else {
            None
        }
    }

    /// An IPv4 address, mapped or not.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.words[3]) >> 24 == 127
        } else {
            self.words[0] == 0
                && self.words[1] == 0
                && self.words[2] == 0
                && self.words[3] == 1_u32.to_be()
        }
    }

    /// Neither an address nor a wildcard of use.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words[0] == 0
            && self.words[1] == 0
            && self.words[3] == 0
            && (self.words[2] == 0 || self.words[2] == MAPPED)
    }

    /// Word by word, because LLVM would call memcmp, which the kernel lacks.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.words[0] == other.words[0]
            && self.words[1] == other.words[1]
            && self.words[2] == other.words[2]
            && self.words[3] == other.words[3]
    }
}

impl From<core::net::IpAddr> for Ip {
    fn from(address: core::net::IpAddr) -> Self {
        let octets = match address {
            core::net::IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(address) => address.octets(),
        };
        let word = |at: usize| {
            u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
        };
        Self {
            words: [word(0), word(4), word(8), word(12)],
        }
    }
}

impl From<Ip> for core::net::IpAddr {
    fn from(ip: Ip) -> Self {
        let mut octets = [0; 16];
        for (at, word) in ip.words.iter().enumerate() {
            octets[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
        }
        core::net::Ipv6Addr::from(octets).to_canonical()
    }
}

/// An IP address and a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketIp {
    /// Address.
    pub ip: Ip,
    /// Port in host order.
    pub port: u16,
    /// Explicit padding, zero.
    pub reserved: u16,
}

assert_layout!(SocketIp, size = 20, align = 4);

impl SocketIp {
    /// Address and port.
    #[inline(always)]
    pub const fn new(ip: Ip, port: u16) -> Self {
        Self {
            ip,
            port,
            reserved: 0,
        }
    }
}

impl From<core::net::SocketAddr> for SocketIp {
    fn from(address: core::net::SocketAddr) -> Self {
        Self::new(address.ip().into(), address.port())
    }
}

impl From<SocketIp> for core::net::SocketAddr {
    fn from(address: SocketIp) -> Self {
        Self::new(address.ip.into(), address.port)
    }
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, SocketAddr};

    use super::*;

    #[test]
    fn addresses_survive_the_way_to_the_kernel_and_back() {
        for text in ["10.1.2.3", "127.0.0.1", "::1", "2001:db8::7", "0.0.0.0"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Ip::from(address)), address);
        }
        let socket: SocketAddr = "[fd00::1]:8080".parse().unwrap();
        assert_eq!(SocketAddr::from(SocketIp::from(socket)), socket);
    }

    #[test]
    fn a_mapped_address_is_the_same_key_as_the_plain_one() {
        let plain = Ip::from("10.1.2.3".parse::<IpAddr>().unwrap());
        let mapped = Ip::from("::ffff:10.1.2.3".parse::<IpAddr>().unwrap());
        assert_eq!(plain, mapped);
        assert!(plain.is_v4());
        assert_eq!(plain.as_v4(), Some(u32::from_ne_bytes([10, 1, 2, 3])));
    }

    #[test]
    fn loopback_is_the_whole_of_127_and_one_ipv6_address() {
        let is = |text: &str| Ip::from(text.parse::<IpAddr>().unwrap()).is_loopback();
        assert!(is("127.0.0.1") && is("127.53.0.9") && is("::1") && is("::ffff:127.0.0.1"));
        assert!(!is("10.0.0.1") && !is("::2") && !is("fd00::1") && !is("0.0.0.0"));
    }
}
