//! Two network namespaces of the calling thread, with a wire between: for
//! trying what the kernel does with connections between workloads. They go with
//! the value and the thread.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::netlink::{Message, Netlink, attribute};

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";
/// The ends of the wire: name, and address in a network of 24 bits.
const NEAR: (&[u8], Ipv4Addr) = (b"near\0", Ipv4Addr::new(10, 0, 0, 1));
const FAR: (&[u8], Ipv4Addr) = (b"far\0", Ipv4Addr::new(10, 0, 0, 2));

// include/uapi/linux/if_link.h, if_addr.h, veth.h.
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
/// `struct ifinfomsg`, all of it zero.
const LINK: [u8; 16] = [0; 16];

/// The other namespace; the calling thread stays in the near one.
pub struct Wire {
    near: OwnedFd,
    far: OwnedFd,
}

impl Wire {
    /// Moves the calling thread, which should end with the value, into a new
    /// namespace with a wire to another new one.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn lay() -> io::Result<Self> {
        let far = leave()?;
        let near = leave()?;
        let wire = Self { near, far };
        let routes = Netlink::open(libc::NETLINK_ROUTE)?;
        let far = wire.far.as_raw_fd().cast_unsigned();
        let peer = [
            LINK.to_vec(),
            attribute(IFLA_IFNAME, FAR.0),
            attribute(IFLA_NET_NS_FD, &far.to_ne_bytes()),
        ];
        let kind = [
            attribute(IFLA_INFO_KIND, b"veth"),
            attribute(IFLA_INFO_DATA, &attribute(VETH_INFO_PEER, &peer.concat())),
        ];
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let link = Message::new(libc::RTM_NEWLINK, flags, &LINK)
            .with(&attribute(IFLA_IFNAME, NEAR.0))
            .with(&attribute(IFLA_LINKINFO, &kind.concat()));
        routes.change(&link)?;
        up(NEAR)?;
        wire.at_far_end(|| up(FAR))?;
        Ok(wire)
    }

    /// The address of the far end.
    pub fn far_address(&self) -> Ipv4Addr {
        FAR.1
    }

    /// Runs `action` in the far namespace.
    ///
    /// # Errors
    /// Those of the action.
    pub fn at_far_end<T>(&self, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        super::namespace::set(self.far.as_fd())?;
        let result = action();
        super::namespace::set(self.near.as_fd())?;
        result
    }
}

/// Into a new namespace.
fn leave() -> io::Result<OwnedFd> {
    // SAFETY: takes a flag; changes this thread alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    File::open(OWN).map(Into::into)
}

/// `ip address add ADDRESS/24 dev NAME; ip link set NAME up`
fn up((name, address): (&[u8], Ipv4Addr)) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let ask = |request: libc::Ioctl, set: &dyn Fn(&mut libc::ifreq)| {
        // SAFETY: all of the request may be zero; the name is shorter than its field.
        let result = unsafe {
            let mut argument: libc::ifreq = std::mem::zeroed();
            for (to, from) in argument.ifr_name.iter_mut().zip(name) {
                *to = *from as libc::c_char;
            }
            set(&mut argument);
            libc::ioctl(socket.as_raw_fd(), request, &raw const argument)
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let inet = |address: Ipv4Addr| {
        // SAFETY: all of it may be zero.
        let mut name: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        name.sin_family = libc::AF_INET as libc::sa_family_t;
        name.sin_addr.s_addr = u32::from_ne_bytes(address.octets());
        // SAFETY: both are socket addresses of 16 bytes.
        unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(name) }
    };
    ask(libc::SIOCSIFADDR as _, &|request| {
        request.ifr_ifru.ifru_addr = inet(address);
    })?;
    ask(libc::SIOCSIFNETMASK as _, &|request| {
        request.ifr_ifru.ifru_netmask = inet(Ipv4Addr::new(255, 255, 255, 0));
    })?;
    ask(libc::SIOCSIFFLAGS as _, &|request| {
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_crosses_the_wire_and_nothing_is_left() {
        let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let before = own();
        let thread = std::thread::spawn(|| -> io::Result<(u16, String)> {
            let wire = Wire::lay()?;
            let listener = wire.at_far_end(|| TcpListener::bind((wire.far_address(), 0)))?;
            let client = TcpStream::connect(listener.local_addr()?)?;
            let (_server, from) = listener.accept()?;
            assert_eq!(client.local_addr()?, from);
            assert_eq!(from.ip(), NEAR.1);
            Ok((from.port(), std::fs::read_to_string("/proc/net/dev")?))
        });
        match thread.join().unwrap() {
            Ok((port, _)) => assert_ne!(port, 0),
            // It takes CAP_SYS_ADMIN.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
        assert_eq!(own(), before);
    }
}
