//! The short-circuit: bytes of a socket whose other end is on the same node go
//! straight to that end, without the TCP/IP stack, as long as that is safe.
//!
//! The kernel's own hand-over (`bpf_msg_redirect_hash`) has no back-pressure,
//! and bytes that it hands over are read before bytes that came by TCP. So each
//! message is handed over only when nothing older is on its way ([`decide`]);
//! otherwise TCP carries it, which keeps the order in any case.

use crate::assert_layout;

/// Bits of [`Origin::splice`](crate::Origin::splice): which end of a
/// connection may hand its bytes over.
pub mod direction {
    /// The end that connected.
    pub const CLIENT: u32 = 1;
    /// The end that accepted.
    pub const SERVER: u32 = 2;
}

/// Value of the sk_storage map `splices`: one end of a connection whose other
/// end is on this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Splice {
    /// Cookie of this socket: its key in `spliced_sockets`.
    pub own: u64,
    /// Cookie of the other end, or 0 while it is not known.
    pub peer: u64,
    /// Kernel address of this socket, only ever read from.
    pub own_sock: u64,
    /// Kernel address of the other end. It may outlive that socket; then the
    /// hand-over finds no such key, and TCP carries the message.
    pub peer_sock: u64,
    /// 1: this end may hand its bytes over.
    pub sends: u32,
    /// Explicit padding, zero.
    pub reserved: u32,
}

assert_layout!(Splice, size = 40, align = 8);

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
    /// `tcp_sock.snd_una` of the sender: end of what the receiver's TCP has.
    pub acknowledged: u32,
    /// `sk_receive_queue.qlen` of the receiver, in packets.
    pub queued_packets: u32,
    /// `sk_rmem_alloc` of the receiver in bytes: what waits to be read.
    pub waiting_bytes: u32,
    /// How many bytes may wait there, see [`waiting_limit`].
    pub waiting_limit: u32,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// Straight to the other end.
    Peer,
    /// Through TCP, because the receiver has enough to read.
    Full,
    /// Through TCP, because bytes that came by TCP are not read yet.
    Queued,
    /// Through TCP, because bytes are on their way there.
    InFlight,
    /// Through TCP, because the sender's own end of the connection is closed.
    Closing,
}

/// At most this much is handed over to a receiver that does not read, and one
/// message beyond it (a message has 17 fragments of up to 32 KiB, so 0.5 MiB).
pub const MAX_WAITING_BYTES: u32 = 2 << 20;

/// How many handed-over bytes may wait at a receiver. What TCP carries after
/// them needs room in the same buffer, or its segments are dropped and come
/// again only after ever longer pauses. `largest_buffer` is what the kernel lets
/// buffers grow to (`net.ipv4.tcp_rmem`); one that the application has set
/// (`SO_RCVBUF`) does not grow.
#[inline(always)]
pub const fn waiting_limit(buffer: u32, is_fixed: bool, largest_buffer: u32) -> u32 {
    let limit = if is_fixed {
        buffer / 2
    } else {
        largest_buffer / 3
    };
    if limit < MAX_WAITING_BYTES {
        limit
    } else {
        MAX_WAITING_BYTES
    }
}

const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE_WAIT: u32 = 8;

/// Decides for one message.
///
/// Order: with nothing in flight and nothing in the receiver's queue, all
/// earlier bytes of this direction have been read, or were handed over before
/// and are read first. Memory: the receiver is charged for what is handed over
/// (`sk_rmem_alloc`, Linux 6.13 and the stable releases with its fix).
#[inline(always)]
pub const fn decide(guard: &Guard) -> HandOver {
    if guard.state != TCP_ESTABLISHED && guard.state != TCP_CLOSE_WAIT {
        HandOver::Closing
    } else if guard.write_seq != guard.acknowledged {
        HandOver::InFlight
    } else if guard.queued_packets != 0 {
        HandOver::Queued
    } else if guard.waiting_bytes >= guard.waiting_limit {
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
        acknowledged: 7,
        queued_packets: 0,
        waiting_bytes: 0,
        waiting_limit: MAX_WAITING_BYTES,
    };

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
    fn bytes_in_flight_or_in_the_receivers_queue_are_never_overtaken() {
        // Sequence numbers wrap: only equality counts.
        for write_seq in [8, 6, 0, u32::MAX] {
            let guard = Guard { write_seq, ..QUIET };
            assert_eq!(decide(&guard), HandOver::InFlight);
        }
        let queued = Guard {
            queued_packets: 1,
            ..QUIET
        };
        assert_eq!(decide(&queued), HandOver::Queued);
    }

    #[test]
    fn a_receiver_that_does_not_read_holds_the_sender_back() {
        let full = Guard {
            waiting_bytes: MAX_WAITING_BYTES,
            ..QUIET
        };
        assert_eq!(decide(&full), HandOver::Full);
    }

    #[test]
    fn handed_over_bytes_leave_room_for_those_that_tcp_carries() {
        assert_eq!(waiting_limit(131_072, false, 6 << 20), MAX_WAITING_BYTES);
        assert_eq!(waiting_limit(131_072, false, 600_000), 200_000);
        assert_eq!(waiting_limit(8_192, true, 6 << 20), 4_096);
        assert_eq!(waiting_limit(64 << 20, true, 6 << 20), MAX_WAITING_BYTES);
    }

    #[test]
    fn a_sender_that_has_closed_gets_tcps_own_answer() {
        for state in [0, 2, 3, 4, 5, 6, 7, 9, 10, 11] {
            let guard = Guard { state, ..QUIET };
            assert_eq!(decide(&guard), HandOver::Closing);
        }
    }
}
