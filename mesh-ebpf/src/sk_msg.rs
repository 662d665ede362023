//! `sk_msg`: what an application (or the agent) sends on a socket whose other
//! end is on this node is handed over to that end, when `mesh_common::decide`
//! finds it safe; otherwise TCP carries it.

use core::ptr;

use aya_ebpf::bindings::{BPF_F_INGRESS, sk_msg_md};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;
use mesh_common::{BridgeTarget, Counter, HandOver, Knob, Patience, Sender, decide};

use crate::context::{count, knob};
use crate::maps::SPLICED_SOCKETS;
use crate::moment::{Awaited, wait_for};
use crate::{account, bridge, kernel, splice};

/// TCP carries the message, unless it was redirected before. Never SK_DROP: the
/// application would get EACCES.
const SK_PASS: u32 = 1;

/// From this size on it pays to wait: bytes.
const LARGE: u32 = 4096;

/// How long to wait for somebody who reads: ns. A large message is copied in that time on a slow machine,
/// too, and a virtual processor that sleeps takes as long to be woken.
const READING: u64 = 100_000;

#[sk_msg]
pub fn um_splice(ctx: SkMsgContext) -> u32 {
    match hand_over(&ctx) {
        HandOver::Peer | HandOver::Receiver => {}
        HandOver::Full => count(Counter::FellBackFull),
        HandOver::Unread => count(Counter::FellBackUnread),
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
    if splice.sends == Sender::Nobody as u32 {
        return HandOver::Closing;
    }
    // SAFETY: a helper without arguments.
    splice.pace.count(size, || unsafe { bpf_ktime_get_ns() });
    // SAFETY: a field of the checked socket.
    let state = unsafe { ptr::read_volatile(&raw const (*sk).state) };
    let Some(write_seq) = kernel::given(sk) else {
        return HandOver::Closing;
    };
    let bridge = bridge::of(splice);
    let is_agent = splice.sends == Sender::Agent as u32;
    // Whose bytes lie in TCP's buffers gets no bridge.
    if !is_agent && bridge.is_none() && splice.pace.is_slower_handed_over() {
        return HandOver::Slower;
    }
    let ways = Ways {
        own: splice.own,
        peer_sock: splice.peer_sock,
        bridge: match bridge {
            Some(_) => splice.bridge,
            None => NO_BRIDGE,
        },
        state,
        write_seq,
        is_agent: is_agent.into(),
    };
    let mut way = ways.best();
    if size >= LARGE && ways.may_improve(way) && splice.patience.waits(size, advance(is_agent)) {
        splice
            .patience
            .waited(wait_for(ways, Patience::limit(size)));
        way = ways.best();
    }
    if way == HandOver::Receiver
        && let Some(bridge) = bridge
        && redirect(
            ctx,
            size,
            splice.bridge.receiver,
            splice.bridge.receiver_sock,
        )
    {
        bridge::passed(bridge, splice, size);
        return way;
    }
    if way != HandOver::Peer && way != HandOver::Receiver {
        return way;
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

/// What tells which ways are free: numbers alone, since it is also asked by the kernel's loop.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ways {
    own: u64,
    peer_sock: u64,
    bridge: BridgeTarget,
    state: u32,
    write_seq: u32,
    is_agent: u64,
}

const NO_BRIDGE: BridgeTarget = BridgeTarget {
    receiver: 0,
    receiver_sock: 0,
    far_sock: 0,
};

impl Ways {
    #[inline(always)]
    fn best(&self) -> HandOver {
        let Some(near) = kernel::guard(self.peer_sock, self.state, self.write_seq) else {
            return HandOver::Closing;
        };
        if self.bridge.receiver != 0
            && bridge::is_free(self.own, &near, self.peer_sock, &self.bridge)
        {
            return HandOver::Receiver;
        }
        decide(&near)
    }

    /// Whether a better one is free in a moment, as long as everybody reads: the bridge, or the one that the
    /// agent has. What it gave to TCP would keep the bridge occupied for long.
    #[inline(always)]
    fn may_improve(&self, best: HandOver) -> bool {
        let has_bridge = self.bridge.receiver != 0;
        match best {
            HandOver::Peer => has_bridge,
            // Also where TCP has not sent all yet, which it cannot as long as the program runs: what is on the
            // way gets less all the while.
            HandOver::Full | HandOver::Unread => has_bridge || self.is_agent != 0,
            _ => false,
        }
    }
}

impl Awaited for Ways {
    #[inline(always)]
    fn look(&self) -> bool {
        !self.may_improve(self.best())
    }
}

/// The lock of a socket.
#[derive(Clone, Copy)]
struct Lock(u64);

impl Awaited for Lock {
    #[inline(always)]
    fn look(&self) -> bool {
        !kernel::is_in_use(self.0)
    }
}

/// A thread of the agent serves many.
#[inline(always)]
const fn advance(is_agent: bool) -> u16 {
    if is_agent {
        Patience::OF_AGENT
    } else {
        Patience::OF_APPLICATION
    }
}

#[inline(always)]
fn redirect(ctx: &SkMsgContext, size: u32, receiver: u64, receiver_sock: u64) -> bool {
    // Its lock is with whoever reads from it, for as long as a large message is copied: to sleep until then,
    // and to be woken, takes both ends longer.
    if size >= LARGE && kernel::is_in_use(receiver_sock) {
        wait_for(Lock(receiver_sock), READING);
    }
    let redirected = SPLICED_SOCKETS.redirect_msg(ctx, receiver, u64::from(BPF_F_INGRESS));
    redirected == i64::from(SK_PASS)
}
