//! Which VirtualServices can be used, field by field.

mod action;
mod reach;

use http::HeaderName;
use regex::Regex;

use super::*;
use crate::resource::report::Report;
use crate::resource::value::parse_subnet;
use crate::resource::{Finding, Resource};

/// Longest regular expression, in characters, as in Istio.
const MAX_REGEX_LENGTH: usize = 1024;

/// Checks a resource. Errors make it unusable; warnings name fields that are not applied.
pub fn validate(resource: &Resource<VirtualServiceSpec>) -> Vec<Finding> {
    let mut report = Report::new(&resource.meta);
    let spec = &resource.spec;
    hosts(&mut report, spec);
    for (i, gateway) in spec.gateways.iter().enumerate() {
        if gateway.is_empty() {
            report.error(format!("spec.gateways[{i}]"), "must not be empty");
        } else if gateway != "mesh" {
            report.warning(
                format!("spec.gateways[{i}]"),
                format!("not applied by this version: only \"mesh\" is served, not {gateway:?}"),
            );
        }
    }
    report.export_to(&spec.export_to);
    if spec.http.is_empty() && spec.tcp.is_empty() && spec.tls.is_empty() {
        report.error("spec", "needs http, tls or tcp");
    }
    reach::check(&mut report, &spec.http);
    for (i, route) in spec.http.iter().enumerate() {
        http_route(&mut report, route, &format!("spec.http[{i}]"));
    }
    for (i, route) in spec.tcp.iter().enumerate() {
        tcp_route(&mut report, route, &format!("spec.tcp[{i}]"));
    }
    for (i, route) in spec.tls.iter().enumerate() {
        tls_route(&mut report, route, &spec.hosts, &format!("spec.tls[{i}]"));
    }
    for (key, problem) in limits::read(resource).1 {
        report.annotation(key, problem);
    }
    report.into_findings()
}

fn hosts(report: &mut Report<'_>, spec: &VirtualServiceSpec) {
    // Without hosts it is there for others to delegate to.
    if spec.hosts.is_empty() && (spec.http.is_empty() || !spec.gateways.is_empty()) {
        report.error(
            "spec.hosts",
            "must name a host (only a VirtualService that others delegate to has none: it has http rules and no gateways)",
        );
    }
    let in_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == "mesh");
    for (i, host) in spec.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{i}]");
        if host == "*" && in_mesh {
            report.error(field, "\"*\" alone cannot be used inside the mesh");
        } else if spec.hosts[..i]
            .iter()
            .any(|other| other.eq_ignore_ascii_case(host))
        {
            report.error(field, format!("{host:?} stands twice"));
        } else {
            report.host(host, true, field);
        }
    }
}

fn http_route(report: &mut Report<'_>, route: &HttpRoute, field: &str) {
    for (i, block) in route.r#match.iter().enumerate() {
        http_match(report, block, &format!("{field}.match[{i}]"));
    }
    one_action(report, route, field);
    weights(
        report,
        route
            .route
            .iter()
            .map(|entry| (&entry.destination, entry.weight)),
        field,
    );
    for (i, entry) in route.route.iter().enumerate() {
        if let Some(edits) = &entry.headers {
            action::headers(report, edits, &format!("{field}.route[{i}].headers"));
        }
    }
    report.duration_or_zero(route.timeout, format!("{field}.timeout"));
    if let Some(retry) = &route.retries {
        action::retries(report, retry, &format!("{field}.retries"));
    }
    if let Some(injected) = &route.fault {
        action::fault(report, injected, &format!("{field}.fault"));
    }
    if let Some(edits) = &route.headers {
        action::headers(report, edits, &format!("{field}.headers"));
    }
    if route.mirror.is_some() && !route.mirrors.is_empty() {
        report.error(format!("{field}.mirrors"), "excludes mirror");
    }
    if let Some(target) = &route.mirror {
        destination(report, target, &format!("{field}.mirror"));
    }
    for (i, mirror) in route.mirrors.iter().enumerate() {
        destination(
            report,
            &mirror.destination,
            &format!("{field}.mirrors[{i}].destination"),
        );
        report.percent(
            mirror.percentage,
            format!("{field}.mirrors[{i}].percentage.value"),
        );
    }
    report.percent(
        route.mirror_percentage,
        format!("{field}.mirrorPercentage.value"),
    );
    if route.mirror_percent.is_some_and(|percent| percent > 100) {
        report.error(
            format!("{field}.mirrorPercent"),
            "must be between 0 and 100",
        );
    }
    if let Some(cors) = &route.cors_policy {
        for (i, origin) in cors.allow_origins.iter().enumerate() {
            string_match(
                report,
                origin,
                &format!("{field}.corsPolicy.allowOrigins[{i}]"),
            );
        }
        report.duration_or_zero(cors.max_age, format!("{field}.corsPolicy.maxAge"));
    }
}

/// Exactly one of route, redirect, directResponse and delegate.
fn one_action(report: &mut Report<'_>, route: &HttpRoute, field: &str) {
    let actions = [
        ("route", !route.route.is_empty()),
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
    ];
    let named: Vec<_> = actions
        .iter()
        .filter(|(_, there)| *there)
        .map(|(name, _)| *name)
        .collect();
    match named.as_slice() {
        [] => report.error(
            field,
            "needs one of route, redirect, directResponse and delegate",
        ),
        [_] => {}
        [first, second, ..] => {
            report.error(format!("{field}.{second}"), format!("excludes {first}"))
        }
    }
    if route.redirect.is_some() || route.direct_response.is_some() {
        let with = if route.redirect.is_some() {
            "redirect"
        } else {
            "directResponse"
        };
        for (name, there) in [
            ("fault", route.fault.is_some()),
            ("rewrite", route.rewrite.is_some()),
        ] {
            if there {
                report.error(format!("{field}.{name}"), format!("excludes {with}"));
            }
        }
        // Of requests that are forwarded.
        for (name, there) in [
            ("timeout", route.timeout.is_some()),
            ("retries", route.retries.is_some()),
            ("mirror", route.mirror.is_some()),
            ("mirrors", !route.mirrors.is_empty()),
            ("corsPolicy", route.cors_policy.is_some()),
        ] {
            if there {
                let reason = format!("has no effect beside {with}, as in Istio");
                report.warning(format!("{field}.{name}"), reason);
            }
        }
    }
    if let Some(to) = &route.redirect {
        action::redirect(report, route, to, &format!("{field}.redirect"));
    }
    if let Some(answer) = &route.direct_response {
        action::direct_response(report, answer, &format!("{field}.directResponse"));
    }
    if let Some(to) = &route.delegate
        && to.name.is_empty()
    {
        report.error(format!("{field}.delegate.name"), "must not be empty");
    }
    if let Some(change) = &route.rewrite {
        action::rewrite(report, change, &format!("{field}.rewrite"));
    }
}

fn http_match(report: &mut Report<'_>, block: &HttpMatch, field: &str) {
    let nothing = HttpMatch {
        name: block.name.clone(),
        stat_prefix: block.stat_prefix.clone(),
        ignore_uri_case: block.ignore_uri_case,
        ..HttpMatch::default()
    };
    if *block == nothing {
        report.error(field, "has no condition");
    }
    for (name, test) in [
        ("uri", &block.uri),
        ("scheme", &block.scheme),
        ("method", &block.method),
        ("authority", &block.authority),
    ] {
        if let Some(test) = test {
            string_match(report, test, &format!("{field}.{name}"));
        }
    }
    for (map, tests) in [
        ("headers", &block.headers),
        ("withoutHeaders", &block.without_headers),
    ] {
        for (name, test) in tests {
            let field = format!("{field}.{map}[{name}]");
            if name.starts_with("@request.auth.") {
                report.warning(
                    &field,
                    "not applied by this version: the condition never holds",
                );
            } else if matches!(name.as_str(), "uri" | "scheme" | "method" | "authority") {
                report.warning(&field, "has no effect: use the field of this name");
            } else if HeaderName::from_bytes(name.as_bytes()).is_err() {
                report.error(&field, "is not a header name");
            }
            string_match(report, test, &field);
        }
    }
    for (name, test) in &block.query_params {
        let field = format!("{field}.queryParams[{name}]");
        if name.is_empty() {
            report.error(&field, "has an empty name");
        }
        string_match(report, test, &field);
    }
    if let Some(port) = block.port {
        report.port(port, format!("{field}.port"));
    }
    report.labels(&block.source_labels, &format!("{field}.sourceLabels"));
    match_gateways(report, &block.gateways, field);
    report.not_applied(block.stat_prefix.is_some(), format!("{field}.statPrefix"));
}

fn match_gateways(report: &mut Report<'_>, gateways: &[String], field: &str) {
    for (i, gateway) in gateways.iter().enumerate() {
        if gateway != "mesh" {
            report.warning(
                format!("{field}.gateways[{i}]"),
                format!("not applied by this version: only \"mesh\" is served, not {gateway:?}"),
            );
        }
    }
}

fn string_match(report: &mut Report<'_>, test: &StringMatch, field: &str) {
    let given = [&test.exact, &test.prefix, &test.regex];
    if given.iter().filter(|form| form.is_some()).count() > 1 {
        report.error(field, "takes one of exact, prefix and regex");
    }
    if test.prefix.as_deref() == Some("") {
        report.error(format!("{field}.prefix"), "must not be empty");
    }
    if let Some(expression) = &test.regex
        && expression != "*"
    {
        regex(report, expression, &format!("{field}.regex"));
    }
}

fn regex(report: &mut Report<'_>, expression: &str, field: &str) {
    if expression.is_empty() {
        report.error(field, "must not be empty");
    } else if expression.chars().count() > MAX_REGEX_LENGTH {
        report.error(
            field,
            format!("is longer than {MAX_REGEX_LENGTH} characters"),
        );
    } else if let Err(error) = Regex::new(expression) {
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim();
        let reason = format!("is not an RE2 expression: {reason}");
        report.error_with_code("IST0122", field, reason);
    }
}

fn destination(report: &mut Report<'_>, destination: &Destination, field: &str) {
    let host = format!("{field}.host");
    if destination.host == "*" {
        report.error(host, "\"*\" is every service, and none");
    } else {
        // That of a service which is a wildcard itself.
        report.host(&destination.host, true, host);
    }
    if destination.subset.as_deref() == Some("") {
        report.error(format!("{field}.subset"), "must not be empty");
    }
    if let Some(port) = destination.port {
        report.port(port.number, format!("{field}.port.number"));
    }
}

fn weights<'a>(
    report: &mut Report<'_>,
    routes: impl ExactSizeIterator<Item = (&'a Destination, i32)>,
    field: &str,
) {
    let count = routes.len();
    let mut sum = 0i64;
    for (i, (target, weight)) in routes.enumerate() {
        destination(report, target, &format!("{field}.route[{i}].destination"));
        if weight < 0 {
            report.error(
                format!("{field}.route[{i}].weight"),
                format!("{weight} is negative"),
            );
        }
        sum += i64::from(weight.max(0));
    }
    if count > 1 && sum == 0 {
        report.error(format!("{field}.route"), "the weights add up to 0");
    } else if sum > i64::from(u32::MAX) {
        report.error(
            format!("{field}.route"),
            "the weights add up to more than 4294967295",
        );
    }
}

fn tcp_route(report: &mut Report<'_>, route: &TcpRoute, field: &str) {
    for (i, block) in route.r#match.iter().enumerate() {
        let field = format!("{field}.match[{i}]");
        for (j, subnet) in block.destination_subnets.iter().enumerate() {
            if parse_subnet(subnet).is_none() {
                report.error(
                    format!("{field}.destinationSubnets[{j}]"),
                    format!("{subnet:?} is not an address with a prefix length"),
                );
            }
        }
        if let Some(port) = block.port {
            report.port(port, format!("{field}.port"));
        }
        report.labels(&block.source_labels, &format!("{field}.sourceLabels"));
        match_gateways(report, &block.gateways, &field);
        if let Some(subnet) = &block.source_subnet
            && parse_subnet(subnet).is_none()
        {
            report.error(
                format!("{field}.sourceSubnet"),
                format!("{subnet:?} is not an address with a prefix length"),
            );
        }
    }
    opaque_route(report, &route.route, field);
}

/// Whether a host (perhaps a wildcard) contains another.
fn covers(own: &str, host: &str) -> bool {
    own.eq_ignore_ascii_case(host)
        || own
            .strip_prefix('*')
            .is_some_and(|suffix| host.trim_start_matches('*').ends_with(suffix))
}

fn tls_route(report: &mut Report<'_>, route: &TlsRoute, hosts: &[String], field: &str) {
    for (i, block) in route.r#match.iter().enumerate() {
        let field = format!("{field}.match[{i}]");
        if block.sni_hosts.is_empty() {
            report.error(format!("{field}.sniHosts"), "is required");
        }
        for (j, host) in block.sni_hosts.iter().enumerate() {
            let field = format!("{field}.sniHosts[{j}]");
            if report.host(host, true, &field) && !hosts.iter().any(|own| covers(own, host)) {
                report.error(field, format!("{host:?} is not one of spec.hosts"));
            }
        }
        for (j, subnet) in block.destination_subnets.iter().enumerate() {
            if parse_subnet(subnet).is_none() {
                report.error(
                    format!("{field}.destinationSubnets[{j}]"),
                    format!("{subnet:?} is not an address with a prefix length"),
                );
            }
        }
        if let Some(port) = block.port {
            report.port(port, format!("{field}.port"));
        }
        report.labels(&block.source_labels, &format!("{field}.sourceLabels"));
        match_gateways(report, &block.gateways, &field);
    }
    if route.r#match.is_empty() {
        report.error(format!("{field}.match"), "is required");
    }
    opaque_route(report, &route.route, field);
}

fn opaque_route(report: &mut Report<'_>, route: &[RouteDestination], field: &str) {
    if route.is_empty() {
        report.error(format!("{field}.route"), "is required");
    }
    weights(
        report,
        route.iter().map(|entry| (&entry.destination, entry.weight)),
        field,
    );
}

#[cfg(test)]
mod tests;
