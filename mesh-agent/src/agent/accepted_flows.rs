//! What the agent knows of connections that its workloads have accepted, beside the kernel's
//! records: the services that lead to the port, and what is spoken there.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::Protocol as Spoken;

use crate::datapath::FlowRecord;
use crate::proxy::http::HttpVersion;
use crate::proxy::{Local, Node};
use crate::registry::{Protocol, WorkloadName};
use crate::route::ClientView;
use crate::snapshot::Snapshot;

/// To be asked about many records of one moment.
pub(super) struct AcceptedFlows {
    ports: HashMap<(WorkloadName, u16), Port>,
    /// By the client's address and the one where the application listens.
    seen: HashMap<(SocketAddr, SocketAddr), HttpVersion>,
}

/// A port at which an application listens.
#[derive(Default)]
struct Port {
    /// Hosts.
    services: BTreeSet<String>,
    /// What the first of them declares that declares anything.
    declared: Option<Spoken>,
}

impl AcceptedFlows {
    pub(super) fn of<'a>(
        locals: impl Iterator<Item = &'a Arc<Local>>,
        node: &Node,
        snapshot: &Snapshot,
    ) -> Self {
        let locals: HashMap<&WorkloadName, &Arc<Local>> =
            locals.map(|local| (&local.workload.name, local)).collect();
        let mut ports: HashMap<_, Port> = HashMap::new();
        for service in &snapshot.registry.services {
            for endpoint in &service.endpoints {
                let name = endpoint.workload.as_ref().map(|workload| &workload.name);
                let Some(local) = name.and_then(|name| locals.get(name)) else {
                    continue;
                };
                for (of_service, of_workload) in &endpoint.ports {
                    let declared = service.port(*of_service).map(|port| port.protocol);
                    if declared == Some(Protocol::Udp) {
                        continue;
                    }
                    let listens = listens(snapshot, local, *of_workload);
                    let key = (local.workload.name.clone(), listens);
                    let port = ports.entry(key).or_default();
                    port.services.insert(service.host.clone());
                    port.declared = port.declared.or(declared.and_then(spoken));
                }
            }
        }
        let by_address = node.locals.load();
        let seen = node.admissions.versions().into_iter();
        let seen = seen.map(|((client, asked_for), version)| {
            let local = by_address.at(asked_for.ip());
            let listens = local.map_or(asked_for, |local| behind(snapshot, local, asked_for));
            ((client, listens), version)
        });
        Self {
            ports,
            seen: seen.collect(),
        }
    }

    /// Hosts of the services that lead to where a connection was accepted.
    pub(super) fn services(&self, record: &FlowRecord, local: &Local) -> Option<String> {
        let port = self.port(record, local)?;
        let hosts: Vec<&str> = port.services.iter().map(String::as_str).collect();
        Some(hosts.join(","))
    }

    /// What is spoken: as seen, else as declared.
    pub(super) fn protocol(&self, record: &FlowRecord, local: &Local) -> Spoken {
        let seen = self.seen.get(&(record.remote, record.local));
        let seen = seen.map(|version| match version {
            HttpVersion::Http1 => Spoken::Http1,
            HttpVersion::Http2 => Spoken::Http2,
        });
        let declared = || self.port(record, local).and_then(|port| port.declared);
        seen.or_else(declared).unwrap_or(Spoken::Unknown)
    }

    fn port(&self, record: &FlowRecord, local: &Local) -> Option<&Port> {
        let key = (local.workload.name.clone(), record.local.port());
        self.ports.get(&key)
    }
}

/// Where the Sidecar of a workload has the application behind an address.
fn behind(snapshot: &Snapshot, local: &Local, asked_for: SocketAddr) -> SocketAddr {
    let workload = ClientView::of(&local.workload);
    let inbound = snapshot.routes.inbound(&workload, asked_for.port());
    let endpoint = inbound.and_then(|inbound| inbound.endpoint);
    endpoint.map_or(asked_for, |endpoint| endpoint.behind(asked_for))
}

fn listens(snapshot: &Snapshot, local: &Local, port: u16) -> u16 {
    let own = local.workload.addresses.first();
    own.map_or(port, |own| {
        behind(snapshot, local, SocketAddr::new(*own, port)).port()
    })
}

/// What a declaration says about the bytes.
pub(super) fn spoken(declared: Protocol) -> Option<Spoken> {
    match declared {
        Protocol::Http => Some(Spoken::Http1),
        Protocol::Http2 | Protocol::Grpc => Some(Spoken::Http2),
        Protocol::Tcp | Protocol::Tls => Some(Spoken::Tcp),
        Protocol::Auto | Protocol::Udp => None,
    }
}
