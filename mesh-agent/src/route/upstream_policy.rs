//! How connections to a service are made: the blocks of a DestinationRule,
//! with the defaults of whatever they leave out.

use std::sync::Arc;
use std::time::Duration;

use super::hashing::HashPolicy;
use super::locality::LocalitySetting;
use crate::resource::destination_rule::{
    ClientTls, Comparisons, ConnectionPool, H2UpgradePolicy, HttpSettings, LoadBalancer,
    OutlierDetection, ProxyProtocolVersion, RetryBudget as RetryBudgetSpec, SimpleLoadBalancer,
    TcpSettings, TlsMode,
};
pub use crate::resource::destination_rule::{LatencyPolicy, SuccessRatePolicy};

/// Where no `connectionPool.tcp.connectTimeout` is set. Istio waits for 10 s;
/// a client that waits for 5 s shall still learn why, after the two default
/// retries, and a lost SYN (repeated after 1 s) shall not end the attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// Where no `connectionPool.http.idleTimeout` is set, as in Istio.
const HTTP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

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
    /// TLS is asked for in a way that is not applied: no connection.
    NotApplied,
}

/// `tls` with mode `SIMPLE` or `MUTUAL`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsOrigination {
    /// Files of the client's certificate and key, for `MUTUAL`.
    pub certificate: Option<(String, String)>,
    /// File of the trusted authorities; the system's where left out.
    pub authorities: Option<String>,
    /// File of certificates that their authorities have revoked.
    pub revoked: Option<String>,
    /// Name to ask the server for; the service's host where left out.
    pub sni: Option<String>,
    /// Names that the server may have; the ServiceEntry's, or the one that was asked
    /// for, where there are none.
    pub subject_alt_names: Vec<String>,
    /// Whether the server's certificate is verified.
    pub verify: bool,
}

impl UpstreamTls {
    fn compile(tls: Option<&ClientTls>) -> Self {
        let Some(tls) = tls else { return Self::Auto };
        let certificate = match tls.mode {
            TlsMode::Disable => return Self::Disable,
            TlsMode::IstioMutual => return Self::IstioMutual,
            TlsMode::Simple => None,
            TlsMode::Mutual => tls.client_certificate.clone().zip(tls.private_key.clone()),
        };
        let unknown = tls.credential_name.is_some();
        if unknown || (tls.mode == TlsMode::Mutual && certificate.is_none()) {
            return Self::NotApplied;
        }
        Self::Originate(Arc::new(TlsOrigination {
            certificate,
            authorities: tls.ca_certificates.clone(),
            revoked: tls.ca_crl.clone(),
            sni: tls.sni.clone().filter(|name| !name.is_empty()),
            subject_alt_names: tls.subject_alt_names.clone(),
            verify: tls.insecure_skip_verify != Some(true),
        }))
    }
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
}

/// The blocks of a policy before defaults are filled in.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    pub(super) load_balancer: Option<LoadBalancer>,
    pub(super) connection_pool: Option<ConnectionPool>,
    pub(super) outlier: Option<OutlierPolicy>,
    pub(super) tls: Option<ClientTls>,
    pub(super) retry_budget: Option<RetryBudgetSpec>,
    pub(super) proxy_protocol: Option<ProxyProtocolVersion>,
    pub(super) tunnel: Option<Arc<HttpTunnel>>,
}

impl Blocks {
    /// Whole blocks of `self` win.
    pub(super) fn over(self, base: &Self) -> Self {
        fn or<T: Clone>(own: Option<T>, base: &Option<T>) -> Option<T> {
            own.or_else(|| base.clone())
        }
        Self {
            load_balancer: or(self.load_balancer, &base.load_balancer),
            connection_pool: or(self.connection_pool, &base.connection_pool),
            outlier: or(self.outlier, &base.outlier),
            tls: or(self.tls, &base.tls),
            retry_budget: or(self.retry_budget, &base.retry_budget),
            proxy_protocol: or(self.proxy_protocol, &base.proxy_protocol),
            tunnel: or(self.tunnel, &base.tunnel),
        }
    }

    pub(super) fn resolve(&self) -> UpstreamPolicy {
        let balancer = self.load_balancer.as_ref();
        let pool = self.connection_pool.as_ref();
        let tcp = pool.and_then(|pool| pool.tcp.as_ref());
        let http = pool.and_then(|pool| pool.http.as_ref());
        UpstreamPolicy {
            balancer: balancer.map(resolve_balancer).unwrap_or_default(),
            locality: balancer
                .and_then(|block| block.locality_lb_setting.as_ref())
                .map(LocalitySetting::compile),
            warmup: balancer.and_then(resolve_warmup),
            tls: UpstreamTls::compile(self.tls.as_ref()),
            connect_timeout: tcp
                .and_then(|tcp| tcp.connect_timeout)
                .map_or(CONNECT_TIMEOUT, |timeout| timeout.0),
            tcp: tcp.map(resolve_tcp).unwrap_or_default(),
            http: resolve_http(http, tcp),
            outlier: self.outlier.clone(),
            retry_budget: self.retry_budget.as_ref().map(|budget| RetryBudget {
                percent: budget.percent.map_or(20.0, |percent| percent.value),
                min_concurrency: budget.min_retry_concurrency.unwrap_or(3),
                interval: (budget.budget_interval.map(|interval| interval.0))
                    .filter(|interval| !interval.is_zero()),
            }),
            proxy_protocol: self.proxy_protocol,
            tunnel: self.tunnel.clone(),
        }
    }
}

fn resolve_balancer(block: &LoadBalancer) -> Balancer {
    if let Some(policy) = block.consistent_hash.as_ref().and_then(HashPolicy::compile) {
        return Balancer::Hash(policy);
    }
    match block.simple {
        Some(SimpleLoadBalancer::Random) => Balancer::Simple(Algorithm::Random),
        Some(SimpleLoadBalancer::RoundRobin) => Balancer::Simple(Algorithm::RoundRobin),
        Some(SimpleLoadBalancer::Passthrough) => Balancer::Passthrough,
        _ => Balancer::Simple(Algorithm::LeastRequest),
    }
}

fn resolve_warmup(block: &LoadBalancer) -> Option<Warmup> {
    let warmup = block.warmup.as_ref();
    let duration = warmup
        .and_then(|warmup| warmup.duration)
        .or(block.warmup_duration_secs)?;
    let minimum = warmup.and_then(|warmup| warmup.minimum_percent);
    let aggression = warmup.and_then(|warmup| warmup.aggression);
    Some(Warmup {
        duration: duration.0,
        minimum: minimum.unwrap_or(10.0) / 100.0,
        aggression: aggression.unwrap_or(1.0),
    })
}

/// Istio takes 0 for "not set" in all of these.
fn bound(value: Option<i32>) -> Option<u32> {
    value
        .and_then(|value| u32::try_from(value).ok())
        .filter(|value| *value > 0)
}

fn resolve_tcp(tcp: &TcpSettings) -> TcpLimits {
    TcpLimits {
        max_connections: bound(tcp.max_connections),
        keepalive: tcp.tcp_keepalive.as_ref().map(|keepalive| Keepalive {
            probes: keepalive.probes,
            time: keepalive.time.map(|time| time.0),
            interval: keepalive.interval.map(|interval| interval.0),
        }),
        max_duration: tcp.max_connection_duration.map(|duration| duration.0),
        idle_timeout: tcp
            .idle_timeout
            .map(|timeout| timeout.0)
            .filter(|timeout| !timeout.is_zero()),
    }
}

/// The idle timeout of HTTP connections is TCP's where HTTP's is not set, as in Istio.
fn resolve_http(http: Option<&HttpSettings>, tcp: Option<&TcpSettings>) -> HttpLimits {
    let idle_timeout = http
        .and_then(|http| http.idle_timeout)
        .or_else(|| tcp?.idle_timeout)
        .map_or(HTTP_IDLE_TIMEOUT, |timeout| timeout.0);
    let of = |field: fn(&HttpSettings) -> Option<i32>| bound(http.and_then(field));
    HttpLimits {
        max_pending: of(|http| http.http1_max_pending_requests),
        max_requests: of(|http| http.http2_max_requests),
        max_requests_per_connection: of(|http| http.max_requests_per_connection),
        max_retries: of(|http| http.max_retries),
        idle_timeout: Some(idle_timeout).filter(|timeout| !timeout.is_zero()),
        protocol: match http {
            Some(http) if http.use_client_protocol == Some(true) => ProtocolPolicy::Client,
            Some(http) if http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade) => {
                ProtocolPolicy::Http2
            }
            _ => ProtocolPolicy::Declared,
        },
        max_concurrent_streams: of(|http| http.max_concurrent_streams),
        http2_keepalive: http.and_then(|http| {
            let keepalive = http.http2_keep_alive.as_ref()?;
            Some((keepalive.interval?.0, keepalive.timeout?.0))
        }),
    }
}

impl OutlierPolicy {
    /// Istio's defaults; 0 means "off" for the counts, and "not set" for the percentage.
    pub(super) fn compile(block: &OutlierDetection, comparisons: &Comparisons) -> Self {
        let count = |value: Option<u32>, default: u32| {
            Some(value.unwrap_or(default)).filter(|count| *count > 0)
        };
        let percent = |value: Option<i32>| value.and_then(|value| u32::try_from(value).ok());
        let codes = block.outlier_detection_http_error_codes.iter();
        Self {
            consecutive_5xx: count(block.consecutive_5xx_errors, 5),
            consecutive_gateway: count(block.consecutive_gateway_errors, 0),
            split_local: if block.split_external_local_origin_errors == Some(true) {
                // 0 means that such failures are counted apart, but never eject.
                Some(block.consecutive_local_origin_failures.unwrap_or(5))
            } else {
                None
            },
            interval: block
                .interval
                .map_or(Duration::from_secs(10), |interval| interval.0),
            base_ejection_time: block
                .base_ejection_time
                .map_or(Duration::from_secs(30), |time| time.0),
            max_ejection_percent: percent(block.max_ejection_percent)
                .filter(|percent| *percent > 0)
                .unwrap_or(10)
                .min(100),
            min_health_percent: percent(block.min_health_percent).unwrap_or(0).min(100),
            error_codes: codes.filter_map(|code| u16::try_from(*code).ok()).collect(),
            success_rate: comparisons.success_rate,
            latency: comparisons.latency,
        }
    }
}
