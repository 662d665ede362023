//! What goes to the peer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_lc_rs::aead::Aad;
use rustls::crypto::cipher::make_tls13_aad;
use tokio::io::AsyncWrite;

use super::buffer::Buffer;
use super::fault::Fault;
use super::record::{HEAD_BYTES, KEY_UPDATE_MESSAGE, KIND_BYTES, Kind, MAX_BYTES, TAG_BYTES};
use super::session::{Key, Session};

/// What a record takes beside what it carries.
const AROUND_BYTES: usize = HEAD_BYTES + KIND_BYTES + TAG_BYTES;
/// Room that is left for what is said between data.
const SHORT_BYTES: usize = 4 * (AROUND_BYTES + KEY_UPDATE_MESSAGE.len());

/// Seals records.
pub struct Sealing {
    key: Key,
    records_per_key: u64,
    /// The next data are sealed with the next key.
    is_update_due: bool,
    /// Sealed, and not sent.
    waiting: Buffer,
}

impl Sealing {
    pub fn new(key: Key, records_per_key: u64) -> Self {
        Self {
            key,
            records_per_key,
            is_update_due: false,
            waiting: Buffer::default(),
        }
    }

    /// The peer wants the next key, before the next data (RFC 8446, section 4.6.3).
    pub fn update(&mut self) {
        self.is_update_due = true;
    }

    /// Seals as much as there is room for, and says how much that is.
    pub fn data(&mut self, slices: &[IoSlice<'_>], session: &mut Session) -> Result<usize, Fault> {
        let mut slices = Slices { slices, at: 0 };
        let mut sealed = 0;
        loop {
            let bytes = slices.bytes().min(MAX_BYTES);
            if bytes == 0 || self.waiting.free() < bytes + AROUND_BYTES + SHORT_BYTES {
                return Ok(sealed);
            }
            // Two are left for an update and for the end.
            if self.is_update_due || self.key.used() + 2 >= self.records_per_key {
                self.is_update_due = false;
                let next = session.next_to_seal()?;
                self.short(Kind::Handshake, &KEY_UPDATE_MESSAGE)?;
                self.key = next;
            }
            self.record(Kind::Data, &mut slices, bytes)?;
            sealed += bytes;
        }
    }

    /// Seals something short, for which there is always room.
    pub fn short(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), Fault> {
        let slices = [IoSlice::new(bytes)];
        let mut slices = Slices {
            slices: &slices,
            at: 0,
        };
        self.record(kind, &mut slices, bytes.len())
    }

    fn record(&mut self, kind: Kind, from: &mut Slices<'_>, bytes: usize) -> Result<(), Fault> {
        let room = self.waiting.room(bytes + AROUND_BYTES);
        let (head, room) = room.split_at_mut(HEAD_BYTES);
        let (place, room) = room.split_at_mut(bytes);
        let behind = &mut room[..KIND_BYTES + TAG_BYTES];
        let authenticated = make_tls13_aad(bytes + KIND_BYTES + TAG_BYTES);
        head.copy_from_slice(&authenticated);
        let (aad, kind) = (Aad::from(authenticated), [kind.number()]);
        let (key, nonce) = self.key.next()?;
        match from.in_one(bytes) {
            Some(slice) => key.seal_out_of_place_scatter(nonce, aad, slice, place, &kind, behind),
            None => {
                from.copy_to(place);
                key.seal_in_place_scatter(nonce, aad, place, &kind, behind)
            }
        }
        .map_err(|_| Fault::Key)?;
        self.waiting.add(bytes + AROUND_BYTES);
        Ok(())
    }

    /// Sends all that waits.
    pub fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let sent = ready!(Pin::new(&mut *stream).poll_write(cx, self.waiting.bytes()))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.waiting.take(sent);
        }
        self.waiting.rest();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
impl Sealing {
    pub fn limit_records_per_key(&mut self, records: u64) {
        self.records_per_key = records;
    }

    /// Records that the key has sealed.
    pub fn used(&self) -> u64 {
        self.key.used()
    }

    /// All that waits.
    pub fn sealed(&mut self) -> Vec<u8> {
        let sealed = self.waiting.bytes().to_vec();
        self.waiting = Buffer::default();
        sealed
    }
}

/// What is left of several slices.
struct Slices<'a> {
    slices: &'a [IoSlice<'a>],
    /// Where in the first of them.
    at: usize,
}

impl<'a> Slices<'a> {
    fn bytes(&self) -> usize {
        self.slices.iter().map(|slice| slice.len()).sum::<usize>() - self.at
    }

    /// The next bytes, where they lie side by side.
    fn in_one(&mut self, bytes: usize) -> Option<&'a [u8]> {
        while let [first, rest @ ..] = self.slices
            && first.len() == self.at
        {
            (self.slices, self.at) = (rest, 0);
        }
        let all: &'a [u8] = self.slices.first()?;
        let found = all.get(self.at..self.at + bytes)?;
        self.at += bytes;
        Some(found)
    }

    fn copy_to(&mut self, mut place: &mut [u8]) {
        while !place.is_empty()
            && let [first, rest @ ..] = self.slices
        {
            let left = &first[self.at..];
            let bytes = left.len().min(place.len());
            place[..bytes].copy_from_slice(&left[..bytes]);
            place = &mut place[bytes..];
            self.at += bytes;
            if self.at == first.len() {
                (self.slices, self.at) = (rest, 0);
            }
        }
    }
}
