//! From the id of a control group to its path.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};

/// The hierarchy of control groups, whose groups can be found by their ids.
#[derive(Debug)]
pub struct Hierarchy {
    mount: File,
    path: PathBuf,
}

/// `struct file_handle` (open_by_handle_at(2)) of kernfs: the inode's number.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    id: u64,
}

/// `FILEID_KERNFS` (include/linux/exportfs.h); ids are such handles since Linux 5.5.
const FILEID_KERNFS: i32 = 0xfe;

impl Hierarchy {
    /// The one that is mounted there.
    ///
    /// # Errors
    /// Where nothing is.
    pub fn open(mount: &Path) -> io::Result<Self> {
        Ok(Self {
            mount: File::open(mount)?,
            path: mount.to_owned(),
        })
    }

    /// Path of a group below the mount point.
    ///
    /// # Errors
    /// Where there is none with this id, or the agent may not open by handles
    /// (CAP_DAC_READ_SEARCH).
    pub fn path(&self, id: u64) -> io::Result<PathBuf> {
        let mut handle = Handle {
            bytes: size_of::<u64>() as u32,
            kind: FILEID_KERNFS,
            id,
        };
        // SAFETY: the handle is as long as it says; the kernel does not keep the pointer.
        let opened = unsafe {
            libc::open_by_handle_at(
                self.mount.as_raw_fd(),
                (&raw mut handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if opened < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it has just been opened, and nobody else has it.
        let group = unsafe { File::from_raw_fd(opened) };
        let path = std::fs::read_link(format!("/proc/self/fd/{}", group.as_raw_fd()))?;
        let below = path.strip_prefix(&self.path).map(Path::to_path_buf);
        below.map_err(|_| io::Error::from(io::ErrorKind::NotFound))
    }
}

/// Whether a group is, by its name, that of a container or a pod, or below one: `kubepods.slice`,
/// or a name that ends with a container's id of 64 digits.
pub fn is_of_container(path: &Path) -> bool {
    path.iter().any(|name| {
        let name = name.to_string_lossy();
        let name = name.strip_suffix(".scope").unwrap_or(&name);
        let digits = name.bytes().rev();
        let digits = digits.take_while(u8::is_ascii_hexdigit).count();
        digits == 64 || name.starts_with("kubepods")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_told_by_the_names_of_their_groups() {
        let id = "0123456789abcdef".repeat(4);
        for path in [
            format!("system.slice/docker-{id}.scope"),
            format!("docker/{id}/init"),
            format!("machine.slice/libpod-{id}.scope"),
            "kubepods.slice/kubepods-besteffort.slice/x".to_owned(),
            format!("kubepods/burstable/pod1/{id}"),
        ] {
            assert!(is_of_container(Path::new(&path)), "{path}");
        }
        for path in [
            "system.slice/kubelet.service",
            "user.slice/user-0.slice/session-1.scope",
            "",
            "system.slice/docker.service",
        ] {
            assert!(!is_of_container(Path::new(path)), "{path}");
        }
    }
}
