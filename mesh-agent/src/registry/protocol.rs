//! Which protocol a port declares.

use super::Protocol;
use crate::resource::PortProtocol;

/// Ports of protocols in which the server speaks first, or which are not HTTP
/// for certain: never sniffed (as in Istio).
const TCP_PORTS: [u16; 4] = [25, 53, 3306, 27017];

/// The protocol of a TCP port: `appProtocol` where set, else the name's part
/// before the first `-`, else by number, else the first bytes tell.
pub(super) fn declared(name: &str, app_protocol: Option<&str>, number: u16) -> Protocol {
    app_protocol
        .and_then(kubernetes)
        .or_else(|| by_name(app_protocol.unwrap_or(name)))
        .unwrap_or(if TCP_PORTS.contains(&number) {
            Protocol::Tcp
        } else {
            Protocol::Auto
        })
}

/// The same of a port that may say it in a field of its own.
pub fn of_port(protocol: PortProtocol, name: &str, number: u16) -> Protocol {
    match protocol {
        PortProtocol::Unset => declared(name, None, number),
        PortProtocol::Http => Protocol::Http,
        PortProtocol::Http2 => Protocol::Http2,
        PortProtocol::Grpc => Protocol::Grpc,
        PortProtocol::Tls => Protocol::Tls,
        PortProtocol::Tcp => Protocol::Tcp,
        PortProtocol::Udp => Protocol::Udp,
    }
}

/// Kubernetes' own values of `appProtocol`.
fn kubernetes(app_protocol: &str) -> Option<Protocol> {
    match app_protocol {
        "kubernetes.io/h2c" => Some(Protocol::Http2),
        "kubernetes.io/ws" => Some(Protocol::Http),
        "kubernetes.io/wss" => Some(Protocol::Tls),
        _ => None,
    }
}

fn by_name(name: &str) -> Option<Protocol> {
    let name = name.to_ascii_lowercase();
    let is = |protocol: &str| {
        name.strip_prefix(protocol)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let prefixes = [
        // Before `grpc`, which is a prefix of it.
        ("grpc-web", Protocol::Http),
        ("grpc", Protocol::Grpc),
        ("http2", Protocol::Http2),
        ("http", Protocol::Http),
        ("https", Protocol::Tls),
        ("tls", Protocol::Tls),
        ("tcp", Protocol::Tcp),
        ("mongo", Protocol::Tcp),
        ("redis", Protocol::Tcp),
        ("mysql", Protocol::Tcp),
        ("udp", Protocol::Udp),
    ];
    let found = prefixes.into_iter().find(|(prefix, _)| is(prefix));
    found.map(|(_, protocol)| protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_by_their_first_part() {
        for (name, protocol) in [
            ("http", Protocol::Http),
            ("HTTP-web", Protocol::Http),
            ("http2-api", Protocol::Http2),
            ("grpc", Protocol::Grpc),
            ("grpc-web", Protocol::Http),
            ("grpc-web-x", Protocol::Http),
            ("grpc-webhook", Protocol::Grpc),
            ("https", Protocol::Tls),
            ("mysql-main", Protocol::Tcp),
            ("udp-dns", Protocol::Udp),
            ("httpd", Protocol::Auto),
            ("web", Protocol::Auto),
            ("", Protocol::Auto),
        ] {
            assert_eq!(declared(name, None, 80), protocol, "{name}");
        }
    }

    #[test]
    fn app_protocol_beats_the_name() {
        assert_eq!(declared("http", Some("tcp"), 80), Protocol::Tcp);
        assert_eq!(
            declared("tcp", Some("kubernetes.io/h2c"), 80),
            Protocol::Http2
        );
        assert_eq!(declared("http", Some("example.com/x"), 80), Protocol::Auto);
    }

    #[test]
    fn some_ports_are_never_sniffed() {
        assert_eq!(declared("", None, 3306), Protocol::Tcp);
        assert_eq!(declared("web", None, 25), Protocol::Tcp);
        assert_eq!(declared("http", None, 25), Protocol::Http);
    }
}
