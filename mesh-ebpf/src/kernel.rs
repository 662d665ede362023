//! Reading the kernel's own structures, at offsets that the agent has taken
//! from the running kernel's BTF. Where they are not known, nothing here is
//! part of the loaded programs: the verifier sees the constant and removes it.

use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{self, bpf_probe_read_kernel};
use mesh_common::{Guard, KernelLayout};

/// Frozen by the agent before the programs are loaded.
#[unsafe(no_mangle)]
static KERNEL_LAYOUT: KernelLayout = KernelLayout {
    is_known: 0,
    receive_memory: 0,
    receive_buffer: 0,
    flags: 0,
    zerocopy_bit: 0,
    write_seq: 0,
    copied_seq: 0,
    shutdown: 0,
    state: 0,
    lock_owned: 0,
    error: 0,
};

macro_rules! offset {
    ($field:ident) => {
        // SAFETY: a constant of the loaded program; volatile, since the agent changes it before.
        unsafe { ptr::read_volatile(&raw const (*layout()).$field) }
    };
}

/// The layout's address, of which LLVM knows nothing: it would take the
/// structure to pieces, and the agent would find nothing of that name.
#[inline(always)]
fn layout() -> *const KernelLayout {
    let mut layout = &raw const KERNEL_LAYOUT;
    // SAFETY: does nothing.
    unsafe { core::arch::asm!("/* {0} */", inout(reg) layout, options(nomem, nostack, pure)) };
    layout
}

/// Whether kernel memory may be read at all.
#[inline(always)]
pub fn is_known() -> bool {
    offset!(is_known) != 0
}

/// The end of what a socket has given to TCP (`write_seq`), or `None` where that cannot be known or it
/// wants to hear of its pages.
#[inline(always)]
pub fn given(own: *mut bpf_sock) -> Option<u32> {
    let own = tcp_sock(own)?;
    let flags: u64 = field(own, offset!(flags));
    // MSG_ZEROCOPY: the completion would never come (net/core/skmsg.c copies the pages' references).
    if flags >> offset!(zerocopy_bit) & 1 != 0 {
        return None;
    }
    Some(field(own, offset!(write_seq)))
}

/// What has to be known of both ends before a message is handed over, by their addresses alone.
#[inline(always)]
pub fn guard_of(own: u64, peer: u64) -> Option<Guard> {
    guard(peer, state_of(own)?, read(own, offset!(write_seq))?)
}

/// The same where the sender is known.
#[inline(always)]
pub fn guard(peer: u64, state: u32, write_seq: u32) -> Option<Guard> {
    let waiting_bytes = read(peer, offset!(receive_memory))?;
    Some(Guard {
        state,
        write_seq,
        copied_seq: read(peer, offset!(copied_seq))?,
        waiting_bytes,
        receive_buffer: match waiting_bytes {
            // Any buffer has room for more, and this is so nearly always.
            0 => u32::MAX,
            _ => read(peer, offset!(receive_buffer))?,
        },
    })
}

/// Whether somebody reads from that socket, or writes to it: whoever wants to hand something over to it
/// waits for its lock, then.
#[inline(always)]
pub fn is_in_use(sock: u64) -> bool {
    matches!(read::<u32>(sock, offset!(lock_owned)), Some(owned) if owned != 0)
}

/// `sk_state` of a socket that is known by its address.
#[inline(always)]
pub fn state_of(sock: u64) -> Option<u32> {
    read::<u8>(sock, offset!(state)).map(u32::from)
}

/// The kernel's own structure, where its fields are known.
#[inline(always)]
fn tcp_sock(sk: *mut bpf_sock) -> Option<*const u8> {
    if !is_known() {
        return None;
    }
    // SAFETY: a checked socket pointer of the context.
    let own = unsafe { generated::bpf_skc_to_tcp_sock(sk.cast()) }.cast::<u8>();
    if own.is_null() { None } else { Some(own) }
}

/// A field of the kernel's `tcp_sock`.
#[inline(always)]
fn field<T>(tcp_sock: *const u8, offset: u32) -> T {
    // SAFETY: the verifier checks the offset, a constant of the loaded program, against the structure.
    unsafe { ptr::read_volatile(tcp_sock.add(offset as usize).cast()) }
}

/// Whether the other end has said that it sends no more (`RCV_SHUTDOWN`).
#[inline(always)]
pub fn is_read_to_the_end(sk: *mut bpf_sock) -> bool {
    const RCV_SHUTDOWN: u8 = 1;
    match tcp_sock(sk) {
        Some(own) => field::<u8>(own, offset!(shutdown)) & RCV_SHUTDOWN != 0,
        None => false,
    }
}

/// Whether the kernel has given up waiting for the other end (`ETIMEDOUT`).
#[inline(always)]
pub fn has_timed_out(sk: *mut bpf_sock) -> bool {
    const ETIMEDOUT: u32 = 110;
    match tcp_sock(sk) {
        Some(own) => field::<u32>(own, offset!(error)) == ETIMEDOUT,
        None => false,
    }
}

/// Reads a value; `None` where the address is not one. The address may be that
/// of a socket that is gone: the value is then of no use, but reading it is safe.
#[inline(always)]
fn read<T: Copy>(base: u64, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::uninit();
    // SAFETY: written whole where the helper says so.
    read_into(&mut value, base, offset).then(|| unsafe { value.assume_init() })
}

#[inline(always)]
fn read_into<T: Copy>(value: &mut MaybeUninit<T>, base: u64, offset: u32) -> bool {
    // SAFETY: the helper checks the address and writes as many bytes as the value has.
    let result = unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            (base + u64::from(offset)) as *const core::ffi::c_void,
        )
    };
    result == 0
}
