//! Where fields stand in the running kernel's own structures. The agent reads
//! it from the kernel's BTF and freezes it into the programs, which then need
//! no relocation.

use crate::assert_layout;

/// Offsets in bytes from the start of `struct sock` (and `struct tcp_sock`,
/// which begins with it) unless another structure is named.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelLayout {
    /// 1: all offsets are known and the start-up probe allows the short-circuit.
    /// 0: no program reads kernel memory.
    pub is_known: u32,
    /// `sk_backlog.rmem_alloc`
    pub receive_memory: u32,
    /// `sk_rcvbuf`
    pub receive_buffer: u32,
    /// `sk_flags`
    pub flags: u32,
    /// Bit of `SOCK_ZEROCOPY` in `sk_flags` (`enum sock_flags`).
    pub zerocopy_bit: u32,
    /// `tcp_sock.write_seq`
    pub write_seq: u32,
    /// `tcp_sock.copied_seq`
    pub copied_seq: u32,
    /// `sk_shutdown`
    pub shutdown: u32,
    /// `sk_state`
    pub state: u32,
    /// `sk_lock.owned`
    pub lock_owned: u32,
    /// `sk_err`
    pub error: u32,
}

assert_layout!(KernelLayout, size = 44, align = 4);
