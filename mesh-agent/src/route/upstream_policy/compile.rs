//! From the blocks of a DestinationRule, with the defaults of whatever they leave out.

use std::sync::Arc;
use std::time::Duration;

use super::credentials::Credential;
use super::{
    Algorithm, Balancer, HttpLimits, HttpTunnel, Keepalive, OutlierPolicy, Pem, ProtocolPolicy,
    RetryBudget, TcpLimits, TlsOrigination, UpstreamPolicy, UpstreamTls, Warmup,
};
use crate::resource::destination_rule::{
    ClientTls, Comparisons, ConnectionPool, H2UpgradePolicy, HttpSettings, LoadBalancer,
    OutlierDetection, ProxyProtocolVersion, RetryBudget as RetryBudgetSpec, SimpleLoadBalancer,
    TcpSettings, TlsMode,
};
use crate::route::hashing::HashPolicy;
use crate::route::locality::LocalitySetting;

/// Where no `connectionPool.tcp.connectTimeout` is set. Istio waits for 10 s;
/// a client that waits for 5 s shall still learn why, after the two default
/// retries, and a lost SYN (repeated after 1 s) shall not end the attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// Where no `connectionPool.http.idleTimeout` is set, as in Istio.
const HTTP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// The blocks of a policy before defaults are filled in.
#[derive(Clone, Debug, Default)]
pub(in crate::route) struct Blocks {
    pub(in crate::route) load_balancer: Option<LoadBalancer>,
    pub(in crate::route) connection_pool: Option<ConnectionPool>,
    pub(in crate::route) outlier: Option<OutlierPolicy>,
    pub(in crate::route) tls: Option<UpstreamTls>,
    pub(in crate::route) retry_budget: Option<RetryBudgetSpec>,
    pub(in crate::route) proxy_protocol: Option<ProxyProtocolVersion>,
    pub(in crate::route) tunnel: Option<Arc<HttpTunnel>>,
}

impl Blocks {
    /// Whole blocks of `self` win.
    pub(in crate::route) fn over(self, base: &Self) -> Self {
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

    pub(in crate::route) fn resolve(&self) -> UpstreamPolicy {
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
            tls: self.tls.clone().unwrap_or_default(),
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

pub(in crate::route) fn resolve_tcp(tcp: &TcpSettings) -> TcpLimits {
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
pub(in crate::route) fn resolve_http(
    http: Option<&HttpSettings>,
    tcp: Option<&TcpSettings>,
) -> HttpLimits {
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
    pub(in crate::route) fn compile(block: &OutlierDetection, comparisons: &Comparisons) -> Self {
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

impl UpstreamTls {
    /// `credential`: what a `credentialName` means, where it has an effect.
    pub(in crate::route) fn compile(
        tls: &ClientTls,
        credential: Option<Result<Credential, String>>,
    ) -> Self {
        let is_mutual = match tls.mode {
            TlsMode::Disable => return Self::Disable,
            TlsMode::IstioMutual => return Self::IstioMutual,
            TlsMode::Simple => false,
            TlsMode::Mutual => true,
        };
        let file = |path: &Option<String>| path.clone().map(Pem::File);
        let Credential {
            certificate,
            authorities,
            revoked,
        } = match credential {
            Some(Ok(credential)) => credential,
            Some(Err(reason)) => return Self::Impossible(reason.into()),
            None => Credential {
                certificate: file(&tls.client_certificate).zip(file(&tls.private_key)),
                authorities: file(&tls.ca_certificates),
                revoked: file(&tls.ca_crl),
            },
        };
        if is_mutual && certificate.is_none() {
            let reason = "mode MUTUAL, and no certificate to show";
            return Self::Impossible(reason.into());
        }
        Self::Originate(Arc::new(TlsOrigination {
            certificate: certificate.filter(|_| is_mutual),
            authorities,
            revoked,
            sni: tls.sni.clone().filter(|name| !name.is_empty()),
            subject_alt_names: tls.subject_alt_names.clone(),
            verify: tls.insecure_skip_verify != Some(true),
        }))
    }
}
