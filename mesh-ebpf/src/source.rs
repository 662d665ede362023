//! The source address of a connection that is sent elsewhere: the workload's, as
//! routing to the original destination would have chosen it. A socket that the
//! application has bound keeps its own (the helper then fails, which is ignored).

use core::mem::size_of;

use aya_ebpf::bindings::sockaddr;
use aya_ebpf::helpers::bpf_bind;
use mesh_common::Ip;

use crate::context::SockAddr;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// `struct sockaddr_in` of the kernel.
#[repr(C)]
struct SockaddrIn {
    family: u16,
    port: u16,
    address: u32,
    zero: [u32; 2],
}

/// `struct sockaddr_in6` of the kernel.
#[repr(C)]
struct SockaddrIn6 {
    family: u16,
    port: u16,
    flow_info: u32,
    address: [u32; 4],
    scope_id: u32,
}

/// Gives the socket an IPv4 address, unless it is unspecified.
#[inline(always)]
pub fn bind4(ctx: &SockAddr, ip: &Ip) {
    if !ip.is_unspecified() {
        bind(
            ctx,
            SockaddrIn {
                family: AF_INET,
                port: 0,
                address: ip.words[3],
                zero: [0; 2],
            },
        );
    }
}

/// The same for an IPv6 socket.
#[inline(always)]
pub fn bind6(ctx: &SockAddr, ip: &Ip) {
    if !ip.is_unspecified() {
        bind(
            ctx,
            SockaddrIn6 {
                family: AF_INET6,
                port: 0,
                flow_info: 0,
                address: ip.words,
                scope_id: 0,
            },
        );
    }
}

#[inline(always)]
fn bind<T>(ctx: &SockAddr, mut address: T) {
    // SAFETY: the context of a connect program and an address of this size on the stack.
    unsafe {
        bpf_bind(
            ctx.as_ptr().cast(),
            (&raw mut address).cast::<sockaddr>(),
            size_of::<T>() as i32,
        )
    };
}
