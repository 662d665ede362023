//! `meshctl endpoints`

use std::io::Write;

use clap::Args;

use super::client::Client;
use super::table::Table;
use super::{CommandError, Printer, inbound};
use crate::admin::api::{ClusterEndpointView, ClusterView, GaugeView, InboundView};
use crate::admin::checks::duration;
use crate::admin::metrics;

/// Which endpoints.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only endpoints of this service: its host, or the beginning of it; with --inbound, of this workload
    service: Option<String>,
    /// Only as this workload sees them, `<name>[.<namespace>]`
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// What is open to this node's applications instead, where a Sidecar bounds it
    #[arg(long, conflicts_with_all = ["client", "metrics"])]
    inbound: bool,
    /// As metrics, in Prometheus' text format
    #[arg(long)]
    metrics: bool,
}

pub async fn run(
    client: &Client,
    printer: &mut Printer<impl Write>,
    arguments: &Arguments,
) -> Result<(), CommandError> {
    let begins = |text: &str, wanted: &Option<String>| {
        wanted.as_ref().is_none_or(|wanted| {
            let rest = text.strip_prefix(wanted.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    if arguments.inbound {
        let mut ports: Vec<InboundView> = client.get("/v1/inbound").await?;
        ports.retain(|port| begins(&port.workload, &arguments.service));
        return Ok(printer.show(&ports, |ports, _| inbound::text(ports))?);
    }
    let mut clusters: Vec<ClusterView> = client.get("/v1/endpoints").await?;
    clusters.retain(|cluster| {
        begins(&cluster.service, &arguments.service) && begins(&cluster.client, &arguments.client)
    });
    if arguments.metrics {
        return Ok(printer.show(&clusters, |clusters, _| metrics::of_clusters(clusters))?);
    }
    // Whoever asks for a service or a client asks for what clients know.
    let is_for_all = arguments.service.is_none() && arguments.client.is_none();
    let ports: Vec<InboundView> = if is_for_all {
        client.get("/v1/inbound").await?
    } else {
        Vec::new()
    };
    Ok(printer.show(&clusters, |clusters, wide| {
        let mut text = text(clusters, wide);
        if !ports.is_empty() {
            text.push('\n');
            text.push_str(&inbound::text(&ports));
        }
        text
    })?)
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
        for route in &cluster.routes {
            if route.open_s.is_some() || route.broken > 0 {
                let state = match route.open_s {
                    Some(0) => "one request tries again".to_owned(),
                    Some(left) => format!("nothing is sent for {}", duration(left)),
                    None => "requests pass again".to_owned(),
                };
                text.push_str(&format!(
                    "{} to {}:{}: {} requests of route {} were refused after errors in a row; {state}\n",
                    cluster.client, cluster.service, cluster.port, route.broken, route.route
                ));
            }
            for (gauge, what) in [
                (route.requests, "requests of route"),
                (route.pending, "waiting requests of route"),
                (route.retries, "retries of route"),
            ] {
                if gauge.refused > 0 {
                    text.push_str(&format!(
                        "{} to {}:{}: {} {what} {} were refused: its route-limits were reached\n",
                        cluster.client, cluster.service, cluster.port, gauge.refused, route.route
                    ));
                }
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
pub(super) fn gauge(gauge: GaugeView) -> String {
    match gauge.limit {
        Some(limit) => format!("{}/{limit}", gauge.now),
        None => gauge.now.to_string(),
    }
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
        let text = metrics::of_clusters(&samples::endpoints());
        golden("endpoints-metrics.txt", &text);
    }
}
