//! The maps of the kernel's account: flows, what the agent knows of them,
//! events and counters.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use aya::maps::{HashMap, MapData, PerCpuArray, RingBuf};
use mesh_common::{COUNTERS, CloseReason, Flow, FlowEvent, FlowPath, FlowState};
use parking_lot::Mutex;

use super::DatapathError;
use super::bpf;
use super::flows::{FlowRecord, monotonic_ns};
use super::identities::Identities;

/// Events that are taken at once: nearly as many as the ring has room for.
const MAX_EVENTS: usize = 16_384;

/// The account's maps.
pub(super) struct Account {
    /// The map `flows`, by calls that aya does not make.
    pub(super) flows: OwnedFd,
    pub(super) paths: Mutex<HashMap<MapData, u64, FlowPath>>,
    /// The same map, for many entries at once.
    pub(super) all_paths: OwnedFd,
    pub(super) events: Mutex<RingBuf<MapData>>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) identities: Arc<Identities>,
}

impl Account {
    /// The records that `wanted` picks.
    pub(super) fn flows(&self, wanted: impl Fn(&Flow) -> bool) -> Vec<FlowRecord> {
        let record = self.records();
        let mut records = Vec::new();
        self.each(|id, flow| {
            if wanted(flow) {
                records.push(record(id, flow));
            }
        });
        records
    }

    /// The records of these sockets.
    pub(super) fn flows_of(&self, ids: impl IntoIterator<Item = u64>) -> Vec<FlowRecord> {
        let record = self.records();
        let flow = |id| bpf::lookup::<Flow>(self.flows.as_fd(), id).ok();
        (ids.into_iter())
            .filter_map(|id| Some(record(id, &flow(id)?)))
            .collect()
    }

    /// What makes a record of an entry.
    fn records(&self) -> impl Fn(u64, &Flow) -> FlowRecord {
        let now = monotonic_ns();
        let paths = self.paths.lock();
        let identity = |number| self.identities.uri(number);
        move |id, flow| {
            let path = paths.get(&id, 0).ok().map(|path| {
                let identity = identity(path.destination_identity);
                super::FlowPath::new(path, identity)
            });
            let source = identity(flow.source_identity);
            let destination = identity(flow.destination_identity);
            FlowRecord::new(id, *flow, path, source, destination, now)
        }
    }

    fn each(&self, each: impl FnMut(u64, &Flow)) {
        if let Err(error) = bpf::lookup_all(self.flows.as_fd(), each) {
            tracing::warn!(%error, "not all records of flows can be read");
        }
    }

    pub(super) fn set_path(&self, flow: u64, path: FlowPath) -> Result<(), DatapathError> {
        let mut paths = self.paths.lock();
        paths
            .insert(flow, path, 0)
            .map_err(|error| super::maps::refused("flow_paths", &error))
    }

    /// Says of flows that have ended that a policy was the reason. Their
    /// sockets are gone, so that nobody else writes the records.
    pub(super) fn closed_by_policy(&self, ids: &[u64]) {
        for id in ids {
            let Ok(mut flow) = bpf::lookup::<Flow>(self.flows.as_fd(), *id) else {
                continue;
            };
            if flow.state == FlowState::Closed as u32 {
                flow.close_reason = CloseReason::Policy as u32;
                // It may have been forgotten since.
                let _ = bpf::replace(self.flows.as_fd(), *id, &flow);
            }
        }
    }

    /// Removes the records of these flows, and says which those were that had ended: a socket
    /// may have been connected again, and has another record then.
    pub(super) fn forget(&self, mut ids: Vec<u64>) -> Vec<u64> {
        ids.retain(|id| {
            let flow = bpf::lookup::<Flow>(self.flows.as_fd(), *id);
            flow.is_ok_and(|flow| flow.state == FlowState::Closed as u32)
        });
        for map in [&self.flows, &self.all_paths] {
            if let Err(error) = bpf::delete_batch(map.as_fd(), &ids) {
                tracing::warn!(%error, "records of ended flows cannot be removed");
            }
        }
        ids
    }

    /// Removes the records of all flows that ended before this time.
    pub(super) fn forget_before(&self, closed_ns: u64) {
        // First these: each has had a record before, so that those without have none any more.
        let mut orphans = HashSet::new();
        let paths = bpf::lookup_all(self.all_paths.as_fd(), |id: u64, _: &FlowPath| {
            orphans.insert(id);
        });
        let mut ended = Vec::new();
        let flows = bpf::lookup_all(self.flows.as_fd(), |id: u64, flow: &Flow| {
            orphans.remove(&id);
            if flow.closed_ns != 0 && flow.closed_ns < closed_ns {
                ended.push(id);
            }
        });
        self.forget(ended);
        let orphans: Vec<u64> = orphans.into_iter().collect();
        let gone = paths.and(flows);
        let gone = gone.and_then(|()| bpf::delete_batch(self.all_paths.as_fd(), &orphans));
        if let Err(error) = gone {
            tracing::warn!(%error, "the account cannot be looked through");
        }
    }

    /// Takes events that have come since the last time; not all, where they come faster than
    /// they are taken.
    pub(super) fn events(&self, mut each: impl FnMut(FlowEvent)) {
        let mut events = self.events.lock();
        for _ in 0..MAX_EVENTS {
            let Some(item) = events.next() else { break };
            if item.len() == size_of::<FlowEvent>() {
                // SAFETY: the kernel programs write whole values of this type, of which any bytes are valid.
                each(unsafe { item.as_ptr().cast::<FlowEvent>().read_unaligned() });
            }
        }
    }

    pub(super) fn counters(&self) -> [u64; COUNTERS] {
        std::array::from_fn(|index| {
            let values = self.counters.get(&(index as u32), 0);
            values.map_or(0, |values| values.iter().sum())
        })
    }
}
