//! What comes from the peer.

use std::ops::Range;

use aws_lc_rs::aead::Aad;
use rustls::crypto::cipher::make_tls13_aad;
use tokio::io::ReadBuf;

use super::buffer::Buffer;
use super::fault::Fault;
use super::record::{self, HEAD_BYTES, Kind, TAG_BYTES};
use super::session::Key;

/// What a record was.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// There is no whole one.
    Nothing,
    /// Data were given.
    Data,
    /// A part of a [message](Opening::message) was added.
    Handshake,
    /// With its number.
    Alert(u8),
}

/// Data in the first record of what has come.
struct InPlace {
    data: Range<usize>,
    /// Where the record ends.
    end: usize,
}

/// Opens records.
pub struct Opening {
    pub key: Key,
    /// As it has come.
    pub incoming: Buffer,
    /// Data that were opened where they lay, since the reader had no room for all of them.
    opened: Option<InPlace>,
    /// Messages of the handshake that are not all there.
    pub message: Vec<u8>,
}

impl Opening {
    /// With the records that came together with the end of the handshake.
    pub fn new(key: Key, records: Vec<u8>) -> Self {
        Self {
            key,
            incoming: records.into(),
            opened: None,
            message: Vec::new(),
        }
    }

    /// Opens the next record, into what the reader has given if there is room.
    pub fn open(&mut self, reader: &mut ReadBuf<'_>) -> Result<Opened, Fault> {
        if let Some(opened) = self.opened.take() {
            self.give(opened, reader);
            return Ok(Opened::Data);
        }
        let bytes = self.incoming.bytes_mut();
        let Some(sealed) = record::sealed_bytes(bytes)? else {
            return Ok(Opened::Nothing);
        };
        let end = HEAD_BYTES + sealed;
        let Some(sealed_bytes) = bytes.get_mut(HEAD_BYTES..end) else {
            return Ok(Opened::Nothing);
        };
        let (key, nonce) = self.key.next()?;
        let aad = Aad::from(make_tls13_aad(sealed));
        let (inside, tag) = sealed_bytes.split_at_mut(sealed - TAG_BYTES);
        let is_room = reader.remaining() >= inside.len();
        let opened = if is_room {
            let place = reader.initialize_unfilled_to(inside.len());
            key.open_separate_gather(nonce, aad, inside, tag, place)
                .map_err(|_| Fault::BadRecord)?;
            place
        } else {
            key.open_in_place_separate_tag(nonce, aad, tag, inside)
                .map_err(|_| Fault::BadRecord)?;
            inside
        };
        let (kind, length) = record::inside(opened)?;
        // No other may come between the parts of a message (RFC 8446, section 5.1).
        if kind != Kind::Handshake && !self.message.is_empty() {
            return Err(Fault::Unexpected);
        }
        let opened = &opened[..length];
        let what = match kind {
            Kind::Data if is_room => {
                reader.advance(length);
                Opened::Data
            }
            Kind::Data => {
                let data = HEAD_BYTES..HEAD_BYTES + length;
                self.give(InPlace { data, end }, reader);
                return Ok(Opened::Data);
            }
            // Only data may be empty (RFC 8446, section 5.1).
            Kind::Alert | Kind::Handshake if length == 0 => return Err(Fault::Unexpected),
            Kind::Handshake => {
                self.message.extend_from_slice(opened);
                Opened::Handshake
            }
            Kind::Alert => match opened {
                [_, number] => Opened::Alert(*number),
                _ => return Err(Fault::Unreadable),
            },
        };
        self.incoming.take(end);
        Ok(what)
    }

    /// Gives as much as there is room for.
    fn give(&mut self, mut opened: InPlace, reader: &mut ReadBuf<'_>) {
        let bytes = opened.data.len().min(reader.remaining());
        let begin = opened.data.start;
        opened.data.start += bytes;
        reader.put_slice(&self.incoming.bytes()[begin..opened.data.start]);
        if opened.data.is_empty() {
            self.incoming.take(opened.end);
        } else {
            self.opened = Some(opened);
        }
    }
}
