//! Which Sidecars can be used, field by field.

use super::*;
use crate::resource::destination_rule::{H2UpgradePolicy, connection_pool};
use crate::resource::report::Report;
use crate::resource::{Finding, Resource};

/// Checks a resource. Errors make it unusable; warnings name fields that are not applied.
pub fn validate(resource: &Resource<SidecarSpec>) -> Vec<Finding> {
    let mut report = Report::new(&resource.meta);
    let spec = &resource.spec;
    if let Some(selector) = &spec.workload_selector {
        report.labels(&selector.labels, "spec.workloadSelector.labels");
    }
    egress(&mut report, &spec.egress);
    for (i, listener) in spec.ingress.iter().enumerate() {
        let field = format!("spec.ingress[{i}]");
        let number = |listener: &IngressListener| listener.port.as_ref().map(|port| port.number);
        if let Some(own) = number(listener)
            && (spec.ingress[..i].iter()).any(|other| number(other) == Some(own))
        {
            report.error(
                format!("{field}.port.number"),
                format!("{own} stands twice"),
            );
        }
        ingress(&mut report, listener, &field);
    }
    if let Some(policy) = &spec.outbound_traffic_policy {
        let field = "spec.outboundTrafficPolicy";
        if policy.mode == OutboundMode::AllowAnyDynamicDns {
            report.warning(
                format!("{field}.mode"),
                "ALLOW_ANY_DYNAMIC_DNS is applied as ALLOW_ANY: connections go to the address that the application asked for",
            );
        }
        if let Some(proxy) = &policy.egress_proxy {
            egress_proxy(
                &mut report,
                proxy,
                policy.mode,
                &format!("{field}.egressProxy"),
            );
        }
    }
    if let Some(pool) = &spec.inbound_connection_pool {
        inbound_pool(&mut report, pool, "spec.inboundConnectionPool");
    }
    report.into_findings()
}

fn egress_proxy(report: &mut Report<'_>, proxy: &Destination, mode: OutboundMode, field: &str) {
    if mode == OutboundMode::RegistryOnly {
        report.error(
            field,
            "is for mode ALLOW_ANY: with REGISTRY_ONLY there is no other traffic",
        );
    }
    if report.host(&proxy.host, false, format!("{field}.host")) && !proxy.host.contains('.') {
        let reason = format!(
            "{0:?} is not a full name, such as {0}.default.svc.cluster.local",
            proxy.host
        );
        report.error(format!("{field}.host"), reason);
    }
    match proxy.port {
        Some(port) => report.port(port.number, format!("{field}.port.number")),
        None => report.error(format!("{field}.port"), "is required"),
    }
}

fn egress(report: &mut Report<'_>, listeners: &[EgressListener]) {
    for (i, listener) in listeners.iter().enumerate() {
        let field = format!("spec.egress[{i}]");
        match &listener.port {
            Some(port) => {
                own_port(report, port, &format!("{field}.port"));
                let same = |other: &EgressListener| {
                    (other.port.as_ref()).is_some_and(|other| other.number == port.number)
                };
                if listeners[..i].iter().any(same) {
                    report.error(
                        format!("{field}.port.number"),
                        format!("{} stands twice", port.number),
                    );
                }
            }
            None if i + 1 < listeners.len() => report.error(
                format!("{field}.port"),
                "is required: only the last listener may be for all other ports",
            ),
            None => {}
        }
        common(
            report,
            listener.bind.as_deref(),
            listener.capture_mode,
            &field,
        );
        if listener.hosts.is_empty() {
            report.error(format!("{field}.hosts"), "must have at least one host");
        }
        for (j, host) in listener.hosts.iter().enumerate() {
            imported(report, host, format!("{field}.hosts[{j}]"));
        }
    }
}

/// `namespace/host`, `./host`, `*/host`, `~/*`, and `~namespace/host` for an exception.
fn imported(report: &mut Report<'_>, text: &str, field: String) {
    let Some((namespace, host)) = text.split_once('/') else {
        return report.error(
            field,
            format!("{text:?} is not namespace/host, such as ./* or istio-system/*"),
        );
    };
    let named = namespace.strip_prefix('~').unwrap_or(namespace);
    let is_namespace = matches!(namespace, "*" | "." | "~" | "~*" | "~.")
        || crate::resource::scalar::is_dns_label(named);
    if !is_namespace {
        report.error(
            field,
            format!("{namespace:?} is not a namespace, \".\", \"*\" or \"~\""),
        );
    } else if namespace == "~" && host != "*" {
        report.error(field, "beside \"~\", no namespace, only \"*\" can stand");
    } else if report.host(host, true, field.clone()) && !host.contains(['.', '*']) {
        report.warning(
            field,
            format!("has no effect: {host:?} is not a full name, such as {host}.default.svc.cluster.local"),
        );
    }
}

fn ingress(report: &mut Report<'_>, listener: &IngressListener, field: &str) {
    match &listener.port {
        Some(port) => own_port(report, port, &format!("{field}.port")),
        None => report.error(format!("{field}.port"), "is required"),
    }
    common(
        report,
        listener.bind.as_deref(),
        listener.capture_mode,
        field,
    );
    match listener.default_endpoint.as_deref() {
        None | Some("") => {}
        // The file may lie in a file system that the agent does not see.
        Some(path) if path.starts_with("unix://") => {
            report.not_applied(true, format!("{field}.defaultEndpoint"));
        }
        Some(endpoint) if DefaultEndpoint::parse(endpoint).is_none() => report.error(
            format!("{field}.defaultEndpoint"),
            format!(
                "{endpoint:?} is not 127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT, [::]:PORT or unix://PATH"
            ),
        ),
        Some(_) => {}
    }
    report.not_applied(listener.tls.is_some(), format!("{field}.tls"));
    if let Some(pool) = &listener.connection_pool {
        inbound_pool(report, pool, &format!("{field}.connectionPool"));
    }
}

/// The agent makes one connection to the application for one of a client's, in the client's
/// protocol, and asks once: the rest is for proxies that choose.
fn inbound_pool(report: &mut Report<'_>, pool: &ConnectionPool, field: &str) {
    connection_pool(report, pool, field);
    let Some(http) = &pool.http else { return };
    let upgrades = http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade);
    for (is_there, name) in [
        (http.max_retries.is_some(), "maxRetries"),
        (upgrades, "h2UpgradePolicy"),
        (
            http.max_concurrent_streams.is_some(),
            "maxConcurrentStreams",
        ),
        (http.http2_keep_alive.is_some(), "http2KeepAlive"),
    ] {
        report.not_applied(is_there, format!("{field}.http.{name}"));
    }
}

fn own_port(report: &mut Report<'_>, port: &SidecarPort, field: &str) {
    report.port(port.number, format!("{field}.number"));
    report.not_applied(port.target_port.is_some(), format!("{field}.targetPort"));
}

fn common(
    report: &mut Report<'_>,
    bind: Option<&str>,
    capture_mode: Option<CaptureMode>,
    field: &str,
) {
    let is_any = |bind: &str| matches!(bind, "" | "0.0.0.0" | "::");
    report.not_applied(
        bind.is_some_and(|bind| !is_any(bind)),
        format!("{field}.bind"),
    );
    report.not_applied(
        capture_mode == Some(CaptureMode::None),
        format!("{field}.captureMode"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Severity;
    use crate::route::fixture::resource;

    fn findings(spec: &str) -> Vec<(Severity, String)> {
        validate(&resource("Sidecar", "shop/s", spec))
            .into_iter()
            .map(|finding| (finding.severity, finding.field))
            .collect()
    }

    #[test]
    fn what_is_applied_is_without_a_finding() {
        for spec in [
            "{}",
            "{egress: [{hosts: ['./*', '*/*', 'istio-system/*', 'shop/a.example.com', '~other/*', '~/*']}]}",
            "{egress: [{port: {number: 80, protocol: HTTP, name: http}, hosts: ['./*']}, {hosts: ['./*']}]}",
            "{workloadSelector: {labels: {app: a}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}}",
            "{outboundTrafficPolicy: {}}",
            "{outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a.example.com, port: {number: 80}}}}",
            "{ingress: [{port: {number: 80}, defaultEndpoint: '127.0.0.1:8080'}]}",
            "{ingress: [{port: {number: 80}, defaultEndpoint: '[::1]:80'}, {port: {number: 81}, defaultEndpoint: '0.0.0.0:8080'}]}",
            "{ingress: [{port: {number: 80}, connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}]}",
            "{inboundConnectionPool: {tcp: {connectTimeout: 1s, tcpKeepalive: {}}, http: {idleTimeout: 1s, useClientProtocol: true}}}",
        ] {
            assert_eq!(findings(spec), [], "{spec}");
        }
    }

    #[test]
    fn what_is_not_applied_is_said() {
        for (spec, field) in [
            (
                "{egress: [{bind: 127.0.0.1, hosts: ['*/*']}]}",
                "spec.egress[0].bind",
            ),
            (
                "{egress: [{captureMode: NONE, hosts: ['*/*']}]}",
                "spec.egress[0].captureMode",
            ),
            (
                "{egress: [{hosts: ['./reviews']}]}",
                "spec.egress[0].hosts[0]",
            ),
            (
                "{ingress: [{port: {number: 80}, defaultEndpoint: 'unix:///run/a'}]}",
                "spec.ingress[0].defaultEndpoint",
            ),
            (
                "{ingress: [{port: {number: 80}, captureMode: NONE}]}",
                "spec.ingress[0].captureMode",
            ),
            (
                "{ingress: [{port: {number: 80}, tls: {mode: SIMPLE}}]}",
                "spec.ingress[0].tls",
            ),
            (
                "{ingress: [{port: {number: 80}, bind: 10.0.0.1}]}",
                "spec.ingress[0].bind",
            ),
            (
                "{ingress: [{port: {number: 80, targetPort: 8}}]}",
                "spec.ingress[0].port.targetPort",
            ),
            (
                "{outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}}",
                "spec.outboundTrafficPolicy.mode",
            ),
            (
                "{inboundConnectionPool: {http: {maxRetries: 1}}}",
                "spec.inboundConnectionPool.http.maxRetries",
            ),
            (
                "{inboundConnectionPool: {http: {h2UpgradePolicy: UPGRADE}}}",
                "spec.inboundConnectionPool.http.h2UpgradePolicy",
            ),
            (
                "{ingress: [{port: {number: 80}, connectionPool: {http: {maxConcurrentStreams: 1}}}]}",
                "spec.ingress[0].connectionPool.http.maxConcurrentStreams",
            ),
        ] {
            assert_eq!(
                findings(spec),
                [(Severity::Warning, field.to_owned())],
                "{spec}"
            );
        }
    }

    #[test]
    fn what_cannot_be_used_is_an_error() {
        for (spec, field) in [
            ("{egress: [{hosts: []}]}", "spec.egress[0].hosts"),
            ("{egress: [{hosts: ['*']}]}", "spec.egress[0].hosts[0]"),
            ("{egress: [{hosts: ['~/a.b']}]}", "spec.egress[0].hosts[0]"),
            ("{egress: [{hosts: ['A_/*']}]}", "spec.egress[0].hosts[0]"),
            ("{egress: [{hosts: ['./a b']}]}", "spec.egress[0].hosts[0]"),
            (
                "{egress: [{hosts: ['./*']}, {hosts: ['./*']}]}",
                "spec.egress[0].port",
            ),
            (
                "{egress: [{port: {number: 0}, hosts: ['./*']}]}",
                "spec.egress[0].port.number",
            ),
            (
                "{egress: [{port: {number: 1}, hosts: ['./*']}, {port: {number: 1}, hosts: ['./*']}]}",
                "spec.egress[1].port.number",
            ),
            ("{ingress: [{}]}", "spec.ingress[0].port"),
            (
                "{ingress: [{port: {number: 1}}, {port: {number: 1}}]}",
                "spec.ingress[1].port.number",
            ),
            (
                "{ingress: [{port: {number: 80}, defaultEndpoint: '10.0.0.1:8080'}]}",
                "spec.ingress[0].defaultEndpoint",
            ),
            (
                "{ingress: [{port: {number: 80}, defaultEndpoint: '127.0.0.1:0'}]}",
                "spec.ingress[0].defaultEndpoint",
            ),
            (
                "{inboundConnectionPool: {tcp: {maxConnections: -1}}}",
                "spec.inboundConnectionPool.tcp.maxConnections",
            ),
            (
                "{outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a, port: {number: 80}}}}",
                "spec.outboundTrafficPolicy.egressProxy.host",
            ),
            (
                "{outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a.example.com}}}",
                "spec.outboundTrafficPolicy.egressProxy.port",
            ),
            (
                "{outboundTrafficPolicy: {egressProxy: {host: a.example.com, port: {number: 80}}}}",
                "spec.outboundTrafficPolicy.egressProxy",
            ),
            (
                "{workloadSelector: {labels: {app: '*'}}}",
                "spec.workloadSelector.labels[app]",
            ),
        ] {
            assert_eq!(
                findings(spec),
                [(Severity::Error, field.to_owned())],
                "{spec}"
            );
        }
    }
}
