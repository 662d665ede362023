//! The kernel side as the agent sees it: programs, maps and links. Only this
//! module knows aya.

mod account;
mod bpf;
mod bridges;
mod btf;
mod cgroup;
mod enrolled;
mod error;
mod flows;
mod host;
mod identities;
mod inbound;
mod kernel_log;
mod layout;
mod leftovers;
mod listening;
mod lock;
mod maps;
mod marks;
mod mentions;
mod mounts;
mod object;
mod order;
mod probe;
mod programs;
mod short_circuit;
mod tune;
mod verdicts;

pub use account::Refusal;
pub use bridges::{Bridge, Bridges, Bridging};
pub use cgroup::{cgroup2_mount, own_cgroup};
pub use enrolled::{Enrolled, ListenerPorts};
pub use error::DatapathError;
pub use flows::{FlowPath, FlowRecord};
pub use kernel_log::LogLevel;
pub use marks::{Accepted, Caller, SocketMarks};
pub use mounts::mount_point;
pub use order::AttachOrder;
pub use short_circuit::{Tier, Tiers};
pub use verdicts::{Decision, DirectEndpoint, WorkloadVerdict};

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use mesh_common::{
    FlowState, Heartbeat, ListenerKind, Nameserver, VerdictKind, Workload, workload_flag,
};
use parking_lot::Mutex;

use crate::netns::{Location, Namespace};
use crate::registry::Served;
use kernel_log::KernelLog;
use lock::FolderLock;
use maps::Maps;
use object::{Loader, Objects};

/// The object with all programs, built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("UNDERMESH_BPF_OBJECT"));
/// The same with log lines.
static LOG_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("UNDERMESH_BPF_LOG_OBJECT"));

/// The loaded programs and their maps.
pub struct Datapath {
    objects: Objects,
    maps: Maps,
    marks: Arc<SocketMarks>,
    bridges: Option<Arc<Bridges>>,
    attached: programs::Attached,
    /// For attaching again.
    cgroup: PathBuf,
    order: Option<AttachOrder>,
    log: KernelLog,
    lock: Mutex<Option<FolderLock>>,
    tiers: Tiers,
}

impl Datapath {
    /// Loads the programs, reuses what an earlier agent has pinned below
    /// `folder`, and attaches to `cgroup`. Where the agent itself runs outside
    /// of that cgroup, the programs for its own sockets are attached there.
    /// `lock` is that of the agent that this one takes over from.
    ///
    /// # Errors
    /// What the kernel refuses, and why.
    pub fn load(
        folder: &Path,
        cgroup: &Path,
        order: Option<AttachOrder>,
        lock: Option<OwnedFd>,
    ) -> Result<Self, DatapathError> {
        let file = |action, path: &Path| {
            let path = path.to_owned();
            move |source| DatapathError::File {
                action,
                path,
                source,
            }
        };
        mounts::ensure_bpffs(folder)?;
        fs::create_dir_all(folder.join(programs::LINKS)).map_err(file("create", folder))?;
        // Where one is taken over from, it still has connections.
        let is_first = lock.is_none();
        let lock = match lock {
            Some(lock) => FolderLock::inherit(lock),
            None => FolderLock::acquire(folder)?,
        };
        layout::check(folder)?;
        let mut loader = Loader::new();
        let (kernel, tiers) = short_circuit::examine(&mut loader);
        let objects = loader.pinning(folder, kernel);
        let mut object = objects.open(None, LogLevel::Off)?;
        let (maps, marks) = Maps::take(&mut object, folder)?;
        let bridges = maps::take_bridges(&mut object, is_first)?;
        let attached = programs::attach(&mut object, folder, cgroup, order)?;
        let tiers = match objects.know_the_kernel() {
            false => tiers,
            true => match programs::attach_splice(&mut object) {
                Ok(()) => tiers,
                Err(error) => Tiers::off(error.to_string()),
            },
        };
        Ok(Self {
            objects,
            maps,
            marks: Arc::new(marks),
            bridges,
            attached,
            cgroup: cgroup.to_owned(),
            order,
            log: KernelLog::default(),
            lock: Mutex::new(Some(lock)),
            tiers,
        })
    }

    /// What the short-circuit may do on this kernel.
    pub fn tiers(&self) -> &Tiers {
        &self.tiers
    }

    /// The lock of the folder, for the agent that takes over.
    ///
    /// # Errors
    /// Where it is given away already, or there are too many open files.
    pub fn share_lock(&self) -> io::Result<OwnedFd> {
        match &*self.lock.lock() {
            Some(lock) => lock.share(),
            None => Err(io::Error::other("the lock is another agent's already")),
        }
    }

    /// The folder is another agent's from now on.
    pub fn give_away_lock(&self) {
        *self.lock.lock() = None;
    }

    /// Whether no agent works with the folder.
    ///
    /// # Errors
    /// [`DatapathError::InUse`] where one does.
    pub fn check_unused(folder: &Path) -> Result<(), DatapathError> {
        if folder.exists() {
            FolderLock::acquire(folder)?;
        }
        Ok(())
    }

    /// Tells the kernel that the agent works, and how much later it counts as
    /// gone (zero: never) unless it says so again.
    ///
    /// # Errors
    /// Where the map refuses.
    pub fn beat(&self, limit: Duration) -> Result<(), DatapathError> {
        self.maps.beat(Heartbeat {
            alive_ns: flows::monotonic_ns(),
            limit_ns: u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX),
        })
    }

    /// When an agent was last seen to work, as [`Self::now_ns`]; now, where agents do not say.
    pub fn last_beat_ns(&self) -> u64 {
        let heart = self.maps.last_beat().filter(|heart| heart.limit_ns != 0);
        heart.map_or_else(flows::monotonic_ns, |heart| heart.alive_ns)
    }

    /// Marks for the agent's own sockets.
    pub fn marks(&self) -> &Arc<SocketMarks> {
        &self.marks
    }

    /// Ways past the agent, where the kernel shares memory with it.
    pub fn bridges(&self) -> Option<&Arc<Bridges>> {
        self.bridges.as_ref()
    }

    /// What is attached, for people: `connect4 at /sys/fs/cgroup`.
    pub fn attached(&self) -> &[String] {
        &self.attached.lines
    }

    /// Where programs and maps are pinned.
    pub fn folder(&self) -> &Path {
        self.objects.folder()
    }

    /// Makes the addresses of a configuration known to the kernel. Those of the
    /// configuration before that are gone are removed last, so that no
    /// connection is missed.
    ///
    /// # Errors
    /// Where the map is full or refused.
    pub fn set_destinations(
        &self,
        networks: &[(IpNet, Served)],
        generation: u32,
    ) -> Result<(), DatapathError> {
        self.maps.set_destinations(networks, generation)
    }

    /// Hands the connections of a workload to the agent.
    ///
    /// # Errors
    /// Where a map or the namespace refuses.
    pub fn enrol(&self, location: &Location, enrolled: &Enrolled) -> Result<(), DatapathError> {
        let namespace = &location.namespace;
        let cookie = namespace.cookie();
        let value = Workload {
            identity: self.maps.identities.number(&enrolled.identity),
            ..enrolled.value(&self.tiers)
        };
        if let Some(cgroup) = &location.cgroup {
            // Not `device` nor a setting of the namespace: the host's are not ours to touch.
            return self.maps.host.insert(cookie, cgroup, value);
        }
        let before = self.maps.workload(cookie);
        let value = Workload {
            device: namespace.device_of(&enrolled.addresses).unwrap_or(0),
            // An agent before this one may have changed it.
            tcp_tw_reuse_before: match before.map_or(0, |before| before.tcp_tw_reuse_before) {
                0 => tune::enter(namespace),
                before => before,
            },
            ..value
        };
        self.maps.set_workload(cookie, value)?;
        self.sync_listening(namespace, true)?;
        self.maps.set_ingress(cookie, &enrolled.ingress)?;
        let log = self.log.hold();
        inbound::attach(&self.objects, namespace, log.level())
    }

    /// The listeners for a workload that the kernel knows of, from this agent or one before.
    pub fn ports(&self, location: &Location) -> ListenerPorts {
        let known = match &location.cgroup {
            Some(cgroup) => self.maps.host.get(cgroup.id),
            None => self.maps.workload(location.namespace.cookie()),
        };
        known.map_or_else(ListenerPorts::default, |value| ListenerPorts {
            outbound4: value.outbound4_port,
            outbound6: value.outbound6_port,
            dns4: value.dns4_port,
            dns6: value.dns6_port,
        })
    }

    /// Whether the connections of an enrolled workload to addresses that the mesh does not
    /// know go to the agent, too, from now on.
    ///
    /// # Errors
    /// Where the map refuses.
    pub fn set_takes_all(&self, location: &Location, all: bool) -> Result<(), DatapathError> {
        self.change(location, |mut value: Workload| {
            value.flags &= !workload_flag::ALL_OUTBOUND;
            if all {
                value.flags |= workload_flag::ALL_OUTBOUND;
            }
            value
        })
    }

    /// Gives a workload the number of its identity that found no room when it was enrolled.
    /// Whether that has changed anything.
    ///
    /// # Errors
    /// Where the map of workloads refuses.
    pub fn number_identity(
        &self,
        location: &Location,
        identity: &str,
    ) -> Result<bool, DatapathError> {
        let known = match &location.cgroup {
            Some(cgroup) => self.maps.host.get(cgroup.id),
            None => self.maps.workload(location.namespace.cookie()),
        };
        if known.is_none_or(|value| value.identity != identities::UNKNOWN) {
            return Ok(false);
        }
        let number = self.maps.identities.number(identity);
        if number == identities::UNKNOWN {
            return Ok(false);
        }
        self.change(location, |value| Workload {
            identity: number,
            ..value
        })?;
        Ok(true)
    }

    /// Changes what the kernel knows of an enrolled workload.
    fn change(
        &self,
        location: &Location,
        change: impl FnOnce(Workload) -> Workload,
    ) -> Result<(), DatapathError> {
        if let Some(cgroup) = &location.cgroup {
            return self.maps.host.change(cgroup.id, change);
        }
        let cookie = location.namespace.cookie();
        match self.maps.workload(cookie) {
            Some(value) => self.maps.set_workload(cookie, change(value)),
            None => Ok(()),
        }
    }

    /// The ports of an enrolled workload that connections from outside are taken at, whoever
    /// listens there.
    ///
    /// # Errors
    /// Where the map refuses.
    pub fn set_ingress(
        &self,
        location: &Location,
        ports: &BTreeSet<u16>,
    ) -> Result<(), DatapathError> {
        // What arrives at the host is not intercepted.
        if location.cgroup.is_some() {
            return Ok(());
        }
        self.maps.set_ingress(location.namespace.cookie(), ports)
    }

    /// Makes a listener of the agent the one for connections from outside.
    ///
    /// # Errors
    /// Where the map refuses.
    pub fn set_listener(
        &self,
        namespace: &Namespace,
        kind: ListenerKind,
        listener: &tokio::net::TcpListener,
    ) -> Result<(), DatapathError> {
        let is_v4 = listener.local_addr().is_ok_and(|address| address.is_ipv4());
        self.maps
            .set_listener(namespace.cookie(), kind, is_v4, listener)
    }

    /// Leaves the workload's connections alone from now on; open ones go on.
    pub fn remove(&self, location: &Location) {
        if let Some(cgroup) = &location.cgroup {
            self.maps.host.remove(cgroup.id);
            return;
        }
        let cookie = location.namespace.cookie();
        inbound::detach(self.folder(), cookie);
        if let Some(workload) = self.maps.workload(cookie) {
            tune::leave(&location.namespace, workload.tcp_tw_reuse_before);
        }
        self.maps.remove_workload(cookie);
    }

    /// Reads the namespace's list of listening ports again. Ports that nobody
    /// listens on any more become closed for callers from outside.
    ///
    /// # Errors
    /// Where the list cannot be read or the map refuses.
    pub fn sync_listening(&self, namespace: &Namespace, add: bool) -> Result<(), DatapathError> {
        let ports = namespace
            .run(listening::ports)
            .map_err(|source| DatapathError::File {
                action: "read",
                path: "/proc/thread-self/net/tcp".into(),
                source,
            })?;
        self.maps.sync_listening(namespace.cookie(), &ports, add)
    }

    /// The name server that a question to `alias` was for.
    pub fn nameserver(&self, netns_cookie: u64, alias: std::net::Ipv4Addr) -> Option<SocketAddr> {
        self.maps.nameserver(&Nameserver::new(
            netns_cookie,
            u32::from_ne_bytes(alias.octets()),
        ))
    }

    /// All flows that the kernel remembers.
    pub fn flows(&self) -> Vec<FlowRecord> {
        self.maps.account.flows(|_| true)
    }

    /// Those of these sockets, as far as there are any.
    pub fn flows_of(&self, ids: impl IntoIterator<Item = u64>) -> Vec<FlowRecord> {
        self.maps.account.flows_of(ids)
    }

    /// Those that go, or have gone, past the agent.
    pub fn direct_flows(&self) -> Vec<FlowRecord> {
        let direct = VerdictKind::Direct as u32;
        self.maps.account.flows(|flow| flow.verdict == direct)
    }

    /// Those that go past the agent and have not ended.
    pub fn open_direct_flows(&self) -> Vec<FlowRecord> {
        self.maps.account.flows(|flow| {
            flow.verdict == VerdictKind::Direct as u32 && flow.state != FlowState::Closed as u32
        })
    }

    /// Notes that a policy was what ended these flows.
    pub fn closed_by_policy(&self, ids: &[u64]) {
        self.maps.account.closed_by_policy(ids);
    }

    /// Notes the way of a flow that the agent carries, beside the kernel's own record.
    ///
    /// # Errors
    /// Where the map refuses.
    pub fn set_flow_path(&self, flow: u64, path: &FlowPath) -> Result<(), DatapathError> {
        let identity = path.destination_identity.as_deref();
        let value = mesh_common::FlowPath {
            endpoint: path.endpoint.map(Into::into).unwrap_or_default(),
            destination_identity: identity.map_or(0, |uri| self.maps.identities.number(uri)),
            transport: path.transport as u16,
            protocol: path.protocol as u16,
        };
        self.maps.account.set_path(flow, value)
    }

    /// Puts these verdicts in the place of all others. `in_between` runs while none is in force
    /// but those that stay as they are: whatever it changes, no connection is decided by another
    /// verdict from before once this has returned.
    ///
    /// # Errors
    /// Where a map refuses; then no verdict is in force.
    pub fn replace_verdicts(
        &self,
        verdicts: &[WorkloadVerdict],
        in_between: impl FnOnce(),
    ) -> Result<(), DatapathError> {
        let number = |uri: &str| self.maps.identities.number(uri);
        let verdicts::Replaced {
            kept,
            written,
            removed,
        } = (self.maps.verdicts.replace(verdicts, number, in_between)).map_err(|error| {
            DatapathError::Refused {
                what: "map verdicts".to_owned(),
                reason: error.to_string(),
            }
        })?;
        tracing::debug!(kept, written, removed, "verdicts in the kernel");
        Ok(())
    }

    /// How many verdicts are in force.
    pub fn verdicts(&self) -> usize {
        self.maps.verdicts.count()
    }

    /// What the kernel has counted, by [`mesh_common::Counter`].
    pub fn counters(&self) -> [u64; mesh_common::COUNTERS] {
        self.maps.account.counters()
    }

    /// Adds a connection to the account that the agent has refused, of which no socket tells.
    ///
    /// # Errors
    /// Where the account has no room.
    pub fn refused(&self, refusal: &Refusal<'_>) -> io::Result<()> {
        self.maps.account.refused(refusal)
    }

    /// Takes the events that have come since the last time.
    pub fn events(&self, each: impl FnMut(mesh_common::FlowEvent)) {
        self.maps.account.events(each);
    }

    /// Removes the records of those of these flows that have ended, and says which.
    pub fn forget_flows(&self, ids: Vec<u64>) -> Vec<u64> {
        self.maps.account.forget(ids)
    }

    /// The same for all that ended before this time.
    pub fn forget_flows_before(&self, closed_ns: u64) {
        self.maps.account.forget_before(closed_ns);
    }

    /// Gives back numbers of identities that nothing mentions any more. Only for an agent that is
    /// alone with the maps: another one would go on using its numbers.
    pub fn give_back_identities(&self) {
        let mentioned = || self.maps.mentions.numbers();
        if let Err(error) = self.maps.identities.look(mentioned) {
            tracing::warn!(%error, "no number of an identity is given back");
        }
    }

    /// `CLOCK_MONOTONIC` in nanoseconds, the clock of flows and their events.
    pub fn now_ns(&self) -> u64 {
        flows::monotonic_ns()
    }

    /// What the operator has set a switch to.
    pub fn knob(&self, which: mesh_common::Knob) -> u32 {
        self.maps.knob(which)
    }
}
