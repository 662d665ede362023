//! Istio `VirtualService` (`networking.istio.io`, every version): the fields of
//! its schema. What they mean is decided in `route`.

pub(crate) mod limits;
mod validate;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use validate::validate;

use super::value::{Base64, GoDuration, Percent};

/// Conditions of `retries.retryOn` that are applied, beside status codes.
pub const RETRY_CONDITIONS: [&str; 15] = [
    "retriable-headers",
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// `VirtualService.spec`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VirtualServiceSpec {
    /// Names that clients use; short names belong to the rule's namespace.
    pub hosts: Vec<String>,
    /// Where the rules act; `mesh` where left out.
    pub gateways: Vec<String>,
    /// HTTP rules, the first match wins.
    pub http: Vec<HttpRoute>,
    /// Rules for TLS that is passed through, by SNI.
    pub tls: Vec<TlsRoute>,
    /// Rules for opaque TCP.
    pub tcp: Vec<TcpRoute>,
    /// Namespaces that see the rule; all where left out.
    pub export_to: Vec<String>,
}

/// One HTTP rule. Most rules have few of these blocks, and a mesh has thousands of rules.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpRoute {
    /// Name for logs.
    pub name: Option<String>,
    /// Conditions, any of which is enough; none means every request.
    pub r#match: Vec<HttpMatch>,
    /// Weighted destinations.
    pub route: Vec<HttpDestination>,
    /// Answer with a redirection.
    pub redirect: Option<Box<HttpRedirect>>,
    /// Answer without an upstream.
    pub direct_response: Option<Box<HttpDirectResponse>>,
    /// Rules stand in another VirtualService.
    pub delegate: Option<Box<Delegate>>,
    /// Change path or authority before forwarding.
    pub rewrite: Option<Box<HttpRewrite>>,
    /// Bound for the whole exchange with all retries; 0 means none.
    pub timeout: Option<GoDuration>,
    /// Retries.
    pub retries: Option<Box<HttpRetry>>,
    /// Injected faults.
    pub fault: Option<Box<HttpFault>>,
    /// Copy requests to this destination.
    pub mirror: Option<Box<Destination>>,
    /// Copy requests to these destinations.
    pub mirrors: Vec<HttpMirror>,
    /// Deprecated form of `mirrorPercentage`.
    pub mirror_percent: Option<u32>,
    /// Share of requests to mirror.
    pub mirror_percentage: Option<Percent>,
    /// Cross-origin resource sharing.
    pub cors_policy: Option<Box<CorsPolicy>>,
    /// Header edits.
    pub headers: Option<Box<Headers>>,
}

/// One condition block; all of its fields have to hold.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpMatch {
    /// Name for logs.
    pub name: Option<String>,
    /// Path without the query.
    pub uri: Option<StringMatch>,
    /// `http` or `https`.
    pub scheme: Option<StringMatch>,
    /// Method.
    pub method: Option<StringMatch>,
    /// Authority as the client wrote it.
    pub authority: Option<StringMatch>,
    /// Request headers.
    pub headers: BTreeMap<String, StringMatch>,
    /// Port on which the client addressed the host.
    pub port: Option<u32>,
    /// Labels of the client workload.
    pub source_labels: BTreeMap<String, String>,
    /// Gateways, overrides the list of the resource.
    pub gateways: Vec<String>,
    /// Query parameters.
    pub query_params: BTreeMap<String, StringMatch>,
    /// Exact and prefix matches of `uri` disregard ASCII case.
    pub ignore_uri_case: bool,
    /// Request headers that must not match.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Namespace of the client workload.
    pub source_namespace: Option<String>,
    /// Prefix of statistics.
    pub stat_prefix: Option<String>,
}

/// A test of a text; none of the three means that the text is present.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StringMatch {
    /// The whole text.
    pub exact: Option<String>,
    /// Its beginning.
    pub prefix: Option<String>,
    /// RE2 expression for the whole text.
    pub regex: Option<String>,
}

/// Where requests go.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Destination {
    /// Name in the registry; short names belong to the rule's namespace.
    pub host: String,
    /// Subset that a DestinationRule defines.
    #[serde(default)]
    pub subset: Option<String>,
    /// Port of the service.
    #[serde(default)]
    pub port: Option<PortSelector>,
}

/// A port by number.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortSelector {
    /// 1 to 65535.
    pub number: u32,
}

/// A destination with its share of requests.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpDestination {
    /// Where to.
    pub destination: Destination,
    /// Share of the sum of all weights.
    #[serde(default)]
    pub weight: i32,
    /// Header edits for requests that go here.
    #[serde(default)]
    pub headers: Option<Box<Headers>>,
}

/// Header edits of both directions.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Headers {
    /// Before forwarding.
    pub request: Option<HeaderOperations>,
    /// Before answering.
    pub response: Option<HeaderOperations>,
}

/// Header edits; set, then add, then remove.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HeaderOperations {
    /// Replace or add.
    pub set: BTreeMap<String, String>,
    /// Append.
    pub add: BTreeMap<String, String>,
    /// Remove.
    pub remove: Vec<String>,
}

/// `redirect`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpRedirect {
    /// Replaces the whole path.
    pub uri: Option<String>,
    /// Replaces the matched prefix.
    pub prefix_rewrite: Option<String>,
    /// Replaces the authority.
    pub authority: Option<String>,
    /// Replaces the port.
    pub port: Option<u32>,
    /// Where the port comes from instead.
    pub derive_port: Option<DerivePort>,
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// 301 where left out.
    pub redirect_code: Option<u32>,
}

/// `redirect.derivePort`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DerivePort {
    /// The scheme's.
    FromProtocolDefault,
    /// The request's.
    FromRequestPort,
}

/// `directResponse`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpDirectResponse {
    /// 200 to 599.
    pub status: u32,
    /// Body.
    #[serde(default)]
    pub body: Option<HttpBody>,
}

/// One of text and bytes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpBody {
    /// Text.
    pub string: Option<String>,
    /// Base64.
    pub bytes: Option<Base64>,
}

/// `delegate`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Delegate {
    /// Name of the other VirtualService.
    pub name: String,
    /// Its namespace, the rule's own where left out.
    pub namespace: Option<String>,
}

/// `rewrite`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpRewrite {
    /// Replaces the matched prefix, or the path for other matches.
    pub uri: Option<String>,
    /// Replaces the authority.
    pub authority: Option<String>,
    /// Replaces parts of the path.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// `rewrite.uriRegexRewrite`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegexRewrite {
    /// RE2 expression.
    pub r#match: String,
    /// Replacement with groups `\1` to `\9`.
    pub rewrite: String,
}

/// `retries`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpRetry {
    /// Additional tries; 0 switches retries off.
    pub attempts: i32,
    /// Bound for each try.
    pub per_try_timeout: Option<GoDuration>,
    /// Conditions, separated by commas.
    pub retry_on: Option<String>,
    /// Retry in other localities.
    pub retry_remote_localities: Option<bool>,
    /// Avoid endpoints that have been tried.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// Base of the exponential back-off.
    pub backoff: Option<GoDuration>,
}

/// `fault`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpFault {
    /// Delay before forwarding.
    pub delay: Option<FaultDelay>,
    /// Answer instead of forwarding.
    pub abort: Option<FaultAbort>,
}

/// `fault.delay`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FaultDelay {
    /// Deprecated form of `percentage`.
    pub percent: Option<i32>,
    /// How long.
    pub fixed_delay: Option<GoDuration>,
    /// Refused, as Istio refuses it.
    pub exponential_delay: Option<GoDuration>,
    /// Share of requests; none where left out.
    pub percentage: Option<Percent>,
}

/// `fault.abort`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FaultAbort {
    /// 200 to 599.
    pub http_status: Option<i32>,
    /// Name of a gRPC status, such as `UNAVAILABLE`.
    pub grpc_status: Option<String>,
    /// Refused, as Istio refuses it.
    pub http2_error: Option<String>,
    /// Share of requests; none where left out.
    pub percentage: Option<Percent>,
}

/// One of `mirrors`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpMirror {
    /// Where to.
    pub destination: Destination,
    /// Share of requests; all where left out.
    #[serde(default)]
    pub percentage: Option<Percent>,
}

/// `corsPolicy`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CorsPolicy {
    /// Deprecated form of `allowOrigins`, exact.
    pub allow_origin: Vec<String>,
    /// Origins.
    pub allow_origins: Vec<StringMatch>,
    /// `Access-Control-Allow-Methods`.
    pub allow_methods: Vec<String>,
    /// `Access-Control-Allow-Headers`.
    pub allow_headers: Vec<String>,
    /// `Access-Control-Expose-Headers`.
    pub expose_headers: Vec<String>,
    /// `Access-Control-Max-Age`, whole seconds.
    pub max_age: Option<GoDuration>,
    /// `Access-Control-Allow-Credentials`.
    pub allow_credentials: Option<bool>,
    /// What happens to preflights of other origins.
    pub unmatched_preflights: Option<UnmatchedPreflights>,
}

/// `corsPolicy.unmatchedPreflights`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UnmatchedPreflights {
    /// As `FORWARD`.
    Unspecified,
    /// Forward them.
    Forward,
    /// Answer them without CORS headers.
    Ignore,
}

/// One TLS rule.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TlsRoute {
    /// Conditions, any of which is enough.
    pub r#match: Vec<TlsMatch>,
    /// Weighted destinations.
    pub route: Vec<RouteDestination>,
}

/// Conditions of a TLS rule.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TlsMatch {
    /// Server names.
    pub sni_hosts: Vec<String>,
    /// Addresses of the destination, with prefix length.
    pub destination_subnets: Vec<String>,
    /// Port of the destination.
    pub port: Option<u32>,
    /// Labels of the client workload.
    pub source_labels: BTreeMap<String, String>,
    /// Gateways, overrides the list of the resource.
    pub gateways: Vec<String>,
    /// Namespace of the client workload.
    pub source_namespace: Option<String>,
}

/// One TCP rule.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TcpRoute {
    /// Conditions, any of which is enough.
    pub r#match: Vec<TcpMatch>,
    /// Weighted destinations.
    pub route: Vec<RouteDestination>,
}

/// Conditions of a TCP rule.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TcpMatch {
    /// Addresses of the destination, with prefix length.
    pub destination_subnets: Vec<String>,
    /// Port of the destination.
    pub port: Option<u32>,
    /// Address of the client, with prefix length.
    pub source_subnet: Option<String>,
    /// Labels of the client workload.
    pub source_labels: BTreeMap<String, String>,
    /// Gateways, overrides the list of the resource.
    pub gateways: Vec<String>,
    /// Namespace of the client workload.
    pub source_namespace: Option<String>,
}

/// A destination of connections with its share.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteDestination {
    /// Where to.
    pub destination: Destination,
    /// Share of the sum of all weights.
    #[serde(default)]
    pub weight: i32,
}
