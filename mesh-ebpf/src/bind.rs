//! `cgroup/bind4` and `cgroup/bind6`: a server of an enrolled workload may take
//! port 15008 like any other. While tunnels to the workload are open, sockets
//! of the agent have that local port (it was steered to them, never bound), and
//! the kernel gives the port to another socket only where both have
//! SO_REUSEADDR (`inet_bind_conflict`, net/ipv4/inet_connection_sock.c). The
//! agent's sockets have it; this gives it to the application's. Of two sockets
//! only one can listen, with or without the option.

use core::mem::size_of;

use aya_ebpf::helpers::generated::bpf_setsockopt;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::HBONE_PORT;

use crate::context::{PROCEED, SockAddr, netns_cookie, workload};

const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SOCK_STREAM: u32 = 1;

#[cgroup_sock_addr(bind4)]
pub fn um_bind4(ctx: SockAddrContext) -> i32 {
    share_hbone_port(&SockAddr::new(&ctx));
    PROCEED
}

#[cgroup_sock_addr(bind6)]
pub fn um_bind6(ctx: SockAddrContext) -> i32 {
    share_hbone_port(&SockAddr::new(&ctx));
    PROCEED
}

#[inline(always)]
fn share_hbone_port(ctx: &SockAddr) {
    if ctx.port() != HBONE_PORT
        || ctx.kind() != SOCK_STREAM
        || workload(netns_cookie(ctx.as_ptr())).is_none()
    {
        return;
    }
    let mut on = 1i32;
    // SAFETY: the context of a bind program, which holds the socket's lock, and a value on the stack.
    // Where the helper fails (before Linux 6.1 it does not know the option), the application's own choice counts.
    unsafe {
        bpf_setsockopt(
            ctx.as_ptr(),
            SOL_SOCKET,
            SO_REUSEADDR,
            (&raw mut on).cast(),
            size_of::<i32>() as i32,
        )
    };
}
