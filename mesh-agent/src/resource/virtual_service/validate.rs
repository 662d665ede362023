//! Which VirtualServices can be used, field by field.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, StatusCode};
use regex::Regex;

use super::*;
use crate::resource::report::Report;
use crate::resource::value::{grpc_status_code, parse_subnet};
use crate::resource::{Finding, Resource};

/// Longest regular expression, in characters, as in Istio.
const MAX_REGEX_LENGTH: usize = 1024;
/// Body of a `directResponse` above which Istio refuses, in bytes.
const MAX_DIRECT_BODY: usize = 1024 * 1024;
/// Body of a `directResponse` above which Istio warns, in bytes.
const LARGE_DIRECT_BODY: usize = 100 * 1024;

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
    let mut ended_by = None;
    for (i, route) in spec.http.iter().enumerate() {
        let field = format!("spec.http[{i}]");
        if let Some(last) = ended_by {
            report.warning(
                field.clone(),
                format!("is never reached: http[{last}] matches every request"),
            );
        } else if route.r#match.is_empty() || route.r#match.iter().any(matches_everything) {
            ended_by = Some(i);
        }
        http_route(&mut report, route, &field);
    }
    for (i, route) in spec.tcp.iter().enumerate() {
        tcp_route(&mut report, route, &format!("spec.tcp[{i}]"));
    }
    for (i, route) in spec.tls.iter().enumerate() {
        tls_route(&mut report, route, &format!("spec.tls[{i}]"));
    }
    report.into_findings()
}

fn hosts(report: &mut Report<'_>, spec: &VirtualServiceSpec) {
    if spec.hosts.is_empty() {
        report.error(
            "spec.hosts",
            "must name a host (a VirtualService without hosts is a delegate, which this version does not apply)",
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

fn matches_everything(block: &HttpMatch) -> bool {
    let root = StringMatch {
        prefix: Some("/".into()),
        ..StringMatch::default()
    };
    *block
        == HttpMatch {
            name: block.name.clone(),
            stat_prefix: block.stat_prefix.clone(),
            ignore_uri_case: block.ignore_uri_case,
            uri: Some(root),
            ..HttpMatch::default()
        }
}

fn http_route(report: &mut Report<'_>, route: &HttpRoute, field: &str) {
    for (i, block) in route.r#match.iter().enumerate() {
        http_match(report, block, &format!("{field}.match[{i}]"));
    }
    action(report, route, field);
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
            headers(report, edits, &format!("{field}.route[{i}].headers"));
        }
    }
    report.duration_or_zero(route.timeout, format!("{field}.timeout"));
    if let Some(retry) = &route.retries {
        retries(report, retry, &format!("{field}.retries"));
    }
    if let Some(injected) = &route.fault {
        fault(report, injected, &format!("{field}.fault"));
    }
    if let Some(edits) = &route.headers {
        headers(report, edits, &format!("{field}.headers"));
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
    report.not_applied(route.mirror.is_some(), format!("{field}.mirror"));
    report.not_applied(!route.mirrors.is_empty(), format!("{field}.mirrors"));
    report.not_applied(route.cors_policy.is_some(), format!("{field}.corsPolicy"));
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
fn action(report: &mut Report<'_>, route: &HttpRoute, field: &str) {
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
    }
    if let Some(to) = &route.redirect {
        redirect(report, route, to, &format!("{field}.redirect"));
    }
    if let Some(answer) = &route.direct_response {
        direct_response(report, answer, &format!("{field}.directResponse"));
    }
    if route.delegate.is_some() {
        report.warning(
            format!("{field}.delegate"),
            "not applied by this version: the rule is left out",
        );
    }
    if let Some(change) = &route.rewrite {
        rewrite(report, change, &format!("{field}.rewrite"));
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
        report.error(field, format!("is not an RE2 expression: {reason}"));
    }
}

fn destination(report: &mut Report<'_>, destination: &Destination, field: &str) {
    report.host(&destination.host, false, format!("{field}.host"));
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

fn redirect(report: &mut Report<'_>, route: &HttpRoute, to: &HttpRedirect, field: &str) {
    if to.uri.is_none()
        && to.prefix_rewrite.is_none()
        && to.authority.is_none()
        && to.scheme.is_none()
        && to.port.is_none()
    {
        report.error(
            field,
            "needs at least one of uri, prefixRewrite, authority, scheme and port",
        );
    }
    if to.uri.is_some() && to.prefix_rewrite.is_some() {
        report.error(format!("{field}.prefixRewrite"), "excludes uri");
    }
    let prefix_only =
        |block: &HttpMatch| block.uri.as_ref().is_some_and(|uri| uri.prefix.is_some());
    if to.prefix_rewrite.is_some()
        && (route.r#match.is_empty() || !route.r#match.iter().all(prefix_only))
    {
        report.error(
            format!("{field}.prefixRewrite"),
            "needs prefix matches of the uri",
        );
    }
    if to.port.is_some() && to.derive_port.is_some() {
        report.error(format!("{field}.derivePort"), "excludes port");
    }
    if let Some(port) = to.port {
        report.port(port, format!("{field}.port"));
    }
    if let Some(scheme) = &to.scheme
        && !matches!(scheme.as_str(), "http" | "https")
    {
        report.error(
            format!("{field}.scheme"),
            format!("{scheme:?} is neither http nor https"),
        );
    }
    match to.redirect_code {
        None | Some(301 | 302 | 303 | 307 | 308) => {}
        Some(code @ 300..=399) => report.error(
            format!("{field}.redirectCode"),
            format!("{code} is not one of 301, 302, 303, 307 and 308"),
        ),
        Some(code) => report.error(
            format!("{field}.redirectCode"),
            format!("{code} is no redirection"),
        ),
    }
}

fn direct_response(report: &mut Report<'_>, answer: &HttpDirectResponse, field: &str) {
    if !(200..=599).contains(&answer.status) {
        report.error(
            format!("{field}.status"),
            format!("{} is not within 200 to 599", answer.status),
        );
    }
    let Some(body) = &answer.body else { return };
    let length = match (&body.string, &body.bytes) {
        (Some(_), Some(_)) => {
            return report.error(format!("{field}.body.bytes"), "excludes string");
        }
        (Some(text), None) => text.len(),
        (None, Some(bytes)) => bytes.0.len(),
        (None, None) => 0,
    };
    if length > MAX_DIRECT_BODY {
        report.error(
            format!("{field}.body"),
            format!("{length} bytes are more than 1 MB"),
        );
    } else if length > LARGE_DIRECT_BODY {
        report.warning(
            format!("{field}.body"),
            format!("{length} bytes are a lot to keep in the configuration"),
        );
    }
}

fn rewrite(report: &mut Report<'_>, change: &HttpRewrite, field: &str) {
    if change.uri.is_none() && change.authority.is_none() && change.uri_regex_rewrite.is_none() {
        report.error(field, "needs uri, authority or uriRegexRewrite");
    }
    if let Some(authority) = &change.authority
        && HeaderValue::from_str(authority).is_err()
    {
        report.error(
            format!("{field}.authority"),
            format!("{authority:?} is not an authority"),
        );
    }
    if let Some(pattern) = &change.uri_regex_rewrite {
        if change.uri.is_some() {
            report.error(format!("{field}.uriRegexRewrite"), "excludes uri");
        }
        regex(
            report,
            &pattern.r#match,
            &format!("{field}.uriRegexRewrite.match"),
        );
    }
}

fn retries(report: &mut Report<'_>, retry: &HttpRetry, field: &str) {
    if retry.attempts < 0 {
        report.error(
            format!("{field}.attempts"),
            format!("{} is negative", retry.attempts),
        );
    }
    report.duration_or_zero(retry.per_try_timeout, format!("{field}.perTryTimeout"));
    report.duration(retry.backoff, format!("{field}.backoff"));
    if let Some(words) = &retry.retry_on {
        for word in words
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            let field = format!("{field}.retryOn");
            match word.parse::<u16>() {
                Ok(code) if StatusCode::from_u16(code).is_ok() => {}
                Ok(code) => report.error(field, format!("{code} is not a status code")),
                Err(_) if RETRY_CONDITIONS.contains(&word) => {}
                Err(_) if matches!(word, "retriable-headers" | "http3-post-connect-failure") => {
                    report.warning(field, format!("{word:?} is not applied by this version"));
                }
                Err(_) => report.error(field, format!("{word:?} is not a condition for a retry")),
            }
        }
    }
    report.not_applied(
        retry.retry_remote_localities == Some(true),
        format!("{field}.retryRemoteLocalities"),
    );
}

fn fault(report: &mut Report<'_>, injected: &HttpFault, field: &str) {
    if injected.delay.is_none() && injected.abort.is_none() {
        report.error(field, "needs delay or abort");
    }
    if let Some(delay) = &injected.delay {
        let field = format!("{field}.delay");
        if delay.exponential_delay.is_some() {
            report.error(
                format!("{field}.exponentialDelay"),
                "is not supported, use fixedDelay",
            );
        } else if delay.fixed_delay.is_none() {
            report.error(format!("{field}.fixedDelay"), "is required");
        }
        report.duration(delay.fixed_delay, format!("{field}.fixedDelay"));
        report.percent(delay.percentage, format!("{field}.percentage.value"));
        if delay
            .percent
            .is_some_and(|percent| !(0..=100).contains(&percent))
        {
            report.error(format!("{field}.percent"), "must be between 0 and 100");
        }
        if delay.percentage.is_none() && delay.percent.is_none() {
            report.warning(
                format!("{field}.percentage"),
                "is left out: no request is delayed",
            );
        }
    }
    if let Some(abort) = &injected.abort {
        let field = format!("{field}.abort");
        match (abort.http_status, &abort.grpc_status, &abort.http2_error) {
            (_, _, Some(_)) => report.error(format!("{field}.http2Error"), "is not supported"),
            (Some(status), None, None) => {
                if !(200..=599).contains(&status) {
                    report.error(
                        format!("{field}.httpStatus"),
                        format!("{status} is not within 200 to 599"),
                    );
                }
            }
            (None, Some(status), None) => {
                if grpc_status_code(status).is_none() {
                    report.error(
                        format!("{field}.grpcStatus"),
                        format!("{status:?} is not the name of a gRPC status"),
                    );
                }
            }
            (Some(_), Some(_), None) => {
                report.error(format!("{field}.grpcStatus"), "excludes httpStatus")
            }
            (None, None, None) => report.error(field.clone(), "needs httpStatus or grpcStatus"),
        }
        report.percent(abort.percentage, format!("{field}.percentage.value"));
        if abort.percentage.is_none() {
            report.warning(
                format!("{field}.percentage"),
                "is left out: no request is aborted",
            );
        }
    }
}

fn headers(report: &mut Report<'_>, edits: &Headers, field: &str) {
    for (side, operations) in [("request", &edits.request), ("response", &edits.response)] {
        let Some(operations) = operations else {
            continue;
        };
        let field = format!("{field}.{side}");
        let mut authorities = 0;
        for (verb, values) in [("set", &operations.set), ("add", &operations.add)] {
            authorities += authority_keys(values);
            for (name, value) in values {
                let field = format!("{field}.{verb}[{name}]");
                header_name(report, name, side, &field);
                if HeaderValue::from_str(value).is_err() {
                    report.error(field, format!("{value:?} is not a header value"));
                } else if value.replace("%%", "").contains('%') {
                    report.warning(field, "%...% commands are not applied by this version: the value is sent as it stands");
                }
            }
        }
        for (i, name) in operations.remove.iter().enumerate() {
            header_name(report, name, "", &format!("{field}.remove[{i}]"));
        }
        if side == "request" && authorities > 1 {
            report.error(field, "gives the authority twice");
        }
    }
}

fn authority_keys(values: &BTreeMap<String, String>) -> usize {
    values.keys().filter(|name| is_authority(name)).count()
}

fn is_authority(name: &str) -> bool {
    name == ":authority" || name.eq_ignore_ascii_case("host")
}

fn header_name(report: &mut Report<'_>, name: &str, side: &str, field: &str) {
    if is_authority(name) && side == "request" {
        return;
    }
    if name.starts_with(':') || is_authority(name) {
        report.warning(field, "has no effect: this header is not edited here");
    } else if HeaderName::from_bytes(name.as_bytes()).is_err() {
        report.error(field, format!("{name:?} is not a header name"));
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
        report.not_applied(
            block.source_subnet.is_some(),
            format!("{field}.sourceSubnet"),
        );
    }
    opaque_route(report, &route.route, field);
}

fn tls_route(report: &mut Report<'_>, route: &TlsRoute, field: &str) {
    for (i, block) in route.r#match.iter().enumerate() {
        if block.sni_hosts.is_empty() {
            report.error(format!("{field}.match[{i}].sniHosts"), "is required");
        }
    }
    if route.r#match.is_empty() {
        report.error(format!("{field}.match"), "is required");
    }
    opaque_route(report, &route.route, field);
    report.not_applied(true, field);
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
