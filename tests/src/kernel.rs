//! What the laboratory needs of the kernel, checked before anything is made.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

/// Where bpffs is, or is to be mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Whether this process is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Ends this process when its parent ends (`cargo test`, or the demo's supervisor), be it
/// by SIGKILL: nobody waits for it any more. The next laboratory removes what is left.
pub fn end_with_parent() {
    // SAFETY: prctl takes plain numbers here and cannot fail with a valid signal.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
}

/// One line about what is missing for the laboratory, where something is.
pub fn check() -> Result<()> {
    if !is_root() {
        bail!("this needs root: it makes network namespaces and loads kernel programs");
    }
    load_a_program().context(
        "this kernel does not let us load BPF programs (CAP_BPF and CAP_NET_ADMIN are needed), \
         so nothing of the mesh can be shown here",
    )?;
    mount_bpffs()
}

/// The mount point of cgroup2: a hybrid system does not have it at `/sys/fs/cgroup`.
pub fn cgroup2() -> Result<PathBuf> {
    mount_point("cgroup2")?.context("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// The mount points of cgroup version 1, where a hybrid system has them: container runtimes use those, too.
pub fn cgroup1() -> Result<Vec<PathBuf>> {
    mount_points("cgroup")
}

fn mount_point(kind: &str) -> Result<Option<PathBuf>> {
    Ok(mount_points(kind)?.into_iter().next())
}

fn mount_points(kind: &str) -> Result<Vec<PathBuf>> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, found) = (fields.next()?, fields.next()?, fields.next()?);
        (found == kind).then(|| PathBuf::from(path))
    });
    Ok(points.collect())
}

fn mount_bpffs() -> Result<()> {
    // Labs of several threads begin at once, and a second mount would hide what the first has.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if mount_point("bpf")?.as_deref() == Some(Path::new(BPFFS)) {
        return Ok(());
    }
    let (kind, target) = (c"bpf", CString::new(BPFFS)?);
    // SAFETY: all strings are null-terminated and live through the call; bpffs takes no data.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot mount bpffs at {BPFFS}"));
    }
    Ok(())
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD` (linux/bpf.h).
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// Loads `return 1` as a program of the type that interception needs.
fn load_a_program() -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
    // r0 = 1; exit
    let instructions: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
    let license = c"Apache-2.0";
    let attributes = ProgLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_SKB,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: the attributes and what they point to live through the call, and the size is theirs.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of::<ProgLoad>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    unsafe { libc::close(fd as libc::c_int) };
    Ok(())
}
