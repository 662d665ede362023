//! `cgroup/getsockopt` for `SO_ORIGINAL_DST` (netfilter's option 80 at SOL_IP
//! and SOL_IPV6): an application's connecting socket gives the address that it
//! asked for. Every other option passes untouched.

use core::ptr;

use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;
use mesh_common::OriginRole;

use crate::context::{PROCEED, origin};

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
const SO_ORIGINAL_DST: i32 = 80;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Size of `sockaddr_in` and `sockaddr_in6`.
const SIZE_V4: usize = 16;
const SIZE_V6: usize = 28;

#[cgroup_sockopt(getsockopt)]
pub fn um_original_dst(ctx: SockoptContext) -> i32 {
    let raw = ctx.sockopt;
    // SAFETY: fields of the context.
    let (level, name) = unsafe {
        (
            ptr::read_volatile(&raw const (*raw).level),
            ptr::read_volatile(&raw const (*raw).optname),
        )
    };
    if name != SO_ORIGINAL_DST || (level != SOL_IP && level != SOL_IPV6) {
        // More than a page does not fit the hook's buffer: 0 tells the kernel to use its own answer.
        // SAFETY: a field of the context.
        unsafe {
            if ptr::read_volatile(&raw const (*raw).optlen) > 4096 {
                ptr::write_volatile(&raw mut (*raw).optlen, 0);
            }
        }
        return PROCEED;
    }
    // SAFETY: fields of the context; `optval` and `optval_end` bound the kernel's buffer.
    unsafe {
        let sk = (*raw).__bindgen_anon_1.sk;
        if sk.is_null() {
            return PROCEED;
        }
        let Some(origin) = origin(sk) else {
            return PROCEED;
        };
        if origin.role == OriginRole::Agent as u32 {
            return PROCEED;
        }
        let value = (*raw).__bindgen_anon_2.optval as usize;
        let end = (*raw).__bindgen_anon_3.optval_end as usize;
        let port = origin.address.port.to_be();
        if level == SOL_IP {
            let Some(ip4) = origin.address.ip.as_v4() else {
                return PROCEED;
            };
            if value + SIZE_V4 > end {
                return PROCEED;
            }
            let value = value as *mut u8;
            value.cast::<u16>().write(AF_INET);
            value.add(2).cast::<u16>().write(port);
            value.add(4).cast::<u32>().write(ip4);
            value.add(8).cast::<u64>().write(0);
            ptr::write_volatile(&raw mut (*raw).optlen, SIZE_V4 as i32);
        } else {
            if value + SIZE_V6 > end {
                return PROCEED;
            }
            let value = value as *mut u8;
            value.cast::<u16>().write(AF_INET6);
            value.add(2).cast::<u16>().write(port);
            value.add(4).cast::<u32>().write(0);
            value.add(8).cast::<u32>().write(origin.address.ip.words[0]);
            value
                .add(12)
                .cast::<u32>()
                .write(origin.address.ip.words[1]);
            value
                .add(16)
                .cast::<u32>()
                .write(origin.address.ip.words[2]);
            value
                .add(20)
                .cast::<u32>()
                .write(origin.address.ip.words[3]);
            value.add(24).cast::<u32>().write(0);
            ptr::write_volatile(&raw mut (*raw).optlen, SIZE_V6 as i32);
        }
        ptr::write_volatile(&raw mut (*raw).retval, 0);
    }
    PROCEED
}
