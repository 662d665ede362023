//! Istio `WorkloadGroup`: what the workloads of a group have in common, and
//! how to find out whether they are well.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::report::Report;
use super::workload_entry::WorkloadEntrySpec;
use super::{Finding, Resource};

/// `WorkloadGroup.spec`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkloadGroupSpec {
    /// Labels and annotations of its workloads.
    pub metadata: GroupMetadata,
    /// What its workloads have where they do not say otherwise.
    pub template: WorkloadEntrySpec,
    /// How to find out whether a workload is well.
    pub probe: Option<ProbeSpec>,
}

/// `metadata`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct GroupMetadata {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// `probe`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProbeSpec {
    /// Seconds before the first probe.
    pub initial_delay_seconds: i32,
    /// Seconds that an answer may take; 0 means 1.
    pub timeout_seconds: i32,
    /// Seconds between two probes; 0 means 10.
    pub period_seconds: i32,
    /// Successes in a row until it is well again; 0 means 1.
    pub success_threshold: i32,
    /// Failures in a row until it is not; 0 means 3.
    pub failure_threshold: i32,
    /// Ask by HTTP.
    pub http_get: Option<HttpGet>,
    /// Connect.
    pub tcp_socket: Option<TcpSocket>,
    /// Run a command.
    pub exec: Option<Exec>,
    /// Ask by gRPC's health checking protocol.
    pub grpc: Option<Grpc>,
}

/// `probe.httpGet`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpGet {
    /// Path, `/` where left out.
    pub path: String,
    /// Port.
    pub port: u32,
    /// Address to connect to; the workload's own where left out.
    pub host: String,
    /// `HTTP` (default) or `HTTPS`.
    pub scheme: String,
    /// Further headers.
    pub http_headers: Vec<HttpHeader>,
}

/// One of `probe.httpGet.httpHeaders`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct HttpHeader {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// `probe.tcpSocket`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct TcpSocket {
    /// Address to connect to; the workload's own where left out.
    pub host: String,
    /// Port.
    pub port: u32,
}

/// `probe.exec`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Exec {
    /// Program and arguments.
    pub command: Vec<String>,
}

/// `probe.grpc`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Grpc {
    /// Port.
    pub port: u32,
    /// Name of the service to ask for.
    pub service: String,
}

impl ProbeSpec {
    /// Before the first probe.
    pub fn initial_delay(&self) -> Duration {
        seconds(self.initial_delay_seconds, 0)
    }

    /// Bound of an answer.
    pub fn timeout(&self) -> Duration {
        seconds(self.timeout_seconds, 1)
    }

    /// Between two probes.
    pub fn period(&self) -> Duration {
        seconds(self.period_seconds, 10)
    }

    /// Successes in a row until it is well again.
    pub fn successes(&self) -> u32 {
        positive(self.success_threshold, 1)
    }

    /// Failures in a row until it is not.
    pub fn failures(&self) -> u32 {
        positive(self.failure_threshold, 3)
    }
}

fn positive(value: i32, default: u32) -> u32 {
    u32::try_from(value)
        .ok()
        .filter(|value| *value > 0)
        .unwrap_or(default)
}

fn seconds(value: i32, default: u32) -> Duration {
    Duration::from_secs(positive(value, default).into())
}

/// Checks a resource. Errors make it unusable; warnings name fields that are not applied.
pub fn validate(resource: &Resource<WorkloadGroupSpec>) -> Vec<Finding> {
    let mut report = Report::new(&resource.meta);
    let spec = &resource.spec;
    report.labels(&spec.metadata.labels, "spec.metadata.labels");
    if spec.template.address.is_some() {
        report.error(
            "spec.template.address",
            "must not be set: every WorkloadEntry has its own",
        );
    }
    if !spec.template.labels.is_empty() {
        report.error(
            "spec.template.labels",
            "must not be set: spec.metadata.labels are the labels of the group's workloads",
        );
    }
    report.not_applied(spec.template.network.is_some(), "spec.template.network");
    if let Some(probe) = &spec.probe {
        check_probe(&mut report, probe);
    }
    report.into_findings()
}

fn check_probe(report: &mut Report<'_>, probe: &ProbeSpec) {
    for (name, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        if value < 0 {
            report.error(format!("spec.probe.{name}"), "must not be negative");
        }
    }
    let ways = [
        ("httpGet", probe.http_get.is_some()),
        ("tcpSocket", probe.tcp_socket.is_some()),
        ("exec", probe.exec.is_some()),
        ("grpc", probe.grpc.is_some()),
    ];
    let named: Vec<_> = ways.iter().filter(|(_, there)| *there).collect();
    match named.as_slice() {
        [] => report.error(
            "spec.probe",
            "needs one of httpGet, tcpSocket, exec and grpc",
        ),
        [_] => {}
        [(first, _), (second, _), ..] => {
            report.error(format!("spec.probe.{second}"), format!("excludes {first}"));
        }
    }
    if let Some(get) = &probe.http_get {
        report.port(get.port, "spec.probe.httpGet.port");
        address(report, &get.host, "spec.probe.httpGet.host");
        if !matches!(get.scheme.as_str(), "" | "HTTP" | "HTTPS") {
            report.error("spec.probe.httpGet.scheme", "is neither HTTP nor HTTPS");
        }
        if !get.path.is_empty() && !get.path.starts_with('/') {
            report.error("spec.probe.httpGet.path", "must begin with \"/\"");
        }
        for (i, header) in get.http_headers.iter().enumerate() {
            let is_name = http::HeaderName::from_bytes(header.name.as_bytes()).is_ok();
            if !is_name || http::HeaderValue::from_str(&header.value).is_err() {
                report.error(
                    format!("spec.probe.httpGet.httpHeaders[{i}]"),
                    "is not a header",
                );
            }
        }
    }
    if let Some(socket) = &probe.tcp_socket {
        report.port(socket.port, "spec.probe.tcpSocket.port");
        address(report, &socket.host, "spec.probe.tcpSocket.host");
    }
    if let Some(grpc) = &probe.grpc {
        report.port(grpc.port, "spec.probe.grpc.port");
    }
    if probe
        .exec
        .as_ref()
        .is_some_and(|exec| exec.command.is_empty())
    {
        report.error("spec.probe.exec.command", "must name a program");
    }
}

fn address(report: &mut Report<'_>, host: &str, field: &str) {
    if !matches!(host, "" | "localhost") && host.parse::<std::net::IpAddr>().is_err() {
        report.error(
            field,
            format!("{host:?} is neither an IP address nor \"localhost\""),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Severity;
    use crate::route::fixture::resource;

    fn findings(spec: &str) -> Vec<(Severity, String)> {
        validate(&resource("WorkloadGroup", "shop/g", spec))
            .into_iter()
            .map(|finding| (finding.severity, finding.field))
            .collect()
    }

    #[test]
    fn probes_have_istios_defaults() {
        let probe = ProbeSpec::default();
        assert_eq!(probe.initial_delay(), Duration::ZERO);
        assert_eq!(probe.timeout(), Duration::from_secs(1));
        assert_eq!(probe.period(), Duration::from_secs(10));
        assert_eq!((probe.successes(), probe.failures()), (1, 3));
    }

    #[test]
    fn what_is_applied_is_without_a_finding() {
        for spec in [
            "{}",
            "{metadata: {labels: {app: a}, annotations: {a: b}}, template: {ports: {http: 80}, serviceAccount: a, weight: 3}}",
            "{probe: {httpGet: {path: /healthz, port: 80, host: 127.0.0.1, scheme: HTTPS, httpHeaders: [{name: a, value: b}]}}}",
            "{probe: {initialDelaySeconds: 1, timeoutSeconds: 2, periodSeconds: 3, successThreshold: 4, failureThreshold: 5, tcpSocket: {port: 80}}}",
            "{probe: {exec: {command: ['true']}}}",
            "{probe: {grpc: {port: 80, service: a}}}",
        ] {
            assert_eq!(findings(spec), [], "{spec}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_an_error() {
        for (spec, field) in [
            ("{template: {address: 10.0.0.1}}", "spec.template.address"),
            ("{template: {labels: {a: b}}}", "spec.template.labels"),
            ("{probe: {}}", "spec.probe"),
            ("{probe: {exec: {command: []}}}", "spec.probe.exec.command"),
            (
                "{probe: {exec: {command: [a]}, grpc: {port: 1}}}",
                "spec.probe.grpc",
            ),
            (
                "{probe: {tcpSocket: {port: 0}}}",
                "spec.probe.tcpSocket.port",
            ),
            (
                "{probe: {tcpSocket: {port: 1, host: a.b}}}",
                "spec.probe.tcpSocket.host",
            ),
            (
                "{probe: {periodSeconds: -1, tcpSocket: {port: 1}}}",
                "spec.probe.periodSeconds",
            ),
            (
                "{probe: {httpGet: {port: 1, path: a}}}",
                "spec.probe.httpGet.path",
            ),
            (
                "{probe: {httpGet: {port: 1, scheme: FTP}}}",
                "spec.probe.httpGet.scheme",
            ),
            (
                "{probe: {httpGet: {port: 1, httpHeaders: [{}]}}}",
                "spec.probe.httpGet.httpHeaders[0]",
            ),
        ] {
            assert_eq!(
                findings(spec),
                [(Severity::Error, field.to_owned())],
                "{spec}"
            );
        }
        let network = [(Severity::Warning, "spec.template.network".to_owned())];
        assert_eq!(findings("{template: {network: a}}"), network);
    }
}
