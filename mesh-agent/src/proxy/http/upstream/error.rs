//! How connections to endpoints fail, and requests over them.

use std::io;
use std::time::Duration;

use http::{Request, request};

use crate::balance::Overflow;
use crate::proxy::http::BodyError;
use crate::proxy::http::request_body::RequestBody;

/// Why a request got no response over its connection.
pub(in crate::proxy::http) enum Unsent {
    /// The connection had been closed; the request has not been touched.
    Untouched(Box<request::Parts>),
    /// The connection ended.
    Ended(Ended),
}

/// A connection that ended under a request.
pub(in crate::proxy::http) struct Ended {
    pub(in crate::proxy::http) cause: Chain,
    /// The server has said that it did not process the request.
    pub(in crate::proxy::http) refused: bool,
    /// The connection had served other requests before: it may have been closed for its age.
    pub(in crate::proxy::http) reused: bool,
    /// A stream was reset, not the connection.
    pub(in crate::proxy::http) reset: bool,
    /// The client ended its own request.
    pub(in crate::proxy::http) client: bool,
}

impl Unsent {
    pub(super) fn of(
        mut error: hyper::client::conn::TrySendError<Request<RequestBody>>,
        reused: bool,
    ) -> Self {
        match error.take_message() {
            Some(request) => Self::Untouched(Box::new(request.into_parts().0)),
            None => Self::Ended(Ended::new(error.into_error(), reused)),
        }
    }
}

impl Ended {
    fn new(error: hyper::Error, reused: bool) -> Self {
        let h2 = source::<h2::Error>(&error);
        Self {
            // A stream that a graceful GOAWAY ends was not processed (RFC 9113, section 6.8).
            refused: h2.is_some_and(|h2| match h2.reason() {
                Some(h2::Reason::REFUSED_STREAM) => true,
                Some(h2::Reason::NO_ERROR) => h2.is_go_away() && h2.is_remote(),
                _ => false,
            }),
            reset: h2.is_some_and(h2::Error::is_reset),
            client: source::<BodyError>(&error).is_some(),
            reused,
            cause: Chain(error),
        }
    }
}

/// Whether a body ended before the end that its head had announced.
pub(in crate::proxy::http) fn is_cut_short(error: &hyper::Error) -> bool {
    let unexpected = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
    error.is_incomplete_message() || source(error).is_some_and(unexpected)
}

fn source<T: std::error::Error + 'static>(error: &hyper::Error) -> Option<&T> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// An error of hyper's with its causes, which its own text leaves out.
#[derive(Debug)]
pub(in crate::proxy::http) struct Chain(hyper::Error);

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = std::error::Error::source(&self.0);
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy::http) enum ConnectError {
    /// It was refused, or the like.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It took too long.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// A bound of the DestinationRule is reached.
    #[error("reset reason: overflow")]
    Overflow(#[from] Overflow),
    /// The endpoint did not begin to speak HTTP.
    #[error("HTTP handshake: {0}")]
    Handshake(hyper::Error),
}

impl ConnectError {
    /// As Envoy puts it in its log, where the system said it.
    pub(in crate::proxy::http) fn transport_failure(&self) -> String {
        let text = self.to_string();
        match text.split_once(" (os error") {
            Some((text, _)) => format!("delayed_connect_error: {text}"),
            None => text,
        }
    }

    /// Whether a policy of the destination forbids the connection (not the
    /// system, whose refusals have a number).
    pub(in crate::proxy::http) fn is_denied(&self) -> bool {
        matches!(self, Self::Io(error)
            if error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none())
    }
}
