//! Other programs at the same hooks: before or behind them, and those that
//! want to be alone.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::DatapathError;
use super::bpf::{self, AttachType};
use super::cgroup::cgroup2_mount;

const BPF_F_ALLOW_OVERRIDE: u32 = 1 << 0;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_PREORDER: u32 = 1 << 6;

/// Where our programs run among those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachOrder {
    /// Before those of the same cgroup, and before those of cgroups below it.
    First,
    /// Behind those that the same cgroup has already; those of cgroups above run later still.
    Last,
}

impl AttachOrder {
    pub(super) fn flags(self) -> u32 {
        match self {
            Self::First => BPF_F_BEFORE | BPF_F_PREORDER,
            Self::Last => 0,
        }
    }

    /// Links of another order have another name: they are made anew.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::First => "_first",
            Self::Last => "_last",
        }
    }

    /// Whether the kernel does not know how to attach in this order.
    pub(super) fn is_unknown(order: Option<Self>, error: &io::Error) -> bool {
        order == Some(Self::First) && error.raw_os_error() == Some(libc::EINVAL)
    }
}

/// The error for a hook that somebody's program has for itself: one that was attached without
/// `BPF_F_ALLOW_MULTI`, to the same cgroup or, without any flag, to one above.
pub(super) fn exclusive(
    cgroup: &Path,
    hook: &str,
    kind: AttachType,
    error: &io::Error,
) -> Option<DatapathError> {
    if error.raw_os_error() != Some(libc::EPERM) {
        return None;
    }
    let mount = cgroup2_mount()?;
    let groups = cgroup
        .ancestors()
        .take_while(|group| group.starts_with(&mount));
    groups.enumerate().find_map(|(above, group)| {
        let attached = bpf::query(File::open(group).ok()?.as_fd(), kind).ok()?;
        let id = *attached.programs.first()?;
        let shares = if above == 0 {
            BPF_F_ALLOW_MULTI
        } else {
            BPF_F_ALLOW_MULTI | BPF_F_ALLOW_OVERRIDE
        };
        (attached.flags & shares == 0).then(|| DatapathError::Exclusive {
            hook: hook.trim_start_matches("um_").to_owned(),
            cgroup: group.to_owned(),
            id,
            name: name_of(id),
        })
    })
}

fn name_of(id: u32) -> String {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_else(|| "without a name".to_owned())
}
