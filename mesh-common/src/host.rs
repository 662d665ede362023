//! Workloads in the host's own network namespace, which are told apart by
//! control group.

use crate::assert_layout;

/// Levels of the control group hierarchy in which workloads of the host are
/// looked for; the root is level 0 and no workload.
pub const HOST_LEVELS: u32 = 16;

/// Value of the one element of the map `host`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Cookie of the host's network namespace; 0 while it has no workloads, so
    /// that the host's other sockets pay for one comparison.
    pub netns_cookie: u64,
    /// Bit `n`: there may be a workload in a control group of level `n`.
    pub levels: u32,
    /// Explicit padding, zero.
    pub reserved: u32,
}

assert_layout!(Host, size = 16, align = 8);

/// Key of the map `host_workloads`, whose values are those of `workloads`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CgroupKey {
    /// Id of the control group: the inode number of its directory.
    pub cgroup_id: u64,
}

assert_layout!(CgroupKey, size = 8, align = 8);
