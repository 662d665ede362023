//! The agent's own doors: the control socket, by which a running agent tells `meshctl` about
//! itself, and the port with its metrics.

pub mod api;
pub mod authz;
pub(crate) mod checks;
pub mod host_checks;
pub mod metrics;
mod observed;
#[cfg(test)]
pub(crate) mod samples;
mod server;
mod socket;

pub use server::serve;
pub(crate) use socket::place_socket;
pub use socket::{ControlSocket, ControlSocketError, SocketFile};

/// Directory in which agents put their control sockets, `<node>.sock` each.
pub const SOCKET_DIRECTORY: &str = "/run/undermesh";
