//! What HTTP rules do with requests.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, StatusCode};

use super::super::*;
use super::regex;
use crate::resource::format::{self, FormatError};
use crate::resource::report::Report;
use crate::resource::value::grpc_status_code;

/// Body of a `directResponse` above which Istio refuses, in bytes.
const MAX_DIRECT_BODY: usize = 1024 * 1024;
/// Body of a `directResponse` above which Istio warns, in bytes.
const LARGE_DIRECT_BODY: usize = 100 * 1024;

pub(super) fn redirect(report: &mut Report<'_>, route: &HttpRoute, to: &HttpRedirect, field: &str) {
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

pub(super) fn direct_response(report: &mut Report<'_>, answer: &HttpDirectResponse, field: &str) {
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

pub(super) fn rewrite(report: &mut Report<'_>, change: &HttpRewrite, field: &str) {
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

pub(super) fn retries(report: &mut Report<'_>, retry: &HttpRetry, field: &str) {
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
                Err(_) if word == "http3-post-connect-failure" => {
                    let reason = format!("{word:?} has no effect: nothing is sent by HTTP/3");
                    report.warning(field, reason);
                }
                Err(_) => report.error(field, format!("{word:?} is not a condition for a retry")),
            }
        }
    }
}

pub(super) fn fault(report: &mut Report<'_>, injected: &HttpFault, field: &str) {
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

pub(super) fn headers(report: &mut Report<'_>, edits: &Headers, field: &str) {
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
                } else {
                    match format::parse(value) {
                        Ok(_) => {}
                        Err(error @ FormatError::Malformed) => {
                            report.error(field, error.to_string())
                        }
                        Err(error) => report.warning(field, error.to_string()),
                    }
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
