//! Whether the agent is there, from the kernel itself: its listener is, or it
//! is not. Nothing can be late, as a heartbeat would be; that is for an agent
//! which is there and hangs.

use core::mem::{MaybeUninit, size_of};
use core::ptr;

use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_lookup_tcp, bpf_sk_release};
use mesh_common::{Ip, ListenerKey};

use crate::context::{SockAddr, agent_socket};
use crate::maps::{HEARTBEAT, LISTENERS};

/// Whether the agent goes on accepting, as far as is known.
#[inline(always)]
pub fn works() -> bool {
    match HEARTBEAT.get(0) {
        // SAFETY: no preconditions.
        Some(heart) => !heart.has_stopped(unsafe { bpf_ktime_get_ns() }),
        None => true,
    }
}

/// Whether the agent's listener `key` is open, for programs that cannot look for it by its address.
#[inline(always)]
pub fn is_open(mut key: ListenerKey) -> bool {
    // SAFETY: a map of sockets and a key of its type. The reference that the helper gives is released.
    unsafe {
        let listener = bpf_map_lookup_elem(
            ptr::from_ref(&LISTENERS).cast_mut().cast(),
            (&raw mut key).cast(),
        );
        if listener.is_null() {
            return false;
        }
        bpf_sk_release(listener);
        true
    }
}

/// Whether a socket of the agent listens at this address of the caller's
/// namespace. Another program's listener, which may have got the port after
/// the agent was gone, does not count: nobody is to get what is meant for the agent.
#[inline(always)]
pub fn is_served(ctx: &SockAddr, ip: &Ip, port: u16) -> bool {
    let mut tuple = MaybeUninit::<bpf_sock_tuple>::zeroed();
    let raw = tuple.as_mut_ptr();
    let port = port.to_be();
    // SAFETY: the members of a union of integers, zeroed above.
    let size = unsafe {
        if ip.is_v4() {
            let v4 = raw.cast::<Tuple4>();
            (*v4).saddr = ip.words[3];
            (*v4).daddr = ip.words[3];
            (*v4).dport = port;
            size_of::<Tuple4>()
        } else {
            let v6 = raw.cast::<Tuple6>();
            (*v6).saddr = ip.words;
            (*v6).daddr = ip.words;
            (*v6).dport = port;
            size_of::<Tuple6>()
        }
    };
    // SAFETY: the context of a sock_addr program and a tuple of this size; the reference that the
    // helper gives is released below, on every path.
    unsafe {
        let found = bpf_sk_lookup_tcp(
            ctx.as_ptr(),
            raw,
            size as u32,
            BPF_F_CURRENT_NETNS as i64 as u64,
            0,
        );
        if found.is_null() {
            return false;
        }
        let ours = agent_socket(found).is_some();
        bpf_sk_release(found.cast());
        ours && works()
    }
}
