//! Which numbers of identities the kernel's maps mention.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::{Ebpf, Pod};
use mesh_common::WorkloadKey;
use mesh_common::{CgroupKey, Endpoint, EndpointKey, Flow, FlowPath, Origin, Tuple, Workload};

use super::DatapathError;
use super::bpf;
use super::maps::descriptor;

/// The maps with identities in their values.
pub(super) struct Mentions {
    workloads: OwnedFd,
    host_workloads: OwnedFd,
    endpoints: OwnedFd,
    connecting: OwnedFd,
    flow_paths: OwnedFd,
    flows: OwnedFd,
}

impl Mentions {
    /// Before others take the maps.
    pub(super) fn new(object: &Ebpf) -> Result<Self, DatapathError> {
        Ok(Self {
            workloads: descriptor(object, "workloads")?,
            host_workloads: descriptor(object, "host_workloads")?,
            endpoints: descriptor(object, "endpoints")?,
            connecting: descriptor(object, "connecting")?,
            flow_paths: descriptor(object, "flow_paths")?,
            flows: descriptor(object, "flows")?,
        })
    }

    /// Every number that is in one of the maps. They are read in the order in which a number
    /// moves on, so that none is missed between two.
    ///
    /// # Errors
    /// Where a map cannot be read to its end.
    pub(super) fn numbers(&self) -> io::Result<HashSet<u32>> {
        let mut all = HashSet::new();
        each(&self.workloads, |_: WorkloadKey, value: &Workload| {
            all.insert(value.identity);
        })?;
        each(&self.host_workloads, |_: CgroupKey, value: &Workload| {
            all.insert(value.identity);
        })?;
        each(&self.endpoints, |_: EndpointKey, value: &Endpoint| {
            all.insert(value.identity);
        })?;
        each(&self.connecting, |_: Tuple, value: &Origin| {
            all.extend([value.source_identity, value.destination_identity]);
        })?;
        each(&self.flow_paths, |_: u64, value: &FlowPath| {
            all.insert(value.destination_identity);
        })?;
        each(&self.flows, |_: u64, value: &Flow| {
            all.extend([value.source_identity, value.destination_identity]);
        })?;
        Ok(all)
    }
}

fn each<K: Pod + Default, V: Pod + Default>(
    map: &OwnedFd,
    each: impl FnMut(K, &V),
) -> io::Result<()> {
    bpf::lookup_all(map.as_fd(), each)
}
