//! The maps of the kernel's account: flows, what the agent knows of them,
//! events and counters. What the agent refuses before there is a socket to count it, it adds itself.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aya::maps::{HashMap, MapData, PerCpuArray, RingBuf};
use mesh_common::{
    COUNTERS, CloseReason, Counter, Flow, FlowEvent, FlowEventKind, FlowPath, FlowState,
    VerdictKind,
};
use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};

use super::DatapathError;
use super::bpf;
use super::flows::{FlowRecord, monotonic_ns};
use super::identities::Identities;
use super::marks::Caller;

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
    pub(super) refusals: Refusals,
}

/// A connection to a workload that the agent refuses.
pub struct Refusal<'a> {
    /// Cookie of the workload's namespace.
    pub netns_cookie: u64,
    /// What was asked for.
    pub application: SocketAddr,
    /// Whose it is.
    pub identity: &'a str,
    /// Who asked.
    pub caller: &'a Caller,
    /// The end that asked has a record of its own on this node.
    pub is_counted: bool,
    /// How it ends, as [`mesh_common::refusal`] says.
    pub reason: CloseReason,
}

/// What the agent has refused without a kernel program's knowing.
#[derive(Default)]
pub(super) struct Refusals {
    events: Mutex<VecDeque<FlowEvent>>,
    denied: AtomicU64,
    without_record: AtomicU64,
    without_event: AtomicU64,
}

impl Refusals {
    /// What is to be added to a counter of the kernel.
    fn counted(&self, counter: u32) -> u64 {
        let counters = [
            (Counter::Denied, &self.denied),
            (Counter::FlowsDropped, &self.without_record),
            (Counter::EventsDropped, &self.without_event),
        ];
        let own = counters.iter().find(|(own, _)| *own as u32 == counter);
        own.map_or(0, |(_, count)| count.load(Relaxed))
    }
}

/// Whether the agent may have noted something of the connection: it knows nothing of those that go past it,
/// and what is not there costs a call each to look for.
fn has_path(flow: &Flow) -> bool {
    flow.verdict != VerdictKind::Direct as u32
}

/// The cookie that no other socket has had or will have: that of one that serves for nothing else.
fn new_cookie() -> io::Result<u64> {
    Socket::new(Domain::UNIX, Type::STREAM, None)?.cookie()
}

impl Account {
    /// Leaves a record of a connection that has no socket at the workload, and tells of it.
    pub(super) fn refused(&self, refusal: &Refusal<'_>) -> io::Result<()> {
        if !refusal.is_counted {
            self.refusals.denied.fetch_add(1, Relaxed);
        }
        let (cookie, now) = (new_cookie()?, monotonic_ns());
        let (caller, verdict) = (refusal.caller, VerdictKind::Deny);
        let source = caller.identity.as_deref();
        let flow = Flow {
            netns_cookie: refusal.netns_cookie,
            opened_ns: now,
            updated_ns: now,
            closed_ns: now,
            state: FlowState::Closed as u32,
            close_reason: refusal.reason as u32,
            inbound: 1,
            verdict: verdict as u32,
            source_identity: source.map_or(0, |uri| self.identities.number(uri)),
            destination_identity: self.identities.number(refusal.identity),
            transport: caller.transport as u32,
            local: refusal.application.into(),
            remote: caller.address.into(),
            ..Flow::default()
        };
        if let Err(error) = bpf::insert(self.flows.as_fd(), cookie, &flow) {
            self.refusals.without_record.fetch_add(1, Relaxed);
            return Err(error);
        }
        let mut events = self.refusals.events.lock();
        if events.len() == MAX_EVENTS {
            self.refusals.without_event.fetch_add(1, Relaxed);
            return Ok(());
        }
        events.push_back(FlowEvent {
            flow: cookie,
            netns_cookie: flow.netns_cookie,
            at_ns: now,
            kind: FlowEventKind::Denied as u16,
            verdict: verdict as u16,
            remote: flow.remote,
        });
        Ok(())
    }

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
            let path = has_path(flow).then(|| paths.get(&id, 0).ok()).flatten();
            let path = path.map(|path| {
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
        let mut with_path = Vec::new();
        ids.retain(|id| {
            let flow = bpf::lookup::<Flow>(self.flows.as_fd(), *id);
            let ended = flow
                .ok()
                .filter(|flow| flow.state == FlowState::Closed as u32);
            if ended.as_ref().is_some_and(has_path) {
                with_path.push(*id);
            }
            ended.is_some()
        });
        for (map, ids) in [(&self.flows, &ids), (&self.all_paths, &with_path)] {
            if let Err(error) = bpf::delete_batch(map.as_fd(), ids) {
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
        let own = std::mem::take(&mut *self.refusals.events.lock());
        own.into_iter().for_each(&mut each);
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
            let own = self.refusals.counted(index as u32);
            own + values.map_or(0, |values| values.iter().sum::<u64>())
        })
    }
}
