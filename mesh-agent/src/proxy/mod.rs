//! Connections in user space, in the order in which they travel: outbound
//! (from an application), http or tcp, upstream (this node, hbone, or plain),
//! inbound and application (to an application).

pub mod application;
mod application_stream;
mod client_hello;
mod connect_tunnel;
pub mod copy;
mod destination;
pub mod direct;
pub mod hbone;
pub mod http;
pub mod inbound;
pub mod node_probes;
pub mod notes;
mod one_of;
mod originate;
pub mod outbound;
pub mod plaintext;
mod post_tunnel;
mod proxy_protocol;
mod replay;
mod reset_watch;
mod sidecar;
pub mod sniff;
pub mod sparse_log;
mod tcp;
mod tcp_record;
mod turn;
pub mod upstream;
mod write_together;
mod writes_to;

pub(crate) use originate::{Originator, Server};

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_common::{Protocol, Transport};
use tokio_util::task::TaskTracker;

use crate::datapath::{Datapath, FlowPath};
use crate::netns::WorkloadSockets;
use crate::registry::{Workload, WorkloadName};
use crate::snapshot::Snapshot;
use crate::telemetry::Telemetry;
use crate::telemetry::callers::Callers;

/// What the connections of a node share.
pub struct Node {
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The kernel side.
    pub datapath: Arc<Datapath>,
    /// The node's own workloads.
    pub locals: ArcSwap<Locals>,
    /// Which way requests went, for people.
    pub notes: notes::Notes,
    /// What is open by leave of the policies.
    pub admissions: Arc<application::Admissions>,
    /// What the policies had to say, for people.
    pub reports: application::Reports,
    /// Connections that are open: an agent that drains waits for them.
    pub connections: TaskTracker,
    /// Which of them are made by the node itself.
    pub probes: node_probes::NodeProbes,
    /// Who speaks plaintext to them.
    pub plaintext: plaintext::PlaintextClients,
    /// Who is told of connections and requests.
    pub telemetry: Arc<Telemetry>,
    /// Handshakes of the last minute.
    pub handshakes: Arc<hbone::Handshakes>,
    /// Bounds the lines about connections that are refused.
    pub refusals: sparse_log::SparseLog,
    /// Who has tunnels to its workloads.
    pub clients: Arc<hbone::Clients>,
    /// Bounds what tunnels hold.
    pub tunnel_memory: Arc<hbone::TunnelMemory>,
    /// Bounds what HTTP/2 holds that has left them.
    pub windows: Arc<application::Windows>,
}

impl Node {
    /// Says of a flow that nothing passes, and why not, before its connection ends: the kernel has it
    /// in the record then.
    pub(crate) fn note_refused(
        &self,
        flow: u64,
        why: Transport,
        endpoint: Option<SocketAddr>,
        protocol: Protocol,
    ) {
        let path = FlowPath {
            endpoint,
            destination_identity: None,
            transport: why,
            protocol,
        };
        self.note_path(flow, &path);
    }

    /// Adds to the kernel's record of a flow what only the agent knows. It is
    /// for people: where it fails, the connection goes on.
    pub(crate) fn note_path(&self, flow: u64, path: &FlowPath) {
        if let Err(error) = self.datapath.set_flow_path(flow, path) {
            tracing::debug!(flow, %error, "the way of a flow is not recorded");
        }
    }
}

/// The workloads of this node. Immutable: an enrolment makes a new one.
#[derive(Clone, Default)]
pub struct Locals {
    by_name: HashMap<WorkloadName, Arc<Local>>,
    by_address: HashMap<IpAddr, Arc<Local>>,
}

/// An enrolled workload.
pub struct Local {
    /// Who it is.
    pub workload: Arc<Workload>,
    /// Sockets in its namespace.
    pub sockets: Arc<WorkloadSockets>,
    /// Ports that its applications have closed.
    pub closed_ports: application::ClosedPorts,
    /// What is open to its applications, where a Sidecar bounds it.
    pub inbound: application::Ports,
    /// What has come to it, and from whom.
    pub callers: Arc<Callers>,
}

impl Locals {
    /// Those of `all`.
    pub fn new(all: impl IntoIterator<Item = Arc<Local>>) -> Self {
        let mut locals = Self::default();
        for local in all {
            for address in &local.workload.addresses {
                locals.by_address.insert(*address, local.clone());
            }
            locals.by_name.insert(local.workload.name.clone(), local);
        }
        locals
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &WorkloadName> {
        self.by_name.keys()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Local>> {
        self.by_name.values()
    }

    /// The workload of this name, where it is on this node.
    pub fn named(&self, name: &WorkloadName) -> Option<&Arc<Local>> {
        self.by_name.get(name)
    }

    /// The workload with this address, where it is on this node.
    pub fn at(&self, address: IpAddr) -> Option<&Arc<Local>> {
        self.by_address.get(&address)
    }
}
