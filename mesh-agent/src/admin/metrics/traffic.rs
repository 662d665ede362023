//! Requests and connections by Istio's names and labels, as each side reports them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use super::clusters::escaped;
use crate::identity::Identity;
use crate::registry::{PASSTHROUGH, Workload};
use crate::resource::telemetry::Metric;
use crate::telemetry::connections::ConnectionCounts;
use crate::telemetry::expression::{Attribute, Facts, Value};
use crate::telemetry::requests::{BOUNDS, Counts, Histogram, Outcome};
use crate::telemetry::rules::{Change, MetricRules};
use crate::telemetry::{Rules, Side};

/// Who has called whom, as one of the two reports it.
#[derive(Clone, Debug)]
pub struct Ends {
    /// Who reports it.
    pub side: Side,
    /// The client, where the mesh knows one.
    pub client: Option<Arc<Workload>>,
    /// Who the client is: by its certificate, or because the agent has its sockets.
    pub client_identity: Option<Identity>,
    /// What was asked for.
    pub service: Asked,
    /// The workload that was called, where the mesh knows one.
    pub endpoint: Option<Arc<Workload>>,
    /// Whether it came by mutual TLS; for certain, the server's side alone knows.
    pub mutual_tls: Option<bool>,
}

/// A service, by what is known of it.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Its host.
    pub host: Option<String>,
    /// Its namespace, where the host does not say it.
    pub namespace: Option<String>,
}

/// What has been counted.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Requests by outcome.
    pub requests: Vec<(Ends, Outcome, Counts)>,
    /// Connections that are not HTTP.
    pub connections: Vec<(Ends, ConnectionCounts)>,
    /// What is left out or labelled otherwise.
    pub rules: Arc<Rules>,
    /// The cluster that all workloads are of.
    pub cluster: String,
}

/// A metric of requests: name, what it says, and of what.
type Distribution = (
    Metric,
    &'static str,
    &'static str,
    fn(&Counts) -> &Histogram,
);
/// The same of connections.
type Counter = (
    Metric,
    &'static str,
    &'static str,
    fn(&ConnectionCounts) -> u64,
);

/// Of what is not known.
const UNKNOWN: &str = "unknown";

const DISTRIBUTIONS: [Distribution; 3] = [
    (
        Metric::RequestDuration,
        "request_duration_milliseconds",
        "From a request to the end of its answer.",
        |counts| &counts.duration,
    ),
    (
        Metric::RequestSize,
        "request_bytes",
        "Bodies of requests.",
        |counts| &counts.request_bytes,
    ),
    (
        Metric::ResponseSize,
        "response_bytes",
        "Bodies of answers.",
        |counts| &counts.response_bytes,
    ),
];

const COUNTERS: [Counter; 4] = [
    (
        Metric::TcpOpenedConnections,
        "tcp_connections_opened_total",
        "Connections.",
        |c| c.opened,
    ),
    (
        Metric::TcpClosedConnections,
        "tcp_connections_closed_total",
        "Connections that have ended.",
        |c| c.closed,
    ),
    (
        Metric::TcpReceivedBytes,
        "tcp_received_bytes_total",
        "Bytes from clients.",
        |c| c.received,
    ),
    (
        Metric::TcpSentBytes,
        "tcp_sent_bytes_total",
        "Bytes to clients.",
        |c| c.sent,
    ),
];

/// In Prometheus' text format.
pub(super) fn of_traffic(traffic: &Traffic) -> String {
    let mut text = String::new();
    let requests: Vec<_> = (traffic.requests.iter())
        .map(|(ends, outcome, counts)| (Series::new(traffic, ends, Some(outcome)), counts))
        .collect();
    let help = "Requests that have ended.";
    head(&mut text, "requests_total", "counter", help);
    let sum: &dyn Fn(&mut u64, &Counts) = &|sum, counts| *sum += counts.requests;
    for (labels, count) in by_labels(&requests, Metric::RequestCount, sum) {
        let _ = writeln!(text, "istio_requests_total{{{labels}}} {count}");
    }
    for (metric, name, help, of) in DISTRIBUTIONS {
        head(&mut text, name, "histogram", help);
        let sum: &dyn Fn(&mut Histogram, &Counts) = &|sum, counts| sum.merge(of(counts));
        for (labels, counts) in by_labels(&requests, metric, sum) {
            histogram(&mut text, name, &labels, &counts);
        }
    }
    let connections: Vec<_> = (traffic.connections.iter())
        .map(|(ends, counts)| (Series::new(traffic, ends, None), counts))
        .collect();
    for (metric, name, help, of) in COUNTERS {
        head(&mut text, name, "counter", help);
        let sum: &dyn Fn(&mut u64, &ConnectionCounts) = &|sum, counts| *sum += of(counts);
        for (labels, count) in by_labels(&connections, metric, sum) {
            let _ = writeln!(text, "istio_{name}{{{labels}}} {count}");
        }
    }
    text
}

/// Sums of what is alike in the labels of a metric: ports and subsets, and labels that are
/// left out, are none.
fn by_labels<C, S: Default>(
    all: &[(Series<'_>, &C)],
    metric: Metric,
    sum: &dyn Fn(&mut S, &C),
) -> BTreeMap<String, S> {
    let mut sums = BTreeMap::new();
    for (series, counts) in all {
        if let Some(labels) = series.labels(metric) {
            sum(sums.entry(labels.into_owned()).or_default(), counts);
        }
    }
    sums
}

/// What is counted together, with its labels.
struct Series<'a> {
    ends: &'a Ends,
    outcome: Option<&'a Outcome>,
    labels: Vec<(String, String)>,
    /// The same as text.
    text: String,
    rules: Option<&'a MetricRules>,
}

impl<'a> Series<'a> {
    fn new(traffic: &'a Traffic, ends: &'a Ends, outcome: Option<&'a Outcome>) -> Self {
        let reporter = match ends.side {
            Side::Client => &ends.client,
            Side::Server => &ends.endpoint,
        };
        let labels = labels(ends, outcome, &traffic.cluster);
        Self {
            ends,
            outcome,
            text: written(&labels),
            labels,
            rules: (reporter.as_ref())
                .and_then(|workload| traffic.rules.metrics(workload, ends.side)),
        }
    }

    /// As a metric has them; `None` where it is not told.
    fn labels(&self, metric: Metric) -> Option<Cow<'_, str>> {
        let Some(rule) = self.rules.and_then(|rules| rules.metric(metric)) else {
            return Some(self.text.as_str().into());
        };
        if rule.disabled {
            return None;
        }
        let mut labels = self.labels.clone();
        for (name, change) in &rule.labels {
            let value = match change {
                Change::Remove => None,
                Change::Set(value) => Some(value.text(self).unwrap_or(UNKNOWN.to_owned())),
            };
            match (labels.iter().position(|(known, _)| known == name), value) {
                (Some(at), Some(value)) => labels[at].1 = value,
                (Some(at), None) => drop(labels.remove(at)),
                (None, Some(value)) => labels.push((name.clone(), value)),
                (None, None) => {}
            }
        }
        Some(written(&labels).into())
    }
}

impl Facts for Series<'_> {
    fn get(&self, attribute: &Attribute) -> Option<Value<'_>> {
        match attribute {
            Attribute::Code => Some(Value::Int(self.outcome?.code.into())),
            Attribute::GrpcStatus => Some(Value::Int(self.outcome?.grpc_status?.into())),
            Attribute::Mtls => Some(Value::Bool(self.ends.mutual_tls?)),
            Attribute::PeerIdentity => {
                let identity = self.ends.client_identity.as_ref()?;
                Some(Value::Text(identity.to_string().into()))
            }
            _ => None,
        }
    }
}

fn written(labels: &[(String, String)]) -> String {
    let labels = labels.iter();
    let labels = labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    labels.collect::<Vec<_>>().join(",")
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

fn labels(ends: &Ends, outcome: Option<&Outcome>, cluster: &str) -> Vec<(String, String)> {
    let mut labels = Vec::with_capacity(30);
    let mut label = |name: &str, value: &str| labels.push((name.to_owned(), value.to_owned()));
    label(
        "reporter",
        match ends.side {
            Side::Client => "source",
            Side::Server => "destination",
        },
    );
    let principal = ends.client_identity.as_ref();
    workload(
        &mut label,
        "source",
        ends.client.as_deref(),
        principal,
        cluster,
    );
    let endpoint = ends.endpoint.as_deref();
    let principal = endpoint.map(|workload| &workload.identity);
    workload(&mut label, "destination", endpoint, principal, cluster);
    let (host, name, namespace) = match &ends.service.host {
        Some(host) => service(host),
        None => (UNKNOWN, UNKNOWN, UNKNOWN),
    };
    let namespace = ends.service.namespace.as_deref().unwrap_or(namespace);
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
    let policy = match ends.mutual_tls {
        None => UNKNOWN,
        Some(true) => "mutual_tls",
        Some(false) => "none",
    };
    label("connection_security_policy", policy);
    labels
}

fn workload(
    label: &mut impl FnMut(&str, &str),
    side: &str,
    of: Option<&Workload>,
    principal: Option<&Identity>,
    cluster: &str,
) {
    let named = |names: &[&str]| {
        let labels = of.map(|workload| &workload.labels);
        let found = labels.and_then(|labels| names.iter().find_map(|name| labels.get(*name)));
        found.map(String::as_str)
    };
    let name = of.map_or(UNKNOWN, |workload| &workload.name.name);
    let namespace = of.map_or(UNKNOWN, |workload| &workload.name.namespace);
    let principal = principal.map(ToString::to_string);
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
    let (latest, cluster) = match of {
        Some(_) => ("latest", cluster),
        None => (UNKNOWN, UNKNOWN),
    };
    for (of, value) in [
        ("workload", name),
        ("workload_namespace", namespace),
        ("principal", principal.as_deref().unwrap_or(UNKNOWN)),
        ("app", named(&["app"]).unwrap_or(UNKNOWN)),
        ("version", named(&["version"]).unwrap_or(UNKNOWN)),
        ("cluster", cluster),
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
