//! The way past the agent; `sk_msg.rs` takes it.

use core::ptr;

use mesh_common::{
    Bridge, BridgeTarget, Guard, HandOver, Splice, bridge_index, decide, is_read_by_agent,
};

use crate::context::{add, read_ordered};
use crate::maps::BRIDGES;
use crate::{account, kernel};

/// The bridge for what this socket sends, if it has one.
#[inline(always)]
pub fn of(splice: &mut Splice) -> Option<*mut Bridge> {
    let bridge = BRIDGES.get_ptr_mut(bridge_index(splice.own))?;
    // SAFETY: a value of the map, written by the agent at any time.
    if unsafe { ptr::read_volatile(&raw const (*bridge).sender) } != splice.own {
        return None;
    }
    if splice.bridge.receiver == 0 {
        learn(bridge, splice)?;
    }
    Some(bridge)
}

/// Whether it may be taken: the agent has read everything (`near`: what is known of the sender and of
/// the agent's socket `near_sock`) and holds none of it, and the receiver has read what the agent has given to TCP,
/// and has room.
#[inline(always)]
pub fn is_free(own: u64, near: &Guard, near_sock: u64, target: &BridgeTarget) -> bool {
    let near_state = kernel::state_of(near_sock);
    if !near_state.is_some_and(|state| is_read_by_agent(near, state)) {
        return false;
    }
    let Some(bridge) = BRIDGES.get_ptr_mut(bridge_index(own)) else {
        return false;
    };
    // In this order; see `is_read_by_agent`.
    // SAFETY: a value of the map.
    if read_ordered(unsafe { &raw mut (*bridge).open }) != own {
        return false;
    }
    let far = kernel::guard_of(target.far_sock, target.receiver_sock);
    far.is_some_and(|far| decide(&far) == HandOver::Peer)
}

/// Where it leads. The agent may give the bridge to another sender meanwhile; it
/// says so before it changes the rest.
#[inline(always)]
fn learn(bridge: *mut Bridge, splice: &mut Splice) -> Option<()> {
    // SAFETY: a value of the map, written by the agent at any time.
    let (target, sender) = unsafe {
        let target = ptr::read_volatile(&raw const (*bridge).target);
        (target, read_ordered(&raw mut (*bridge).sender))
    };
    if sender != splice.own {
        return None;
    }
    splice.bridge = target;
    Some(())
}

/// A message has gone over it.
#[inline(always)]
pub fn passed(bridge: *mut Bridge, splice: &mut Splice, size: u32) {
    // SAFETY: a value of the map.
    add(unsafe { &raw mut (*bridge).bytes }, u64::from(size));
    splice.bridged.add(size);
    if splice.bridged.is_due() {
        account::bridged(splice);
    }
}
