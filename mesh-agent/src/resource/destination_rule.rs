//! Istio `DestinationRule` (`networking.istio.io`, every version): the fields
//! of its schema. What they mean is decided in `route` and `balance`.

mod comparisons;
mod validate;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use comparisons::{Comparisons, LatencyPolicy, SuccessRatePolicy};
pub(in crate::resource) use validate::connection_pool;
pub use validate::validate;

use super::value::GoDuration;
use super::virtual_service::PortSelector;

/// `DestinationRule.spec`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DestinationRuleSpec {
    /// Name in the registry, may start with `*.`; short names belong to the rule's namespace.
    pub host: String,
    /// How connections to it are made.
    #[serde(default)]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named parts of its endpoints.
    #[serde(default)]
    pub subsets: Vec<Subset>,
    /// Namespaces that see the rule; all where left out.
    #[serde(default)]
    pub export_to: Vec<String>,
    /// Clients that the rule is for; all where left out.
    #[serde(default)]
    pub workload_selector: Option<WorkloadSelector>,
}

impl DestinationRuleSpec {
    /// All the names of Secrets that it has.
    pub fn credential_names(&self) -> impl Iterator<Item = &str> {
        let of_subsets = (self.subsets.iter()).filter_map(|one| one.traffic_policy.as_deref());
        let policies = of_subsets.chain(&self.traffic_policy);
        let blocks = policies.flat_map(|policy| {
            let ports = policy.port_level_settings.iter();
            ports.map(|port| &port.tls).chain([&policy.tls])
        });
        blocks.filter_map(|tls| tls.as_ref()?.credential_name.as_deref())
    }
}

/// Labels that a workload must have.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkloadSelector {
    /// All of them.
    pub match_labels: BTreeMap<String, String>,
}

/// A part of the endpoints.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subset {
    /// Name that routes use.
    pub name: String,
    /// Labels that its endpoints have.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Replaces blocks of the rule's policy; few subsets do.
    #[serde(default)]
    pub traffic_policy: Option<Box<TrafficPolicy>>,
}

/// `trafficPolicy`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TrafficPolicy {
    /// How endpoints are chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Bounds of connections and requests.
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of failing endpoints.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS of the client side.
    pub tls: Option<ClientTls>,
    /// Replaces all of the above for a port.
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// Tunnel over CONNECT or POST.
    pub tunnel: Option<Tunnel>,
    /// PROXY protocol towards the endpoint.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Bound of concurrent retries.
    pub retry_budget: Option<RetryBudget>,
}

/// One of `portLevelSettings`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PortTrafficPolicy {
    /// Port of the service.
    pub port: Option<PortSelector>,
    /// How endpoints are chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Bounds of connections and requests.
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of failing endpoints.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS of the client side.
    pub tls: Option<ClientTls>,
}

/// `loadBalancer`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadBalancer {
    /// A named algorithm.
    pub simple: Option<SimpleLoadBalancer>,
    /// By a hash of the request.
    pub consistent_hash: Option<ConsistentHash>,
    /// Preference of near endpoints.
    pub locality_lb_setting: Option<LocalityLbSetting>,
    /// Balance over zones.
    pub zone_aware_lb_setting: Option<ZoneAwareLbSetting>,
    /// Deprecated form of `warmup`.
    pub warmup_duration_secs: Option<GoDuration>,
    /// Slow start of new endpoints.
    pub warmup: Option<Warmup>,
}

/// `loadBalancer.simple`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLoadBalancer {
    /// The mesh's default, `LEAST_REQUEST`.
    Unspecified,
    /// Old name of `LEAST_REQUEST`.
    LeastConn,
    /// Any endpoint.
    Random,
    /// The address that the client asked for.
    Passthrough,
    /// One after the other.
    RoundRobin,
    /// The less loaded of two.
    LeastRequest,
}

/// `loadBalancer.consistentHash`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConsistentHash {
    /// Key: a header.
    pub http_header_name: Option<String>,
    /// Key: a cookie.
    pub http_cookie: Option<HttpCookie>,
    /// Key: the client's address.
    pub use_source_ip: Option<bool>,
    /// Key: a query parameter.
    pub http_query_parameter_name: Option<String>,
    /// Ketama ring.
    pub ring_hash: Option<RingHash>,
    /// Maglev table.
    pub maglev: Option<Maglev>,
    /// Deprecated form of `ringHash.minimumRingSize`.
    pub minimum_ring_size: Option<u64>,
}

/// `consistentHash.httpCookie`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCookie {
    /// Name.
    pub name: String,
    /// Path.
    #[serde(default)]
    pub path: Option<String>,
    /// Life of a cookie that the proxy sets.
    #[serde(default)]
    pub ttl: Option<GoDuration>,
    /// Further attributes.
    #[serde(default)]
    pub attributes: Vec<CookieAttribute>,
}

/// One of `httpCookie.attributes`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CookieAttribute {
    /// Name.
    pub name: String,
    /// Value.
    #[serde(default)]
    pub value: Option<String>,
}

/// `consistentHash.ringHash`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RingHash {
    /// Entries of the ring, 1024 where left out.
    pub minimum_ring_size: Option<u64>,
}

/// `consistentHash.maglev`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Maglev {
    /// Entries of the table, a prime, 65537 where left out.
    pub table_size: Option<u64>,
}

/// `loadBalancer.localityLbSetting`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LocalityLbSetting {
    /// Shares by locality.
    pub distribute: Vec<LocalityDistribute>,
    /// Order of regions.
    pub failover: Vec<LocalityFailover>,
    /// Labels in order of weight.
    pub failover_priority: Vec<String>,
    /// On or off.
    pub enabled: Option<bool>,
}

/// One of `localityLbSetting.distribute`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LocalityDistribute {
    /// Locality of clients.
    pub from: String,
    /// Localities of endpoints and their weights.
    pub to: BTreeMap<String, u32>,
}

/// One of `localityLbSetting.failover`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LocalityFailover {
    /// Region of clients.
    pub from: String,
    /// Region to fail over to.
    pub to: String,
}

/// `loadBalancer.zoneAwareLbSetting`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ZoneAwareLbSetting {
    /// Endpoints below which it is off.
    pub min_cluster_size: Option<u64>,
}

/// `loadBalancer.warmup`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Warmup {
    /// How long.
    pub duration: Option<GoDuration>,
    /// Share at the beginning.
    pub minimum_percent: Option<f64>,
    /// Shape of the curve.
    pub aggression: Option<f64>,
}

/// `connectionPool`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConnectionPool {
    /// Of connections.
    pub tcp: Option<TcpSettings>,
    /// Of requests.
    pub http: Option<HttpSettings>,
}

/// `connectionPool.tcp`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TcpSettings {
    /// Connections to the service.
    pub max_connections: Option<i32>,
    /// Bound for establishing one.
    pub connect_timeout: Option<GoDuration>,
    /// Keep-alive probes.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Life of a connection.
    pub max_connection_duration: Option<GoDuration>,
    /// Silence after which a connection is closed.
    pub idle_timeout: Option<GoDuration>,
}

/// `connectionPool.tcp.tcpKeepalive`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TcpKeepalive {
    /// Probes until a connection is given up.
    pub probes: Option<u32>,
    /// Silence before the first.
    pub time: Option<GoDuration>,
    /// Between two.
    pub interval: Option<GoDuration>,
}

/// `connectionPool.http`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpSettings {
    /// Requests that wait for a connection.
    pub http1_max_pending_requests: Option<i32>,
    /// Active requests.
    pub http2_max_requests: Option<i32>,
    /// Requests per connection; 0 means no bound.
    pub max_requests_per_connection: Option<i32>,
    /// Concurrent retries.
    pub max_retries: Option<i32>,
    /// Time without a request after which a connection is closed.
    pub idle_timeout: Option<GoDuration>,
    /// Whether HTTP/1.1 becomes HTTP/2.
    pub h2_upgrade_policy: Option<H2UpgradePolicy>,
    /// Keep the client's protocol.
    pub use_client_protocol: Option<bool>,
    /// Streams per HTTP/2 connection.
    pub max_concurrent_streams: Option<i32>,
    /// PING of HTTP/2 connections.
    pub http2_keep_alive: Option<Http2KeepAlive>,
}

/// `connectionPool.http.h2UpgradePolicy`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// The mesh's default.
    Default,
    /// No.
    DoNotUpgrade,
    /// Yes.
    Upgrade,
}

/// `connectionPool.http.http2KeepAlive`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Http2KeepAlive {
    /// Between two PINGs.
    pub interval: Option<GoDuration>,
    /// Bound for the answer.
    pub timeout: Option<GoDuration>,
}

/// `outlierDetection`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OutlierDetection {
    /// Deprecated, ignored by Istio.
    pub consecutive_errors: Option<i32>,
    /// Count local failures apart.
    pub split_external_local_origin_errors: Option<bool>,
    /// Local failures in a row.
    pub consecutive_local_origin_failures: Option<u32>,
    /// 502, 503, 504 in a row.
    pub consecutive_gateway_errors: Option<u32>,
    /// 5xx in a row.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Between two sweeps.
    pub interval: Option<GoDuration>,
    /// Time out of service, per ejection.
    pub base_ejection_time: Option<GoDuration>,
    /// Share of endpoints that may be out.
    pub max_ejection_percent: Option<i32>,
    /// Below this share of healthy endpoints all are used.
    pub min_health_percent: Option<i32>,
    /// Codes that count as errors.
    pub outlier_detection_http_error_codes: Vec<u32>,
}

/// `tls`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClientTls {
    /// Mode.
    pub mode: TlsMode,
    /// File of the client's certificate.
    pub client_certificate: Option<String>,
    /// File of its key.
    pub private_key: Option<String>,
    /// File of trusted authorities.
    pub ca_certificates: Option<String>,
    /// File of revoked certificates.
    pub ca_crl: Option<String>,
    /// Secret that holds the above.
    pub credential_name: Option<String>,
    /// Names that the server may have.
    pub subject_alt_names: Vec<String>,
    /// Server name to ask for.
    pub sni: Option<String>,
    /// Do not verify the server.
    pub insecure_skip_verify: Option<bool>,
}

/// `tls.mode`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// Plaintext.
    #[default]
    Disable,
    /// TLS to a server outside.
    Simple,
    /// Mutual TLS with own certificates.
    Mutual,
    /// Mutual TLS of the mesh.
    IstioMutual,
}

/// `tunnel`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tunnel {
    /// `CONNECT` or `POST`.
    #[serde(default)]
    pub protocol: Option<String>,
    /// Host to reach through the tunnel.
    pub target_host: String,
    /// Its port.
    pub target_port: u32,
}

impl Tunnel {
    /// Whether it is asked for by POST instead of CONNECT.
    pub fn is_post(&self) -> bool {
        self.protocol.as_deref() == Some("POST")
    }
}

/// `proxyProtocol`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProxyProtocol {
    /// Version.
    pub version: Option<ProxyProtocolVersion>,
}

/// `proxyProtocol.version`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum ProxyProtocolVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// `retryBudget`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryBudget {
    /// Share of active requests.
    pub percent: Option<super::value::Percent>,
    /// Always allowed.
    pub min_retry_concurrency: Option<u32>,
    /// Window.
    pub budget_interval: Option<GoDuration>,
}
