//! The decision at `connect(2)`, and how the original destination travels to
//! the agent: in sk_storage of the connecting socket, by tuple to the accepted
//! one, in sk_storage there, read by file descriptor.

use crate::{DNS_PORT, Ip, SocketIp, VerdictKind, Workload, assert_layout};

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
    /// The connection goes to an endpoint on this node.
    Direct,
    /// Refused by the agent's decision.
    Deny,
    /// The workload is enrolled but nobody serves it.
    Unserved,
}

/// Decides for a TCP connection of an enrolled workload. `cached` is the kind of
/// the agent's verdict where one is in force, `known` whether the mesh knows the
/// destination.
#[inline(always)]
pub const fn connect_verdict(
    workload: &Workload,
    destination: &SocketIp,
    cached: Option<u32>,
    known: bool,
) -> Connect {
    if destination.port != DNS_PORT {
        if destination.ip.is_loopback() || workload.is_own(&destination.ip) {
            return Connect::Pass;
        }
        match cached {
            Some(DIRECT) => return Connect::Direct,
            Some(PASS) => return Connect::Pass,
            Some(DENY) => return Connect::Deny,
            Some(_) => {}
            None if !known && !workload.takes_all() => return Connect::Pass,
            None => {}
        }
    }
    let port = workload.outbound_port(&destination.ip);
    if port == 0 {
        Connect::Unserved
    } else {
        Connect::Proxy { port }
    }
}

const PASS: u32 = VerdictKind::Pass as u32;
const DIRECT: u32 = VerdictKind::Direct as u32;
const DENY: u32 = VerdictKind::Deny as u32;

/// How a socket gets to the agent's listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the loopback address, from the workload's own.
    Loopback,
    /// By the loopback address, from it: the socket is bound to `lo`, where nothing that is sent to
    /// the workload's own address arrives.
    WithinLoopback,
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
    if bound_device == 0 {
        Way::Loopback
    } else if bound_device == LOOPBACK_DEVICE {
        Way::WithinLoopback
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
    /// The socket belongs to an application, and so does the other end: no agent is on the way.
    Direct = 2,
}

/// Value of the sk_storage map `origins`: the address that the other side of
/// the mesh stands for. On a connecting application socket and on the agent's
/// accepted one it is the original destination; on the socket that the
/// application accepts it is the true client.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Socket cookie of the flow (of the socket that the application opened).
    pub flow: u64,
    /// Cookie of the namespace that the connection ends in.
    pub server_netns: u64,
    /// Kernel address of the connecting socket, for the short-circuit.
    pub client_sock: u64,
    /// The address.
    pub address: SocketIp,
    /// An [`OriginRole`].
    pub role: u32,
    /// Bits of [`direction`](crate::direction): which ends may use the short-circuit.
    pub splice: u32,
    /// Who connects, as in the map `identities`; 0 where that is not known.
    pub source_identity: u32,
    /// Direct: who accepts.
    pub destination_identity: u32,
    /// To an application: a [`Transport`](crate::Transport), how the bytes came to this node.
    pub transport: u32,
}

assert_layout!(Origin, size = 64, align = 8);

/// Value of the sk_storage map `agent_sockets`: marks a socket as the agent's
/// own. Only a process with the map's file descriptor can write it, so no
/// workload can forge it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// Client that the application at the other end shall see, or unspecified.
    pub client: SocketIp,
    /// Identity of that client, as in the map `identities`.
    pub source_identity: u32,
    /// A [`Transport`](crate::Transport): how its bytes came here.
    pub transport: u32,
}

assert_layout!(Socket, size = 28, align = 4);

/// Key of the map `connecting`: a connection between two sockets of this node,
/// between the client's SYN and the server's accept. The destination address is
/// left out: it is always the namespace's own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Cookie of the network namespace that the connection ends in.
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
            None,
            known,
        )
    }

    #[test]
    fn the_agents_verdict_comes_before_the_question_whether_the_mesh_knows_the_address() {
        let decide = |destination: &str, kind| {
            connect_verdict(
                &workload(),
                &destination.parse::<SocketAddr>().unwrap().into(),
                Some(kind as u32),
                // What the mesh knows does not matter then.
                false,
            )
        };
        let vip = "10.96.0.1:80";
        assert_eq!(decide(vip, VerdictKind::Direct), Connect::Direct);
        assert_eq!(decide(vip, VerdictKind::Pass), Connect::Pass);
        assert_eq!(decide(vip, VerdictKind::Deny), Connect::Deny);
        assert_eq!(decide(vip, VerdictKind::Proxy), Connect::Proxy { port: 4 });
        // Its own affairs are its own, whatever the agent says.
        assert_eq!(decide("10.0.0.1:80", VerdictKind::Deny), Connect::Pass);
        // Questions to name servers are never cached.
        assert_eq!(
            decide("192.0.2.1:53", VerdictKind::Pass),
            Connect::Proxy { port: 4 }
        );
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
    fn where_the_agent_wants_all_unknown_addresses_go_to_it_too() {
        let all = Workload {
            flags: crate::workload_flag::ALL_OUTBOUND,
            ..workload()
        };
        let decide = |destination: &str, known| {
            let destination = destination.parse::<SocketAddr>().unwrap().into();
            connect_verdict(&all, &destination, None, known)
        };
        for known in [true, false] {
            assert_eq!(decide("192.0.2.1:443", known), Connect::Proxy { port: 4 });
            assert_eq!(
                decide("[2001:db8::1]:443", known),
                Connect::Proxy { port: 6 }
            );
            // Its own affairs stay its own.
            assert_eq!(decide("127.0.0.1:80", known), Connect::Pass);
            assert_eq!(decide("10.0.0.1:80", known), Connect::Pass);
        }
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
        assert_eq!(way(&workload, 1), Way::WithinLoopback);
        assert_eq!(way(&workload, 2), Way::OwnAddress);
        assert_eq!(way(&workload, 3), Way::None);
        assert_eq!(way(&Workload::default(), 2), Way::None);
    }

    #[test]
    fn without_a_listener_an_enrolled_workload_is_refused() {
        let destination = "10.96.0.1:80".parse::<SocketAddr>().unwrap().into();
        assert_eq!(
            connect_verdict(&Workload::default(), &destination, None, true),
            Connect::Unserved
        );
    }
}
