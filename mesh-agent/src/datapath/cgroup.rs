//! Where cgroup2 is: at /sys/fs/cgroup, or beside version 1 on hybrid hosts.

use std::fs;
use std::path::PathBuf;

use super::mounts::mount_point;

/// Mount point of the cgroup2 hierarchy, from `/proc/self/mounts`.
pub fn cgroup2_mount() -> Option<PathBuf> {
    mount_point(&fs::read_to_string("/proc/self/mounts").ok()?, "cgroup2")
}

/// The cgroup of this process, as a path below the mount point.
pub fn own_cgroup() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // A cgroup outside of this process's cgroup namespace shows as `../..`.
    let mount = cgroup2_mount()?;
    if own.is_empty() {
        Some(mount)
    } else {
        Some(mount.join(own))
    }
}
