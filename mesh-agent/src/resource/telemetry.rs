//! Istio `Telemetry` (`telemetry.istio.io`, every version): what is told of a workload's
//! traffic, and to whom.

mod validate;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::WorkloadSelector;
pub use validate::validate;

/// `Telemetry.spec`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TelemetrySpec {
    /// The workloads it applies to; all of the namespace where left out.
    pub selector: Option<WorkloadSelector>,
    /// Gateways and the like; not applied.
    pub target_ref: Option<Value>,
    /// Gateways and the like; not applied.
    pub target_refs: Option<Value>,
    /// Access logs.
    pub access_logging: Vec<AccessLogging>,
    /// Metrics.
    pub metrics: Vec<Metrics>,
    /// Traces; not applied.
    pub tracing: Vec<Value>,
}

/// One of `accessLogging`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogging {
    /// Whose side it is about.
    #[serde(rename = "match")]
    pub matches: AccessLoggingMatch,
    /// Who is told; the wider scope's where left out.
    pub providers: Vec<Provider>,
    /// Nothing is told.
    pub disabled: Option<bool>,
    /// Of what is told.
    pub filter: Option<Filter>,
}

/// `accessLogging[].match`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLoggingMatch {
    /// Whose side.
    pub mode: Mode,
}

/// Whose side of the traffic is meant.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mode {
    /// Both.
    #[default]
    ClientAndServer,
    /// What the workload asks others.
    Client,
    /// What others ask the workload.
    Server,
}

/// One of `providers`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Provider {
    /// Its name.
    pub name: String,
}

/// `accessLogging[].filter`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// In CEL.
    pub expression: String,
}

/// One of `metrics`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Metrics {
    /// Who is told; the wider scope's where left out.
    pub providers: Vec<Provider>,
    /// Changes, the later over the earlier.
    pub overrides: Vec<Override>,
    /// How often; not applied.
    pub reporting_interval: Option<Value>,
}

/// One of `metrics[].overrides`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Override {
    /// Which metrics; all where left out.
    #[serde(rename = "match")]
    pub matches: MetricMatch,
    /// They are not told.
    pub disabled: Option<bool>,
    /// Changes of their labels.
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

/// `metrics[].overrides[].match`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetricMatch {
    /// One of Istio's.
    pub metric: Option<Metric>,
    /// Another one; not applied.
    pub custom_metric: Option<String>,
    /// Whose side.
    pub mode: Mode,
}

/// Istio's metrics.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Metric {
    /// All.
    #[default]
    AllMetrics,
    /// `istio_requests_total`.
    RequestCount,
    /// `istio_request_duration_milliseconds`.
    RequestDuration,
    /// `istio_request_bytes`.
    RequestSize,
    /// `istio_response_bytes`.
    ResponseSize,
    /// `istio_tcp_connections_opened_total`.
    TcpOpenedConnections,
    /// `istio_tcp_connections_closed_total`.
    TcpClosedConnections,
    /// `istio_tcp_sent_bytes_total`.
    TcpSentBytes,
    /// `istio_tcp_received_bytes_total`.
    TcpReceivedBytes,
    /// `istio_request_messages_total`; there is none.
    GrpcRequestMessages,
    /// `istio_response_messages_total`; there is none.
    GrpcResponseMessages,
}

/// One of `tagOverrides`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct TagOverride {
    /// What is done.
    pub operation: Operation,
    /// The label's value, in CEL.
    pub value: String,
}

/// `tagOverrides[].operation`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// The label is added, or gets another value.
    #[default]
    Upsert,
    /// The label is left out.
    Remove,
}

impl TelemetrySpec {
    /// The labels of the selector; `None` where it applies to the whole namespace.
    pub fn match_labels(&self) -> Option<&BTreeMap<String, String>> {
        let labels = self.selector.as_ref().map(|all| &all.match_labels);
        labels.filter(|labels| !labels.is_empty())
    }
}
