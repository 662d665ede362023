//! Open connections that go past the agent: a change of policy ends those that
//! it forbids, in the kernel, at both ends.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::Transport;

use crate::datapath::FlowRecord;
use crate::identity::Identity;
use crate::netns::{Detail, Namespace, SockDiag, TcpSocket};
use crate::policy::authorization::{Connection, Decision, Verdict};
use crate::proxy::application::{self, Caller};
use crate::proxy::{Local, Node};
use crate::registry::Workload;
use crate::snapshot::Snapshot;

/// Ends what the configuration in force forbids; the rest goes on, and what
/// policies that only report say about it is `reported`. Returns how many
/// connections have ended, as far as they were this function's to end.
pub(super) fn recheck(
    node: &Node,
    snapshot: &Snapshot,
    locals: &HashMap<u64, Vec<Arc<Local>>>,
    is_reported: bool,
) -> usize {
    if snapshot.authorization.is_empty() {
        return 0;
    }
    let mut forbidden: HashMap<u64, HashSet<u64>> = HashMap::new();
    let mut connections = 0;
    for flow in node.datapath.open_direct_flows() {
        let Some((workload, caller, to, decision)) = decide(node, &flow, snapshot) else {
            continue;
        };
        // Each connection has a record at either end; the server's is not there yet while it begins.
        if decision.verdict == Verdict::Allow {
            if is_reported && !flow.inbound {
                application::told(node, workload, &caller, to, decision);
            }
            continue;
        }
        if !flow.inbound {
            connections += 1;
            tracing::info!(
                workload = %workload.name,
                client = %caller.address,
                port = to.port(),
                "connection closed due to policy change"
            );
        }
        let ids = forbidden.entry(flow.netns_cookie).or_default();
        ids.insert(flow.id);
    }
    for (netns_cookie, ids) in forbidden {
        let local = locals.get(&netns_cookie).and_then(|locals| locals.first());
        // A workload that has left; the other end's goes with a reset.
        let Some(local) = local else { continue };
        if let Err(error) = end(local.sockets.namespace(), &ids) {
            tracing::error!(
                workload = %local.workload.name,
                %error,
                "connections that the policies forbid cannot be ended"
            );
        }
        node.datapath
            .closed_by_policy(&ids.into_iter().collect::<Vec<_>>());
    }
    connections
}

/// What the policies say about a flow; `None` where its application is no workload any more.
fn decide<'a>(
    node: &Node,
    flow: &FlowRecord,
    snapshot: &'a Snapshot,
) -> Option<(&'a Workload, Caller, SocketAddr, Decision)> {
    let (client, application) = if flow.inbound {
        (flow.remote, flow.local)
    } else {
        (flow.local, flow.endpoint?)
    };
    let workload = snapshot.registry.workload_at(application.ip())?;
    let identity = flow.source_identity.as_deref();
    let identity = identity.and_then(|uri| uri.parse::<Identity>().ok());
    // Where its number found no room: the kernel has vouched for the client's namespace.
    let of_client = || {
        Some(
            node.locals
                .load()
                .at(client.ip())?
                .workload
                .identity
                .clone(),
        )
    };
    let caller = Caller {
        address: client,
        flow: None,
        identity: identity.or_else(of_client),
        transport: Transport::SameNode,
        is_probe: false,
    };
    let connection = Connection {
        source: caller.identity.as_ref(),
        source_ip: client.ip(),
        destination: application,
    };
    let decision = snapshot.authorization.unseen(workload, &connection);
    Some((workload, caller, application, decision))
}

fn end(namespace: &Namespace, ids: &HashSet<u64>) -> std::io::Result<()> {
    let diag = SockDiag::open(namespace)?;
    let mut sockets: Vec<TcpSocket> = Vec::new();
    diag.sockets(Detail::Ids, |socket| {
        if ids.contains(&socket.cookie) {
            sockets.push(socket);
        }
    })?;
    for socket in &sockets {
        diag.destroy(socket)?;
    }
    Ok(())
}
