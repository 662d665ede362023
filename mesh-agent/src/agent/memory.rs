//! How much memory the agent keeps: enough that streams in full flow do not ask the system
//! for it, and nothing of what only a start, a change or a burst of connections needs.

/// Free memory at the end of a heap that glibc keeps: what streams in full flow take and
/// give back all the time. By default it is 128 KiB, and every few records' pages went
/// back to the system, to be cleared and mapped again at once: a sixth of a tunnel's time.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 4 << 20;
/// Blocks from this size on come from the system and go back to it at once. glibc otherwise
/// takes the kernel's types, once read, for a sign that blocks of 10 MB are usual,
/// keeps them at the end of a thread's heap, and does not give those ends back.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: libc::c_int = 128 << 10;

/// Tells the allocator which memory to keep.
pub(super) fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes plain numbers.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// Free blocks of the heap: glibc keeps them otherwise. The free end of a thread's own heap it keeps
/// in any case, up to `KEPT_BYTES`.
pub(super) fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a plain number; the allocator locks what it trims.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Pages of code and constants: they are clean copies of files, and what is needed again
/// comes from the page cache, sixteen pages at a time. Reading a configuration and loading
/// kernel programs run through ten megabytes that carrying traffic does not need.
pub(super) fn give_back_code() {
    // SAFETY: the callback keeps to what this function says of its arguments.
    unsafe {
        libc::dl_iterate_phdr(Some(give_back_segments), std::ptr::null_mut());
    }
}

/// Called for the program and each of its libraries.
unsafe extern "C" fn give_back_segments(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: valid while this function runs, by dl_iterate_phdr(3).
    let object = unsafe { &*object };
    // SAFETY: the object's program headers, as many as it says.
    let segments =
        unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    // SAFETY: takes a plain number.
    let Ok(page) = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else {
        return 1;
    };
    // What may be written to is no copy of the file, relocations included.
    let read_only = segments
        .iter()
        .filter(|segment| segment.p_type == libc::PT_LOAD && segment.p_flags & libc::PF_W == 0);
    for segment in read_only {
        let address = object.dlpi_addr + segment.p_vaddr;
        // madvise(2) takes whole pages.
        let offset = address % page;
        // SAFETY: a private mapping of a file that was never written to; pages are read
        // again from the file when they are used. An error changes nothing.
        unsafe {
            libc::madvise(
                (address - offset) as *mut libc::c_void,
                (segment.p_memsz + offset) as usize,
                libc::MADV_DONTNEED,
            );
        }
    }
    0
}
