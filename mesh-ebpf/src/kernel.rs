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
    receive_queue: 0,
    receive_buffer: 0,
    flags: 0,
    zerocopy_bit: 0,
    write_seq: 0,
    acknowledged: 0,
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

/// What has to be known of both ends before a message is handed over, or `None`
/// where it cannot be known or the sender wants to hear of its pages. `own` is
/// the sender, `peer` the other end's address.
#[inline(always)]
pub fn guard(own: *mut bpf_sock, state: u32, peer: u64) -> Option<Guard> {
    let own = tcp_sock(own)?;
    let flags: u64 = field(own, offset!(flags));
    let write_seq = field(own, offset!(write_seq));
    let acknowledged = field(own, offset!(acknowledged));
    // MSG_ZEROCOPY: the completion would never come (net/core/skmsg.c copies the pages' references).
    if flags >> offset!(zerocopy_bit) & 1 != 0 {
        return None;
    }
    Receiver::read(peer)?.guard(state, write_seq, acknowledged)
}

/// The same of two sockets that are known by their addresses alone.
#[inline(always)]
pub fn guard_of(own: u64, peer: u64) -> Option<Guard> {
    let write_seq = read(own, offset!(write_seq))?;
    let acknowledged = read(own, offset!(acknowledged))?;
    Receiver::read(peer)?.guard(state_of(own)?, write_seq, acknowledged)
}

/// `sk_state` of a socket that is known by its address.
#[inline(always)]
pub fn state_of(sock: u64) -> Option<u32> {
    read::<u8>(sock, offset!(state)).map(u32::from)
}

/// Looks at a socket's lock, at most: some fifty to a hundred microseconds. A large message is copied in
/// that time on a slow machine, too, and a virtual processor that sleeps takes as long to be woken.
const LOOKS_AT_LOCK: u32 = 3000;

/// Waits a moment while somebody reads from that socket. Who hands a message over takes its lock: as long
/// as a large one is being read that is with the reader, and to sleep and to be woken takes both longer.
#[inline(always)]
pub fn wait_for_reader(sock: u64) {
    for _ in 0..LOOKS_AT_LOCK {
        match read::<u32>(sock, offset!(lock_owned)) {
            Some(owned) if owned != 0 => {}
            _ => break,
        }
    }
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

/// Words from the receiver's queue on: on most kernels everything that has to
/// be known of it is among them, and one call of a helper reads it.
const WINDOW: usize = 8;

struct Receiver {
    sock: u64,
    window: [u64; WINDOW],
}

impl Receiver {
    #[inline(always)]
    fn read(sock: u64) -> Option<Self> {
        let mut window = MaybeUninit::<[u64; WINDOW]>::uninit();
        if !read_into(&mut window, sock, offset!(receive_queue)) {
            return None;
        }
        Some(Self {
            sock,
            // SAFETY: the helper has written all of it.
            window: unsafe { window.assume_init() },
        })
    }

    #[inline(always)]
    fn guard(&self, state: u32, write_seq: u32, acknowledged: u32) -> Option<Guard> {
        Some(Guard {
            state,
            write_seq,
            acknowledged,
            queued_packets: self.word(offset!(receive_queue))?,
            waiting_bytes: self.word(offset!(receive_memory))?,
            receive_buffer: self.word(offset!(receive_buffer))?,
        })
    }

    /// Four bytes at that offset. Which way they come is known when the program is loaded.
    #[inline(always)]
    fn word(&self, offset: u32) -> Option<u32> {
        let within = offset.wrapping_sub(offset!(receive_queue)) as usize;
        if within > size_of_val(&self.window) - size_of::<u32>() {
            return read(self.sock, offset);
        }
        // SAFETY: within the window.
        Some(unsafe {
            ptr::read_unaligned((&raw const self.window).cast::<u8>().add(within).cast())
        })
    }
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
