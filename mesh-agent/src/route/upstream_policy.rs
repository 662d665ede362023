//! How connections to a service are made.

mod compile;
mod credentials;

use std::sync::Arc;
use std::time::Duration;

use http::Method;

pub(super) use compile::{Blocks, resolve_http, resolve_tcp};
pub(super) use credentials::{Credentials, Named};

use super::hashing::HashPolicy;
use super::locality::LocalitySetting;
use crate::resource::Kept;
use crate::resource::destination_rule::ProxyProtocolVersion;
pub use crate::resource::destination_rule::{LatencyPolicy, SuccessRatePolicy};

/// How endpoints are chosen, where nothing but their load counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// The less loaded of two random ones.
    #[default]
    LeastRequest,
    /// Any.
    Random,
    /// One after the other.
    RoundRobin,
}

/// How endpoints are chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Balancer {
    /// By load or chance.
    Simple(Algorithm),
    /// The address that the client asked for.
    Passthrough,
    /// By a property of the request.
    Hash(HashPolicy),
}

impl Default for Balancer {
    fn default() -> Self {
        Self::Simple(Algorithm::default())
    }
}

/// TLS towards endpoints, as a DestinationRule says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum UpstreamTls {
    /// Nothing said: mutual TLS to endpoints of the mesh, plaintext to others.
    #[default]
    Auto,
    /// Plaintext.
    Disable,
    /// Mutual TLS of the mesh, or no connection.
    IstioMutual,
    /// TLS to a server outside of the mesh.
    Originate(Arc<TlsOrigination>),
    /// TLS that cannot be made, and why: no connection.
    Impossible(Arc<str>),
}

/// Certificates, a key, or a list of what is revoked, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pem {
    /// Path of a file, which is read again when it changes.
    File(String),
    /// Part of a Secret, with its name.
    Secret(Arc<str>, Kept),
}

/// `tls` with mode `SIMPLE` or `MUTUAL`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsOrigination {
    /// The client's certificate and key, for `MUTUAL`.
    pub certificate: Option<(Pem, Pem)>,
    /// The trusted authorities; the system's where left out.
    pub authorities: Option<Pem>,
    /// Certificates that their authorities have revoked.
    pub revoked: Option<Pem>,
    /// Name to ask the server for; the service's host where left out.
    pub sni: Option<String>,
    /// Names that the server may have; the ServiceEntry's, or the one that was asked
    /// for, where there are none.
    pub subject_alt_names: Vec<String>,
    /// Whether the server's certificate is verified.
    pub verify: bool,
}

/// How connections to a service (or a subset of it) are made.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamPolicy {
    /// How endpoints are chosen.
    pub balancer: Balancer,
    /// Preference of near endpoints; `None` for the mesh's default.
    pub locality: Option<LocalitySetting>,
    /// Slow start of new endpoints.
    pub warmup: Option<Warmup>,
    /// TLS.
    pub tls: UpstreamTls,
    /// Bound for establishing a connection.
    pub connect_timeout: Duration,
    /// Bounds of connections.
    pub tcp: TcpLimits,
    /// Bounds of requests.
    pub http: HttpLimits,
    /// Ejection of failing endpoints.
    pub outlier: Option<OutlierPolicy>,
    /// Bound of concurrent retries as a share of active requests.
    pub retry_budget: Option<RetryBudget>,
    /// PROXY protocol header at the beginning of each connection.
    pub proxy_protocol: Option<ProxyProtocolVersion>,
    /// A proxy's tunnel, for connections that are not HTTP.
    pub tunnel: Option<Arc<HttpTunnel>>,
}

impl UpstreamPolicy {
    /// Whether connections that are made by `other` are not what this asks for.
    pub fn differs_in_transport(&self, other: &Self) -> bool {
        self.tls != other.tls
            || self.proxy_protocol != other.proxy_protocol
            || self.tcp.keepalive != other.tcp.keepalive
            || self.http.http2_keepalive != other.http.http2_keepalive
    }

    /// The algorithm for a choice that no property of a request decides.
    pub fn algorithm(&self) -> Algorithm {
        match self.balancer {
            Balancer::Simple(algorithm) => algorithm,
            // A request without the property may go anywhere, as in Envoy.
            Balancer::Hash(_) => Algorithm::Random,
            Balancer::Passthrough => Algorithm::default(),
        }
    }
}

impl Default for UpstreamPolicy {
    fn default() -> Self {
        Blocks::default().resolve()
    }
}

/// `connectionPool.tcp`. `None` means no bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpLimits {
    /// Connections that are open at a time.
    pub max_connections: Option<u32>,
    /// Keep-alive probes.
    pub keepalive: Option<Keepalive>,
    /// Life of a connection.
    pub max_duration: Option<Duration>,
    /// Silence in both directions after which a connection that is not HTTP is closed.
    /// Istio's default is 1 h; here idle connections of applications (such as to a
    /// database) are theirs to close.
    pub idle_timeout: Option<Duration>,
}

/// `connectionPool.tcp.tcpKeepalive`; the system's defaults for what is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes until a connection is given up.
    pub probes: Option<u32>,
    /// Silence before the first.
    pub time: Option<Duration>,
    /// Between two.
    pub interval: Option<Duration>,
}

/// `connectionPool.http`. `None` means no bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Requests that wait for a connection, those included for which one is being made.
    pub max_pending: Option<u32>,
    /// Active requests.
    pub max_requests: Option<u32>,
    /// Requests per connection.
    pub max_requests_per_connection: Option<u32>,
    /// Concurrent retries.
    pub max_retries: Option<u32>,
    /// Time without a request after which a connection is closed.
    pub idle_timeout: Option<Duration>,
    /// Protocol of connections, where it is not the declared one.
    pub protocol: ProtocolPolicy,
    /// Streams of one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// PING of HTTP/2 connections: interval, and bound for the answer.
    pub http2_keepalive: Option<(Duration, Duration)>,
}

/// `h2UpgradePolicy` and `useClientProtocol`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProtocolPolicy {
    /// What the port declares.
    #[default]
    Declared,
    /// HTTP/2.
    Http2,
    /// The client's.
    Client,
}

/// `outlierDetection`: how endpoints that fail are taken out of service.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierPolicy {
    /// Errors in a row; `None` where they do not count.
    pub consecutive_5xx: Option<u32>,
    /// 502, 503 and 504 in a row.
    pub consecutive_gateway: Option<u32>,
    /// Failures to connect, timeouts and resets in a row, where they are counted apart from
    /// what the endpoint answers.
    pub split_local: Option<u32>,
    /// Between two sweeps, which take endpoints back.
    pub interval: Duration,
    /// Time out of service, times the number of ejections.
    pub base_ejection_time: Duration,
    /// Share of endpoints that may be out, 0 to 100.
    pub max_ejection_percent: u32,
    /// Below this share of healthy endpoints all are used; 0 means never.
    pub min_health_percent: u32,
    /// Codes that are errors; empty for 500 to 599.
    pub error_codes: Vec<u16>,
    /// Ejection of those that fail more often than the others.
    pub success_rate: Option<SuccessRatePolicy>,
    /// Ejection of those that are slower than the others.
    pub latency: Option<LatencyPolicy>,
}

/// `loadBalancer.warmup`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warmup {
    /// How long an endpoint is new.
    pub duration: Duration,
    /// Share of its weight at the beginning, 0 to 1.
    pub minimum: f64,
    /// Shape of the curve: above 1 the weight grows faster at first.
    pub aggression: f64,
}

/// `retryBudget`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Share of active requests that may be retries, 0 to 100.
    pub percent: f64,
    /// Retries that are always allowed at a time.
    pub min_concurrency: u32,
    /// Requests that began within this time count as active ones do.
    pub interval: Option<Duration>,
}

/// `tunnel`: connections that are not HTTP go through a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTunnel {
    /// `host:port` to ask the proxy for.
    pub target: String,
    /// By which, `CONNECT` or `POST`.
    pub method: Method,
}
