//! Runs what makes namespaces, control groups and pinned programs as a child,
//! and removes what it leaves, whatever ends it: success, failure, a panic,
//! Ctrl-C or SIGTERM.

use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::{Context, Result, bail};

static CHILD: AtomicI32 = AtomicI32::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs `command` to the end, then removes every laboratory whose process is gone.
pub fn supervise(command: &mut Command) -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler does nothing that is not async-signal-safe.
        unsafe { libc::signal(signal, pass_on as *const () as libc::sighandler_t) };
    }
    let mut child = command.spawn().context("cannot start")?;
    CHILD.store(child.id().cast_signed(), Ordering::SeqCst);
    if INTERRUPTED.load(Ordering::SeqCst) {
        child.kill()?;
    }
    let status = child.wait();
    CHILD.store(0, Ordering::SeqCst);
    mesh_tests::sweep().context("cannot clean up")?;
    ended(status.context("cannot wait")?)
}

fn ended(status: ExitStatus) -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        bail!("interrupted; everything has been removed");
    }
    if !status.success() {
        bail!("see above ({status})");
    }
    Ok(())
}

/// Ends the child, whose children end with it.
extern "C" fn pass_on(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
    let child = CHILD.load(Ordering::SeqCst);
    if child > 0 {
        // SAFETY: kill takes plain numbers and is async-signal-safe; the child has not been waited for.
        unsafe { libc::kill(child, libc::SIGTERM) };
    }
}
