//! Sockets inside a workload's network namespace.

mod cgroup_path;
mod container;
mod find;
mod interface;
mod namespace;
mod netlink;
mod place;
mod sock_diag;
mod sockets;
mod watch;
mod wire;

pub use crate::datapath::Caller;
pub use cgroup_path::{Hierarchy, is_of_container};
pub use find::find;
pub use namespace::{Namespace, NamespaceError};
pub use place::{Cgroup, Location, Place};
pub use sock_diag::{Detail, Owner, SockDiag, TcpCounters, TcpSocket};
pub use sockets::{HostSockets, WorkloadSockets};
pub use watch::NamespaceWatch;
pub use wire::Wire;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use tokio::net::{TcpStream, UdpSocket};

/// A boxed future; sockets are opened once per connection, never per request.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Opens sockets as a workload would: in its network namespace, from its address.
pub trait Sockets: Send + Sync + 'static {
    /// Connects to `to`, from `from` where given, on behalf of `caller`, whom
    /// the accepting application shall see as its peer.
    fn connect(
        &self,
        from: Option<IpAddr>,
        to: SocketAddr,
        caller: Option<Caller>,
    ) -> BoxFuture<'_, io::Result<TcpStream>>;

    /// A UDP socket that is connected to `to`.
    fn udp(&self, to: SocketAddr) -> io::Result<UdpSocket>;
}
