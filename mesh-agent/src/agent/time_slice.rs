//! How soon a thread that carries traffic gets a processor on a busy node.

/// How long a turn shall last, in nanoseconds: about as long as a thread of the agent takes for
/// what has come meanwhile. The kernel's own is 1.4 ms with two processors, 2.8 ms with eight.
const SLICE_NS: u64 = 500_000;

/// Asks for short turns for the calling thread.
///
/// The kernel lets run whose turn would end first, so a thread with short turns is run soon
/// after it was woken, also where others compute all the time. Its share of the processor stays
/// the same, and so does what the operator has set with nice(1) or chrt(1). Before
/// Linux 6.12 turns cannot be chosen, and nothing happens. Where sched_setattr(2) is
/// forbidden, the thread keeps the turns that it has.
pub fn shorten() {
    let Some(mut attributes) = attributes() else {
        return;
    };
    let is_ordinary = attributes.sched_policy == libc::SCHED_OTHER.cast_unsigned();
    if is_ordinary && attributes.sched_runtime > SLICE_NS {
        attributes.sched_runtime = SLICE_NS;
        // SAFETY: reads the attributes, for the calling thread (0), without flags (0).
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    }
}

/// How the calling thread is scheduled. `sched_runtime` is 0 where the kernel does not tell.
fn attributes() -> Option<libc::sched_attr> {
    // SAFETY: plain numbers, for which 0 is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes at most so many bytes, for the calling thread (0), no flags (0).
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    (result == 0).then_some(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_get_shorter_and_nothing_else_changes() {
        let thread = std::thread::spawn(|| {
            // SAFETY: takes plain numbers; to be less urgent is everybody's right.
            assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 5) }, 0);
            let before = attributes().expect("a thread has attributes");
            shorten();
            let after = attributes().expect("a thread has attributes");
            assert_eq!((before.sched_nice, after.sched_nice), (5, 5));
            assert_eq!(before.sched_policy, after.sched_policy);
            (before.sched_runtime, after.sched_runtime)
        });
        match thread.join().expect("no panic") {
            (0, after) => assert_eq!(after, 0, "this kernel does not know turns of one's own"),
            (before, after) => {
                assert!(before > SLICE_NS, "{before}");
                assert_eq!(after, SLICE_NS);
            }
        }
    }

    #[test]
    fn who_asked_for_shorter_ones_keeps_them() {
        let thread = std::thread::spawn(|| {
            shorten();
            let mut attributes = attributes().expect("a thread has attributes");
            attributes.sched_runtime = attributes.sched_runtime.min(SLICE_NS / 2);
            // SAFETY: as in `shorten`.
            unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
            shorten();
            let after = super::attributes().expect("a thread has attributes");
            assert_eq!(after.sched_runtime, attributes.sched_runtime);
        });
        thread.join().expect("no panic");
    }
}
