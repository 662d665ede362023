//! Identities by number, so that a flow's record need not hold two URIs.

use crate::assert_layout;

/// Longest SPIFFE ID in bytes that fits (the specification allows 2048; those
/// of a mesh have a trust domain, a namespace and a service account).
pub const IDENTITY_BYTES: usize = 252;

/// Value of the map `identities`; the key is a number from 1. Written by the
/// agent; an entry stays at least as long as something mentions it, and no number
/// ever stands for another identity.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Bytes of `uri` that count.
    pub length: u32,
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`
    pub uri: [u8; IDENTITY_BYTES],
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            length: 0,
            uri: [0; IDENTITY_BYTES],
        }
    }
}

assert_layout!(Identity, size = 256, align = 4);
