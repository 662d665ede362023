//! Reading and writing the contexts of socket-address programs. Each word is
//! read and written volatile: LLVM would merge neighbours into accesses of
//! 8 bytes, which the verifier refuses.

use core::ptr;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr, bpf_sock_ops};
use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie,
    bpf_sock_ops_cb_flags_set, generated,
};
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{
    CgroupKey, Counter, HOST_LEVELS, Ip, Knob, Origin, OriginRole, Socket, SocketIp, Transport,
    Workload, WorkloadKey,
};

use crate::maps::{AGENT_SOCKETS, COUNTS, HOST, HOST_WORKLOADS, KNOB_VALUES, ORIGINS, WORKLOADS};

const AF_INET: u32 = 2;

/// Result of a cgroup program: go on.
pub const PROCEED: i32 = 1;
/// Result of a cgroup program: fail the call (EPERM unless set otherwise).
pub const FAIL: i32 = 0;

/// What a new [`Origin`] starts from.
pub const NO_ORIGIN: Origin = Origin {
    flow: 0,
    server_netns: 0,
    client_sock: 0,
    address: SocketIp::new(Ip::UNSPECIFIED, 0),
    role: OriginRole::Application as u32,
    splice: 0,
    source_identity: 0,
    destination_identity: 0,
    transport: Transport::Unknown as u32,
};

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
pub fn set_origin(sk: *mut bpf_sock, value: &Origin) -> Option<&'static mut Origin> {
    // SAFETY: as above; the helper copies the value.
    unsafe {
        let slot = generated::bpf_sk_storage_get(
            ptr::from_ref(&ORIGINS).cast_mut().cast(),
            sk.cast(),
            ptr::from_ref(value).cast_mut().cast(),
            CREATE,
        )
        .cast::<Origin>()
        .as_mut()?;
        // An existing value is not replaced by the helper.
        *slot = *value;
        Some(slot)
    }
}

#[inline(always)]
pub fn clear_origin(sk: *mut bpf_sock) {
    // SAFETY: as above. A missing value is no error for us.
    let _ = unsafe {
        generated::bpf_sk_storage_delete(ptr::from_ref(&ORIGINS).cast_mut().cast(), sk.cast())
    };
}

/// Ends of a connection in canonical form, local and remote.
#[inline(always)]
pub fn ends(raw: *mut bpf_sock_ops) -> (SocketIp, SocketIp) {
    // SAFETY: fields of the context, read one by one. `local_port` is in host order, `remote_port` in network
    // order in the upper half on little endian machines.
    unsafe {
        let local_port = ptr::read_volatile(&raw const (*raw).local_port) as u16;
        let remote_port = u32::from_be(ptr::read_volatile(&raw const (*raw).remote_port)) as u16;
        let family = ptr::read_volatile(&raw const (*raw).family);
        // Both families are read and one is chosen: reads in branches would be merged into one at a
        // computed offset, which the verifier refuses.
        let local4 = Ip::v4(ptr::read_volatile(&raw const (*raw).local_ip4));
        let remote4 = Ip::v4(ptr::read_volatile(&raw const (*raw).remote_ip4));
        let local6 = read6((&raw const (*raw).local_ip6).cast());
        let remote6 = read6((&raw const (*raw).remote_ip6).cast());
        let (local, remote) = if family == AF_INET {
            (local4, remote4)
        } else {
            (local6, remote6)
        };
        (
            SocketIp::new(local, local_port),
            SocketIp::new(remote, remote_port),
        )
    }
}

/// Asks for these callbacks as well (`BPF_SOCK_OPS_*_CB_FLAG`).
#[inline(always)]
pub fn watch(raw: *mut bpf_sock_ops, flags: u32) {
    // SAFETY: a field of the context, and the context itself.
    unsafe {
        let before = ptr::read_volatile(&raw const (*raw).bpf_sock_ops_cb_flags);
        bpf_sock_ops_cb_flags_set(raw, (before | flags) as i32);
    }
}

/// Asks for these callbacks no more.
#[inline(always)]
pub fn unwatch(raw: *mut bpf_sock_ops, flags: u32) {
    // SAFETY: as above.
    unsafe {
        let before = ptr::read_volatile(&raw const (*raw).bpf_sock_ops_cb_flags);
        bpf_sock_ops_cb_flags_set(raw, (before & !flags) as i32);
    }
}

/// Four words of a context.
///
/// # Safety
/// `words` points at four words of the context.
#[inline(always)]
pub unsafe fn read6(words: *const u32) -> Ip {
    // SAFETY: the caller's word.
    unsafe {
        Ip::v6([
            ptr::read_volatile(words),
            ptr::read_volatile(words.add(1)),
            ptr::read_volatile(words.add(2)),
            ptr::read_volatile(words.add(3)),
        ])
    }
}

/// Adds atomically, modulo 2^64. `core` has no such operation for the kernel's target.
#[inline(always)]
pub fn add(counter: *mut u64, value: u64) {
    // SAFETY: an aligned counter in map memory.
    unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) value) };
}

/// Reads in order: after all that the program has read before, and before all that it reads
/// later, on any processor (value-returning atomics are fully ordered, Documentation/atomic_t.txt).
#[inline(always)]
pub fn read_ordered(word: *mut u64) -> u64 {
    let mut value = 0_u64;
    // SAFETY: an aligned word in map memory, to which nothing is added.
    unsafe {
        core::arch::asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) word, inout(reg) value);
    }
    value
}

/// One more of what is counted.
#[inline(always)]
pub fn count(what: Counter) {
    count_more(what, 1);
}

#[inline(always)]
pub fn count_more(what: Counter, number: u64) {
    if let Some(counter) = COUNTS.get_ptr_mut(what as u32) {
        // SAFETY: this CPU's own slot; a program is not interrupted by another one of its kind.
        unsafe { *counter += number };
    }
}

/// A switch of the operator.
#[inline(always)]
pub fn knob(which: Knob) -> u32 {
    match KNOB_VALUES.get_ptr(which as u32) {
        // SAFETY: a slot of the array; any value will do.
        Some(value) => unsafe { ptr::read_volatile(value) },
        None => 0,
    }
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
        unsafe { read6((&raw const (*self.raw).user_ip6).cast()) }
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
