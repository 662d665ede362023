//! Reading the kernel's own structures, at offsets that the agent has taken
//! from the running kernel's BTF. Where they are not known, nothing here is
//! part of the loaded programs: the verifier sees the constant and removes it.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use mesh_common::{Guard, KernelLayout, waiting_limit};

/// Frozen by the agent before the programs are loaded.
#[unsafe(no_mangle)]
static KERNEL_LAYOUT: KernelLayout = KernelLayout {
    is_known: 0,
    receive_memory: 0,
    receive_queue: 0,
    receive_buffer: 0,
    flags: 0,
    zerocopy_bit: 0,
    write_seq: 0,
    acknowledged: 0,
    shutdown: 0,
    user_locks_bit: 0,
    largest_buffer: 0,
};

/// The application has set the size of its receive buffer (include/net/sock.h).
const SOCK_RCVBUF_LOCK: u8 = 2;

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

/// What has to be known of both ends before a message is handed over, or `None`
/// where it cannot be known or the sender wants to hear of its pages.
#[inline(always)]
pub fn guard(state: u32, own: u64, peer: u64) -> Option<Guard> {
    if !is_known() {
        return None;
    }
    let flags: u64 = read(own, offset!(flags))?;
    // MSG_ZEROCOPY: the completion would never come (net/core/skmsg.c copies the pages' references).
    if flags >> offset!(zerocopy_bit) & 1 != 0 {
        return None;
    }
    let locks_bit = offset!(user_locks_bit);
    let locks: u8 = read(peer, locks_bit / 8)?;
    Some(Guard {
        state,
        write_seq: read(own, offset!(write_seq))?,
        acknowledged: read(own, offset!(acknowledged))?,
        queued_packets: read(peer, offset!(receive_queue))?,
        waiting_bytes: read(peer, offset!(receive_memory))?,
        waiting_limit: waiting_limit(
            read(peer, offset!(receive_buffer))?,
            locks >> (locks_bit % 8) & SOCK_RCVBUF_LOCK != 0,
            offset!(largest_buffer),
        ),
    })
}

/// Whether the other end has said that it sends no more (`RCV_SHUTDOWN`).
#[inline(always)]
pub fn is_read_to_the_end(sock: u64) -> bool {
    const RCV_SHUTDOWN: u8 = 1;
    is_known()
        && matches!(read::<u8>(sock, offset!(shutdown)), Some(bits) if bits & RCV_SHUTDOWN != 0)
}

/// Reads a value; `None` where the address is not one. The address may be that
/// of a socket that is gone: the value is then of no use, but reading it is safe.
#[inline(always)]
fn read<T: Default>(base: u64, offset: u32) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the helper checks the address and writes as many bytes as the value has.
    let result = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            (base + u64::from(offset)) as *const core::ffi::c_void,
        )
    };
    (result == 0).then_some(value)
}
