//! The lines of the access log about what the policies of an application refuse;
//! of all else the client's node tells.

use std::net::SocketAddr;

use http::header::{HeaderValue, USER_AGENT};

use super::Caller;
use super::admissions::Head;
use crate::policy::authorization::Reason;
use crate::proxy::http::HttpVersion;
use crate::telemetry::access_log::{AccessLog, Entry};

/// A connection that was not made.
pub(super) fn connection(log: &AccessLog, caller: &Caller, to: SocketAddr, reason: &Reason) {
    if !log.is_on() {
        return;
    }
    let (cluster, details) = (inbound(to), reason.details());
    log.write(&Entry {
        start_time: std::time::SystemTime::now(),
        connection_termination_details: Some(&details),
        ..entry(caller, to, &cluster)
    });
}

/// A request that was answered by 403; so many bytes were.
pub(super) fn request(
    log: &AccessLog,
    (caller, to): (&Caller, SocketAddr),
    (head, version): (&Head, HttpVersion),
    reason: &Reason,
    bytes_sent: u64,
) {
    if !log.is_on() {
        return;
    }
    let (cluster, details) = (inbound(to), reason.details());
    let header = |name: &str| head.headers.get(name).map(HeaderValue::as_bytes);
    log.write(&Entry {
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
        ..entry(caller, to, &cluster)
    });
}

fn entry<'a>(caller: &Caller, to: SocketAddr, cluster: &'a str) -> Entry<'a> {
    Entry {
        upstream_cluster: Some(cluster),
        route_name: Some("default"),
        downstream_local_address: Some(to),
        downstream_remote_address: Some(caller.address),
        ..Entry::default()
    }
}

/// Istio's name of the application behind a port.
fn inbound(to: SocketAddr) -> String {
    format!("inbound|{}||", to.port())
}
