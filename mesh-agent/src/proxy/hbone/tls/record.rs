//! How a record looks (RFC 8446, section 5).

use super::fault::Fault;

/// Kind, version and length, before what is sealed.
pub const HEAD_BYTES: usize = 5;
/// The most that a record carries.
pub const MAX_BYTES: usize = 16 * 1024;
/// What a seal takes with each cipher that we have.
pub const TAG_BYTES: usize = 16;
/// The kind of what is inside stands behind it.
pub const KIND_BYTES: usize = 1;
/// The most that is sealed, with padding.
const MAX_SEALED_BYTES: usize = MAX_BYTES + 256;

/// What is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Alert,
    Handshake,
    Data,
}

impl Kind {
    pub fn number(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }

    fn of(number: u8) -> Result<Self, Fault> {
        match number {
            21 => Ok(Self::Alert),
            22 => Ok(Self::Handshake),
            23 => Ok(Self::Data),
            _ => Err(Fault::Unexpected),
        }
    }
}

/// How long what is sealed in the first record of these is; nothing while its head is not all there.
pub fn sealed_bytes(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let Some(&[kind, _, _, high, low]) = bytes.first_chunk::<HEAD_BYTES>() else {
        return Ok(None);
    };
    // All look like data from outside.
    if kind != Kind::Data.number() {
        return Err(Fault::Unexpected);
    }
    match usize::from(u16::from_be_bytes([high, low])) {
        0..=TAG_BYTES => Err(Fault::BadRecord),
        length @ ..=MAX_SEALED_BYTES => Ok(Some(length)),
        _ => Err(Fault::TooLong),
    }
}

/// What is inside of what was sealed, and how long it is without its padding.
pub fn inside(opened: &[u8]) -> Result<(Kind, usize), Fault> {
    let Some(length) = opened.iter().rposition(|byte| *byte != 0) else {
        return Err(Fault::Unexpected);
    };
    if opened.len() > MAX_BYTES + KIND_BYTES {
        return Err(Fault::TooLong);
    }
    Ok((Kind::of(opened[length])?, length))
}

/// A message after the handshake.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// With which the session can be resumed.
    Ticket(&'a [u8]),
    /// The peer seals with the next key from now on.
    KeyUpdate {
        /// And so shall we.
        asked: bool,
    },
}

/// The longest ticket that is waited for.
const MAX_TICKET_BYTES: usize = 64 * 1024;
const MESSAGE_HEAD_BYTES: usize = 4;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// That we seal with the next key from now on, without asking for the same.
pub const KEY_UPDATE_MESSAGE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

/// The first message of these bytes, and how long it is with its head; nothing while it is not all there.
/// What has no place is not waited for.
pub fn message(bytes: &[u8], takes_tickets: bool) -> Result<Option<(Message<'_>, usize)>, Fault> {
    let Some(&[kind, a, b, c]) = bytes.first_chunk::<MESSAGE_HEAD_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    match (kind, length) {
        (NEW_SESSION_TICKET, _) if !takes_tickets => return Err(Fault::Unexpected),
        (NEW_SESSION_TICKET, ..=MAX_TICKET_BYTES) | (KEY_UPDATE, 1) => {}
        (NEW_SESSION_TICKET | KEY_UPDATE, _) => return Err(Fault::Unreadable),
        _ => return Err(Fault::Unexpected),
    }
    let end = MESSAGE_HEAD_BYTES + length;
    let Some(body) = bytes.get(MESSAGE_HEAD_BYTES..end) else {
        return Ok(None);
    };
    let message = match (kind, body) {
        (KEY_UPDATE, [asked @ (0 | 1)]) => Message::KeyUpdate { asked: *asked == 1 },
        (KEY_UPDATE, _) => return Err(Fault::Illegal),
        (_, ticket) => Message::Ticket(ticket),
    };
    Ok(Some((message, end)))
}
