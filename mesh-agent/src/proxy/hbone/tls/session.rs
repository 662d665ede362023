//! The secrets of a connection. How they are agreed on, how the next follow from them, and what a
//! ticket says is left to rustls.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use rustls::ConnectionTrafficSecrets;
use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{self, Iv};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;

use super::fault::Fault;

/// One side of it.
pub enum Session {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Session {
    /// How many records one key may seal.
    pub fn records_per_key(&self) -> u64 {
        let suite = match self {
            Self::Client(session) => session.negotiated_cipher_suite(),
            Self::Server(session) => session.negotiated_cipher_suite(),
        };
        suite
            .tls13()
            .map_or(0, |suite| suite.common.confidentiality_limit)
    }

    /// What we seal with next.
    pub fn next_to_seal(&mut self) -> Result<Key, Fault> {
        Key::new(match self {
            Self::Client(session) => session.update_tx_secret()?,
            Self::Server(session) => session.update_tx_secret()?,
        })
    }

    /// What the peer seals with next.
    pub fn next_to_open(&mut self) -> Result<Key, Fault> {
        Key::new(match self {
            Self::Client(session) => session.update_rx_secret()?,
            Self::Server(session) => session.update_rx_secret()?,
        })
    }

    /// Whether the peer may give tickets: it is a server.
    pub fn takes_tickets(&self) -> bool {
        matches!(self, Self::Client(_))
    }

    /// The peer gives a ticket.
    pub fn ticket(&mut self, ticket: &[u8]) -> Result<(), Fault> {
        match self {
            Self::Client(session) => Ok(session.handle_new_session_ticket(ticket)?),
            Self::Server(_) => Err(Fault::Unexpected),
        }
    }
}

/// A key, and how often it was used: each record has a nonce of its own (RFC 8446, section 5.3).
pub struct Key {
    key: LessSafeKey,
    iv: Iv,
    sequence: u64,
}

impl Key {
    pub fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Fault> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Fault::Key),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| Fault::Key)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv,
            sequence,
        })
    }

    /// Records that it has served for.
    pub fn used(&self) -> u64 {
        self.sequence
    }

    /// The key with the nonce of the next record: the only place where one is made.
    pub fn next(&mut self) -> Result<(&LessSafeKey, aws_lc_rs::aead::Nonce), Fault> {
        let nonce = cipher::Nonce::new(&self.iv, self.sequence).0;
        self.sequence = self.sequence.checked_add(1).ok_or(Fault::Key)?;
        Ok((
            &self.key,
            aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce),
        ))
    }
}
