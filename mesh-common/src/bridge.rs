//! Bridges: what an application sends on a connection that the agent merely copies goes
//! straight to the application behind the agent, while the agent holds none of its bytes.
//!
//! A byte goes from the sender to the agent's near socket, through the agent's memory, and
//! by its far socket to the receiver. A program that finds all of these empty, in this
//! order, knows that everything older is with the receiver already: bytes only move forward.
//! Both halves are short-circuits, so that both rules ([`decide`](crate::decide)) hold.

use crate::assert_layout;
use crate::splice::Guard;

/// Directions of connections that have a bridge at one time; the others go through the agent.
pub const MAX_BRIDGES: u32 = 16_384;

/// Where in the array `bridges` the bridge for what this socket sends is, if it has one. Two
/// open sockets may share a place; then one of them has none.
#[inline(always)]
pub const fn bridge_index(sender: u64) -> u32 {
    sender as u32 % MAX_BRIDGES
}

/// Value of the array `bridges`, which the agent maps into its memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    /// Cookie of the sender; 0: nobody's. No socket ever has the cookie of another one.
    pub sender: u64,
    /// The same while the agent holds none of the sender's bytes, else 0.
    pub open: u64,
    /// Bytes that have passed.
    pub bytes: u64,
    /// Where to.
    pub target: BridgeTarget,
    /// Zero: one bridge fills one cache line.
    pub reserved: [u64; 2],
}

assert_layout!(Bridge, size = 64, align = 8);

/// Where a bridge leads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeTarget {
    /// Cookie of the receiver, its key in `spliced_sockets`.
    pub receiver: u64,
    /// Kernel address of the receiver, only ever read from.
    pub receiver_sock: u64,
    /// Kernel address of the agent's socket that is connected to the receiver.
    pub far_sock: u64,
}

assert_layout!(BridgeTarget, size = 24, align = 8);

const TCP_ESTABLISHED: u32 = 1;

/// Whether everything that the sender has sent has been read by the agent. `near_state` is the
/// `sk_state` of the agent's socket: it has neither ended the connection nor died. To be asked before
/// the bridge is found open.
#[inline(always)]
pub const fn is_read_by_agent(near: &Guard, near_state: u32) -> bool {
    near.state == TCP_ESTABLISHED
        && near_state == TCP_ESTABLISHED
        && near.write_seq == near.copied_seq
        && near.waiting_bytes == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Guard = Guard {
        state: TCP_ESTABLISHED,
        write_seq: 7,
        copied_seq: 7,
        waiting_bytes: 0,
        receive_buffer: 131_072,
    };

    #[test]
    fn what_the_agent_has_not_read_is_not_overtaken() {
        assert!(is_read_by_agent(&READ, TCP_ESTABLISHED));
        let by_tcp = Guard {
            write_seq: 8,
            ..READ
        };
        let handed_over = Guard {
            waiting_bytes: 1,
            ..READ
        };
        for guard in [by_tcp, handed_over] {
            assert!(!is_read_by_agent(&guard, TCP_ESTABLISHED), "{guard:?}");
        }
    }

    #[test]
    fn there_is_no_bridge_past_an_agent_that_has_ended_the_connection_or_died() {
        for state in [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] {
            assert!(!is_read_by_agent(&READ, state));
            assert!(!is_read_by_agent(&Guard { state, ..READ }, TCP_ESTABLISHED));
        }
    }

    #[test]
    fn sockets_that_follow_each_other_have_bridges_of_their_own() {
        let first = u64::from(u32::MAX) - 5;
        for other in 1..u64::from(MAX_BRIDGES) {
            assert_ne!(bridge_index(first), bridge_index(first + other));
        }
        assert!(bridge_index(u64::MAX) < MAX_BRIDGES);
    }
}
