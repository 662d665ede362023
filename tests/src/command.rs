//! Programs: unmodified, in a namespace and a control group of their own.

use std::env;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::wait_until;

/// How long a program may take that is waited for.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a program may take to end when it is asked to.
const TERM_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a program is to run.
pub struct Place<'a> {
    /// Control group, which must be entered before the first socket is made.
    pub cgroup: &'a Path,
    /// Network namespace; `None` for the host's.
    pub netns: Option<&'a Path>,
    /// Files that replace those of the machine, as (ours, the machine's).
    pub files: &'a [(PathBuf, &'static str)],
}

/// A command for `place`. It ends with the thread that starts it.
///
/// `ip netns exec` is no help here: it mounts another /sys, in which the
/// control groups are not those of the machine.
pub fn command(program: &Path, place: &Place<'_>) -> Result<Command> {
    let procs = c_path(&place.cgroup.join("cgroup.procs"))?;
    let netns = place
        .netns
        .map(|path| File::open(path).with_context(|| format!("cannot open {}", path.display())))
        .transpose()?;
    let mut mounts = Vec::new();
    for (ours, theirs) in place.files {
        if Path::new(theirs).exists() {
            mounts.push((c_path(ours)?, c_path(Path::new(theirs))?));
        }
    }

    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    // SAFETY: between fork and exec only system calls are made, on memory that was allocated before.
    unsafe {
        command.pre_exec(move || {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            enter_cgroup(&procs)?;
            if let Some(netns) = &netns {
                check(libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET))?;
            }
            if !mounts.is_empty() {
                bind(&mounts)?;
            }
            Ok(())
        });
    }
    Ok(command)
}

fn enter_cgroup(procs: &CString) -> io::Result<()> {
    // SAFETY: the path is null-terminated and the buffer has the length that is given.
    unsafe {
        let file: RawFd = libc::open(procs.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(file)?;
        let written = libc::write(file, b"0".as_ptr().cast(), 1);
        let result = if written == 1 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        };
        libc::close(file);
        result
    }
}

/// Puts our files in the place of the machine's, for this process alone.
fn bind(mounts: &[(CString, CString)]) -> io::Result<()> {
    let none = std::ptr::null();
    // SAFETY: all strings are null-terminated and live through the calls.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        check(libc::mount(
            none,
            c"/".as_ptr(),
            none,
            libc::MS_REC | libc::MS_PRIVATE,
            none.cast(),
        ))?;
        for (ours, theirs) in mounts {
            check(libc::mount(
                ours.as_ptr(),
                theirs.as_ptr(),
                none,
                libc::MS_BIND,
                none.cast(),
            ))?;
        }
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes())
        .with_context(|| format!("{} has a null byte", path.display()))
}

/// The path of one of the project's own programs: in `UNDERMESH_BIN`, or the release build.
pub fn binary(name: &str) -> PathBuf {
    env::var_os("UNDERMESH_BIN")
        .map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"),
            PathBuf::from,
        )
        .join(name)
}

/// How a program ended and what it said.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Exit code, -1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Standard output of a program that succeeded.
    ///
    /// # Panics
    ///
    /// With all it said, where it did not succeed.
    pub fn success(self) -> String {
        assert!(self.code == 0, "a program failed: {self:#?}");
        self.stdout
    }
}

/// Runs to the end, or kills it when it takes longer than a minute.
pub fn outcome(command: &mut Command) -> Result<Outcome> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let pid = child.id();
    let reader = std::thread::spawn(move || child.wait_with_output());
    if !wait_until(RUN_TIMEOUT, || reader.is_finished()) {
        signal(pid, libc::SIGKILL);
    }
    let output = reader
        .join()
        .expect("reading a child's output does not panic")
        .with_context(|| format!("cannot read what {name} says"))?;
    Ok(Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A program that runs beside the test; it is ended when this is dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it, with both outputs going to the file `log`.
    pub fn spawn(command: &mut Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let child = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        Ok(Self { child, log })
    }

    /// Its standard input, where it was piped; once.
    pub fn stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All it has said so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether something listens on this TCP port in the process's namespace.
    pub fn listens_on(&self, port: u16) -> bool {
        ["tcp", "tcp6"].iter().any(|table| {
            let path = format!("/proc/{}/net/{table}", self.id());
            std::fs::read_to_string(path).is_ok_and(|text| has_listener(&text, port))
        })
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        signal(self.id(), libc::SIGKILL);
        let _ = self.child.wait();
    }

    /// Asks it to end, and insists after a while.
    pub fn terminate(&mut self) {
        if self.is_running() {
            signal(self.id(), libc::SIGTERM);
            if !wait_until(TERM_TIMEOUT, || !self.is_running()) {
                self.kill();
            }
        }
    }

    /// Sends a signal.
    pub fn signal(&self, number: i32) {
        signal(self.id(), number);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            self.kill();
        }
    }
}

fn signal(pid: u32, number: i32) {
    // SAFETY: kill takes plain numbers; the process is our own child and has not been waited for.
    unsafe { libc::kill(pid as libc::pid_t, number) };
}

/// Looks for a listening socket (state 0A) in the text of /proc/net/tcp.
fn has_listener(table: &str, port: u16) -> bool {
    let port = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, state) = (fields.next(), fields.next(), fields.next());
        local.is_some_and(|local| local.ends_with(&port)) && state == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue\n   \
        0: 0100007F:0035 00000000:0000 0A 00000000:00000000\n   \
        1: 0100007F:2378 0200007F:0050 01 00000000:00000000\n";

    #[test]
    fn listeners_are_found_by_port_and_state() {
        assert!(has_listener(TABLE, 53));
        assert!(!has_listener(TABLE, 0x2378), "connected, not listening");
        assert!(!has_listener(TABLE, 80), "a remote port");
    }
}
