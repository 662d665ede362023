//! Workloads in the host's own namespace, which the kernel finds by control group.

use aya::maps::{Array, HashMap, MapData};
use mesh_common::{CgroupKey, HOST_LEVELS, Host, Workload};
use parking_lot::Mutex;

use super::DatapathError;
use super::programs::refused;
use crate::netns::Cgroup;

/// Inode of the first cgroup namespace (`PROC_CGROUP_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_NAMESPACE: &str = "cgroup:[4026531835]";

pub(super) struct HostWorkloads {
    maps: Mutex<Maps>,
}

struct Maps {
    host: Array<MapData, Host>,
    workloads: HashMap<MapData, CgroupKey, Workload>,
}

impl HostWorkloads {
    pub(super) fn new(
        host: Array<MapData, Host>,
        workloads: HashMap<MapData, CgroupKey, Workload>,
    ) -> Self {
        Self {
            maps: Mutex::new(Maps { host, workloads }),
        }
    }

    pub(super) fn insert(
        &self,
        netns_cookie: u64,
        cgroup: &Cgroup,
        value: Workload,
    ) -> Result<(), DatapathError> {
        let mut maps = self.maps.lock();
        let key = CgroupKey {
            cgroup_id: cgroup.id,
        };
        maps.workloads
            .insert(key, value, 0)
            .map_err(|error| refused("host_workloads", &error))?;
        let before = maps.host.get(&0, 0).unwrap_or_default();
        let host = Host {
            netns_cookie,
            levels: before.levels | levels(cgroup.level),
            reserved: 0,
        };
        maps.host
            .set(0, host, 0)
            .map_err(|error| refused("host", &error))
    }

    pub(super) fn get(&self, cgroup_id: u64) -> Option<Workload> {
        let maps = self.maps.lock();
        maps.workloads.get(&CgroupKey { cgroup_id }, 0).ok()
    }

    /// Changes what the kernel knows of a workload, where it knows it.
    pub(super) fn change(
        &self,
        cgroup_id: u64,
        change: impl FnOnce(Workload) -> Workload,
    ) -> Result<(), DatapathError> {
        let mut maps = self.maps.lock();
        let key = CgroupKey { cgroup_id };
        let Ok(value) = maps.workloads.get(&key, 0) else {
            return Ok(());
        };
        maps.workloads
            .insert(key, change(value), 0)
            .map_err(|error| refused("host_workloads", &error))
    }

    pub(super) fn remove(&self, cgroup_id: u64) {
        let mut maps = self.maps.lock();
        let _ = maps.workloads.remove(&CgroupKey { cgroup_id });
        if maps.workloads.keys().next().is_none() {
            // The host's other sockets cost nothing again.
            let _ = maps.host.set(0, Host::default(), 0);
        }
    }

    pub(super) fn cgroup_ids(&self) -> Vec<u64> {
        let maps = self.maps.lock();
        let keys = maps.workloads.keys().filter_map(Result::ok);
        keys.map(|key| key.cgroup_id).collect()
    }
}

/// The levels at which the kernel has to look for a group that we see at
/// `level`. Inside a cgroup namespace the kernel's level is a deeper one that
/// nobody tells us.
fn levels(level: u32) -> u32 {
    let is_initial = std::fs::read_link("/proc/self/ns/cgroup")
        .is_ok_and(|namespace| namespace.as_os_str() == INITIAL_NAMESPACE);
    let all = (2 << HOST_LEVELS) - 2;
    if level > HOST_LEVELS {
        0
    } else if is_initial {
        1 << level
    } else {
        all & !((1 << level) - 1)
    }
}
