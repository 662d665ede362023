//! Sockets inside a workload's network namespace.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use tokio::net::{TcpStream, UdpSocket};

/// A boxed future; sockets are opened once per connection, never per request.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Opens sockets as a workload would: in its network namespace, from its address.
pub trait Sockets: Send + Sync + 'static {
    /// Connects to `to`, from `from` where given. `client` is the address that
    /// the accepting application shall see as its peer, where that differs.
    fn connect(
        &self,
        from: Option<IpAddr>,
        to: SocketAddr,
        client: Option<SocketAddr>,
    ) -> BoxFuture<'_, io::Result<TcpStream>>;

    /// A UDP socket that is connected to `to`.
    fn udp(&self, to: SocketAddr) -> io::Result<UdpSocket>;
}

/// Sockets of the agent's own namespace, for tests and tools.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostSockets;

impl Sockets for HostSockets {
    fn connect(
        &self,
        _from: Option<IpAddr>,
        to: SocketAddr,
        _client: Option<SocketAddr>,
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
