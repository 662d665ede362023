//! `cgroup/getpeername4/6` (also run by `accept`): the application sees the
//! address that it asked for, or the client that truly called.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{OriginRole, SocketIp};

use crate::context::{PROCEED, SockAddr, origin};

#[cgroup_sock_addr(getpeername4)]
pub fn um_getpeername4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if let Some(address) = visible(&ctx) {
        if let Some(ip4) = address.ip.as_v4() {
            ctx.set_ip4(ip4);
            ctx.set_port(address.port);
        }
    }
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub fn um_getpeername6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if let Some(address) = visible(&ctx) {
        ctx.set_ip6(&address.ip);
        ctx.set_port(address.port);
    }
    PROCEED
}

#[inline(always)]
fn visible(ctx: &SockAddr) -> Option<SocketIp> {
    // Also for connections of a workload that has left: they go on as they were.
    let origin = origin(ctx.sk())?;
    if origin.role == OriginRole::Agent as u32 {
        None
    } else {
        Some(origin.address)
    }
}
