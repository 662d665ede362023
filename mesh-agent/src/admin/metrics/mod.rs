//! What the agent counts, in Prometheus' text format: no secret, and nothing that
//! `meshctl` does not show as well.

mod clusters;
mod inbound;
mod port;
mod traffic;

use std::fmt::{Display, Write};

pub use clusters::of_clusters;
pub use port::{MetricsAddress, serve};
pub use traffic::{Asked, Ends, Traffic};

use super::api::{Agent, CertificateKind, CountersView};
use clusters::escaped;

/// All metrics of an agent.
pub fn text(agent: &dyn Agent) -> String {
    let mut text = of_agent(agent);
    text.push_str(&of_clusters(&agent.endpoints()));
    text.push_str(&inbound::of_inbound(&agent.inbound()));
    text.push_str(&traffic::of_traffic(&agent.traffic()));
    text
}

/// Of the agent itself, its configuration and its certificates.
fn of_agent(agent: &dyn Agent) -> String {
    let mut text = String::new();
    let version = agent.version();
    let build = format!(
        "version=\"{}\",node=\"{}\"",
        escaped(&version.version),
        escaped(&version.node)
    );
    let help = "1, with the version and the node of the agent.";
    family(&mut text, "build", "gauge", help, [(build, 1)]);
    let config = agent.config();
    let CountersView {
        connections,
        flows_dropped,
        events_dropped,
        denied,
        clients_refused,
        tunnels_reset,
        flows_opened,
        flows_closed,
        flows_evicted,
        log_lines,
        log_lines_dropped,
        configurations_refused,
    } = agent.counters();
    let is_refused = u64::from(config.refused.is_some());
    for (name, kind, help, value) in [
        (
            "uptime_seconds",
            "gauge",
            "Time since the agent started.",
            version.uptime_s,
        ),
        (
            "connections_open",
            "gauge",
            "Connections that the agent carries.",
            connections,
        ),
        (
            "connections_denied_total",
            "counter",
            "Connections that the kernel programs refused.",
            denied,
        ),
        (
            "client_connections_refused_total",
            "counter",
            "Connections (HBONE) of clients that had too many.",
            clients_refused,
        ),
        (
            "tunnels_reset_total",
            "counter",
            "Tunnels that were reset: the node held too much that nobody took.",
            tunnels_reset,
        ),
        (
            "flows_opened_total",
            "counter",
            "Flows that were established.",
            flows_opened,
        ),
        (
            "flows_closed_total",
            "counter",
            "Flows that have ended.",
            flows_closed,
        ),
        (
            "flows_evicted_total",
            "counter",
            "Flows that ended and whose records were removed early, to make room.",
            flows_evicted,
        ),
        (
            "access_log_lines_total",
            "counter",
            "Lines that the access log has.",
            log_lines,
        ),
        (
            "access_log_lines_dropped_total",
            "counter",
            "Lines that the access log has not: its file was too slow, or refused them.",
            log_lines_dropped,
        ),
        (
            "flows_dropped_total",
            "counter",
            "Flows without a record: the map flows was full.",
            flows_dropped,
        ),
        (
            "flow_events_dropped_total",
            "counter",
            "Events of flows that the agent has not seen: the ring was full.",
            events_dropped,
        ),
        (
            "config_generation",
            "gauge",
            "Number of the configuration in force.",
            config.generation,
        ),
        (
            "config_resources",
            "gauge",
            "Resources in force.",
            config.resources as u64,
        ),
        (
            "config_warnings",
            "gauge",
            "Fields that are not applied or have no effect.",
            config.warnings.len() as u64,
        ),
        (
            "config_refused",
            "gauge",
            "1 while the last configuration is refused, and the one before in force.",
            is_refused,
        ),
        (
            "config_refused_total",
            "counter",
            "Configurations that were refused.",
            configurations_refused,
        ),
    ] {
        family(&mut text, name, kind, help, [(String::new(), value)]);
    }
    let certificates = agent.certificates().into_iter().map(|certificate| {
        let kind = match certificate.kind {
            CertificateKind::Root => "root",
            CertificateKind::Intermediate => "intermediate",
            CertificateKind::Leaf => "leaf",
        };
        let labels = format!(
            "identity=\"{}\",kind=\"{kind}\",serial=\"{}\"",
            escaped(&certificate.identity),
            escaped(&certificate.serial)
        );
        (labels, certificate.not_after)
    });
    let help = "End of a certificate's validity, in seconds since 1970.";
    let name = "certificate_expiration_timestamp_seconds";
    family(&mut text, name, "gauge", help, certificates);
    text
}

/// One metric with all its values, each behind its labels.
fn family(
    text: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    values: impl IntoIterator<Item = (String, impl Display)>,
) {
    let _ = writeln!(
        text,
        "# HELP undermesh_{name} {help}\n# TYPE undermesh_{name} {kind}"
    );
    for (labels, value) in values {
        let _ = if labels.is_empty() {
            writeln!(text, "undermesh_{name} {value}")
        } else {
            writeln!(text, "undermesh_{name}{{{labels}}} {value}")
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::samples::SampleAgent;

    #[test]
    fn an_agent_as_prometheus_reads_it() {
        let text = text(&SampleAgent);
        for line in [
            "# TYPE undermesh_connections_open gauge",
            "undermesh_connections_open 12",
            "# TYPE undermesh_config_refused_total counter",
            "undermesh_config_refused_total 1",
            "undermesh_flow_events_dropped_total 3",
            "undermesh_flows_opened_total 20",
            "undermesh_access_log_lines_dropped_total 2",
            "undermesh_connections_denied_total 4",
            "undermesh_client_connections_refused_total 5",
            "undermesh_tunnels_reset_total 6",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
        for begin in [
            "undermesh_build{version=\"",
            "undermesh_certificate_expiration_timestamp_seconds{identity=\"spiffe://",
            "undermesh_cluster_endpoint_ejected{",
        ] {
            assert!(
                text.lines().any(|line| line.starts_with(begin)),
                "{begin}: {text}"
            );
        }
    }
}
