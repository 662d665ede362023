//! A handle on a network namespace.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::container::{self, Found};
use super::interface;
use crate::file;
use crate::registry::Placement;

/// Where `ip netns` keeps its names.
pub(super) const NAMED: &str = "/run/netns";
/// The namespace of this process.
const HOST: &str = "/proc/self/ns/net";
/// `SO_NETNS_COOKIE` (Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Why a namespace cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// It is not there (yet).
    #[error("{what} is not there")]
    Missing {
        /// What was looked for.
        what: String,
    },
    /// Several containers' ids begin so.
    #[error("{what} is not the only one, write more of its id: {ids}")]
    Ambiguous {
        /// What was looked for.
        what: String,
        /// Their ids.
        ids: String,
    },
    /// It is the namespace of the agent itself.
    #[error(
        "{what} is in the host's own network namespace, where workloads are told apart by control \
         group: annotate it with undermesh.io/cgroup"
    )]
    Host {
        /// What was looked for.
        what: String,
    },
    /// The kernel refused.
    #[error("cannot {action} {what}: {source}")]
    Io {
        /// What was done.
        action: &'static str,
        /// With what.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

/// A network namespace that can be entered.
#[derive(Debug)]
pub struct Namespace {
    file: OwnedFd,
    cookie: u64,
    /// Device and inode on nsfs. Nobody else gets them while the file is open.
    id: (u64, u64),
    /// Where it was found.
    path: PathBuf,
}

impl Namespace {
    /// Opens the namespace of a workload.
    ///
    /// # Errors
    /// Where it is missing, the host's own, or cannot be entered.
    pub fn open(placement: &Placement) -> Result<Self, NamespaceError> {
        let (path, what) = locate(placement)?;
        let file = file::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => NamespaceError::Missing { what: what.clone() },
            _ => NamespaceError::Io {
                action: "open",
                what: what.clone(),
                source,
            },
        })?;
        let namespace = Self::of(file.into(), path).map_err(|source| NamespaceError::Io {
            action: "enter",
            what: what.clone(),
            source,
        })?;
        if namespace.cookie == Self::host()?.cookie {
            return Err(NamespaceError::Host { what });
        }
        Ok(namespace)
    }

    /// Whether `placement` still means this namespace. A name, a process or a
    /// container can come to stand for another one: a pod that was made again.
    pub fn is_at(&self, placement: &Placement) -> bool {
        let is_ours =
            |path: &Path| fs::metadata(path).is_ok_and(|data| (data.dev(), data.ino()) == self.id);
        // Looking for a container's processes takes longer than a look at the one that was found.
        is_ours(&self.path) || locate(placement).is_ok_and(|(path, _)| is_ours(&path))
    }

    /// The namespace of the agent itself.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn host() -> Result<Self, NamespaceError> {
        let host = || Self::of(home()?.try_clone()?, HOST.into());
        host().map_err(|source| NamespaceError::Io {
            action: "identify",
            what: "the host's network namespace".to_owned(),
            source,
        })
    }

    pub(super) fn of(file: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let data = File::from(file.try_clone()?).metadata()?;
        Ok(Self {
            cookie: cookie_inside(file.as_fd())?,
            id: (data.dev(), data.ino()),
            file,
            path,
        })
    }

    /// The kernel's name for the namespace; never used twice.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Index of the interface that has the first of these addresses that any has.
    pub fn device_of(&self, addresses: &[IpAddr]) -> Option<u32> {
        self.run(|| interface::with_one_of(addresses)).ok()?
    }

    /// Runs `action` with the calling thread inside the namespace. The action
    /// must not block for long: other tasks wait for the thread.
    ///
    /// # Errors
    /// Where the namespace cannot be entered, and those of the action.
    pub fn run<T>(&self, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        inside(self.file.as_fd(), action)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn locate(placement: &Placement) -> Result<(PathBuf, String), NamespaceError> {
    Ok(match placement {
        Placement::Netns(path) if path.contains('/') => {
            (path.into(), format!("network namespace {path}"))
        }
        Placement::Netns(name) => (
            Path::new(NAMED).join(name),
            format!("network namespace {name}"),
        ),
        Placement::Pid(pid) => (
            format!("/proc/{pid}/ns/net").into(),
            format!("process {pid}"),
        ),
        Placement::Container(id) => {
            let what = format!("container {id}");
            match container::find(Path::new("/proc"), id) {
                Ok(Found::Process(pid)) => (format!("/proc/{pid}/ns/net").into(), what),
                Ok(Found::Nothing) => return Err(NamespaceError::Missing { what }),
                Ok(Found::Several(ids)) => {
                    return Err(NamespaceError::Ambiguous {
                        what,
                        ids: ids.join(", "),
                    });
                }
                Err(source) => {
                    return Err(NamespaceError::Io {
                        action: "look for",
                        what,
                        source,
                    });
                }
            }
        }
        // The namespace of the agent itself.
        Placement::Cgroup(path) => (HOST.into(), format!("control group {path}")),
    })
}

/// The agent's own namespace, to return to.
fn home() -> io::Result<&'static OwnedFd> {
    static HOME: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(home) = HOME.get() {
        return Ok(home);
    }
    let file = OwnedFd::from(File::open(HOST)?);
    Ok(HOME.get_or_init(|| file))
}

struct Return(&'static OwnedFd);

impl Drop for Return {
    fn drop(&mut self) {
        // A thread that is stuck in a workload's namespace would open the next sockets there: better no agent.
        if set(self.0.as_fd()).is_err() {
            tracing::error!("cannot return from a workload's network namespace");
            std::process::abort();
        }
    }
}

fn inside<T>(namespace: BorrowedFd<'_>, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let home = home()?;
    set(namespace)?;
    let _return = Return(home);
    action()
}

/// Moves the calling thread, which has to see to its return.
pub(super) fn set(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns on a descriptor that is open; it changes this thread alone.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn cookie_inside(namespace: BorrowedFd<'_>) -> io::Result<u64> {
    inside(namespace, || {
        // SAFETY: a plain socket call; the result is checked and owned.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let mut cookie = 0u64;
        let mut size = size_of::<u64>() as libc::socklen_t;
        // SAFETY: pointers to a value of the size that is given.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut size,
            )
        };
        if result == 0 {
            Ok(cookie)
        } else {
            Err(io::Error::last_os_error())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_namespace_is_refused() {
        let placement = Placement::Pid(std::process::id());
        match Namespace::open(&placement) {
            Err(NamespaceError::Host { .. }) => {}
            // Entering a namespace takes CAP_SYS_ADMIN.
            Err(NamespaceError::Io { source, .. }) => {
                assert_eq!(source.kind(), io::ErrorKind::PermissionDenied)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Namespace::open(&Placement::Netns("no-such-namespace".into())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "network namespace no-such-namespace is not there"
        );
        let error = Namespace::open(&Placement::Container("0123no-such".into())).unwrap_err();
        assert_eq!(error.to_string(), "container 0123no-such is not there");
    }
}
