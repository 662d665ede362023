//! Exchanges without an answer of an endpoint: what the client gets instead.

use http::StatusCode;

use super::message::BadRequest;

/// An exchange that failed: the answer that the client gets.
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) flag: &'static str,
    pub(super) reason: String,
    /// A bound of the DestinationRule is reached: the answer says so by `x-envoy-overloaded`.
    pub(super) overloaded: bool,
}

impl Failure {
    fn new(status: StatusCode, flag: &'static str, reason: String) -> Self {
        Self {
            status,
            flag,
            reason,
            overloaded: false,
        }
    }

    pub(super) fn unavailable(flag: &'static str, cause: &dyn std::fmt::Display) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            flag,
            format!("upstream connect error or disconnect/reset before headers: {cause}"),
        )
    }

    pub(super) fn overflow() -> Self {
        Self {
            overloaded: true,
            ..Self::unavailable("UO", &"reset reason: overflow")
        }
    }

    /// As if the destination had looked at the request and answered.
    pub(super) fn denied() -> Self {
        Self::new(StatusCode::FORBIDDEN, "-", "RBAC: access denied".to_owned())
    }

    pub(super) fn no_endpoint() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "UH",
            "no healthy upstream".to_owned(),
        )
    }

    pub(super) fn timeout() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "UT",
            "upstream request timeout".to_owned(),
        )
    }

    pub(super) fn bad_request(bad: BadRequest) -> Self {
        Self::new(bad.status(), "DPE", bad.to_string())
    }
}
