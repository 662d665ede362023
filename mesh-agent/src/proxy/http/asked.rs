//! What a client asks of its own exchange, by Envoy's header fields: its
//! application is the one that has to wait.

use std::borrow::Cow;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::route::{AskedRetries, Plan, Retries};

const PREFIX: &str = "x-envoy-";
const TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const PER_TRY: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
const MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");
const RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const STATUS_CODES: HeaderName = HeaderName::from_static("x-envoy-retriable-status-codes");
const HEADER_NAMES: HeaderName = HeaderName::from_static("x-envoy-retriable-header-names");
/// How long the answer may take, for the server.
const EXPECTED: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const ATTEMPT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// How long an exchange may take, and how often it is tried.
pub(super) struct Bounds<'p> {
    pub(super) timeout: Option<Duration>,
    pub(super) retries: Cow<'p, Retries>,
}

impl<'p> Bounds<'p> {
    /// Those of the plan, unless the request asks for others. What it asks by is taken
    /// out of it, and the time that the server has is put in.
    pub(super) fn of(plan: &Plan<'p>, headers: &mut HeaderMap) -> Self {
        let mut bounds = Self {
            timeout: plan.timeout,
            retries: Cow::Borrowed(plan.retries),
        };
        if headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
            bounds.ask(headers);
        }
        let each = bounds.retries.per_try_timeout;
        if let Some(expected) = each.or(bounds.timeout) {
            let ms = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            headers.insert(EXPECTED, HeaderValue::from(ms));
        }
        bounds
    }

    fn ask(&mut self, headers: &mut HeaderMap) {
        if let Some(timeout) = milliseconds(headers.remove(TIMEOUT)) {
            self.timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
        }
        let [on, grpc_on, codes, names] =
            [RETRY_ON, RETRY_GRPC_ON, STATUS_CODES, HEADER_NAMES].map(|name| headers.remove(name));
        let asked = AskedRetries {
            on: text(&on),
            grpc_on: text(&grpc_on),
            status_codes: text(&codes),
            headers: text(&names),
            max: headers.remove(MAX_RETRIES).and_then(|value| number(&value)),
            per_try_timeout: milliseconds(headers.remove(PER_TRY)),
        };
        if asked != AskedRetries::default() {
            let retries = self.retries.to_mut();
            *retries = retries.asked(&asked);
        }
        // A bound for each try that is none is left out.
        let all = self.timeout;
        let is_none = |each: Duration| each.is_zero() || all.is_some_and(|all| each >= all);
        if self.retries.per_try_timeout.is_some_and(is_none) {
            self.retries.to_mut().per_try_timeout = None;
        }
    }
}

/// Tells the server how often the request has been tried, this time included.
pub(super) fn count_attempt(headers: &mut HeaderMap, attempt: u32) {
    let value = match attempt {
        1 => HeaderValue::from_static("1"),
        more => HeaderValue::from(more),
    };
    headers.insert(ATTEMPT, value);
}

fn text(value: &Option<HeaderValue>) -> &str {
    value
        .as_ref()
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn number<T: std::str::FromStr>(value: &HeaderValue) -> Option<T> {
    value.to_str().ok()?.trim().parse().ok()
}

fn milliseconds(value: Option<HeaderValue>) -> Option<Duration> {
    number(&value?).map(Duration::from_millis)
}
