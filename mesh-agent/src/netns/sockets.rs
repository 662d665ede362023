//! Opening sockets: in a workload's namespace, or in the agent's own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use super::{BoxFuture, Location, Namespace, Sockets};
use crate::datapath::{Caller, SocketMarks};

/// Connections that may wait for the agent; the kernel bounds it by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Sockets in the namespace of one workload, marked as the agent's own, so
/// that the kernel programs leave them alone.
pub struct WorkloadSockets {
    location: Location,
    marks: Arc<SocketMarks>,
}

impl WorkloadSockets {
    /// Sockets of the workload at `location`.
    pub fn new(location: Location, marks: Arc<SocketMarks>) -> Self {
        Self { location, marks }
    }

    /// Where the workload is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.location.namespace
    }

    /// Listens on a port of `address` that the kernel chooses.
    ///
    /// # Errors
    /// What the kernel says; `EADDRNOTAVAIL` or `EAFNOSUPPORT` where the address family is off.
    pub fn listen(&self, address: IpAddr) -> io::Result<TcpListener> {
        let socket = self.open(address, Type::STREAM, Protocol::TCP, None)?;
        // Accepted sockets inherit it, and they have the application's own port: without it,
        // a server could not start again while connections that we accepted for it are open.
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(address, 0).into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    }

    /// A UDP socket which hears only the namespace itself: bound to `address` (or any)
    /// on the device `lo`, at `port` where that is to be had, or one that the kernel chooses.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn listen_udp(&self, address: IpAddr, port: u16) -> io::Result<UdpSocket> {
        let socket = self.open(address, Type::DGRAM, Protocol::UDP, None)?;
        socket.bind_device(Some(b"lo"))?;
        let bind = |port| socket.bind(&SocketAddr::new(address, port).into());
        bind(port).or_else(|error| if port == 0 { Err(error) } else { bind(0) })?;
        UdpSocket::from_std(socket.into())
    }

    fn open(
        &self,
        like: IpAddr,
        kind: Type,
        protocol: Protocol,
        caller: Option<&Caller>,
    ) -> io::Result<Socket> {
        let domain = if like.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = self
            .namespace()
            .run(|| Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol)))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        self.marks.mark(&socket, caller)?;
        Ok(socket)
    }
}

/// `IP_BIND_ADDRESS_NO_PORT` (ip(7)), for both address families.
fn bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: a pointer to a value of the size that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl Sockets for WorkloadSockets {
    fn connect(
        &self,
        from: Option<IpAddr>,
        to: SocketAddr,
        caller: Option<Caller>,
    ) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(async move {
            let socket = self.open(to.ip(), Type::STREAM, Protocol::TCP, caller.as_ref())?;
            if let Some(from) = from {
                // The port is chosen at connect, by the whole tuple.
                bind_address_no_port(&socket)?;
                socket.bind(&SocketAddr::new(from, 0).into())?;
            }
            socket.set_tcp_nodelay(true)?;
            TcpSocket::from_std_stream(socket.into()).connect(to).await
        })
    }

    fn udp(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.open(to.ip(), Type::DGRAM, Protocol::UDP, None)?;
        socket.connect(&to.into())?;
        UdpSocket::from_std(socket.into())
    }
}

/// Sockets of the agent's own namespace, for tests and tools.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostSockets;

impl Sockets for HostSockets {
    fn connect(
        &self,
        _from: Option<IpAddr>,
        to: SocketAddr,
        _caller: Option<Caller>,
    ) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(to))
    }

    fn udp(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let any: SocketAddr = if to.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let socket = std::net::UdpSocket::bind(any)?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }
}
