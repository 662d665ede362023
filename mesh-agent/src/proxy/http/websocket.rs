//! WebSocket over HTTP/2 (RFC 8441) on its way to servers, which all know it
//! over HTTP/1.1 (RFC 6455).

use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, UPGRADE};
use http::uri::Uri;
use http::{Method, Request, StatusCode, Version, response};
use hyper::ext::Protocol;
use rand::Rng;

use super::message::BadRequest;

const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// Makes an extended CONNECT the request that HTTP/1.1 has for the same; the result says
/// whether it was one.
pub(super) fn admit<B>(request: &mut Request<B>) -> Result<bool, BadRequest> {
    if request.method() != Method::CONNECT {
        return Ok(false);
    }
    let Some(protocol) = request.extensions_mut().remove::<Protocol>() else {
        return Ok(false);
    };
    if protocol.as_str() != "websocket" {
        return Err(BadRequest::Protocol);
    }
    let uri = std::mem::take(request.uri_mut()).into_parts();
    let authority = uri.authority.ok_or(BadRequest::Authority)?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| BadRequest::Authority)?;
    *request.uri_mut() = Uri::from(uri.path_and_query.ok_or(BadRequest::Target)?);
    *request.method_mut() = Method::GET;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(KEY, key(&mut rand::rng()));
    Ok(true)
}

/// Makes the answer to such a request one of HTTP/2. A server that answers but does not
/// switch has not agreed.
pub(super) fn answer(parts: &mut response::Parts) {
    match parts.status {
        StatusCode::SWITCHING_PROTOCOLS => {
            parts.status = StatusCode::OK;
            for name in [CONNECTION, UPGRADE, ACCEPT] {
                parts.headers.remove(name);
            }
        }
        status if status.is_success() => parts.status = StatusCode::BAD_GATEWAY,
        _ => {}
    }
}

/// Sixteen bytes in base64. Nobody looks at their sum: it is for caches between HTTP/1.1
/// clients and servers.
fn key(random: &mut impl Rng) -> HeaderValue {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = [b'='; 24];
    for digit in &mut text[..21] {
        *digit = DIGITS[random.random_range(0..64)];
    }
    // The last one stands for two bits.
    text[21] = DIGITS[random.random_range(0..4) * 16];
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(protocol: &'static str) -> Request<()> {
        Request::builder()
            .method(Method::CONNECT)
            .version(Version::HTTP_2)
            .uri("http://shop:81/chat?room=1")
            .extension(Protocol::from_static(protocol))
            .header("sec-websocket-protocol", "chat")
            .body(())
            .unwrap()
    }

    #[test]
    fn an_extended_connect_becomes_an_upgrade() {
        let mut request = asked("websocket");
        assert_eq!(admit(&mut request), Ok(true));
        assert_eq!(
            (request.method(), request.uri().to_string().as_str()),
            (&Method::GET, "/chat?room=1")
        );
        let headers = request.headers();
        assert_eq!(headers["host"], "shop:81");
        assert_eq!(headers["upgrade"], "websocket");
        assert_eq!(headers["sec-websocket-protocol"], "chat");
        let key = headers["sec-websocket-key"].to_str().unwrap();
        assert!(key.len() == 24 && key.ends_with("=="), "{key}");
        assert!("AQgw".contains(&key[21..22]), "{key}");
        assert_eq!(admit(&mut asked("connect-udp")), Err(BadRequest::Protocol));
        let mut plain = asked("websocket");
        plain.extensions_mut().clear();
        assert_eq!(admit(&mut plain), Ok(false));
    }

    #[test]
    fn only_a_switch_is_a_yes() {
        for (status, expected) in [(101, 200), (200, 502), (204, 502), (403, 403), (302, 302)] {
            let (mut parts, ()) = http::Response::builder()
                .status(status)
                .header("sec-websocket-accept", "x")
                .header("sec-websocket-protocol", "chat")
                .body(())
                .unwrap()
                .into_parts();
            answer(&mut parts);
            assert_eq!(parts.status, expected);
            assert!(parts.headers.contains_key("sec-websocket-protocol"));
            assert_eq!(parts.headers.contains_key(ACCEPT), status != 101);
        }
    }
}
