//! Which workloads of the configuration are on this node, and their listeners.

mod handover;
mod start;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::takeover::{Handed, Sockets};
use super::verdicts::LocalWorkload;
use crate::admin::api::WorkloadState;
use crate::identity::Certificates;
use crate::netns::{BoxFuture, Location, NamespaceError, Place};
use crate::proxy::http::Upstreams;
use crate::proxy::upstream::Upstream;
use crate::proxy::{Local, Locals, Node};
use crate::registry::{Registry, ShortCircuit, WhenAgentIsDown, Workload, WorkloadName};
use crate::route::ClientView;
use crate::snapshot::Snapshot;

/// Enrols and removes workloads as the configuration and the namespaces change.
pub(super) struct Enrolment {
    node_name: String,
    short_circuit: ShortCircuit,
    node: Arc<Node>,
    upstreams: Arc<Upstreams<Upstream>>,
    certificates: Arc<Certificates>,
    when_agent_is_down: WhenAgentIsDown,
    /// Where the control groups are.
    cgroup2: PathBuf,
    stop: CancellationToken,
    /// Sockets from the agent before, until their workloads are enrolled.
    handed: Mutex<Handed>,
    /// Whether connections are accepted; the agent before does, until this one is ready.
    accepts: AtomicBool,
    members: Mutex<HashMap<WorkloadName, Member>>,
}

enum Member {
    Enrolled(Enrolled),
    Waiting(String),
    Failed(String),
}

struct Enrolled {
    local: Arc<Local>,
    place: Place,
    /// Its connections to unknown addresses go to the agent, too.
    takes_all: bool,
    /// Ports at which its connections are taken, whoever listens there.
    ingress: BTreeSet<u16>,
    /// For the agent that may take over.
    sockets: Sockets,
    /// What accepts its connections, until it is allowed to.
    waiting: Vec<BoxFuture<'static, ()>>,
    drain: CancellationToken,
}

/// What the parts of an [`Enrolment`] are told.
pub(super) struct Settings {
    /// Name of the node.
    pub(super) node_name: String,
    /// For workloads that do not say it themselves.
    pub(super) when_agent_is_down: WhenAgentIsDown,
    /// The same.
    pub(super) short_circuit: ShortCircuit,
    /// Mount point of cgroup2.
    pub(super) cgroup2: PathBuf,
}

/// Whether the agent wants to see connections of a workload to addresses that the mesh does not know.
fn takes_all(snapshot: &Snapshot, workload: &Workload) -> bool {
    let client = ClientView::of(workload);
    snapshot.routes.wants_all(&client, &snapshot.registry)
}

/// Ports of a workload that a Sidecar has an application behind.
fn ingress(snapshot: &Snapshot, workload: &Workload) -> BTreeSet<u16> {
    let ports = snapshot.routes.ingress(&ClientView::of(workload));
    ports.collect()
}

impl Enrolment {
    pub(super) fn new(
        settings: Settings,
        node: Arc<Node>,
        upstreams: Arc<Upstreams<Upstream>>,
        certificates: Arc<Certificates>,
        handed: Handed,
        stop: CancellationToken,
    ) -> Self {
        let Settings {
            node_name,
            when_agent_is_down,
            short_circuit,
            cgroup2,
        } = settings;
        Self {
            node_name,
            short_circuit,
            node,
            upstreams,
            certificates,
            when_agent_is_down,
            cgroup2,
            stop,
            handed: Mutex::new(handed),
            accepts: AtomicBool::new(false),
            members: Mutex::default(),
        }
    }

    /// Makes the enrolled workloads those of the configuration whose
    /// namespaces are here; whether that changed any. Connections of workloads
    /// that stay are untouched.
    ///
    /// Called by the agent's own task alone. Whoever asks for a workload's state, on a thread
    /// that carries traffic, does not wait until all are enrolled.
    pub(super) fn reconcile(&self) -> bool {
        let snapshot = self.node.snapshot.load_full();
        let mut changed = self.release(&snapshot);
        // A namespace has one workload: the first that names it.
        for workload in snapshot
            .registry
            .workloads
            .iter()
            .filter(|workload| self.is_ours(workload))
        {
            if self.is_enrolled(&workload.name) {
                continue;
            }
            let member = self.enrol(workload);
            changed |= matches!(member, Member::Enrolled(_));
            self.members.lock().insert(workload.name.clone(), member);
        }
        let mut members = self.members.lock();
        if changed {
            let locals = members.values().filter_map(|member| match member {
                Member::Enrolled(enrolled) => Some(enrolled.local.clone()),
                _ => None,
            });
            let locals: Vec<Arc<Local>> = locals.collect();
            let identities = locals.iter().map(|local| local.workload.identity.clone());
            self.certificates.want(identities.collect());
            self.node.locals.store(Arc::new(Locals::new(locals)));
        }
        if self.accepts.load(Ordering::Relaxed) {
            accept(&mut members);
        }
        changed
    }

    /// Lets workloads go that the configuration does not name any more, or places elsewhere;
    /// whether there were any.
    fn release(&self, snapshot: &Snapshot) -> bool {
        let mut members = self.members.lock();
        let mut changed = false;
        let wanted: HashMap<&WorkloadName, &Arc<Workload>> = snapshot
            .registry
            .workloads
            .iter()
            .filter(|workload| self.is_ours(workload))
            .map(|workload| (&workload.name, workload))
            .collect();
        members.retain(|name, member| {
            let keep = match (wanted.get(name), &*member) {
                (None, _) => false,
                (Some(workload), Member::Enrolled(enrolled)) => {
                    let location = enrolled.local.sockets.location();
                    let placement = workload.placement.as_ref();
                    **workload == enrolled.local.workload
                        && placement
                            .is_some_and(|placement| location.is_at(placement, &self.cgroup2))
                }
                (Some(_), _) => true,
            };
            if !keep && let Member::Enrolled(enrolled) = member {
                tracing::info!(workload = %name, "workload leaves");
                enrolled.drain.cancel();
                self.node.datapath.remove(enrolled.local.sockets.location());
                self.upstreams.forget(name);
                self.upstreams.connector().forget(&enrolled.local.workload);
                changed = true;
            }
            keep
        });
        for member in members.values_mut() {
            if let Member::Enrolled(enrolled) = member {
                self.take_all_or_known(enrolled, snapshot);
                self.take_in(enrolled, snapshot);
            }
        }
        changed
    }

    fn is_enrolled(&self, name: &WorkloadName) -> bool {
        matches!(self.members.lock().get(name), Some(Member::Enrolled(_)))
    }

    /// Tells the kernel where a configuration wants other connections of a workload than
    /// the one before did.
    fn take_all_or_known(&self, enrolled: &mut Enrolled, snapshot: &Snapshot) {
        let all = takes_all(snapshot, &enrolled.local.workload);
        if all == enrolled.takes_all {
            return;
        }
        let location = enrolled.local.sockets.location();
        match self.node.datapath.set_takes_all(location, all) {
            Ok(()) => enrolled.takes_all = all,
            Err(error) => {
                let workload = &enrolled.local.workload.name;
                tracing::error!(%workload, %error, "outboundTrafficPolicy is not in force");
            }
        }
    }

    /// The same for the ports at which it is called.
    fn take_in(&self, enrolled: &mut Enrolled, snapshot: &Snapshot) {
        let ports = ingress(snapshot, &enrolled.local.workload);
        if ports == enrolled.ingress {
            return;
        }
        let location = enrolled.local.sockets.location();
        match self.node.datapath.set_ingress(location, &ports) {
            Ok(()) => enrolled.ingress = ports,
            Err(error) => {
                let workload = &enrolled.local.workload.name;
                tracing::error!(%workload, %error, "a Sidecar's ingress is not in force");
            }
        }
    }

    /// The enrolled workloads that have a network namespace of their own.
    pub(super) fn locals(&self) -> Vec<LocalWorkload> {
        let members = self.members.lock();
        let locals = members.values().filter_map(|member| match member {
            Member::Enrolled(Enrolled { local, .. }) => Some(local),
            _ => None,
        });
        locals
            .filter(|local| local.sockets.location().cgroup.is_none())
            .map(|local| LocalWorkload {
                workload: local.workload.clone(),
                netns_cookie: local.sockets.namespace().cookie(),
            })
            .collect()
    }

    /// Accepts the connections of all workloads from now on.
    pub(super) fn accept(&self) {
        let mut members = self.members.lock();
        self.accepts.store(true, Ordering::Relaxed);
        accept(&mut members);
    }

    /// How a workload stands on this node.
    pub(super) fn state(&self, workload: &Workload) -> WorkloadState {
        match self.members.lock().get(&workload.name) {
            Some(Member::Enrolled(_)) => WorkloadState::Enrolled,
            Some(Member::Waiting(reason)) => WorkloadState::Waiting(reason.clone()),
            Some(Member::Failed(reason)) => WorkloadState::Failed(reason.clone()),
            None => WorkloadState::Remote,
        }
    }

    /// The workload of a namespace on this node.
    pub(super) fn by_cookie(&self) -> HashMap<u64, Vec<Arc<Local>>> {
        let mut by_cookie: HashMap<u64, Vec<Arc<Local>>> = HashMap::new();
        for member in self.members.lock().values() {
            if let Member::Enrolled(Enrolled { local, .. }) = member {
                let cookie = local.sockets.namespace().cookie();
                by_cookie.entry(cookie).or_default().push(local.clone());
            }
        }
        by_cookie
    }

    /// Whether a configuration puts a workload on this node.
    pub(super) fn is_to_be_here(&self, registry: &Registry, name: &WorkloadName) -> bool {
        (registry.workload(name)).is_some_and(|workload| self.is_ours(workload))
    }

    fn is_ours(&self, workload: &Workload) -> bool {
        workload.placement.is_some()
            && workload
                .node
                .as_ref()
                .is_none_or(|node| *node == self.node_name)
    }

    /// The workload that is enrolled at a place.
    fn member_at(&self, location: &Location) -> Option<WorkloadName> {
        let members = self.members.lock();
        members.iter().find_map(|(name, member)| match member {
            Member::Enrolled(enrolled) if enrolled.place == location.place() => Some(name.clone()),
            _ => None,
        })
    }

    fn enrol(&self, workload: &Arc<Workload>) -> Member {
        let Some(placement) = &workload.placement else {
            return Member::Waiting("no placement".to_owned());
        };
        let location = match Location::find(placement, &self.cgroup2) {
            Ok(location) => location,
            Err(error @ NamespaceError::Missing { .. }) => {
                return Member::Waiting(error.to_string());
            }
            Err(error) => return Member::Failed(error.to_string()),
        };
        if let Some(other) = self.member_at(&location) {
            let what = match location.cgroup {
                Some(_) => "control group",
                None => "network namespace",
            };
            return Member::Waiting(format!("its {what} is that of {other}"));
        }
        match self.start(workload.clone(), location) {
            Ok(enrolled) => {
                tracing::info!(workload = %workload.name, identity = %workload.identity, "workload is enrolled");
                Member::Enrolled(enrolled)
            }
            Err(error) => {
                let reason = super::one_line(&error);
                let is_known = matches!(
                    self.members.lock().get(&workload.name),
                    Some(Member::Failed(same)) if *same == reason
                );
                if !is_known {
                    tracing::error!(workload = %workload.name, reason, "workload cannot be enrolled");
                }
                Member::Failed(reason)
            }
        }
    }
}

/// Only now: a connection that is accepted finds its workload among [`Locals`].
fn accept(members: &mut HashMap<WorkloadName, Member>) {
    for member in members.values_mut() {
        if let Member::Enrolled(enrolled) = member {
            enrolled.waiting.drain(..).for_each(|serve| {
                tokio::spawn(serve);
            });
        }
    }
}
