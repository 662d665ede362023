//! What is told of a connection that is not HTTP when it has ended.

use super::http::HttpCluster;
use super::tcp::{Bound, Connection, Counted, Unconnected};
use crate::balance::EndpointAddress;
use crate::telemetry::access_log::Entry;
use crate::telemetry::{Flag, Flags, Side};

/// A connection that led to an endpoint; bytes from the client, and to it.
pub(super) fn complete(
    connection: &Connection<'_>,
    counted: &Counted,
    (received, sent): (u64, u64),
    cut: Option<Bound>,
) {
    tracing::debug!(
        workload = %connection.outbound.local.workload.name,
        client = %connection.client,
        destination = %connection.destination,
        service = connection.service.host,
        sent = received,
        received = sent,
        "connection complete"
    );
    let details = cut.map(|bound| match bound {
        Bound::Duration => "max_connection_duration",
        Bound::Idle => "idle_timeout",
        Bound::Memory => "max_tunnel_memory",
    });
    let end = Entry {
        response_flags: match cut {
            Some(Bound::Duration) => Flag::DurationTimeout.into(),
            Some(Bound::Memory) => Flag::Overload.into(),
            Some(Bound::Idle) | None => Flags::default(),
        },
        connection_termination_details: details,
        bytes_received: received,
        bytes_sent: sent,
        upstream_local_address: counted.local_address,
        ..Entry::default()
    };
    let (cluster, member) = (counted.active.cluster(), counted.active.member());
    member.host.pool.connections.close(received, sent);
    tell(connection, Some(cluster), Some(&member.host.address), end);
}

/// A connection for which there was none to an endpoint.
pub(super) fn unconnected(connection: &Connection<'_>, why: &Unconnected) {
    let reason = why.error.to_string();
    let was_tried = why.endpoint.is_some();
    let end = Entry {
        response_flags: why.flags,
        upstream_transport_failure_reason: was_tried.then_some(&*reason),
        ..Entry::default()
    };
    tell(
        connection,
        why.cluster.as_deref(),
        why.endpoint.as_ref(),
        end,
    );
}

fn tell(
    connection: &Connection<'_>,
    cluster: Option<&HttpCluster>,
    endpoint: Option<&EndpointAddress>,
    end: Entry<'_>,
) {
    let node = &connection.outbound.node;
    let log = &node.telemetry.access_log;
    let wanted = {
        let rules = &node.snapshot.load().telemetry;
        rules.logging(&connection.outbound.local.workload, Side::Client)
    };
    if !log.is_on(&wanted) {
        return;
    }
    let duration = connection.began.elapsed();
    let cluster = cluster.map(|cluster| cluster.key.full_name());
    let endpoint = endpoint.map(ToString::to_string);
    let entry = Entry {
        start_time: Entry::began(duration),
        duration,
        upstream_host: endpoint.as_deref(),
        upstream_cluster: cluster.as_deref(),
        downstream_local_address: Some(connection.destination),
        downstream_remote_address: Some(connection.client),
        requested_server_name: connection.server_name.as_deref(),
        ..end
    };
    log.write(&entry, &wanted);
}
