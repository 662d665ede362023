//! The control socket: what a running agent tells `meshctl` about itself.

pub mod api;
pub mod authz;
pub(crate) mod checks;
pub mod host_checks;
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
