//! The `forwarded` header of a CONNECT: `for="address:port"` (RFC 7239,
//! sections 4 and 6), the true client's address.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue, header};

/// The header's value for a client.
pub fn value(client: SocketAddr) -> HeaderValue {
    let client = canonical(client);
    HeaderValue::try_from(format!("for=\"{client}\""))
        .expect("an address is made of visible ASCII characters")
}

/// The client's address, where there is exactly one header with one element
/// that gives address and port.
pub fn client(headers: &HeaderMap) -> Option<SocketAddr> {
    let mut all = headers.get_all(header::FORWARDED).iter();
    let (value, None) = (all.next()?.to_str().ok()?, all.next()) else {
        return None;
    };
    // A second element (a further proxy) would be separated by a comma, which
    // no address contains.
    if value.contains(',') {
        return None;
    }
    value
        .split(';')
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))
        .and_then(|(_, node)| unquoted(node.trim()).parse().ok())
        .map(canonical)
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text)
}

/// IPv4 as IPv4, also where a socket gave it as IPv6, and without scope.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Option<SocketAddr> {
        let mut headers = HeaderMap::new();
        headers.insert(header::FORWARDED, HeaderValue::from_str(text).ok()?);
        client(&headers)
    }

    #[test]
    fn forms_of_other_proxies_are_understood() {
        let four = Some("10.0.0.1:4711".parse().unwrap());
        for text in [
            "for=\"10.0.0.1:4711\"",
            "for=10.0.0.1:4711",
            "FOR=\"10.0.0.1:4711\";proto=http",
            "by=\"10.0.0.9:1\"; for=\"10.0.0.1:4711\"",
            "for=\"[::ffff:10.0.0.1]:4711\"",
        ] {
            assert_eq!(parse(text), four, "{text}");
        }
        assert_eq!(
            parse("for=\"[fd00::1]:80\""),
            Some("[fd00::1]:80".parse().unwrap())
        );
    }

    #[test]
    fn what_is_not_one_address_with_a_port_is_none() {
        for text in [
            "",
            "for",
            "for=",
            "for=10.0.0.1",
            "for=unknown",
            "for=\"_hidden:1\"",
            "for=\"10.0.0.1:1\", for=\"10.0.0.2:1\"",
            "for=\"10.0.0.1:1",
            "by=\"10.0.0.1:1\"",
            "for=\"10.0.0.1:99999\"",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        let mut twice = HeaderMap::new();
        twice.append(header::FORWARDED, value("10.0.0.1:1".parse().unwrap()));
        twice.append(header::FORWARDED, value("10.0.0.2:1".parse().unwrap()));
        assert_eq!(client(&twice), None);
    }

    proptest! {
        #[test]
        fn every_address_comes_back(ip: IpAddr, port: u16) {
            let address = SocketAddr::new(ip, port);
            let mut headers = HeaderMap::new();
            headers.insert(header::FORWARDED, value(address));
            prop_assert_eq!(client(&headers), Some(canonical(address)));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
