//! Which DestinationRules can be used, field by field.

mod locality;

use super::*;
use crate::resource::report::Report;
use crate::resource::{Finding, Resource};

/// Port policies in one list, as in Istio.
const MAX_PORT_POLICIES: usize = 4096;

/// Checks a resource. Errors make it unusable; warnings name fields that are not applied.
pub fn validate(resource: &Resource<DestinationRuleSpec>) -> Vec<Finding> {
    let mut report = Report::new(&resource.meta);
    let spec = &resource.spec;
    report.host(&spec.host, true, "spec.host");
    report.export_to(&spec.export_to);
    if let Some(selector) = &spec.workload_selector {
        report.labels(&selector.match_labels, "spec.workloadSelector.matchLabels");
        if spec.export_to.iter().any(|namespace| namespace != ".") {
            report.error(
                "spec.exportTo",
                "must be \".\" where a workloadSelector is given",
            );
        }
    }
    let of_rule = spec.traffic_policy.as_ref();
    let whole = Around {
        selected: spec.workload_selector.is_some(),
        detects: false,
    };
    let subset_in = Around {
        detects: of_rule.is_some_and(|policy| policy.outlier_detection.is_some()),
        ..whole
    };
    if let Some(policy) = &spec.traffic_policy {
        traffic_policy(&mut report, policy, "spec.trafficPolicy", whole);
    }
    for (i, subset) in spec.subsets.iter().enumerate() {
        let field = format!("spec.subsets[{i}]");
        if subset.name.is_empty() {
            report.error(format!("{field}.name"), "must not be empty");
        } else if spec.subsets[..i]
            .iter()
            .any(|other| other.name == subset.name)
        {
            report.error(
                format!("{field}.name"),
                format!("{:?} stands twice", subset.name),
            );
        }
        report.labels(&subset.labels, &format!("{field}.labels"));
        if let Some(policy) = &subset.traffic_policy {
            let field = format!("{field}.trafficPolicy");
            traffic_policy(&mut report, policy, &field, subset_in);
        }
    }
    let (comparisons, problems) = Comparisons::read(&resource.meta);
    for (key, problem) in problems {
        report.annotation(key, problem);
    }
    if comparisons != Comparisons::default() && !detects_outliers(spec) {
        report.warning(
            "metadata.annotations",
            "ejection has no effect without an outlierDetection",
        );
    }
    report.into_findings()
}

fn detects_outliers(spec: &DestinationRuleSpec) -> bool {
    let of_subsets = (spec.subsets.iter()).filter_map(|subset| subset.traffic_policy.as_deref());
    let mut policies = of_subsets.chain(&spec.traffic_policy);
    policies.any(|policy| {
        let mut ports = policy.port_level_settings.iter();
        policy.outlier_detection.is_some() || ports.any(|port| port.outlier_detection.is_some())
    })
}

/// What a policy does not say itself.
#[derive(Clone, Copy)]
struct Around {
    /// The rule has a workloadSelector.
    selected: bool,
    /// An outlierDetection is inherited.
    detects: bool,
}

fn traffic_policy(report: &mut Report<'_>, policy: &TrafficPolicy, field: &str, around: Around) {
    let blocks = Blocks {
        load_balancer: policy.load_balancer.as_ref(),
        connection_pool: policy.connection_pool.as_ref(),
        outlier_detection: policy.outlier_detection.as_ref(),
        tls: policy.tls.as_ref(),
    };
    blocks.check(report, field, around);
    if policy.port_level_settings.len() > MAX_PORT_POLICIES {
        report.error(
            format!("{field}.portLevelSettings"),
            format!("has more than {MAX_PORT_POLICIES} entries"),
        );
    }
    for (i, settings) in policy.port_level_settings.iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{i}]");
        match settings.port {
            Some(port) => report.port(port.number, format!("{field}.port.number")),
            None => report.error(format!("{field}.port"), "is required"),
        }
        let blocks = Blocks {
            load_balancer: settings.load_balancer.as_ref(),
            connection_pool: settings.connection_pool.as_ref(),
            outlier_detection: settings.outlier_detection.as_ref(),
            tls: settings.tls.as_ref(),
        };
        // They inherit nothing.
        let around = Around {
            detects: false,
            ..around
        };
        blocks.check(report, &field, around);
    }
    if let Some(budget) = &policy.retry_budget {
        report.percent(budget.percent, format!("{field}.retryBudget.percent"));
        report.duration_or_zero(
            budget.budget_interval,
            format!("{field}.retryBudget.budgetInterval"),
        );
    }
    if policy.tunnel.is_some() && policy.proxy_protocol.is_some() {
        report.error(format!("{field}.proxyProtocol"), "excludes tunnel");
    }
    if let Some(tunnel) = &policy.tunnel {
        let field = format!("{field}.tunnel");
        let protocol = tunnel.protocol.as_deref().unwrap_or_default();
        if !matches!(protocol, "" | "CONNECT" | "POST") {
            report.error(format!("{field}.protocol"), "is neither CONNECT nor POST");
        }
        let host = &tunnel.target_host;
        if host.parse::<std::net::IpAddr>().is_err() {
            report.host(host, false, format!("{field}.targetHost"));
        }
        report.port(tunnel.target_port, format!("{field}.targetPort"));
    }
}

/// What a policy and a port's settings have in common.
struct Blocks<'a> {
    load_balancer: Option<&'a LoadBalancer>,
    connection_pool: Option<&'a ConnectionPool>,
    outlier_detection: Option<&'a OutlierDetection>,
    tls: Option<&'a ClientTls>,
}

impl Blocks<'_> {
    fn check(&self, report: &mut Report<'_>, field: &str, around: Around) {
        let detects = around.detects || self.outlier_detection.is_some();
        if let Some(block) = self.load_balancer {
            load_balancer(report, block, &format!("{field}.loadBalancer"), detects);
        }
        if let Some(block) = self.connection_pool {
            connection_pool(report, block, &format!("{field}.connectionPool"));
        }
        if let Some(block) = self.outlier_detection {
            outlier_detection(report, block, &format!("{field}.outlierDetection"));
        }
        if let Some(block) = self.tls {
            tls(report, block, &format!("{field}.tls"), around.selected);
        }
    }
}

fn load_balancer(report: &mut Report<'_>, block: &LoadBalancer, field: &str, detects: bool) {
    if block.simple.is_some() && block.consistent_hash.is_some() {
        report.error(format!("{field}.consistentHash"), "excludes simple");
    }
    if block.locality_lb_setting.is_some() && block.zone_aware_lb_setting.is_some() {
        report.error(
            format!("{field}.zoneAwareLbSetting"),
            "excludes localityLbSetting",
        );
    }
    report.not_applied(
        block.zone_aware_lb_setting.is_some(),
        format!("{field}.zoneAwareLbSetting"),
    );
    if let Some(hash) = &block.consistent_hash {
        consistent_hash(report, hash, &format!("{field}.consistentHash"));
    }
    if let Some(setting) = &block.locality_lb_setting {
        let field = format!("{field}.localityLbSetting");
        locality::check(report, setting, &field, detects);
    }
    if let Some(warmup) = &block.warmup {
        if warmup.duration.is_none() {
            report.error(format!("{field}.warmup.duration"), "is required");
        }
        let percent = warmup.minimum_percent.unwrap_or(10.0);
        if !(0.0..=100.0).contains(&percent) {
            report.error(
                format!("{field}.warmup.minimumPercent"),
                "must be between 0 and 100",
            );
        }
        if warmup.aggression.is_some_and(|aggression| aggression < 1.0) {
            report.error(format!("{field}.warmup.aggression"), "must be at least 1");
        }
    }
}

/// Greatest size of a Maglev table, as in Envoy.
const MAX_TABLE_SIZE: u64 = 5_000_011;

fn consistent_hash(report: &mut Report<'_>, block: &ConsistentHash, field: &str) {
    let keys = [
        ("httpHeaderName", block.http_header_name.is_some()),
        ("httpCookie", block.http_cookie.is_some()),
        ("useSourceIp", block.use_source_ip == Some(true)),
        (
            "httpQueryParameterName",
            block.http_query_parameter_name.is_some(),
        ),
    ];
    let named: Vec<_> = keys.iter().filter(|(_, there)| *there).collect();
    match named.as_slice() {
        [] => report.error(
            field,
            "needs one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName",
        ),
        [_] => {}
        [(first, _), (second, _), ..] => {
            report.error(format!("{field}.{second}"), format!("excludes {first}"));
        }
    }
    if let Some(name) = &block.http_header_name
        && http::HeaderName::from_bytes(name.as_bytes()).is_err()
    {
        report.error(
            format!("{field}.httpHeaderName"),
            format!("{name:?} is not a header name"),
        );
    }
    if block.ring_hash.is_some() && block.maglev.is_some() {
        report.error(format!("{field}.maglev"), "excludes ringHash");
    }
    if let Some(size) = block.maglev.as_ref().and_then(|maglev| maglev.table_size) {
        let prime = size > 1 && (2..).take_while(|i| i * i <= size).all(|i| size % i != 0);
        if size > MAX_TABLE_SIZE || !prime {
            report.error(
                format!("{field}.maglev.tableSize"),
                format!("{size} is not a prime up to {MAX_TABLE_SIZE}"),
            );
        }
    }
}

/// Those of a Sidecar are of the same form.
pub(in crate::resource) fn connection_pool(
    report: &mut Report<'_>,
    block: &ConnectionPool,
    field: &str,
) {
    if let Some(tcp) = &block.tcp {
        let field = format!("{field}.tcp");
        not_negative(
            report,
            tcp.max_connections,
            format!("{field}.maxConnections"),
        );
        report.duration(tcp.connect_timeout, format!("{field}.connectTimeout"));
        report.duration(
            tcp.max_connection_duration,
            format!("{field}.maxConnectionDuration"),
        );
        report.duration_or_zero(tcp.idle_timeout, format!("{field}.idleTimeout"));
    }
    let Some(http) = &block.http else { return };
    let field = format!("{field}.http");
    if http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade)
        && http.use_client_protocol == Some(true)
    {
        report.error(
            format!("{field}.useClientProtocol"),
            "excludes h2UpgradePolicy UPGRADE",
        );
    }
    for (name, value) in [
        ("http1MaxPendingRequests", http.http1_max_pending_requests),
        ("http2MaxRequests", http.http2_max_requests),
        ("maxRequestsPerConnection", http.max_requests_per_connection),
        ("maxRetries", http.max_retries),
        ("maxConcurrentStreams", http.max_concurrent_streams),
    ] {
        not_negative(report, value, format!("{field}.{name}"));
    }
    report.duration_or_zero(http.idle_timeout, format!("{field}.idleTimeout"));
}

fn not_negative(report: &mut Report<'_>, value: Option<i32>, field: String) {
    if let Some(value) = value.filter(|value| *value < 0) {
        report.error(field, format!("{value} is negative"));
    }
}

fn outlier_detection(report: &mut Report<'_>, block: &OutlierDetection, field: &str) {
    for (name, percent) in [
        ("maxEjectionPercent", block.max_ejection_percent),
        ("minHealthPercent", block.min_health_percent),
    ] {
        if percent.is_some_and(|percent| !(0..=100).contains(&percent)) {
            report.error(format!("{field}.{name}"), "must be between 0 and 100");
        }
    }
    if block.consecutive_errors.is_some() {
        report.warning(
            format!("{field}.consecutiveErrors"),
            "has no effect: use consecutive5xxErrors",
        );
    }
    report.duration(block.interval, format!("{field}.interval"));
    report.duration(
        block.base_ejection_time,
        format!("{field}.baseEjectionTime"),
    );
    for (i, code) in block.outlier_detection_http_error_codes.iter().enumerate() {
        if !(100..=599).contains(code) {
            report.error(
                format!("{field}.outlierDetectionHttpErrorCodes[{i}]"),
                format!("{code} is not within 100 to 599"),
            );
        }
    }
}

fn tls(report: &mut Report<'_>, block: &ClientTls, field: &str, selected: bool) {
    let own = [
        ("clientCertificate", block.client_certificate.is_some()),
        ("privateKey", block.private_key.is_some()),
        ("caCertificates", block.ca_certificates.is_some()),
        ("caCrl", block.ca_crl.is_some()),
        ("credentialName", block.credential_name.is_some()),
        ("subjectAltNames", !block.subject_alt_names.is_empty()),
        ("sni", block.sni.is_some()),
    ];
    match block.mode {
        TlsMode::IstioMutual => {
            for (name, there) in own {
                if there {
                    report.error(
                        format!("{field}.{name}"),
                        "must be empty with mode ISTIO_MUTUAL",
                    );
                }
            }
        }
        TlsMode::Disable => {
            for (name, there) in own {
                if there {
                    report.warning(format!("{field}.{name}"), "has no effect with mode DISABLE");
                }
            }
        }
        TlsMode::Simple | TlsMode::Mutual => {
            if block.mode == TlsMode::Mutual
                && block.credential_name.is_none()
                && (block.client_certificate.is_none() || block.private_key.is_none())
            {
                report.error(
                    field,
                    "mode MUTUAL needs clientCertificate and privateKey, or credentialName",
                );
            }
            if block.credential_name.is_some() {
                for (name, there) in &own[..4] {
                    if *there {
                        report.error(format!("{field}.{name}"), "excludes credentialName");
                    }
                }
                if !selected {
                    let then = match block.mode {
                        TlsMode::Mutual => "such connections are refused",
                        _ => "the system's authorities are trusted",
                    };
                    report.warning(
                        format!("{field}.credentialName"),
                        format!("has no effect without spec.workloadSelector, as in Istio: {then}"),
                    );
                }
            }
            if block.insecure_skip_verify == Some(true) {
                // "No server certificate verification", of the destination or of a port.
                let code = if field.contains("portLevelSettings") {
                    "IST0129"
                } else {
                    "IST0128"
                };
                report.warning_with_code(
                    code,
                    format!("{field}.insecureSkipVerify"),
                    "whoever answers is taken for the server",
                );
            }
        }
    }
    if block.insecure_skip_verify == Some(true) && block.ca_certificates.is_some() {
        report.error(
            format!("{field}.insecureSkipVerify"),
            "excludes caCertificates",
        );
    }
}

#[cfg(test)]
mod tests;
