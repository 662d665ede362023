//! The lines of the access log about what the policies of an application refuse, and about
//! clients outside of the mesh; of all else the client's node tells.

use std::net::SocketAddr;

use http::header::{HeaderValue, USER_AGENT};
use tokio::time::Instant;

use super::Caller;
use super::admissions::Head;
use super::kept::Kept;
use crate::proxy::Node;
use crate::proxy::copy::Transferred;
use crate::proxy::http::HttpVersion;
use crate::registry::Workload;
use crate::telemetry::access_log::{AccessLog, Entry};
use crate::telemetry::rules::Logging;
use crate::telemetry::{Flags, Side};

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
    flags: Flags,
    details: Option<&str>,
) {
    let Some((log, wanted)) = wanted(node, workload) else {
        return;
    };
    let cluster = inbound(to);
    let entry = Entry {
        start_time: std::time::SystemTime::now(),
        connection_termination_details: details,
        response_flags: flags,
        ..entry(caller, to, &cluster)
    };
    log.write(&entry, &wanted);
}

/// How the agent answered a request instead of the application.
pub(super) struct Answered<'a> {
    pub(super) code: u16,
    pub(super) flags: Flags,
    pub(super) details: &'a str,
    /// Of the body, in bytes.
    pub(super) length: u64,
}

/// A request that the application does not get.
pub(super) fn request(kept: &Kept, head: &Head, answered: &Answered<'_>) {
    let Some((log, wanted)) = wanted(&kept.node, &kept.local.workload) else {
        return;
    };
    let to = kept.application;
    let cluster = inbound(to);
    let header = |name: &str| head.headers.get(name).map(HeaderValue::as_bytes);
    let entry = Entry {
        start_time: std::time::SystemTime::now(),
        method: Some(head.method.as_str()),
        path: Some(&head.path_and_query),
        protocol: Some(match kept.version {
            HttpVersion::Http1 => "HTTP/1.1",
            HttpVersion::Http2 => "HTTP/2",
        }),
        response_code: answered.code,
        response_flags: answered.flags,
        response_code_details: Some(answered.details),
        bytes_sent: answered.length,
        x_forwarded_for: header("x-forwarded-for"),
        user_agent: header(USER_AGENT.as_str()),
        request_id: header("x-request-id"),
        authority: Some(&head.authority),
        request_headers: Some(&head.headers),
        ..entry(&kept.caller, to, &cluster)
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
        mtls: caller.transport.is_mutual_tls(),
        peer_identity: caller.identity.as_ref(),
        ..Entry::default()
    }
}

/// Istio's name of the application behind a port.
fn inbound(to: SocketAddr) -> String {
    format!("inbound|{}||", to.port())
}
