//! Connections that go past the agent, in its metrics. The kernel counts them; what its account
//! says of each is put where the agent counts those that it carries.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use mesh_common::{FlowState, Transport, VerdictKind};
use parking_lot::Mutex;

use super::application::{self, Caller};
use super::destination::{Meant, meant};
use super::http::{HttpCluster, HttpPool};
use super::{Local, Node};
use crate::balance::{Active, Clusters, Destination, EndpointAddress, Member, Slot};
use crate::datapath::FlowRecord;
use crate::route::ClientView;
use crate::telemetry::callers::Arrived;
use crate::telemetry::connections::Connections;

/// Those of the kernel's account, by the socket's cookie.
#[derive(Default)]
pub struct DirectTraffic(Mutex<HashMap<u64, Counted>>);

/// One end of a connection, as far as it is counted.
struct Counted {
    /// A socket may be connected again, and has another record then.
    opened_ns: u64,
    at: End,
    /// What counts a client's connections as long as they are open.
    open: Option<(Active<HttpPool>, Slot<HttpPool>)>,
    is_closed: bool,
    /// Bytes from the client, and to it.
    bytes: (u64, u64),
}

/// Where it is counted: each side has its own metrics.
enum End {
    Client(Arc<Member<HttpPool>>),
    Server(Arc<Arrived>),
}

impl End {
    fn connections(&self) -> &Connections {
        match self {
            Self::Client(member) => &member.host.pool.connections,
            Self::Server(arrived) => &arrived.connections,
        }
    }
}

impl DirectTraffic {
    /// Counts what is new in the record of a workload's connection.
    pub fn see(
        &self,
        node: &Node,
        clusters: &Clusters<HttpPool>,
        local: &Local,
        record: &FlowRecord,
    ) {
        self.update(node, clusters, local, record, true);
    }

    /// Takes a connection as it is: another agent has counted what has been so far.
    pub fn inherit(
        &self,
        node: &Node,
        clusters: &Clusters<HttpPool>,
        local: &Local,
        record: &FlowRecord,
    ) {
        self.update(node, clusters, local, record, false);
    }

    fn update(
        &self,
        node: &Node,
        clusters: &Clusters<HttpPool>,
        local: &Local,
        record: &FlowRecord,
        is_new: bool,
    ) {
        if record.verdict != VerdictKind::Direct || !was_established(record) {
            return;
        }
        let mut all = self.0.lock();
        let opened_ns = record.counters.opened_ns;
        let is_known = |counted: &Counted| counted.opened_ns == opened_ns;
        if !all.get(&record.id).is_some_and(is_known) {
            let Some(counted) = Counted::new(node, clusters, local, record) else {
                return;
            };
            if is_new {
                counted.at.connections().open();
            }
            all.insert(record.id, counted);
        }
        let Some(counted) = all.get_mut(&record.id) else {
            return;
        };
        let before = counted.bytes;
        counted.bytes = bytes(record, before);
        let is_closed = record.state == FlowState::Closed;
        let has_ended = is_closed && !counted.is_closed;
        if is_new {
            let (received, sent) = counted.bytes;
            let connections = counted.at.connections();
            connections.carry(received - before.0, sent - before.1);
            if has_ended {
                connections.close(0, 0);
            }
        }
        if has_ended {
            counted.is_closed = true;
            counted.open = None;
        }
    }

    /// These have no record any more.
    pub fn forget(&self, ids: &[u64]) {
        let mut all = self.0.lock();
        for id in ids {
            all.remove(id);
        }
    }

    /// Only these have.
    pub fn keep(&self, ids: &HashSet<u64>) {
        self.0.lock().retain(|id, _| ids.contains(id));
    }
}

impl Counted {
    /// `None` where the configuration that is in force now knows nothing of such a connection.
    fn new(
        node: &Node,
        clusters: &Clusters<HttpPool>,
        local: &Local,
        record: &FlowRecord,
    ) -> Option<Self> {
        let mut open = None;
        let at = if record.inbound {
            let caller = Caller {
                address: record.remote,
                flow: None,
                identity: (record.source_identity.as_deref()).and_then(|uri| uri.parse().ok()),
                transport: Transport::SameNode,
                is_probe: false,
            };
            End::Server(application::arrived(node, local, &caller, record.local)?)
        } else {
            let (cluster, member) = endpoint(node, clusters, local, record)?;
            open = Some((cluster.begin_anyway(&member), cluster.slot_anyway()));
            End::Client(member)
        };
        Some(Self {
            opened_ns: record.counters.opened_ns,
            at,
            open,
            is_closed: false,
            bytes: (0, 0),
        })
    }
}

/// The endpoint, as the client knows it.
fn endpoint(
    node: &Node,
    clusters: &Clusters<HttpPool>,
    local: &Local,
    record: &FlowRecord,
) -> Option<(Arc<HttpCluster>, Arc<Member<HttpPool>>)> {
    let snapshot = node.snapshot.load();
    let client = &local.workload;
    let Meant::Port(service, _) = meant(&snapshot, client, record.remote) else {
        return None;
    };
    let (view, from) = (ClientView::of(client), record.local.ip());
    let (routes, registry) = (&snapshot.routes, &snapshot.registry);
    let mut random = rand::rng();
    let plan = routes.decide_tcp(&view, &service, from, record.remote, registry, &mut random);
    let plan = plan.ok()?;
    let destination = Destination::of(&plan, client, snapshot.version());
    let now = Instant::now();
    let cluster = clusters.get(&destination, now);
    let member = cluster.asked_for(EndpointAddress::Socket(record.endpoint?), now);
    Some((cluster, member))
}

/// One that was refused, or never answered, is none.
fn was_established(record: &FlowRecord) -> bool {
    match record.state {
        FlowState::Connecting => false,
        FlowState::Open => true,
        FlowState::Closed => record.inbound || record.counters.connect_us > 0,
    }
}

/// Bytes from the client, and to it; never fewer than `before`: what was asked of the socket is
/// newer than the account.
fn bytes(record: &FlowRecord, before: (u64, u64)) -> (u64, u64) {
    let counters = &record.counters;
    let sent = counters.bytes_sent + counters.spliced_sent;
    let received = counters.bytes_received + counters.spliced_received;
    let (from_client, to_client) = match record.inbound {
        true => (received, sent),
        false => (sent, received),
    };
    (from_client.max(before.0), to_client.max(before.1))
}
