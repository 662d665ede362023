//! `sk_msg`: what an application (or the agent) sends on a socket whose other
//! end is on this node is handed over to that end, when `mesh_common::decide`
//! finds it safe; otherwise TCP carries it.

use core::ptr;

use aya_ebpf::bindings::{BPF_F_INGRESS, sk_msg_md};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;
use mesh_common::{Counter, HandOver, Knob, decide, is_read_by_agent};

use crate::context::{count, knob};
use crate::maps::SPLICED_SOCKETS;
use crate::{account, bridge, kernel, splice};

/// TCP carries the message, unless it was redirected before. Never SK_DROP: the
/// application would get EACCES.
const SK_PASS: u32 = 1;

/// From this size on it pays to wait for a reader: bytes.
const LARGE: u32 = 4096;

#[sk_msg]
pub fn um_splice(ctx: SkMsgContext) -> u32 {
    match hand_over(&ctx) {
        HandOver::Peer => {}
        HandOver::Full => count(Counter::FellBackFull),
        HandOver::Queued => count(Counter::FellBackQueued),
        HandOver::InFlight => count(Counter::FellBackInFlight),
        HandOver::Closing => count(Counter::FellBackOther),
        HandOver::Slower => count(Counter::FellBackSlower),
    }
    SK_PASS
}

/// For the agent's probe at start, on sockets of its own: hands over whatever is
/// sent, to see what receivers make of it on this kernel.
#[sk_msg]
pub fn um_probe(ctx: SkMsgContext) -> u32 {
    // SAFETY: a field of the context.
    let sk = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if !sk.is_null()
        && let Some(splice) = splice::of(sk)
        && splice.sends != 0
    {
        SPLICED_SOCKETS.redirect_msg(&ctx, splice.peer, u64::from(BPF_F_INGRESS));
    }
    SK_PASS
}

#[inline(always)]
fn hand_over(ctx: &SkMsgContext) -> HandOver {
    let raw: *mut sk_msg_md = ctx.msg;
    // SAFETY: fields of the context.
    let (sk, size) = unsafe {
        (
            (*raw).__bindgen_anon_3.sk,
            ptr::read_volatile(&raw const (*raw).size),
        )
    };
    if sk.is_null() || knob(Knob::ShortCircuitOff) != 0 {
        return HandOver::Closing;
    }
    let Some(splice) = splice::of(sk) else {
        return HandOver::Closing;
    };
    if splice.sends == 0 {
        return HandOver::Closing;
    }
    // SAFETY: a helper without arguments.
    splice.pace.count(size, || unsafe { bpf_ktime_get_ns() });
    // SAFETY: a field of the checked socket.
    let state = unsafe { ptr::read_volatile(&raw const (*sk).state) };
    let Some(guard) = kernel::guard(sk, state, splice.peer_sock) else {
        return HandOver::Closing;
    };
    let decided = decide(&guard);
    if decided != HandOver::Peer {
        return decided;
    }
    if let Some(near_state) = kernel::state_of(splice.peer_sock)
        && is_read_by_agent(&guard, near_state)
        && let Some(bridge) = bridge::open(splice)
        && redirect(
            ctx,
            size,
            splice.bridge.receiver,
            splice.bridge.receiver_sock,
        )
    {
        bridge::passed(bridge, splice, size);
        return HandOver::Peer;
    }
    // Who has a bridge gets back to it only by what is handed over to the agent.
    if splice.bridge.receiver == 0 && splice.pace.is_slower_handed_over() {
        return HandOver::Slower;
    }
    if !redirect(ctx, size, splice.peer, splice.peer_sock) {
        // The other end is gone: TCP tells the sender.
        return HandOver::Closing;
    }
    splice.unrecorded.add(size);
    if splice.unrecorded.is_due() {
        account::handed_over(splice);
    }
    HandOver::Peer
}

#[inline(always)]
fn redirect(ctx: &SkMsgContext, size: u32, receiver: u64, receiver_sock: u64) -> bool {
    if size >= LARGE {
        kernel::wait_for_reader(receiver_sock);
    }
    let redirected = SPLICED_SOCKETS.redirect_msg(ctx, receiver, u64::from(BPF_F_INGRESS));
    redirected == i64::from(SK_PASS)
}
