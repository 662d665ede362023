//! Who may talk to whom, decided without I/O.

mod peer_authentication;
pub mod tls_check;

pub use peer_authentication::{MtlsMode, PeerAuthentications};
