//! What the types of `Telemetry`'s fields cannot say.

use super::super::report::Report;
use super::super::{Finding, Resource};
use super::{AccessLogging, Metric, Metrics, Operation, Provider, TelemetrySpec};

/// Who can be told of requests and connections.
const LOG_PROVIDER: &str = "envoy";
/// Who can be told of metrics.
const METRICS_PROVIDER: &str = "prometheus";

/// Checks one resource.
pub fn validate(resource: &Resource<TelemetrySpec>) -> Vec<Finding> {
    let Resource { meta, spec } = resource;
    let mut report = Report::new(meta);
    if let Some(labels) = spec.match_labels() {
        report.labels(labels, "spec.selector.matchLabels");
    }
    report.not_applied(spec.target_ref.is_some(), "spec.targetRef");
    report.not_applied(spec.target_refs.is_some(), "spec.targetRefs");
    for (i, logging) in spec.access_logging.iter().enumerate() {
        access_logging(&mut report, logging, &format!("spec.accessLogging[{i}]"));
    }
    for (i, one) in spec.metrics.iter().enumerate() {
        metrics(&mut report, one, &format!("spec.metrics[{i}]"));
    }
    for i in 0..spec.tracing.len() {
        let reason = "not applied by this version: no spans are made";
        report.warning(format!("spec.tracing[{i}]"), reason);
    }
    report.into_findings()
}

fn access_logging(report: &mut Report<'_>, logging: &AccessLogging, field: &str) {
    providers(report, &logging.providers, LOG_PROVIDER, field);
    let expression = logging.filter.as_ref().map(|filter| &filter.expression);
    if expression.is_some_and(String::is_empty) {
        report.error(format!("{field}.filter.expression"), "must not be empty");
    }
}

fn metrics(report: &mut Report<'_>, metrics: &Metrics, field: &str) {
    providers(report, &metrics.providers, METRICS_PROVIDER, field);
    if metrics.reporting_interval.is_some() {
        let reason =
            "not applied by this version: metrics are those of the moment in which they are read";
        report.warning(format!("{field}.reportingInterval"), reason);
    }
    for (i, one) in metrics.overrides.iter().enumerate() {
        let field = format!("{field}.overrides[{i}]");
        let matches = &one.matches;
        if matches.metric.is_some() && matches.custom_metric.is_some() {
            let reason = "cannot stand beside metric";
            report.error(format!("{field}.match.customMetric"), reason);
        } else if matches.custom_metric.is_some() {
            let reason = "not applied by this version: there are Istio's metrics only";
            report.warning(format!("{field}.match.customMetric"), reason);
        }
        if let Some(Metric::GrpcRequestMessages | Metric::GrpcResponseMessages) = matches.metric {
            let reason = "not applied by this version: messages of gRPC are not counted";
            report.warning(format!("{field}.match.metric"), reason);
        }
        for (tag, change) in &one.tag_overrides {
            let field = format!("{field}.tagOverrides.{tag}");
            match change.operation {
                _ if !is_label(tag) => report.error(
                    field,
                    "is no name of a label: letters, digits and underscores, not first a digit",
                ),
                Operation::Upsert if change.value.is_empty() => {
                    report.error(format!("{field}.value"), "is required to UPSERT");
                }
                Operation::Remove if !change.value.is_empty() => {
                    report.error(format!("{field}.value"), "cannot stand beside REMOVE");
                }
                _ => {}
            }
        }
    }
}

fn providers(report: &mut Report<'_>, providers: &[Provider], known: &str, field: &str) {
    for (i, provider) in providers.iter().enumerate() {
        let field = format!("{field}.providers[{i}].name");
        if provider.name.is_empty() {
            report.error(field, "is required");
        } else if !provider.name.eq_ignore_ascii_case(known) {
            let reason = format!("{:?} is not known here, only {known:?}", provider.name);
            report.warning_with_code("IST0157", field, reason);
        }
    }
}

/// As Prometheus has it.
fn is_label(name: &str) -> bool {
    let is_first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let bytes = name.as_bytes();
    bytes.first().is_some_and(|byte| is_first(*byte))
        && bytes
            .iter()
            .all(|byte| is_first(*byte) || byte.is_ascii_digit())
}
