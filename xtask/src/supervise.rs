//! Runs programs so that none outlives us: each is a process group of its own,
//! which ends with Ctrl-C, SIGTERM or SIGHUP to us. What makes namespaces,
//! control groups and pinned programs has them removed, whatever ends it:
//! success, failure, a panic or a signal. Where we are killed ourselves, the
//! child is told to end, and the next run removes what it has left.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
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
    let status = run(command);
    mesh_tests::sweep().context("cannot clean up")?;
    match status? {
        None => Ok(Ended::Interrupted),
        Some(status) if status.success() => Ok(Ended::Finished),
        Some(status) => bail!("see above ({status})"),
    }
}

/// Runs `command` to the end; no status where a signal to us has ended it.
pub fn run(command: &mut Command) -> Result<Option<ExitStatus>> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler does nothing that is not async-signal-safe.
        unsafe { libc::signal(signal, pass_on as *const () as libc::sighandler_t) };
    }
    command.stdin(Stdio::null()).process_group(0);
    // SAFETY: prctl takes plain numbers and is async-signal-safe.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            },
        );
    }
    let mut child = command.spawn().context("cannot start")?;
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
    let interrupted = INTERRUPTED.load(Ordering::SeqCst);
    Ok((!interrupted).then_some(status))
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
