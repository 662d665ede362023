//! Answers that send a client elsewhere.

use http::StatusCode;

use super::edit::{replace_matched, with_query};
use super::matching::Text;
use super::view::RequestView;
use crate::resource::virtual_service::{DerivePort, HttpRedirect};

/// `redirect` of a rule, compiled.
#[derive(Debug)]
pub(super) struct Redirect {
    status: StatusCode,
    path: PathChange,
    scheme: Option<String>,
    authority: Option<String>,
    port: PortChange,
}

#[derive(Debug)]
enum PathChange {
    None,
    Whole(String),
    Prefix(String),
}

#[derive(Debug)]
enum PortChange {
    None,
    Number(u16),
    OfRequest,
}

/// A redirection as it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirection {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// Value of `Location`.
    pub location: String,
}

impl Redirect {
    pub(super) fn compile(redirect: &HttpRedirect) -> Self {
        Self {
            status: redirect
                .redirect_code
                .and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok())
                .unwrap_or(StatusCode::MOVED_PERMANENTLY),
            path: match (&redirect.uri, &redirect.prefix_rewrite) {
                (Some(uri), _) => PathChange::Whole(uri.clone()),
                (None, Some(prefix)) => PathChange::Prefix(prefix.clone()),
                (None, None) => PathChange::None,
            },
            scheme: redirect.scheme.clone(),
            authority: redirect.authority.clone(),
            port: match (redirect.port, redirect.derive_port) {
                (Some(port), _) => u16::try_from(port).map_or(PortChange::None, PortChange::Number),
                (None, Some(DerivePort::FromRequestPort)) => PortChange::OfRequest,
                (None, _) => PortChange::None,
            },
        }
    }

    /// `port` is the one on which the client addressed the host.
    pub(super) fn answer(
        &self,
        request: &RequestView<'_>,
        port: u16,
        matched: Option<&Text>,
    ) -> Redirection {
        let scheme = self.scheme.as_deref().unwrap_or(request.scheme);
        let authority = self.authority.as_deref().unwrap_or(request.authority);
        let (host, own_port) = split_port(authority);
        // A port that the rule names is left out where it goes without saying.
        let unless_default = |port: u16| Some(port).filter(|_| Some(port) != default_port(scheme));
        let port = match self.port {
            PortChange::Number(number) => unless_default(number),
            PortChange::OfRequest => unless_default(port),
            // A port of the old scheme says nothing about the new one.
            PortChange::None
                if scheme != request.scheme && own_port == default_port(request.scheme) =>
            {
                None
            }
            PortChange::None => own_port,
        };
        let path = match &self.path {
            PathChange::None => request.path().to_owned(),
            PathChange::Whole(uri) => uri.clone(),
            PathChange::Prefix(prefix) => replace_matched(request.path(), prefix, matched),
        };
        let path = with_query(path, request.raw_query());
        let location = match port {
            Some(port) => format!("{scheme}://{host}:{port}{path}"),
            None => format!("{scheme}://{host}{path}"),
        };
        Redirection {
            status: self.status,
            location,
        }
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (authority, None),
        },
        _ => (authority, None),
    }
}
