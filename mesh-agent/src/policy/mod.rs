//! Who may talk to whom, decided without I/O.

mod peer_authentication;

pub use peer_authentication::{MtlsMode, PeerAuthentications};
