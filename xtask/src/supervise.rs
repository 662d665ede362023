//! Runs what makes namespaces, control groups and pinned programs as a child,
//! and removes what it leaves, whatever ends it: success, failure, a panic,
//! Ctrl-C or SIGTERM.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long processes may take to end after they were asked to.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// The child and all it starts, as one process group; 0 where there is none.
static GROUP: AtomicI32 = AtomicI32::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How a supervised command came to its end.
pub enum Ended {
    /// By itself, with success.
    Finished,
    /// By Ctrl-C or a signal to us.
    Interrupted,
}

/// Runs `command` to the end, then removes every laboratory whose process is gone.
pub fn supervise(command: &mut Command) -> Result<Ended> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler does nothing that is not async-signal-safe.
        unsafe { libc::signal(signal, pass_on as *const () as libc::sighandler_t) };
    }
    let mut child = command
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .context("cannot start")?;
    let group = child.id().cast_signed();
    GROUP.store(group, Ordering::SeqCst);
    if INTERRUPTED.load(Ordering::SeqCst) {
        signal(group, libc::SIGTERM);
    }
    let status = child.wait().context("cannot wait")?;
    if !mesh_tests::wait_until(END_TIMEOUT, || !signal(group, 0)) {
        signal(group, libc::SIGKILL);
    }
    GROUP.store(0, Ordering::SeqCst);
    mesh_tests::sweep().context("cannot clean up")?;

    if INTERRUPTED.load(Ordering::SeqCst) {
        return Ok(Ended::Interrupted);
    }
    if !status.success() {
        bail!("see above ({status})");
    }
    Ok(Ended::Finished)
}

/// Ends the child and what it has started.
extern "C" fn pass_on(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
    let group = GROUP.load(Ordering::SeqCst);
    if group > 0 {
        signal(group, libc::SIGTERM);
    }
}

/// Sends a signal to a process group; whether there is one.
fn signal(group: i32, number: libc::c_int) -> bool {
    // SAFETY: killpg takes plain numbers and is async-signal-safe.
    unsafe { libc::killpg(group, number) == 0 }
}
