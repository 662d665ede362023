//! Waiting in a program: for what somebody else on this node is about to do.

use core::ffi::{c_long, c_void};
use core::ptr;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_loop;

/// Looks at most, whatever the clock says: each takes some tens of nanoseconds.
const LOOKS: u32 = 4096;

/// What a program waits for.
pub trait Awaited: Copy {
    /// Whether it has come.
    fn look(&self) -> bool;
}

/// What is waited for, and how long.
#[repr(C)]
struct Wait<T> {
    end: u64,
    awaited: T,
}

/// Waits for so many nanoseconds at most, and says for how many. The loop is the kernel's: of one that
/// the program makes the verifier would follow each turn.
#[inline(always)]
pub fn wait_for<T: Awaited>(awaited: T, ns: u64) -> u64 {
    let start = now();
    let mut wait = Wait {
        end: start + ns,
        awaited,
    };
    // SAFETY: the callback gets what is given here, which lives longer than the call.
    unsafe {
        bpf_loop(
            LOOKS,
            look::<T> as *mut c_void,
            ptr::from_mut(&mut wait).cast(),
            0,
        );
    }
    now() - start
}

/// One look; 1 ends the loop.
#[inline(never)]
extern "C" fn look<T: Awaited>(_turn: u64, wait: *mut c_void) -> c_long {
    // SAFETY: as `wait_for` has given it.
    let wait = unsafe { &*wait.cast::<Wait<T>>() };
    c_long::from(wait.awaited.look() || now() > wait.end)
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}
