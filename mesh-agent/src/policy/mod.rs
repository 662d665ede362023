//! Who may talk to whom, decided without I/O.

pub mod authorization;
mod path;
pub mod peer_authentication;
pub mod tls_check;

pub use authorization::{Authorization, L4Verdict};
pub use path::PathNormalization;
pub use peer_authentication::{MtlsMode, PeerAuthentications};
