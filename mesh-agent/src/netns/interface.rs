//! Network interfaces of the calling thread's namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Index of the interface that has the first of `addresses` that any has.
pub(super) fn with_one_of(addresses: &[IpAddr]) -> io::Result<Option<u32>> {
    let list = List::read()?;
    Ok(addresses.iter().find_map(|wanted| {
        list.entries()
            .find(|(address, _)| address == wanted)
            .map(|(_, index)| index)
    }))
}

/// What `getifaddrs` gives; freed on drop.
struct List(*mut libc::ifaddrs);

impl List {
    fn read() -> io::Result<Self> {
        let mut first = std::ptr::null_mut();
        // SAFETY: a pointer to a pointer of ours.
        match unsafe { libc::getifaddrs(&raw mut first) } {
            0 => Ok(Self(first)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Addresses with the index of their interface.
    fn entries(&self) -> impl Iterator<Item = (IpAddr, u32)> + '_ {
        let mut next = self.0;
        std::iter::from_fn(move || {
            // SAFETY: a list that getifaddrs made, until its null pointer.
            let entry = unsafe { next.as_ref() }?;
            next = entry.ifa_next;
            Some(entry)
        })
        .filter_map(|entry| {
            let address = ip(entry.ifa_addr)?;
            // SAFETY: a name that ends with a null byte, of the list.
            let index = unsafe { libc::if_nametoindex(entry.ifa_name) };
            (index != 0).then_some((address, index))
        })
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: made by getifaddrs, and freed once.
        unsafe { libc::freeifaddrs(self.0) };
    }
}

fn ip(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: null, or a socket address of the family that it names.
    unsafe {
        match i32::from(address.as_ref()?.sa_family) {
            libc::AF_INET => {
                let v4: libc::sockaddr_in = address.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let v6: libc::sockaddr_in6 = address.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_on_the_first_interface_and_an_unknown_address_on_none() {
        let addresses = [
            IpAddr::from([192, 0, 2, 1]),
            IpAddr::V4(Ipv4Addr::LOCALHOST),
        ];
        assert_eq!(with_one_of(&addresses).unwrap(), Some(1));
        assert_eq!(with_one_of(&addresses[..1]).unwrap(), None);
    }
}
