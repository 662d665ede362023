//! What changes in a message because it is forwarded (RFC 9110, section 7.6):
//! hop-by-hop fields, authority, form of the target.

use std::borrow::Cow;

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, StatusCode, Version, request};

use super::pool::UpstreamProtocol;
use crate::policy::PathNormalization;
use crate::route::Rewritten;

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// Why a request cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::proxy) enum BadRequest {
    /// HTTP/1.1 requires one (RFC 9112, section 3.2).
    #[error("the request has no Host header")]
    NoHost,
    /// More than one.
    #[error("the request has several Host headers")]
    SeveralHosts,
    /// Not text.
    #[error("the request's authority is not a host and port")]
    Authority,
    /// Of none of its forms (RFC 9112, section 3.2), or after a rewrite, or in another
    /// version of HTTP.
    #[error("the request's target cannot be forwarded")]
    Target,
    /// Other than `chunked`, once.
    #[error("the request's transfer coding is not understood")]
    TransferCoding,
    /// Of an extended CONNECT, other than `websocket`.
    #[error("the request's protocol is not understood")]
    Protocol,
}

impl BadRequest {
    pub(in crate::proxy) fn status(self) -> StatusCode {
        match self {
            Self::TransferCoding | Self::Protocol => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl BadRequest {
    /// As Envoy calls it in its log.
    pub(in crate::proxy) fn details(self) -> &'static str {
        match self {
            Self::NoHost => "missing_host_header",
            Self::SeveralHosts | Self::Authority => "invalid_authority",
            Self::Target => "path_normalization_failed",
            Self::TransferCoding => "http1.invalid_transfer_encoding",
            Self::Protocol => "upgrade_failed",
        }
    }
}

/// Makes a request one that routes and policies can judge: its path is in its normal form,
/// and it cannot turn its connection into HTTP/2, whose requests nobody would see.
pub(in crate::proxy) fn admit<B>(
    request: &mut Request<B>,
    normalization: PathNormalization,
) -> Result<(), BadRequest> {
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(BadRequest::TransferCoding);
    }
    let uri = request.uri();
    if uri.authority().is_some() && uri.scheme().is_none() && request.method() != Method::CONNECT {
        return Err(BadRequest::Target);
    }
    if let Some(path) = uri.path_and_query() {
        let normal = normalization
            .apply(path.as_str())
            .ok_or(BadRequest::Target)?;
        if let Cow::Owned(normal) = normal {
            let normal = normal.parse().map_err(|_| BadRequest::Target)?;
            *request.uri_mut() = with_path(std::mem::take(request.uri_mut()), normal)?;
        }
    }
    let headers = request.headers_mut();
    if headers.contains_key(UPGRADE) && listed(headers, &UPGRADE, "h2c") {
        headers.remove(UPGRADE);
        headers.remove(HTTP2_SETTINGS);
    }
    Ok(())
}

/// Host and port that a request is for; empty only for HTTP/1.0.
pub(in crate::proxy) fn authority<B>(request: &Request<B>) -> Result<&str, BadRequest> {
    if let Some(authority) = request.uri().authority() {
        return Ok(authority.as_str());
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err(BadRequest::SeveralHosts),
        (Some(host), None) => host.to_str().map_err(|_| BadRequest::Authority),
        (None, _) if request.version() == Version::HTTP_10 => Ok(""),
        (None, _) => Err(BadRequest::NoHost),
    }
}

/// Whether a request is gRPC: its content type says so (gRPC over HTTP/2, "Content-Type").
pub(in crate::proxy) fn is_grpc(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(only), None) = (types.next(), types.next()) else {
        return false;
    };
    let rest = only.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Whether a request asks for another protocol on its connection.
pub(in crate::proxy) fn is_upgrade(parts: &request::Parts) -> bool {
    parts.version == Version::HTTP_11
        && (parts.method == Method::CONNECT
            || (parts.headers.contains_key(UPGRADE)
                && listed(&parts.headers, &CONNECTION, "upgrade")))
}

fn listed(headers: &HeaderMap, name: &HeaderName, option: &str) -> bool {
    list(headers, name).any(|named| named.eq_ignore_ascii_case(option))
}

/// The members of a field that is a list.
fn list<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Removes what is for one connection only.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = list(headers, &CONNECTION)
            .filter_map(|name| name.parse().ok())
            // A message without these would be another message.
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

/// Makes the request that is sent to the endpoint out of the client's.
/// `default_authority` is for HTTP/1.0 clients that name no host.
pub(super) fn forward(
    parts: &mut request::Parts,
    rewritten: &Rewritten,
    default_authority: &str,
    protocol: UpstreamProtocol,
) -> Result<(), BadRequest> {
    let any_http2 = parts.version == Version::HTTP_2 || protocol == UpstreamProtocol::Http2;
    if parts.method == Method::CONNECT && any_http2 {
        return Err(BadRequest::Target);
    }
    let headers = &mut parts.headers;
    let takes_trailers = listed(headers, &TE, "trailers");
    let upgrade = headers
        .get(UPGRADE)
        .filter(|_| listed(headers, &CONNECTION, "upgrade"))
        .cloned();
    strip_hop_by_hop(headers);
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if protocol == UpstreamProtocol::Http1 {
        if let Some(upgrade) = upgrade.filter(|_| parts.version == Version::HTTP_11) {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, upgrade);
        } else if takes_trailers {
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        if parts.version == Version::HTTP_2 {
            join_cookies(headers);
        }
    } else {
        // Answered by us: the body is read from the client when the endpoint takes it.
        headers.remove(EXPECT);
    }
    if let Some(path) = &rewritten.path_and_query {
        let original = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        if let Ok(original) = HeaderValue::from_str(original) {
            headers.insert(ORIGINAL_PATH, original);
        }
        let path = path.parse().map_err(|_| BadRequest::Target)?;
        parts.uri = with_path(std::mem::take(&mut parts.uri), path)?;
    }
    retarget(
        parts,
        rewritten.authority.as_ref(),
        default_authority,
        protocol,
    )
}

fn with_path(uri: Uri, path: PathAndQuery) -> Result<Uri, BadRequest> {
    let mut uri = uri.into_parts();
    uri.path_and_query = Some(path);
    Uri::from_parts(uri).map_err(|_| BadRequest::Target)
}

/// Writes authority and target in the form of the endpoint's protocol.
fn retarget(
    parts: &mut request::Parts,
    authority: Option<&HeaderValue>,
    default_authority: &str,
    protocol: UpstreamProtocol,
) -> Result<(), BadRequest> {
    let was_http2 = parts.version == Version::HTTP_2;
    let of_target = parts
        .uri
        .authority()
        .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let asked = of_target.or_else(|| parts.headers.get(HOST).cloned());
    if let (Some(_), Some(asked)) = (authority, &asked) {
        parts.headers.insert(ORIGINAL_HOST, asked.clone());
    }
    let host = authority
        .cloned()
        .or(asked)
        .or_else(|| HeaderValue::from_str(default_authority).ok())
        .ok_or(BadRequest::Authority)?;
    match protocol {
        UpstreamProtocol::Http1 => {
            // The absolute form is kept for the proxies that want it (RFC 9112, section 3.2.2).
            let keep = parts.method == Method::CONNECT || (!was_http2 && authority.is_none());
            if !keep && parts.uri.authority().is_some() {
                let path = parts.uri.path_and_query().cloned();
                parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
            }
            parts.headers.insert(HOST, host);
            parts.version = Version::HTTP_11;
        }
        UpstreamProtocol::Http2 => {
            let mut uri = std::mem::take(&mut parts.uri).into_parts();
            uri.scheme = uri.scheme.or(Some(Scheme::HTTP));
            uri.authority =
                Some(Authority::try_from(host.as_bytes()).map_err(|_| BadRequest::Authority)?);
            if uri.path_and_query.is_none() {
                uri.path_and_query = Some(PathAndQuery::from_static("/"));
            }
            parts.uri = Uri::from_parts(uri).map_err(|_| BadRequest::Target)?;
            parts.headers.remove(HOST);
            parts.version = Version::HTTP_2;
        }
    }
    Ok(())
}

/// HTTP/2 may split cookies, HTTP/1.1 may not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}
