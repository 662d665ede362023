//! The decision at `connect(2)`, and how the original destination travels to
//! the agent: in sk_storage of the connecting socket, by tuple to the accepted
//! one, in sk_storage there, read by file descriptor.

use crate::{DNS_PORT, Ip, SocketIp, Workload, assert_layout};

/// What `connect(2)` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Nothing: the socket is left alone.
    Pass,
    /// The connection goes to the agent's listener in the same namespace.
    Proxy {
        /// Port of the listener.
        port: u16,
    },
    /// The workload is enrolled but nobody serves it: refuse.
    Refuse,
}

/// Decides for a TCP connection of an enrolled workload.
#[inline(always)]
pub const fn connect_verdict(workload: &Workload, destination: &SocketIp, known: bool) -> Connect {
    if destination.port != DNS_PORT
        && (destination.ip.is_loopback() || workload.is_own(&destination.ip) || !known)
    {
        return Connect::Pass;
    }
    let port = workload.outbound_port(&destination.ip);
    if port == 0 {
        Connect::Refuse
    } else {
        Connect::Proxy { port }
    }
}

/// How a socket gets to the agent's listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the loopback address.
    Loopback,
    /// By the workload's own address: the socket is bound to the device that has it.
    OwnAddress,
    /// None: it is bound to a device from which the listener cannot be reached.
    None,
}

/// Index of the interface `lo` in every namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
const LOOPBACK_DEVICE: u32 = 1;

/// Decides by the device that the socket is bound to (`SO_BINDTODEVICE`), 0 for
/// none. From another device than `lo`, loopback is a black hole.
#[inline(always)]
pub const fn way(workload: &Workload, bound_device: u32) -> Way {
    if bound_device == 0 || bound_device == LOOPBACK_DEVICE {
        Way::Loopback
    } else if bound_device == workload.device {
        Way::OwnAddress
    } else {
        Way::None
    }
}

/// Who may see an [`Origin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum OriginRole {
    /// The socket belongs to the application: `getpeername` gives the address.
    Application = 0,
    /// The socket belongs to the agent, which reads the storage by itself.
    Agent = 1,
}

/// Value of the sk_storage map `origins`: the address that the other side of
/// the mesh stands for. On a connecting application socket and on the agent's
/// accepted one it is the original destination; on the socket that the
/// application accepts from the agent it is the true client.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Socket cookie of the flow (of the socket that the application opened).
    pub flow: u64,
    /// The address.
    pub address: SocketIp,
    /// An [`OriginRole`].
    pub role: u32,
}

assert_layout!(Origin, size = 32, align = 8);

/// Value of the sk_storage map `agent_sockets`: marks a socket as the agent's
/// own. Only a process with the map's file descriptor can write it, so no
/// workload can forge it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// Client that the application at the other end shall see, or unspecified.
    pub client: SocketIp,
    /// Explicit padding, zero.
    pub reserved: u32,
}

assert_layout!(Socket, size = 24, align = 4);

/// Key of the map `connecting`: a connection inside one namespace between the
/// client's SYN and the server's accept. The destination address is left out:
/// it is always the namespace's own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Address of the connecting socket.
    pub source: Ip,
    /// Its port, host order.
    pub source_port: u16,
    /// Port that is connected to, host order.
    pub destination_port: u16,
    /// Explicit padding, zero.
    pub reserved: u32,
}

assert_layout!(Tuple, size = 32, align = 8);

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;

    use super::*;

    fn workload() -> Workload {
        let ip = |text: &str| Ip::from(text.parse::<core::net::IpAddr>().unwrap());
        Workload {
            ip4: ip("10.0.0.1"),
            ip6: ip("fd00::1"),
            outbound4_port: 4,
            outbound6_port: 6,
            ..Workload::default()
        }
    }

    fn verdict(destination: &str, known: bool) -> Connect {
        connect_verdict(
            &workload(),
            &destination.parse::<SocketAddr>().unwrap().into(),
            known,
        )
    }

    #[test]
    fn a_known_destination_is_proxied_in_its_own_family() {
        assert_eq!(verdict("10.96.0.1:80", true), Connect::Proxy { port: 4 });
        assert_eq!(verdict("[fd00::96]:80", true), Connect::Proxy { port: 6 });
    }

    #[test]
    fn loopback_own_and_unknown_addresses_are_left_alone() {
        for destination in ["127.0.0.1:80", "[::1]:80", "10.0.0.1:80", "[fd00::1]:80"] {
            assert_eq!(verdict(destination, true), Connect::Pass, "{destination}");
        }
        assert_eq!(verdict("192.0.2.1:443", false), Connect::Pass);
    }

    #[test]
    fn dns_over_tcp_is_captured_whoever_is_asked() {
        assert_eq!(verdict("192.0.2.1:53", false), Connect::Proxy { port: 4 });
        assert_eq!(verdict("127.0.0.53:53", false), Connect::Proxy { port: 4 });
    }

    #[test]
    fn a_socket_that_is_bound_to_a_device_goes_by_that_devices_address() {
        let workload = Workload {
            device: 2,
            ..workload()
        };
        assert_eq!(way(&workload, 0), Way::Loopback);
        assert_eq!(way(&workload, 1), Way::Loopback);
        assert_eq!(way(&workload, 2), Way::OwnAddress);
        assert_eq!(way(&workload, 3), Way::None);
        assert_eq!(way(&Workload::default(), 2), Way::None);
    }

    #[test]
    fn without_a_listener_an_enrolled_workload_is_refused() {
        let destination = "10.96.0.1:80".parse::<SocketAddr>().unwrap().into();
        assert_eq!(
            connect_verdict(&Workload::default(), &destination, true),
            Connect::Refuse
        );
    }
}
