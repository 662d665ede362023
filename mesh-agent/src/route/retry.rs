//! When a request is tried again.

use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};

use crate::resource::virtual_service::HttpRetry;

/// Retry policy of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Additional tries.
    pub attempts: u32,
    /// Bound for each try.
    pub per_try_timeout: Option<Duration>,
    /// Conditions.
    pub on: RetryOn,
    /// Base of the exponential back-off.
    pub backoff: Duration,
    /// Avoid endpoints that have been tried.
    pub ignore_previous_hosts: bool,
    /// Leave a locality whose endpoints fail.
    pub remote_localities: bool,
}

/// Conditions for a retry (Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// The connection could not be made.
    pub connect_failure: bool,
    /// The stream was refused: the server has not seen the request.
    pub refused_stream: bool,
    /// The connection ended without an answer.
    pub reset: bool,
    /// The connection ended before the request was sent.
    pub reset_before_request: bool,
    /// Status 500 to 599, and no answer at all.
    pub any_5xx: bool,
    /// Status 502, 503 or 504.
    pub gateway_error: bool,
    /// Status 409.
    pub conflict: bool,
    /// The answer has `x-envoy-ratelimited`.
    pub rate_limited: bool,
    /// These status codes.
    pub status_codes: Vec<u16>,
    /// These gRPC status codes: bit n for code n.
    pub grpc_codes: u32,
    /// The answer has one of `headers`.
    pub retriable_headers: bool,
    /// What a request names for that.
    pub headers: Vec<HeaderName>,
}

/// What a request asks for itself; empty for what it leaves to its rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AskedRetries<'a> {
    /// `x-envoy-retry-on`.
    pub on: &'a str,
    /// `x-envoy-retry-grpc-on`.
    pub grpc_on: &'a str,
    /// `x-envoy-retriable-status-codes`.
    pub status_codes: &'a str,
    /// `x-envoy-retriable-header-names`.
    pub headers: &'a str,
    /// `x-envoy-max-retries`.
    pub max: Option<u32>,
    /// `x-envoy-upstream-rq-per-try-timeout-ms`.
    pub per_try_timeout: Option<Duration>,
}

/// Istio's `meshConfig.defaultHttpRetryPolicy`.
impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 2,
            per_try_timeout: None,
            on: RetryOn::parse("connect-failure,refused-stream,unavailable,cancelled"),
            backoff: Duration::from_millis(25),
            ignore_previous_hosts: true,
            remote_localities: false,
        }
    }
}

impl Retries {
    pub(super) fn compile(retry: Option<&HttpRetry>) -> Self {
        let default = Self::default();
        let Some(retry) = retry else { return default };
        Self {
            attempts: u32::try_from(retry.attempts).unwrap_or(0),
            per_try_timeout: retry
                .per_try_timeout
                .map(|timeout| timeout.0)
                .filter(|timeout| !timeout.is_zero()),
            on: match retry.retry_on.as_deref() {
                Some(words) if !words.trim().is_empty() => RetryOn::parse(words),
                _ => default.on,
            },
            backoff: retry.backoff.map_or(default.backoff, |backoff| backoff.0),
            ignore_previous_hosts: retry.retry_ignore_previous_hosts.unwrap_or(true),
            remote_localities: retry.retry_remote_localities == Some(true),
        }
    }

    /// The same with what a request asks for itself: it adds conditions, and replaces numbers.
    pub fn asked(&self, asked: &AskedRetries<'_>) -> Self {
        let mut retries = self.clone();
        if asked.per_try_timeout.is_some() {
            retries.per_try_timeout = asked.per_try_timeout;
        }
        let words = [asked.on, asked.grpc_on].join(",");
        if words.len() > 1 {
            let on = if self.attempts == 0 {
                RetryOn::default()
            } else {
                self.on.clone()
            };
            retries.on = on.or(RetryOn::parse(&words));
            if words
                .split(',')
                .any(|word| word.trim() == "retriable-status-codes")
            {
                let codes = asked.status_codes.split(',');
                let codes = codes.filter_map(|code| code.trim().parse::<u16>().ok());
                retries.on.status_codes.extend(codes);
            }
            retries.attempts = self.attempts.max(1);
        }
        let names = asked.headers.split(',');
        let names = names.filter_map(|name| name.trim().parse().ok());
        retries.on.headers.extend(names);
        // Where nothing is retried, there is nothing to count.
        if let (Some(max), 1..) = (asked.max, retries.attempts) {
            retries.attempts = max;
        }
        retries
    }

    /// Wait before retry number `retry` (from 1): full jitter over an
    /// exponential back-off that is capped at ten times its base.
    pub fn wait(&self, retry: u32, random: &mut impl rand::Rng) -> Duration {
        let factor = (1u32 << retry.min(8)).saturating_sub(1).min(10);
        self.backoff.saturating_mul(factor).mul_f64(random.random())
    }
}

impl RetryOn {
    /// Reads the words of `retryOn`; unknown ones have been reported before.
    fn parse(words: &str) -> Self {
        let mut on = Self::default();
        for word in words.split(',').map(str::trim) {
            match word {
                "5xx" => on.any_5xx = true,
                "gateway-error" => on.gateway_error = true,
                "reset" => on.reset = true,
                "reset-before-request" => on.reset_before_request = true,
                "connect-failure" => on.connect_failure = true,
                "refused-stream" => on.refused_stream = true,
                "envoy-ratelimited" => on.rate_limited = true,
                "retriable-4xx" => on.conflict = true,
                "retriable-headers" => on.retriable_headers = true,
                "cancelled" => on.grpc_codes |= 1 << 1,
                "deadline-exceeded" => on.grpc_codes |= 1 << 4,
                "resource-exhausted" => on.grpc_codes |= 1 << 8,
                "internal" => on.grpc_codes |= 1 << 13,
                "unavailable" => on.grpc_codes |= 1 << 14,
                code => on.status_codes.extend(code.parse::<u16>()),
            }
        }
        on
    }

    /// The conditions of both.
    fn or(mut self, other: Self) -> Self {
        self.connect_failure |= other.connect_failure;
        self.refused_stream |= other.refused_stream;
        self.reset |= other.reset;
        self.reset_before_request |= other.reset_before_request;
        self.any_5xx |= other.any_5xx;
        self.gateway_error |= other.gateway_error;
        self.conflict |= other.conflict;
        self.rate_limited |= other.rate_limited;
        self.status_codes.extend(other.status_codes);
        self.grpc_codes |= other.grpc_codes;
        self.retriable_headers |= other.retriable_headers;
        self.headers.extend(other.headers);
        self
    }

    /// Whether an answer of the server asks for another try.
    pub fn answer(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let code = status.as_u16();
        (self.any_5xx && status.is_server_error())
            || (self.gateway_error && matches!(code, 502..=504))
            || (self.conflict && code == 409)
            || self.status_codes.contains(&code)
            || (self.rate_limited && headers.contains_key("x-envoy-ratelimited"))
            || (self.retriable_headers
                && (self.headers.iter()).any(|name| headers.contains_key(name)))
            || (self.grpc_codes != 0
                && headers
                    .get("grpc-status")
                    .and_then(|value| 1u32.checked_shl(value.to_str().ok()?.parse().ok()?))
                    .is_some_and(|bit| self.grpc_codes & bit != 0))
    }

    /// Whether a connection that could not be made asks for another try.
    pub fn connect(&self) -> bool {
        self.connect_failure || self.any_5xx || self.gateway_error
    }

    /// Whether a connection that ended before an answer asks for another try.
    /// `refused`: the server has said that it did not process the request.
    pub fn ended(&self, refused: bool) -> bool {
        self.reset || self.any_5xx || self.gateway_error || (refused && self.refused_stream)
    }

    /// Whether a request that has been sent over a connection could ever be
    /// sent again; HTTP/1.1 knows neither refused streams nor (mostly) gRPC statuses.
    pub fn after_sending(&self, http2_or_grpc: bool) -> bool {
        self.reset
            || self.any_5xx
            || self.gateway_error
            || self.conflict
            || self.rate_limited
            || !self.status_codes.is_empty()
            || (http2_or_grpc && (self.refused_stream || self.grpc_codes != 0))
    }
}
