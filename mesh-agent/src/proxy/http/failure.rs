//! Exchanges without an answer of an endpoint: what the client gets instead.

use std::borrow::Cow;

use http::StatusCode;
use mesh_common::Transport;

use super::message::BadRequest;
use super::upstream::ConnectError;
use crate::route::Unroutable;
use crate::telemetry::{Flag, Flags};

/// An exchange that failed: the answer that the client gets.
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) flags: Flags,
    /// Envoy's word for it.
    pub(super) details: Cow<'static, str>,
    pub(super) reason: String,
    /// Why it was refused, where nothing has failed: a transport that is none.
    pub(super) refused: Option<Transport>,
}

impl From<&Unroutable> for Failure {
    fn from(unroutable: &Unroutable) -> Self {
        let reason = unroutable.reason.clone();
        Self::new(
            unroutable.status,
            unroutable.flags,
            unroutable.details,
            reason,
        )
    }
}

impl Failure {
    fn new(
        status: StatusCode,
        flags: impl Into<Flags>,
        details: impl Into<Cow<'static, str>>,
        reason: String,
    ) -> Self {
        Self {
            status,
            flags: flags.into(),
            details: details.into(),
            reason,
            refused: None,
        }
    }

    fn unavailable(
        flag: Flag,
        details: impl Into<Cow<'static, str>>,
        cause: &dyn std::fmt::Display,
    ) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            flag,
            details,
            format!("upstream connect error or disconnect/reset before headers: {cause}"),
        )
    }

    /// There was no connection to an endpoint.
    pub(super) fn no_connection(cause: &ConnectError) -> Self {
        let reset = "upstream_reset_before_response_started";
        let details = match cause {
            ConnectError::Timeout(_) => format!("{reset}{{connection_timeout}}"),
            _ => {
                let cause = cause.transport_failure().replace(' ', "_");
                format!("{reset}{{remote_connection_failure|{cause}}}")
            }
        };
        Self::unavailable(Flag::UpstreamConnectionFailure, details, cause)
    }

    /// The endpoint ended the connection instead of answering.
    pub(super) fn terminated(cause: &dyn std::fmt::Display) -> Self {
        let details = "upstream_reset_before_response_started{connection_termination}";
        Self::unavailable(Flag::UpstreamConnectionTermination, details, cause)
    }

    /// The endpoint reset the stream instead of answering.
    pub(super) fn reset(cause: &dyn std::fmt::Display) -> Self {
        let details = "upstream_reset_before_response_started{remote_reset}";
        Self::unavailable(Flag::UpstreamRemoteReset, details, cause)
    }

    pub(super) fn overflow() -> Self {
        let details = "upstream_reset_before_response_started{overflow}";
        Self {
            refused: Some(Transport::NoRoom),
            ..Self::unavailable(Flag::UpstreamOverflow, details, &"reset reason: overflow")
        }
    }

    /// Whether a bound of the DestinationRule is reached.
    pub(super) fn is_overload(&self) -> bool {
        self.refused == Some(Transport::NoRoom)
    }

    /// As if the destination had looked at the request and answered.
    pub(super) fn denied() -> Self {
        let reason = "RBAC: access denied".to_owned();
        Self {
            refused: Some(Transport::Blocked),
            ..Self::new(
                StatusCode::FORBIDDEN,
                Flags::default(),
                "rbac_access_denied",
                reason,
            )
        }
    }

    pub(super) fn no_endpoint() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Flag::NoHealthyUpstream,
            "no_healthy_upstream",
            "no healthy upstream".to_owned(),
        )
    }

    pub(super) fn timeout() -> Self {
        Self::late("response_timeout")
    }

    /// One try took too long.
    pub(super) fn per_try_timeout() -> Self {
        Self::late("upstream_per_try_timeout")
    }

    fn late(details: &'static str) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            Flag::UpstreamRequestTimeout,
            details,
            "upstream request timeout".to_owned(),
        )
    }

    pub(super) fn bad_request(bad: BadRequest) -> Self {
        Self::new(
            bad.status(),
            Flag::DownstreamProtocolError,
            bad.details(),
            bad.to_string(),
        )
    }
}
