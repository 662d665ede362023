//! `meshctl endpoints`

use std::io::Write;

use clap::Args;

use super::client::Client;
use super::table::Table;
use super::{CommandError, Printer};
use crate::admin::api::{ClusterEndpointView, ClusterView, GaugeView};
use crate::admin::checks::duration;

/// Which endpoints.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only endpoints of this service: its host, or the beginning of it
    service: Option<String>,
    /// Only as this workload sees them, `<name>[.<namespace>]`
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// As metrics, in Prometheus' text format
    #[arg(long)]
    metrics: bool,
}

pub async fn run(
    client: &Client,
    printer: &mut Printer<impl Write>,
    arguments: &Arguments,
) -> Result<(), CommandError> {
    let mut clusters: Vec<ClusterView> = client.get("/v1/endpoints").await?;
    let begins = |text: &str, wanted: &Option<String>| {
        wanted.as_ref().is_none_or(|wanted| {
            let rest = text.strip_prefix(wanted.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    clusters.retain(|cluster| {
        begins(&cluster.service, &arguments.service) && begins(&cluster.client, &arguments.client)
    });
    if arguments.metrics {
        return Ok(printer.show(&clusters, |clusters, _| metrics(clusters))?);
    }
    Ok(printer.show(&clusters, |clusters, wide| text(clusters, wide))?)
}

fn text(clusters: &[ClusterView], wide: bool) -> String {
    if clusters.is_empty() {
        return "No endpoints: no workload of this node has used such a service yet.\n".to_owned();
    }
    let mut header = vec![
        "CLIENT", "SERVICE", "ENDPOINT", "WORKLOAD", "STATE", "ACTIVE", "TOTAL",
    ];
    if wide {
        header.extend([
            "OUT",
            "REASON",
            "CONNECTIONS",
            "WAITING",
            "REQUESTS",
            "RETRIES",
        ]);
    }
    let mut table = Table::new(&header);
    for cluster in clusters {
        let subset = cluster.subset.as_deref();
        let subset = subset.map_or(String::new(), |subset| format!("/{subset}"));
        let service = format!("{}:{}{subset}", cluster.service, cluster.port);
        for endpoint in &cluster.endpoints {
            let out = endpoint.ejected.as_ref();
            let mut cells = vec![
                cluster.client.clone(),
                service.clone(),
                endpoint.address.clone(),
                endpoint.workload.clone().unwrap_or_default(),
                state(endpoint),
                endpoint.active.to_string(),
                endpoint.total.to_string(),
            ];
            if wide {
                cells.push(out.map_or(String::new(), |out| format!("{} times", out.count)));
                cells.push(out.map_or(String::new(), |out| {
                    let since = duration(out.since_s);
                    format!("{since} ago: {}", out.reason)
                }));
                let gauges = [
                    cluster.connections,
                    cluster.pending,
                    cluster.requests,
                    cluster.retries,
                ];
                cells.extend(gauges.map(gauge));
            }
            table.row(cells);
        }
    }
    let mut text = table.render();
    for cluster in clusters {
        for (refused, what) in [
            (
                cluster.pending.refused,
                "requests were refused: http1MaxPendingRequests waited already",
            ),
            (
                cluster.requests.refused,
                "requests were refused: http2MaxRequests were on their way already",
            ),
            (
                cluster.retries.refused,
                "retries were left out: maxRetries or the retryBudget were used up",
            ),
            (
                cluster.refused_ejections,
                "ejections were left out: maxEjectionPercent does not allow more",
            ),
        ] {
            if refused > 0 {
                text.push_str(&format!(
                    "{} to {}:{}: {refused} {what}\n",
                    cluster.client, cluster.service, cluster.port
                ));
            }
        }
    }
    text
}

fn state(endpoint: &ClusterEndpointView) -> String {
    match (&endpoint.unhealthy, &endpoint.ejected) {
        (Some(reason), _) => format!("unhealthy: {reason}"),
        (None, Some(out)) => {
            let left = duration(out.until_s);
            format!("out for {left}: {}", out.reason)
        }
        (None, None) => "in service".to_owned(),
    }
}

/// `now/limit`.
fn gauge(gauge: GaugeView) -> String {
    match gauge.limit {
        Some(limit) => format!("{}/{limit}", gauge.now),
        None => gauge.now.to_string(),
    }
}

/// One metric: name, type, and what it says.
type Family<T> = (&'static str, &'static str, &'static str, fn(&T) -> u64);

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

/// Prometheus' text format, with the prefix `undermesh_cluster_`.
fn metrics(clusters: &[ClusterView]) -> String {
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
    let subset = cluster.subset.as_deref().unwrap_or_default();
    let name = format!("outbound|{}|{subset}|{}", cluster.port, cluster.service);
    format!(
        "source_workload=\"{}\",cluster_name=\"{}\"",
        escaped(&cluster.client),
        escaped(&name)
    )
}

/// As label values are written.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::samples;
    use crate::cli::golden::golden;

    #[test]
    fn tables() {
        golden("endpoints.txt", &text(&samples::endpoints(), false));
        golden("endpoints-wide.txt", &text(&samples::endpoints(), true));
        assert!(text(&[], false).starts_with("No endpoints"));
    }

    #[test]
    fn metrics_are_prometheus_text() {
        golden("endpoints-metrics.txt", &metrics(&samples::endpoints()));
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
