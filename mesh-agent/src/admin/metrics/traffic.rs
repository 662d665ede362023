//! Requests and connections by Istio's names and labels, as the client's side reports them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use super::clusters::escaped;
use crate::registry::{PASSTHROUGH, Workload};
use crate::telemetry::requests::{BOUNDS, ConnectionCounts, Counts, Histogram, Outcome};

/// Who has called whom.
#[derive(Clone, Debug)]
pub struct Ends {
    /// The client.
    pub client: Arc<Workload>,
    /// Host of the service.
    pub service: String,
    /// The workload that was called, where the mesh knows one.
    pub endpoint: Option<Arc<Workload>>,
}

/// What has been counted.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Requests by outcome.
    pub requests: Vec<(Ends, Outcome, Counts)>,
    /// Connections that are not HTTP.
    pub connections: Vec<(Ends, ConnectionCounts)>,
}

/// A metric of requests: name, what it says, and of what.
type Distribution = (&'static str, &'static str, fn(&Counts) -> &Histogram);
/// The same of connections.
type Counter = (&'static str, &'static str, fn(&ConnectionCounts) -> u64);

/// Of what is not known.
const UNKNOWN: &str = "unknown";

/// In Prometheus' text format.
pub(super) fn of_traffic(traffic: &Traffic) -> String {
    let mut text = String::new();
    // Ports and subsets are no labels.
    let mut requests: BTreeMap<String, Counts> = BTreeMap::new();
    for (ends, outcome, counts) in &traffic.requests {
        requests
            .entry(labels(ends, Some(outcome)))
            .or_default()
            .merge(counts);
    }
    head(
        &mut text,
        "requests_total",
        "counter",
        "Requests that have ended.",
    );
    for (labels, counts) in &requests {
        let _ = writeln!(text, "istio_requests_total{{{labels}}} {}", counts.requests);
    }
    let histograms: [Distribution; 3] = [
        (
            "request_duration_milliseconds",
            "From a request to the end of its answer.",
            |counts| &counts.duration,
        ),
        ("request_bytes", "Bodies of requests.", |counts| {
            &counts.request_bytes
        }),
        ("response_bytes", "Bodies of answers.", |counts| {
            &counts.response_bytes
        }),
    ];
    for (name, help, of) in histograms {
        head(&mut text, name, "histogram", help);
        for (labels, counts) in &requests {
            histogram(&mut text, name, labels, of(counts));
        }
    }
    let mut connections: BTreeMap<String, ConnectionCounts> = BTreeMap::new();
    for (ends, counts) in &traffic.connections {
        let sum = connections.entry(labels(ends, None)).or_default();
        sum.opened += counts.opened;
        sum.closed += counts.closed;
        sum.received += counts.received;
        sum.sent += counts.sent;
    }
    let counters: [Counter; 4] = [
        ("tcp_connections_opened_total", "Connections.", |c| c.opened),
        (
            "tcp_connections_closed_total",
            "Connections that have ended.",
            |c| c.closed,
        ),
        ("tcp_received_bytes_total", "Bytes from clients.", |c| {
            c.received
        }),
        ("tcp_sent_bytes_total", "Bytes to clients.", |c| c.sent),
    ];
    for (name, help, of) in counters {
        head(&mut text, name, "counter", help);
        for (labels, counts) in &connections {
            let _ = writeln!(text, "istio_{name}{{{labels}}} {}", of(counts));
        }
    }
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(
        text,
        "# HELP istio_{name} {help}\n# TYPE istio_{name} {kind}"
    );
}

fn histogram(text: &mut String, name: &str, labels: &str, histogram: &Histogram) {
    let mut below = 0;
    for (bound, count) in BOUNDS.iter().zip(histogram.buckets) {
        below += count;
        let _ = writeln!(
            text,
            "istio_{name}_bucket{{{labels},le=\"{bound}\"}} {below}"
        );
    }
    let all: u64 = histogram.buckets.iter().sum();
    let _ = writeln!(
        text,
        "istio_{name}_bucket{{{labels},le=\"+Inf\"}} {all}\n\
         istio_{name}_sum{{{labels}}} {}\n\
         istio_{name}_count{{{labels}}} {all}",
        histogram.sum
    );
}

fn labels(ends: &Ends, outcome: Option<&Outcome>) -> String {
    let mut text = "reporter=\"source\"".to_owned();
    let mut label = |name: &str, value: &str| {
        let _ = write!(text, ",{name}=\"{}\"", escaped(value));
    };
    workload(&mut label, "source", Some(&ends.client));
    workload(&mut label, "destination", ends.endpoint.as_deref());
    let (host, name, namespace) = service(&ends.service);
    label("destination_service", host);
    label("destination_service_name", name);
    label("destination_service_namespace", namespace);
    let protocol = match outcome {
        None => "tcp",
        Some(outcome) if outcome.is_grpc => "grpc",
        Some(_) => "http",
    };
    label("request_protocol", protocol);
    if let Some(outcome) = outcome {
        label("response_code", &outcome.code.to_string());
        let status = outcome.grpc_status.map(|status| status.to_string());
        label(
            "grpc_response_status",
            status.as_deref().unwrap_or_default(),
        );
    }
    let flags = outcome.map(|outcome| outcome.flags).unwrap_or_default();
    label("response_flags", &flags.to_string());
    // As Istio's clients say: only the server's side knows for certain.
    label("connection_security_policy", UNKNOWN);
    text
}

fn workload(label: &mut impl FnMut(&str, &str), side: &str, of: Option<&Workload>) {
    let named = |names: &[&str]| {
        let labels = of.map(|workload| &workload.labels);
        let found = labels.and_then(|labels| names.iter().find_map(|name| labels.get(*name)));
        found.map(String::as_str)
    };
    let name = of.map_or(UNKNOWN, |workload| &workload.name.name);
    let namespace = of.map_or(UNKNOWN, |workload| &workload.name.namespace);
    let principal = of.map(|workload| workload.identity.to_string());
    let service = named(&[
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ]);
    let revision = named(&[
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ]);
    let latest = if of.is_some() { "latest" } else { UNKNOWN };
    for (of, value) in [
        ("workload", name),
        ("workload_namespace", namespace),
        ("principal", principal.as_deref().unwrap_or(UNKNOWN)),
        ("app", named(&["app"]).unwrap_or(UNKNOWN)),
        ("version", named(&["version"]).unwrap_or(UNKNOWN)),
        ("cluster", UNKNOWN),
        ("canonical_service", service.unwrap_or(name)),
        ("canonical_revision", revision.unwrap_or(latest)),
    ] {
        label(&format!("{side}_{of}"), value);
    }
}

/// Host, name and namespace of a service, by its host.
fn service(host: &str) -> (&str, &str, &str) {
    if host.parse::<std::net::IpAddr>().is_ok() {
        return (UNKNOWN, PASSTHROUGH, UNKNOWN);
    }
    match host
        .split_once(".svc.")
        .and_then(|(name, _)| name.split_once('.'))
    {
        Some((name, namespace)) => (host, name, namespace),
        None => (host, host, UNKNOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_services_have_a_name_and_a_namespace() {
        let host = "reviews.default.svc.cluster.local";
        assert_eq!(service(host), (host, "reviews", "default"));
        assert_eq!(
            service("example.org"),
            ("example.org", "example.org", "unknown")
        );
        assert_eq!(
            service("10.1.0.1"),
            ("unknown", "PassthroughCluster", "unknown")
        );
    }
}
