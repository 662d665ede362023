//! Where cgroup2 is: at /sys/fs/cgroup, or beside version 1 on hybrid hosts.

use std::fs;
use std::path::PathBuf;

/// Mount point of the cgroup2 hierarchy, from `/proc/self/mounts`.
pub fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| path.replace("\\040", " ").into())
    })
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
