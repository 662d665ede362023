//! What can go wrong on the kernel side, in words that say what to do.

use std::io;
use std::path::PathBuf;

/// Why the kernel side cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// A file or folder of bpffs or cgroup2.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A pinned map has another layout.
    #[error(
        "{} has another layout than this version of the agent can use ({what} {found}, not \
         {wanted}): stop the agent that made it, run `mesh-agent uninstall --bpffs {}`, and start this one again",
        path.display(), folder.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// The folder of all pins.
        folder: PathBuf,
        /// In what it differs.
        what: String,
        /// What was found.
        found: String,
        /// What was wanted.
        wanted: String,
    },
    /// Another agent works with the same folder.
    #[error(
        "an agent already runs with --bpffs {}, and is not heard at this --admin-socket: stop it, \
         or give this one its own --bpffs", path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Somebody's program has a hook for itself.
    #[error(
        "program {id} ({name}) is attached to {} at {hook} for itself alone (without \
         BPF_F_ALLOW_MULTI): detach it (`bpftool cgroup detach {} {hook} id {id}`), or have its owner \
         attach it so that others may, too", cgroup.display(), cgroup.display()
    )]
    Exclusive {
        /// The hook.
        hook: String,
        /// The cgroup that has the program.
        cgroup: PathBuf,
        /// Id of the program.
        id: u32,
        /// Its name.
        name: String,
    },
    /// The order was asked for.
    #[error(
        "--attach first: this kernel cannot attach to {} before what is there (Linux 6.17 can): \
         leave the flag out, or say --attach last", cgroup.display()
    )]
    NoOrder {
        /// The cgroup.
        cgroup: PathBuf,
    },
    /// The object or one of its programs was refused.
    #[error("the kernel refused {what}: {reason}")]
    Refused {
        /// Program or map.
        what: String,
        /// Why; the verifier's last words.
        reason: String,
    },
}
