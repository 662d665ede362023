//! What is open to applications that a Sidecar bounds, as metrics.

use super::clusters::Family;
use super::{escaped, family};
use crate::admin::api::InboundView;

/// By Envoy's names for clusters, as those of the client's side.
const FAMILIES: [Family<InboundView>; 6] = [
    (
        "upstream_cx_active",
        "gauge",
        "Connections to an application that are open.",
        |port| port.connections.now.into(),
    ),
    (
        "upstream_cx_overflow",
        "counter",
        "Connections refused by maxConnections.",
        |port| port.connections.refused,
    ),
    (
        "upstream_rq_pending_active",
        "gauge",
        "Requests that wait for a connection.",
        |port| port.pending.now.into(),
    ),
    (
        "upstream_rq_pending_overflow",
        "counter",
        "Requests refused by http1MaxPendingRequests.",
        |port| port.pending.refused,
    ),
    (
        "upstream_rq_active",
        "gauge",
        "Requests on their way.",
        |port| port.requests.now.into(),
    ),
    (
        "upstream_rq_overflow",
        "counter",
        "Requests refused by http2MaxRequests.",
        |port| port.requests.refused,
    ),
];

/// Ports of workloads in Prometheus' text format.
pub(super) fn of_inbound(ports: &[InboundView]) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in FAMILIES {
        let rows = ports.iter().map(|port| {
            let workload = escaped(&port.workload);
            let labels = format!(
                "destination_workload=\"{workload}\",cluster_name=\"inbound|{}||\"",
                port.port
            );
            (labels, value(port))
        });
        family(&mut text, &format!("inbound_{name}"), kind, help, rows);
    }
    text
}
