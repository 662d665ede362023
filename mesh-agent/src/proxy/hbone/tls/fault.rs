//! What ends a connection.

use std::io;

/// A peer that does not keep to TLS 1.3 (RFC 8446), or that says so of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not what the peer has sealed, or not in its place.
    #[error("a record cannot be opened")]
    BadRecord,
    #[error("a record is too long")]
    TooLong,
    #[error("a message has no place after the handshake")]
    Unexpected,
    #[error("a message cannot be read")]
    Unreadable,
    #[error("a message says what may not be said")]
    Illegal,
    /// With the number that it gives.
    #[error("the peer has given up: alert {0}")]
    Alert(u8),
    /// Ours.
    #[error("the key is of no use")]
    Key,
}

impl Fault {
    /// What the peer is told (RFC 8446, section 6).
    pub fn alert(self) -> Option<u8> {
        match self {
            Self::Unexpected => Some(10),
            Self::BadRecord => Some(20),
            Self::TooLong => Some(22),
            Self::Illegal => Some(47),
            Self::Unreadable => Some(50),
            Self::Key => Some(80),
            Self::Alert(_) => None,
        }
    }
}

impl From<rustls::Error> for Fault {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidMessage(_) => Self::Unreadable,
            _ => Self::Key,
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::new(io::ErrorKind::InvalidData, fault)
    }
}
