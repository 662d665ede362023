//! What each client knows of services and their endpoints, as metrics.

use crate::admin::api::{ClusterEndpointView, ClusterView, RouteGaugesView};
use crate::balance::full_name;

/// One metric: name, type, and what it says.
pub(super) type Family<T> = (&'static str, &'static str, &'static str, fn(&T) -> u64);

/// Of a client's connections and requests to a service, by Envoy's names for clusters.
const OF_CLUSTERS: [Family<ClusterView>; 9] = [
    (
        "upstream_cx_active",
        "gauge",
        "Connections that are open.",
        |cluster| cluster.connections.now.into(),
    ),
    (
        "upstream_cx_overflow",
        "counter",
        "Times that maxConnections were open.",
        |cluster| cluster.connections.refused,
    ),
    (
        "upstream_rq_pending_active",
        "gauge",
        "Requests that wait for a connection.",
        |cluster| cluster.pending.now.into(),
    ),
    (
        "upstream_rq_pending_overflow",
        "counter",
        "Requests refused by http1MaxPendingRequests.",
        |cluster| cluster.pending.refused,
    ),
    (
        "upstream_rq_active",
        "gauge",
        "Requests on their way; of TCP: connections.",
        |cluster| cluster.requests.now.into(),
    ),
    (
        "upstream_rq_overflow",
        "counter",
        "Requests refused by http2MaxRequests.",
        |cluster| cluster.requests.refused,
    ),
    (
        "upstream_rq_retry_active",
        "gauge",
        "Retries on their way.",
        |cluster| cluster.retries.now.into(),
    ),
    (
        "upstream_rq_retry_overflow",
        "counter",
        "Retries refused by maxRetries or the retryBudget.",
        |cluster| cluster.retries.refused,
    ),
    (
        "outlier_detection_ejections_overflow",
        "counter",
        "Ejections that maxEjectionPercent forbade.",
        |cluster| cluster.refused_ejections,
    ),
];

/// Of one endpoint, as a client sees it.
const OF_ENDPOINTS: [Family<ClusterEndpointView>; 5] = [
    (
        "endpoint_rq_active",
        "gauge",
        "Requests on their way; of TCP: connections.",
        |endpoint| endpoint.active.into(),
    ),
    (
        "endpoint_rq_total",
        "counter",
        "Requests that were sent; of TCP: connections.",
        |endpoint| endpoint.total,
    ),
    (
        "endpoint_healthy",
        "gauge",
        "1 where it passes its probe, or has none.",
        |endpoint| u64::from(endpoint.unhealthy.is_none()),
    ),
    (
        "endpoint_ejected",
        "gauge",
        "1 while outlier detection keeps it out of service.",
        |endpoint| u64::from(endpoint.ejected.is_some()),
    ),
    (
        "endpoint_ejections_total",
        "counter",
        "Times that outlier detection took it out of service.",
        |endpoint| endpoint.ejections,
    ),
];

/// Of a route with bounds of its own.
const OF_ROUTES: [Family<RouteGaugesView>; 6] = [
    (
        "route_rq_active",
        "gauge",
        "Requests of a route on their way.",
        |route| route.requests.now.into(),
    ),
    (
        "route_rq_overflow_total",
        "counter",
        "Requests refused by max-requests of the route.",
        |route| route.requests.refused,
    ),
    (
        "route_rq_pending_overflow_total",
        "counter",
        "Requests refused by max-pending of the route.",
        |route| route.pending.refused,
    ),
    (
        "route_rq_broken_total",
        "counter",
        "Requests refused by consecutive-errors of the route.",
        |route| route.broken,
    ),
    (
        "route_broken",
        "gauge",
        "1 while consecutive-errors of the route keeps requests back.",
        |route| u64::from(route.open_s.is_some()),
    ),
    (
        "route_rq_retry_overflow_total",
        "counter",
        "Retries refused by max-retries of the route.",
        |route| route.retries.refused,
    ),
];

/// Clusters, their routes and endpoints in Prometheus' text format, with the prefix `undermesh_cluster_`.
pub fn of_clusters(clusters: &[ClusterView]) -> String {
    let mut text = String::new();
    let head = |name: &str, kind: &str, help: &str| {
        format!("# HELP undermesh_cluster_{name} {help}\n# TYPE undermesh_cluster_{name} {kind}\n")
    };
    for (name, kind, help, value) in OF_CLUSTERS {
        text.push_str(&head(name, kind, help));
        for cluster in clusters {
            let (labels, value) = (labels(cluster), value(cluster));
            text.push_str(&format!("undermesh_cluster_{name}{{{labels}}} {value}\n"));
        }
    }
    for (name, kind, help, value) in OF_ROUTES {
        text.push_str(&head(name, kind, help));
        for cluster in clusters {
            let labels = labels(cluster);
            for route in &cluster.routes {
                let (name_of_route, value) = (escaped(&route.route), value(route));
                text.push_str(&format!(
                    "undermesh_cluster_{name}{{{labels},route=\"{name_of_route}\"}} {value}\n"
                ));
            }
        }
    }
    for (name, kind, help, value) in OF_ENDPOINTS {
        text.push_str(&head(name, kind, help));
        for cluster in clusters {
            let labels = labels(cluster);
            for endpoint in &cluster.endpoints {
                let address = escaped(&endpoint.address);
                let workload = escaped(endpoint.workload.as_deref().unwrap_or("unknown"));
                text.push_str(&format!(
                    "undermesh_cluster_{name}{{{labels},endpoint=\"{address}\",destination_workload=\"{workload}\"}} {}\n",
                    value(endpoint)
                ));
            }
        }
    }
    text
}

/// The cluster by Istio's name for it, and the client.
fn labels(cluster: &ClusterView) -> String {
    let name = full_name(&cluster.service, cluster.port, cluster.subset.as_deref());
    format!(
        "source_workload=\"{}\",cluster_name=\"{}\"",
        escaped(&cluster.client),
        escaped(&name)
    )
}

/// As label values are written.
pub(super) fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
