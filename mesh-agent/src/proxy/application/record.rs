//! The lines of the access log about what the policies of an application refuse, and about
//! clients outside of the mesh; of all else the client's node tells.

use std::net::SocketAddr;

use http::header::{HeaderValue, USER_AGENT};
use mesh_common::Transport;
use tokio::time::Instant;

use super::Caller;
use super::admissions::Head;
use crate::policy::authorization::Reason;
use crate::proxy::Node;
use crate::proxy::copy::Transferred;
use crate::proxy::http::HttpVersion;
use crate::registry::Workload;
use crate::telemetry::Side;
use crate::telemetry::access_log::{AccessLog, Entry};
use crate::telemetry::rules::Logging;

/// A connection in the clear that has ended, of whose client nobody else tells.
pub fn ended(
    node: &Node,
    workload: &Workload,
    caller: &Caller,
    to: SocketAddr,
    transferred: &Transferred,
    began: Instant,
) {
    if caller.is_probe {
        return;
    }
    let Some((log, wanted)) = wanted(node, workload) else {
        return;
    };
    let (cluster, endpoint) = (inbound(to), to.to_string());
    let (bytes_received, bytes_sent) = transferred.bytes();
    let duration = began.elapsed();
    let entry = Entry {
        start_time: Entry::began(duration),
        duration,
        bytes_received,
        bytes_sent,
        upstream_host: Some(&endpoint),
        route_name: None,
        ..entry(caller, to, &cluster)
    };
    log.write(&entry, &wanted);
}

/// A connection that was not made.
pub(super) fn connection(
    node: &Node,
    workload: &Workload,
    caller: &Caller,
    to: SocketAddr,
    reason: &Reason,
) {
    let Some((log, wanted)) = wanted(node, workload) else {
        return;
    };
    let (cluster, details) = (inbound(to), reason.details());
    let entry = Entry {
        start_time: std::time::SystemTime::now(),
        connection_termination_details: Some(&details),
        ..entry(caller, to, &cluster)
    };
    log.write(&entry, &wanted);
}

/// A request that was answered by 403; so many bytes were.
pub(super) fn request(
    node: &Node,
    workload: &Workload,
    (caller, to): (&Caller, SocketAddr),
    (head, version): (&Head, HttpVersion),
    reason: &Reason,
    bytes_sent: u64,
) {
    let Some((log, wanted)) = wanted(node, workload) else {
        return;
    };
    let (cluster, details) = (inbound(to), reason.details());
    let header = |name: &str| head.headers.get(name).map(HeaderValue::as_bytes);
    let entry = Entry {
        start_time: std::time::SystemTime::now(),
        method: Some(head.method.as_str()),
        path: Some(&head.path_and_query),
        protocol: Some(match version {
            HttpVersion::Http1 => "HTTP/1.1",
            HttpVersion::Http2 => "HTTP/2",
        }),
        response_code: 403,
        response_code_details: Some(&details),
        bytes_sent,
        x_forwarded_for: header("x-forwarded-for"),
        user_agent: header(USER_AGENT.as_str()),
        request_id: header("x-request-id"),
        authority: Some(&head.authority),
        request_headers: Some(&head.headers),
        ..entry(caller, to, &cluster)
    };
    log.write(&entry, &wanted);
}

/// The log, where it tells of the workload's side.
fn wanted<'n>(node: &'n Node, workload: &Workload) -> Option<(&'n AccessLog, Logging)> {
    let log = &node.telemetry.access_log;
    let wanted = node
        .snapshot
        .load()
        .telemetry
        .logging(workload, Side::Server);
    log.is_on(&wanted).then_some((log, wanted))
}

fn entry<'a>(caller: &'a Caller, to: SocketAddr, cluster: &'a str) -> Entry<'a> {
    Entry {
        upstream_cluster: Some(cluster),
        route_name: Some("default"),
        downstream_local_address: Some(to),
        downstream_remote_address: Some(caller.address),
        mtls: caller.transport == Transport::Hbone,
        peer_identity: caller.identity.as_ref(),
        ..Entry::default()
    }
}

/// Istio's name of the application behind a port.
fn inbound(to: SocketAddr) -> String {
    format!("inbound|{}||", to.port())
}
