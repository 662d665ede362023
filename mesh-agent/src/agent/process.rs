//! The agent as a process: how many files it may open, how much memory it keeps.

use std::io;

/// Raises the limit of open files to what is allowed: a proxied connection
/// takes two, and the usual limit is made for programs that use select(2).
pub(super) fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a pointer to a value of the right type.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if !raised {
        let error = io::Error::last_os_error();
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Large blocks come from the system and go back to it at once. glibc otherwise
/// takes the kernel's types, once read, for a sign that blocks of 10 MB are usual,
/// keeps them at the end of a thread's heap, and does not give those ends back.
pub(super) fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes plain numbers.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

/// Gives memory back to the system that loading programs and compiling a
/// configuration took for a while. glibc keeps it otherwise.
pub(super) fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a plain number; the allocator locks what it trims.
    unsafe {
        libc::malloc_trim(0);
    }
}
