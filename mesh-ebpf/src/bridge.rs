//! The way past the agent; `sk_msg.rs` takes it.

use core::ptr;

use mesh_common::{Bridge, HandOver, Splice, bridge_index, decide};

use crate::context::{add, read_ordered};
use crate::maps::BRIDGES;
use crate::{account, kernel};

/// The sender's bridge, where it may be taken: the agent holds none of the bytes
/// that it has read, and has handed all of them over to the receiver, or TCP has.
/// Call it when the agent has read everything.
#[inline(always)]
pub fn open(splice: &mut Splice) -> Option<*mut Bridge> {
    let bridge = BRIDGES.get_ptr_mut(bridge_index(splice.own))?;
    // SAFETY: a value of the map.
    let open = read_ordered(unsafe { &raw mut (*bridge).open });
    if open != splice.own {
        return None;
    }
    if splice.bridge.receiver == 0 {
        learn(bridge, splice)?;
    }
    let guard = kernel::guard_of(splice.bridge.far_sock, splice.bridge.receiver_sock)?;
    match decide(&guard) {
        HandOver::Peer => Some(bridge),
        _ => None,
    }
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
