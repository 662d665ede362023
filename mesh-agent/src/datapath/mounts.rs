//! The kernel's table of mounts, and the BPF file system.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::DatapathError;

/// Where every distribution mounts the BPF file system.
const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` (linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Makes sure that `folder` will be on a BPF file system: mounts it at its usual
/// place where nobody has.
pub(super) fn ensure_bpffs(folder: &Path) -> Result<(), DatapathError> {
    if is_bpffs(folder) {
        return Ok(());
    }
    let failed = |action, path: &Path, source| DatapathError::File {
        action,
        path: path.to_owned(),
        source,
    };
    if !folder.starts_with(BPFFS) {
        let source = io::Error::other(format!(
            "it is not on a BPF file system, as {BPFFS} is (`mount -t bpf bpf <folder>` makes one)"
        ));
        return Err(failed("pin programs in", folder, source));
    }
    let (kind, target) = (c"bpf", c"/sys/fs/bpf");
    // SAFETY: all strings are null-terminated and live through the call; bpffs takes no data.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            std::ptr::null(),
        )
    };
    if result != 0 {
        let source = io::Error::last_os_error();
        return Err(failed(
            "mount the BPF file system at",
            Path::new(BPFFS),
            source,
        ));
    }
    tracing::info!(at = BPFFS, "mounted the BPF file system");
    Ok(())
}

/// Of the deepest folder of the path that is there.
fn is_bpffs(folder: &Path) -> bool {
    let Some(there) = folder.ancestors().find(|path| path.exists()) else {
        return false;
    };
    let Ok(path) = CString::new(there.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: a null-terminated path and a value of ours, which statfs fills where it succeeds.
    unsafe {
        let mut data: libc::statfs = std::mem::zeroed();
        libc::statfs(path.as_ptr(), &raw mut data) == 0 && data.f_type == BPF_FS_MAGIC
    }
}

/// The first mount point of this type of file system in the text of `/proc/mounts`.
pub fn mount_point(table: &str, kind: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == kind).then(|| PathBuf::from(unescape(point)))
    })
}

/// `/proc/mounts` writes blanks and backslashes as three octal digits (proc_pid_mounts(5)).
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
