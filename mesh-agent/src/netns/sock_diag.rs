//! The TCP sockets of a network namespace, as sock_diag(7) tells of them, and
//! ends them. The structures are those of include/uapi/linux/inet_diag.h and
//! tcp.h; fields are read at their offsets.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::Namespace;
use super::netlink::{Message, Netlink, attributes, u32_at, u64_at};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// `struct inet_diag_msg`, before its attributes.
const ENTRY: usize = 72;
/// `struct inet_diag_sockid`.
const ID: usize = 48;
/// `INET_DIAG_NOCOOKIE`: whatever its cookie is.
const NO_COOKIE: [u8; 8] = [0xff; 8];
/// States in which the end that has connected may be while it can still be answered:
/// `TCP_ESTABLISHED`, `TCP_FIN_WAIT1`, `TCP_FIN_WAIT2`, `TCP_CLOSE_WAIT`.
const ANSWERABLE: [u8; 4] = [1, 4, 5, 8];
/// TCP states that are neither of listeners nor of what has ended: `TCP_ESTABLISHED` to
/// `TCP_FIN_WAIT2`, `TCP_CLOSE_WAIT` to `TCP_LAST_ACK`, `TCP_CLOSING`.
const CONNECTED: u32 = 0b1011_0011_1110;

/// What is asked of each socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Who it is.
    Ids,
    /// Its counters, too, for which the kernel takes its lock.
    Counters,
}

/// Whose a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user that made it.
    pub user: u32,
    /// The control group (cgroup2) that it was made in, since Linux 5.8.
    pub cgroup: Option<u64>,
}

/// A socket that is connected, or about to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// The kernel's name for it; never used twice.
    pub cookie: u64,
    /// Its state, as in include/net/tcp_states.h.
    pub state: u32,
    /// What was asked for.
    pub counters: Option<TcpCounters>,
    family: u8,
    /// As the kernel wrote it.
    id: [u8; ID],
}

/// What `struct tcp_info` has of a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Bytes that the other end has acknowledged, SYN and FIN among them.
    pub bytes_acked: u64,
    /// Bytes received, the FIN among them.
    pub bytes_received: u64,
    /// Segments sent.
    pub segments_sent: u32,
    /// Segments received.
    pub segments_received: u32,
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: u32,
    /// Shortest round-trip time in microseconds, where it was measured.
    pub min_rtt_us: Option<u32>,
    /// Segments retransmitted.
    pub retransmits: u32,
}

/// A netlink socket in a namespace.
#[derive(Debug)]
pub struct SockDiag(Netlink);

impl SockDiag {
    /// # Errors
    /// Where the namespace cannot be entered, or the kernel does not have `CONFIG_INET_DIAG`.
    pub fn open(namespace: &Namespace) -> io::Result<Self> {
        namespace.run(Self::here)
    }

    /// In the calling thread's namespace.
    ///
    /// # Errors
    /// As above.
    pub fn here() -> io::Result<Self> {
        Netlink::open(libc::NETLINK_SOCK_DIAG).map(Self)
    }

    /// Calls `each` for all connected sockets of the namespace.
    ///
    /// # Errors
    /// What the kernel says; then not all were seen.
    pub fn sockets(&self, detail: Detail, mut each: impl FnMut(TcpSocket)) -> io::Result<()> {
        let extensions = match detail {
            Detail::Ids => 0,
            Detail::Counters => 1 << (INET_DIAG_INFO - 1),
        };
        for family in [libc::AF_INET, libc::AF_INET6] {
            let request = request(family as u8, extensions, &[0; ID]);
            let message = Message::new(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, &request);
            self.0.dump(&message, |kind, content| {
                if kind == SOCK_DIAG_BY_FAMILY {
                    let socket = entry(content);
                    each(socket.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Whose the socket is that is connected from `local` to `remote`; `None`
    /// where the namespace has none, or no process holds it any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn owner(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Owner>> {
        let Some((family, id)) = connection(local, remote) else {
            return Ok(None);
        };
        let message = Message::new(SOCK_DIAG_BY_FAMILY, 0, &request(family, 0, &id));
        let mut owner = None;
        let asked = self.0.ask(&message, |kind, content| {
            if kind == SOCK_DIAG_BY_FAMILY {
                owner = holder(content);
            }
            Ok(())
        });
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            asked => asked.map(|()| owner),
        }
    }

    /// Ends a connection: this end hears `ECONNABORTED`, the other a reset.
    /// `false` where it has ended already.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the kernel does not have `CONFIG_INET_DIAG_DESTROY`.
    pub fn destroy(&self, socket: &TcpSocket) -> io::Result<bool> {
        let request = request(socket.family, 0, &socket.id);
        let message = Message::new(SOCK_DESTROY, libc::NLM_F_ACK, &request);
        match self.0.change(&message) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether this kernel ends connections ([`SockDiag::destroy`]).
    pub fn can_destroy(&self) -> bool {
        let nobodys = TcpSocket {
            cookie: 0,
            state: 0,
            counters: None,
            family: libc::AF_INET as u8,
            id: [0; ID],
        };
        self.destroy(&nobodys).is_ok()
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, extensions: u8, id: &[u8; ID]) -> Vec<u8> {
    let mut request = vec![family, libc::IPPROTO_TCP as u8, extensions, 0];
    request.extend(CONNECTED.to_ne_bytes());
    request.extend(id);
    request
}

/// Family and `struct inet_diag_sockid` of a connection.
fn connection(local: SocketAddr, remote: SocketAddr) -> Option<(u8, [u8; ID])> {
    let mut id = [0; ID];
    id[..2].copy_from_slice(&local.port().to_be_bytes());
    id[2..4].copy_from_slice(&remote.port().to_be_bytes());
    id[ID - 8..].copy_from_slice(&NO_COOKIE);
    let family = match (local.ip().to_canonical(), remote.ip().to_canonical()) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            id[4..8].copy_from_slice(&local.octets());
            id[20..24].copy_from_slice(&remote.octets());
            libc::AF_INET
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            id[4..20].copy_from_slice(&local.octets());
            id[20..36].copy_from_slice(&remote.octets());
            libc::AF_INET6
        }
        _ => return None,
    };
    Some((family as u8, id))
}

/// The owner of a socket that a process holds. Where there is no connection the kernel tells of a
/// listener with the same local end; and where no process holds one any more (it has no inode),
/// the user that is told is root, whoever it was.
fn holder(content: &[u8]) -> Option<Owner> {
    let is_held = u32_at(content, 68)? != 0 && ANSWERABLE.contains(content.get(1)?);
    let user = u32_at(content, 64).filter(|_| is_held)?;
    let mut cgroup = None;
    attributes(content.get(ENTRY..)?, |kind, value| {
        if kind == INET_DIAG_CGROUP_ID {
            cgroup = u64_at(value, 0);
        }
    })?;
    Some(Owner { user, cgroup })
}

fn entry(content: &[u8]) -> Option<TcpSocket> {
    let id: [u8; ID] = content.get(4..4 + ID)?.try_into().ok()?;
    let (low, high) = (u32_at(&id, 40)?, u32_at(&id, 44)?);
    let mut counters = None;
    attributes(content.get(ENTRY..)?, |kind, value| {
        if kind == INET_DIAG_INFO {
            counters = tcp_info(value);
        }
    })?;
    Some(TcpSocket {
        cookie: u64::from(high) << 32 | u64::from(low),
        state: u32::from(*content.get(1)?),
        counters,
        family: *content.first()?,
        id,
    })
}

/// The fields are there since Linux 4.6.
fn tcp_info(value: &[u8]) -> Option<TcpCounters> {
    Some(TcpCounters {
        rtt_us: u32_at(value, 68)?,
        retransmits: u32_at(value, 100)?,
        bytes_acked: u64_at(value, 120)?,
        bytes_received: u64_at(value, 128)?,
        segments_sent: u32_at(value, 136)?,
        segments_received: u32_at(value, 140)?,
        min_rtt_us: Some(u32_at(value, 148)?).filter(|shortest| *shortest != u32::MAX),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use proptest::prelude::*;
    use socket2::{Domain, Socket, Type};

    use super::*;

    fn pair(from: TcpStream, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let (accepted, _) = listener.accept().unwrap();
        (from, accepted)
    }

    fn cookie(socket: &TcpStream) -> u64 {
        const SO_COOKIE: libc::c_int = 57;
        let mut cookie = 0u64;
        let mut size = size_of::<u64>() as libc::socklen_t;
        // SAFETY: pointers to values of the sizes that are given.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut size,
            )
        };
        assert_eq!(result, 0);
        cookie
    }

    fn find(diag: &SockDiag, wanted: u64) -> TcpSocket {
        let mut found = None;
        diag.sockets(Detail::Counters, |socket| {
            if socket.cookie == wanted {
                found = Some(socket);
            }
        })
        .unwrap();
        found.expect("the socket is open")
    }

    #[test]
    fn counters_are_those_of_this_moment_and_a_socket_can_be_ended() {
        let diag = SockDiag::here().unwrap();
        assert!(diag.can_destroy());
        let loopback = |ip: IpAddr| TcpListener::bind(SocketAddr::new(ip, 0)).unwrap();
        let v4 = loopback(Ipv4Addr::LOCALHOST.into());
        let v6 = loopback(Ipv6Addr::LOCALHOST.into());
        let mapped = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        let port = v4.local_addr().unwrap().port();
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), port);
        mapped.connect(&to.into()).unwrap();
        let to = |listener: &TcpListener| TcpStream::connect(listener.local_addr().unwrap());
        let streams = [
            pair(mapped.into(), &v4),
            pair(to(&v4).unwrap(), &v4),
            pair(to(&v6).unwrap(), &v6),
        ];
        for (mut client, mut server) in streams {
            client.write_all(b"12345").unwrap();
            server.read_exact(&mut [0; 5]).unwrap();
            server.write_all(b"123").unwrap();
            client.read_exact(&mut [0; 3]).unwrap();
            let socket = find(&diag, cookie(&client));
            let counters = socket.counters.expect("they were asked for");
            // The SYN is among them.
            assert_eq!((counters.bytes_acked, counters.bytes_received), (6, 3));
            assert!(
                counters.segments_sent >= 3 && counters.rtt_us > 0,
                "{counters:?}"
            );
            match diag.destroy(&socket) {
                Ok(ended) => assert!(ended),
                // It takes CAP_NET_ADMIN.
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
                    continue;
                }
            }
            let end = client.read(&mut [0; 1]).unwrap_err().raw_os_error();
            assert_eq!(end, Some(libc::ECONNABORTED));
            let end = server.read(&mut [0; 1]).unwrap_err().raw_os_error();
            assert_eq!(end, Some(libc::ECONNRESET));
            assert!(!diag.destroy(&socket).unwrap(), "it has ended");
        }
    }

    #[test]
    fn the_owner_of_a_connection_is_found_and_a_listener_owns_none() {
        let diag = SockDiag::here().unwrap();
        // SAFETY: no preconditions.
        let user = unsafe { libc::getuid() };
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let listener = TcpListener::bind(SocketAddr::new(ip, 0)).unwrap();
            let to = listener.local_addr().unwrap();
            let (client, server) = pair(TcpStream::connect(to).unwrap(), &listener);
            let from = client.local_addr().unwrap();
            let owner = || diag.owner(from, to).unwrap().map(|owner| owner.user);
            assert_eq!(owner(), Some(user));
            let nobody = SocketAddr::new(ip, 1);
            assert_eq!(diag.owner(to, nobody).unwrap(), None, "the listener");
            assert_eq!(diag.owner(nobody, to).unwrap(), None);
            // Half closed it can still be answered; then nobody holds it any more.
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(owner(), Some(user));
            drop(client);
            assert_eq!(diag.owner(from, to).unwrap(), None, "an orphan");
            drop(server);
            assert_eq!(diag.owner(from, to).unwrap(), None, "time-wait");
        }
        let mixed = (Ipv4Addr::LOCALHOST, 1).into();
        let owner = diag.owner(mixed, (Ipv6Addr::LOCALHOST, 1).into());
        assert_eq!(owner.unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_entry_makes_it_panic(content in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = entry(&content);
            let _ = holder(&content);
        }
    }
}
