//! The PROXY protocol's header (haproxy.org, proxy-protocol.txt): who is behind
//! a connection.

use std::net::{IpAddr, SocketAddr};

use crate::resource::destination_rule::ProxyProtocolVersion;

/// Beginning of every header of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
/// TCP over IPv4, and over IPv6.
const FAMILIES: [u8; 2] = [0x11, 0x21];

/// The header of a connection that `client` has made to `server`: to the address that it asked for, as
/// in Envoy, not to that of the endpoint, which the server knows.
pub(super) fn proxy_header(
    version: ProxyProtocolVersion,
    client: SocketAddr,
    server: SocketAddr,
) -> Vec<u8> {
    let (from, to) = one_family(client.ip().to_canonical(), server.ip().to_canonical());
    let (from_port, to_port) = (client.port(), server.port());
    match version {
        ProxyProtocolVersion::V1 => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n").into_bytes()
        }
        ProxyProtocolVersion::V2 => {
            let mut addresses = Vec::with_capacity(36);
            for ip in [from, to] {
                match ip {
                    IpAddr::V4(ip) => addresses.extend(ip.octets()),
                    IpAddr::V6(ip) => addresses.extend(ip.octets()),
                }
            }
            for port in [from_port, to_port] {
                addresses.extend(port.to_be_bytes());
            }
            let mut header = SIGNATURE.to_vec();
            header.extend([VERSION_AND_COMMAND, FAMILIES[usize::from(from.is_ipv6())]]);
            // 12 or 36.
            header.extend((addresses.len() as u16).to_be_bytes());
            header.extend(addresses);
            header
        }
    }
}

/// A header has one family for both addresses.
fn one_family(a: IpAddr, b: IpAddr) -> (IpAddr, IpAddr) {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V6(_)) => (a.to_ipv6_mapped().into(), b),
        (IpAddr::V6(_), IpAddr::V4(b)) => (a, b.to_ipv6_mapped().into()),
        _ => (a, b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: ProxyProtocolVersion, client: &str, server: &str) -> Vec<u8> {
        let parse = |text: &str| text.parse().expect("an address");
        proxy_header(version, parse(client), parse(server))
    }

    #[test]
    fn version_1_is_a_line() {
        let v1 = |client, server| {
            String::from_utf8(header(ProxyProtocolVersion::V1, client, server)).expect("text")
        };
        assert_eq!(
            v1("10.0.0.1:1234", "10.0.0.2:80"),
            "PROXY TCP4 10.0.0.1 10.0.0.2 1234 80\r\n"
        );
        assert_eq!(
            v1("[fd00::1]:1234", "[fd00::2]:80"),
            "PROXY TCP6 fd00::1 fd00::2 1234 80\r\n"
        );
        assert_eq!(
            v1("[::ffff:10.0.0.1]:1", "10.0.0.2:80"),
            "PROXY TCP4 10.0.0.1 10.0.0.2 1 80\r\n"
        );
    }

    #[test]
    fn version_2_is_binary() {
        let bytes = header(ProxyProtocolVersion::V2, "10.0.0.1:258", "10.0.0.2:80");
        assert_eq!(bytes[..12], SIGNATURE);
        assert_eq!(
            bytes[12..],
            [0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 0, 80]
        );
        let bytes = header(ProxyProtocolVersion::V2, "[fd00::1]:1", "10.0.0.2:80");
        assert_eq!((bytes[13], bytes.len()), (0x21, 16 + 36));
    }
}
