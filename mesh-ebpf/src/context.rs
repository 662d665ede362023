//! Reading and writing the contexts of socket-address programs. Each word is
//! read and written volatile: LLVM would merge neighbours into accesses of
//! 8 bytes, which the verifier refuses.

use core::ptr;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie, generated,
};
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{CgroupKey, HOST_LEVELS, Ip, Origin, Socket, SocketIp, Workload, WorkloadKey};

use crate::maps::{AGENT_SOCKETS, HOST, HOST_WORKLOADS, ORIGINS, WORKLOADS};

/// Result of a cgroup program: go on.
pub const PROCEED: i32 = 1;
/// Result of a cgroup program: fail the call (EPERM unless set otherwise).
pub const FAIL: i32 = 0;

/// `BPF_SK_STORAGE_GET_F_CREATE`.
const CREATE: u64 = 1;

#[inline(always)]
pub fn netns_cookie(ctx: *mut core::ffi::c_void) -> u64 {
    // SAFETY: `ctx` is the program's context.
    unsafe { bpf_get_netns_cookie(ctx) }
}

#[inline(always)]
pub fn socket_cookie(ctx: *mut core::ffi::c_void) -> u64 {
    // SAFETY: `ctx` is the program's context.
    unsafe { bpf_get_socket_cookie(ctx) }
}

#[inline(always)]
pub fn workload(netns_cookie: u64) -> Option<&'static Workload> {
    // SAFETY: the agent replaces whole values; a torn read is prevented by the hash map's element copy.
    unsafe { WORKLOADS.get(WorkloadKey { netns_cookie }) }
}

/// Whether the namespace is the host's own, and has workloads.
#[inline(always)]
pub fn is_host(netns_cookie: u64) -> bool {
    match HOST.get(0) {
        Some(host) => host.netns_cookie == netns_cookie,
        None => false,
    }
}

/// The workload whose process has made the system call that the program runs
/// in: by namespace or, in the host's own, by control group.
#[inline(always)]
pub fn caller(netns_cookie: u64) -> Option<&'static Workload> {
    if let Some(workload) = workload(netns_cookie) {
        return Some(workload);
    }
    let host = HOST.get(0)?;
    if host.netns_cookie != netns_cookie {
        return None;
    }
    let levels = host.levels;
    // The innermost group first.
    let mut level = HOST_LEVELS;
    while level > 0 {
        if levels & (1 << level) != 0 {
            // SAFETY: no preconditions; 0 for a level that the process has no group at.
            let cgroup_id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
            // SAFETY: the agent replaces whole values.
            if let Some(workload) = unsafe { HOST_WORKLOADS.get(CgroupKey { cgroup_id }) } {
                return Some(workload);
            }
        }
        level -= 1;
    }
    None
}

/// The agent's mark on a socket.
#[inline(always)]
pub fn agent_socket(sk: *mut bpf_sock) -> Option<&'static Socket> {
    // SAFETY: `sk` is a checked socket pointer of the context.
    unsafe {
        generated::bpf_sk_storage_get(
            ptr::from_ref(&AGENT_SOCKETS).cast_mut().cast(),
            sk.cast(),
            ptr::null_mut(),
            0,
        )
        .cast::<Socket>()
        .as_ref()
    }
}

#[inline(always)]
pub fn origin(sk: *mut bpf_sock) -> Option<&'static Origin> {
    // SAFETY: as above.
    unsafe {
        generated::bpf_sk_storage_get(
            ptr::from_ref(&ORIGINS).cast_mut().cast(),
            sk.cast(),
            ptr::null_mut(),
            0,
        )
        .cast::<Origin>()
        .as_ref()
    }
}

#[inline(always)]
pub fn set_origin(sk: *mut bpf_sock, value: &Origin) -> bool {
    // SAFETY: as above; the helper copies the value.
    unsafe {
        let slot = generated::bpf_sk_storage_get(
            ptr::from_ref(&ORIGINS).cast_mut().cast(),
            sk.cast(),
            ptr::from_ref(value).cast_mut().cast(),
            CREATE,
        )
        .cast::<Origin>();
        if slot.is_null() {
            return false;
        }
        // An existing value is not replaced by the helper.
        *slot = *value;
        true
    }
}

#[inline(always)]
pub fn clear_origin(sk: *mut bpf_sock) {
    // SAFETY: as above. A missing value is no error for us.
    let _ = unsafe {
        generated::bpf_sk_storage_delete(ptr::from_ref(&ORIGINS).cast_mut().cast(), sk.cast())
    };
}

/// A socket-address context with the accesses that the verifier accepts.
pub struct SockAddr {
    raw: *mut bpf_sock_addr,
}

impl SockAddr {
    #[inline(always)]
    pub fn new(ctx: &SockAddrContext) -> Self {
        Self { raw: ctx.sock_addr }
    }

    #[inline(always)]
    pub fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.raw.cast()
    }

    #[inline(always)]
    pub fn sk(&self) -> *mut bpf_sock {
        // SAFETY: the context of a sock_addr program always has a socket.
        unsafe { (*self.raw).__bindgen_anon_1.sk }
    }

    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { ptr::read_volatile(&raw const (*self.raw).protocol) }
    }

    /// Type of the socket, such as `SOCK_STREAM`.
    #[inline(always)]
    pub fn kind(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { ptr::read_volatile(&raw const (*self.raw).type_) }
    }

    #[inline(always)]
    pub fn port(&self) -> u16 {
        // SAFETY: a field of the context; the port is in network order in the low half.
        u16::from_be(unsafe { ptr::read_volatile(&raw const (*self.raw).user_port) } as u16)
    }

    #[inline(always)]
    pub fn set_port(&self, port: u16) {
        // SAFETY: a writable field of the context.
        unsafe { ptr::write_volatile(&raw mut (*self.raw).user_port, u32::from(port.to_be())) }
    }

    #[inline(always)]
    pub fn ip4(&self) -> u32 {
        // SAFETY: a field of the context of an IPv4 program.
        unsafe { ptr::read_volatile(&raw const (*self.raw).user_ip4) }
    }

    #[inline(always)]
    pub fn set_ip4(&self, address: u32) {
        // SAFETY: a writable field of the context of an IPv4 program.
        unsafe { ptr::write_volatile(&raw mut (*self.raw).user_ip4, address) }
    }

    #[inline(always)]
    pub fn ip6(&self) -> Ip {
        // SAFETY: fields of the context of an IPv6 program.
        unsafe {
            let words = &raw const (*self.raw).user_ip6;
            let words = words.cast::<u32>();
            Ip::v6([
                ptr::read_volatile(words),
                ptr::read_volatile(words.add(1)),
                ptr::read_volatile(words.add(2)),
                ptr::read_volatile(words.add(3)),
            ])
        }
    }

    #[inline(always)]
    pub fn set_ip6(&self, address: &Ip) {
        // SAFETY: writable fields of the context of an IPv6 program.
        unsafe {
            let words = &raw mut (*self.raw).user_ip6;
            let words = words.cast::<u32>();
            ptr::write_volatile(words, address.words[0]);
            ptr::write_volatile(words.add(1), address.words[1]);
            ptr::write_volatile(words.add(2), address.words[2]);
            ptr::write_volatile(words.add(3), address.words[3]);
        }
    }

    /// Address and port of an IPv4 program's context.
    #[inline(always)]
    pub fn address4(&self) -> SocketIp {
        SocketIp::new(Ip::v4(self.ip4()), self.port())
    }

    /// Address and port of an IPv6 program's context.
    #[inline(always)]
    pub fn address6(&self) -> SocketIp {
        SocketIp::new(self.ip6(), self.port())
    }
}
