//! The short-circuit: bytes of a socket whose other end is on the same node go
//! straight to that end, without the TCP/IP stack, as long as that is safe.
//!
//! The kernel's own hand-over (`bpf_msg_redirect_hash`) has no back-pressure,
//! and bytes that it hands over are read before bytes that came by TCP. So each
//! message is handed over only when all that went by TCP has been read ([`decide`]);
//! otherwise TCP carries it, which keeps the order in any case.

use crate::assert_layout;
use crate::bridge::BridgeTarget;
use crate::pace::Pace;
use crate::patience::Patience;

/// Bits of [`Origin::splice`](crate::Origin::splice): which end of a
/// connection may hand its bytes over.
pub mod direction {
    /// The end that connected.
    pub const CLIENT: u32 = 1;
    /// The end that accepted.
    pub const SERVER: u32 = 2;
}

/// Who hands bytes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Sender {
    /// Nobody: what this end sends goes by TCP.
    Nobody = 0,
    /// An application.
    Application = 1,
    /// The agent.
    Agent = 2,
}

/// Value of the sk_storage map `splices`: one end of a connection whose other
/// end is on this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Splice {
    /// Cookie of this socket: its key in `spliced_sockets`.
    pub own: u64,
    /// Its kernel address.
    pub own_sock: u64,
    /// Cookie of the other end, or 0 while it is not known.
    pub peer: u64,
    /// Kernel address of the other end, only ever read from. It may outlive that socket; then the
    /// hand-over finds no such key, and TCP carries the message.
    pub peer_sock: u64,
    /// A [`Sender`].
    pub sends: u32,
    /// What was handed over to the other end, and stands in no record yet.
    pub unrecorded: HandedOver,
    /// Where its bridge leads; all zero while it has had none. It is learnt once, and so never
    /// another connection's.
    pub bridge: BridgeTarget,
    /// What has gone over the bridge, and stands in no record yet.
    pub bridged: HandedOver,
    /// Which way is faster, where it is a stream.
    pub pace: Pace,
    /// Whether it waits for a way to become free.
    pub patience: Patience,
}

assert_layout!(Splice, size = 112, align = 8);

/// What one end has handed over since it was last recorded. It stands beside
/// the socket, since both ends' records are far away: each message would move
/// their cache lines from one core to the other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandedOver {
    /// Messages before.
    pub recorded_messages: u32,
    /// Messages since.
    pub messages: u32,
    /// Bytes since.
    pub bytes: u32,
}

assert_layout!(HandedOver, size = 12, align = 4);

/// Records lag by this many messages at most.
const MAX_UNRECORDED_MESSAGES: u32 = 32;
/// Records lag by this many bytes at most, and one message.
const MAX_UNRECORDED_BYTES: u32 = 1 << 20;

impl HandedOver {
    /// One more message of that size.
    #[inline(always)]
    pub const fn add(&mut self, bytes: u32) {
        self.messages = self.messages.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes);
    }

    /// Whether it is time to write it to the records: the first 32 messages one
    /// by one, and later so often that records are never behind by more than one part in 32.
    #[inline(always)]
    pub const fn is_due(&self) -> bool {
        self.messages > self.recorded_messages / 32
            || self.messages >= MAX_UNRECORDED_MESSAGES
            || self.bytes >= MAX_UNRECORDED_BYTES
    }

    /// It is written.
    #[inline(always)]
    pub const fn record(&mut self) {
        self.recorded_messages = self.recorded_messages.saturating_add(self.messages);
        self.messages = 0;
        self.bytes = 0;
    }
}

/// Value of the map `splice_peers` (key: cookie of the end that connected):
/// the end that accepted, until the first has read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplicePeer {
    /// Cookie of the accepted socket.
    pub cookie: u64,
    /// Its kernel address.
    pub sock: u64,
}

assert_layout!(SplicePeer, size = 16, align = 8);

/// What a program sees of both sockets before it hands a message over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Guard {
    /// `sk_state` of the sender.
    pub state: u32,
    /// `tcp_sock.write_seq` of the sender: end of what it has given to TCP.
    pub write_seq: u32,
    /// `tcp_sock.copied_seq` of the receiver: end of what it has read of that.
    pub copied_seq: u32,
    /// `sk_rmem_alloc` of the receiver in bytes: what waits to be read.
    pub waiting_bytes: u32,
    /// `sk_rcvbuf` of the receiver in bytes: what its buffer holds at present.
    pub receive_buffer: u32,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// Straight to the other end.
    Peer,
    /// Past the agent at the other end, to the receiver behind it ([`Bridge`](crate::Bridge)).
    Receiver,
    /// Through TCP, because the receiver has enough to read.
    Full,
    /// Through TCP, because bytes that went by TCP are not read yet.
    Unread,
    /// Through TCP, because the sender's own end of the connection is closed.
    Closing,
    /// Through TCP, because a stream is faster that way at present ([`Pace`]).
    Slower,
}

/// At most this much is handed over to a receiver that does not read, and one
/// message beyond it (a message has 17 fragments of up to 32 KiB, so 0.5 MiB).
pub const MAX_WAITING_BYTES: u32 = 2 << 20;

/// How many handed-over bytes may wait at a receiver with that buffer: half of
/// it. What TCP carries after them needs room in the same buffer, or its
/// segments are dropped and come again only after ever longer pauses.
#[inline(always)]
const fn waiting_limit(receive_buffer: u32) -> u32 {
    if receive_buffer / 2 < MAX_WAITING_BYTES {
        receive_buffer / 2
    } else {
        MAX_WAITING_BYTES
    }
}

const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE_WAIT: u32 = 8;

/// Decides for one message.
///
/// Both ends count in the same sequence numbers: nothing between two sockets of one node changes them.
///
/// Order: where all that TCP was given has been read, earlier bytes of this direction
/// have been read, too, or were handed over before and are read first. Memory: the receiver is charged for what is handed over
/// (`sk_rmem_alloc`, Linux 6.13 and the stable releases with its fix).
#[inline(always)]
pub const fn decide(guard: &Guard) -> HandOver {
    if guard.state != TCP_ESTABLISHED && guard.state != TCP_CLOSE_WAIT {
        HandOver::Closing
    } else if guard.write_seq != guard.copied_seq {
        HandOver::Unread
    } else if guard.waiting_bytes >= waiting_limit(guard.receive_buffer) {
        HandOver::Full
    } else {
        HandOver::Peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Guard = Guard {
        state: TCP_ESTABLISHED,
        write_seq: 7,
        copied_seq: 7,
        waiting_bytes: 0,
        receive_buffer: 131_072,
    };

    #[test]
    fn records_are_exact_at_first_and_then_a_little_behind() {
        let mut handed_over = HandedOver::default();
        let mut furthest_behind = 0;
        for message in 1..=100_000 {
            handed_over.add(100);
            if handed_over.is_due() {
                handed_over.record();
                assert_eq!(handed_over.recorded_messages, message);
            }
            let HandedOver {
                messages, bytes, ..
            } = handed_over;
            assert!(message > 31 || messages == 0);
            assert!(messages * 32 <= message);
            assert_eq!(bytes, messages * 100);
            furthest_behind = furthest_behind.max(messages);
        }
        assert_eq!(furthest_behind, MAX_UNRECORDED_MESSAGES - 1);

        // Large messages are written at once.
        handed_over.add(MAX_UNRECORDED_BYTES);
        assert!(handed_over.is_due());
    }

    #[test]
    fn a_message_is_handed_over_when_nothing_older_is_on_its_way() {
        assert_eq!(decide(&QUIET), HandOver::Peer);
        let half_closed = Guard {
            state: TCP_CLOSE_WAIT,
            ..QUIET
        };
        assert_eq!(decide(&half_closed), HandOver::Peer);
    }

    #[test]
    fn bytes_that_tcp_carries_are_never_overtaken() {
        // Sequence numbers wrap: only equality counts.
        for write_seq in [8, 6, 0, u32::MAX] {
            let guard = Guard { write_seq, ..QUIET };
            assert_eq!(decide(&guard), HandOver::Unread);
        }
    }

    #[test]
    fn a_receiver_that_does_not_read_holds_the_sender_back() {
        let almost = Guard {
            waiting_bytes: 65_535,
            ..QUIET
        };
        assert_eq!(decide(&almost), HandOver::Peer);
        let full = Guard {
            waiting_bytes: 65_536,
            ..QUIET
        };
        assert_eq!(decide(&full), HandOver::Full);
    }

    #[test]
    fn handed_over_bytes_leave_room_for_those_that_tcp_carries() {
        assert_eq!(waiting_limit(8_192), 4_096);
        assert_eq!(waiting_limit(131_072), 65_536);
        assert_eq!(waiting_limit(64 << 20), MAX_WAITING_BYTES);
    }

    #[test]
    fn a_sender_that_has_closed_gets_tcps_own_answer() {
        for state in [0, 2, 3, 4, 5, 6, 7, 9, 10, 11] {
            let guard = Guard { state, ..QUIET };
            assert_eq!(decide(&guard), HandOver::Closing);
        }
    }
}
