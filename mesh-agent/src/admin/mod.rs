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
pub use socket::{ControlSocket, ControlSocketError};

/// Directory in which agents put their control sockets, `<node>.sock` each.
pub const SOCKET_DIRECTORY: &str = "/run/undermesh";
