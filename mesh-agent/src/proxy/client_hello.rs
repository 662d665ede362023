//! What a TLS client asks for before it is answered (RFC 8446, section 4.1.2).

use std::io;

use bytes::BytesMut;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest ClientHello that is waited for, in bytes.
const MAX_CLIENT_HELLO: usize = 64 * 1024;
/// What the protocols begin with by which Istio's sidecars know each other (ALPN, RFC 7301).
const SIDECAR: &[u8] = b"istio";

/// A ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientHello {
    /// The server's name (RFC 6066, section 3), which may be left out.
    pub(super) server_name: Option<String>,
    /// Whether it is a sidecar of Istio that wants to prove who its application is.
    pub(super) is_of_sidecar: bool,
}

/// What the first bytes of a TLS connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Parsed {
    /// Too few bytes to tell.
    NeedMore,
    Hello(ClientHello),
    /// No TLS.
    Other,
}

/// Reads until the ClientHello is there; `None` where it is something else. `bytes` are what was
/// received before, and afterwards all that has been.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut BytesMut,
) -> io::Result<Option<ClientHello>> {
    loop {
        match parse(bytes) {
            Parsed::Hello(hello) => return Ok(Some(hello)),
            Parsed::Other => return Ok(None),
            Parsed::NeedMore if bytes.len() >= MAX_CLIENT_HELLO => return Ok(None),
            Parsed::NeedMore => {}
        }
        if stream.read_buf(bytes).await? == 0 {
            return Ok(None);
        }
    }
}

fn parse(mut bytes: &[u8]) -> Parsed {
    let mut acceptor = Acceptor::default();
    loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let mut protocols = hello.alpn().into_iter().flatten();
                return Parsed::Hello(ClientHello {
                    server_name: hello.server_name().map(str::to_owned),
                    is_of_sidecar: protocols.any(|protocol| protocol.starts_with(SIDECAR)),
                });
            }
            Ok(None) if bytes.is_empty() => return Parsed::NeedMore,
            Ok(None) => {}
            Err(_) => return Parsed::Other,
        }
        // A slice is always read.
        if !matches!(acceptor.read_tls(&mut bytes), Ok(1..)) {
            return Parsed::Other;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(name: &'static str, protocols: &[&str]) -> Vec<u8> {
        let mut config = ClientConfig::builder()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        let name = name.try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("a ClientHello");
        bytes
    }

    fn of(server_name: Option<&str>, is_of_sidecar: bool) -> Parsed {
        Parsed::Hello(ClientHello {
            server_name: server_name.map(str::to_owned),
            is_of_sidecar,
        })
    }

    #[test]
    fn the_name_is_told_as_soon_as_it_is_there() {
        let bytes = hello("www.example.com", &[]);
        assert_eq!(parse(&bytes), of(Some("www.example.com"), false));
        for length in [0, 1, 5, 40, bytes.len() - 1] {
            assert_eq!(parse(&bytes[..length]), Parsed::NeedMore, "{length}");
        }
        assert_eq!(parse(&hello("10.0.0.1", &[])), of(None, false));
        assert_eq!(parse(b"GET / HTTP/1.1\r\n\r\n"), Parsed::Other);
    }

    #[test]
    fn sidecars_are_known_by_their_protocols() {
        // Istio's name for a port of a service.
        let name = "outbound_.9080_._.reviews.default.svc.cluster.local";
        for (protocols, is_of_sidecar) in [
            (&["istio-http/1.1", "istio", "http/1.1"][..], true),
            (&["istio-h2", "istio", "h2"], true),
            (&["istio-peer-exchange", "istio"], true),
            (&["h2", "http/1.1"], false),
            (&["notistio"], false),
        ] {
            let parsed = parse(&hello(name, protocols));
            assert_eq!(parsed, of(Some(name), is_of_sidecar), "{protocols:?}");
        }
    }

    #[tokio::test]
    async fn what_was_read_is_kept() {
        let all = hello("www.example.com", &["istio"]);
        let (mut near, mut far) = tokio::io::duplex(64);
        let (first, rest) = all.split_at(100);
        let mut bytes = BytesMut::from(first);
        let rest = rest.to_vec();
        let sender = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut far, &rest)
                .await
                .expect("sent");
        });
        let hello = read(&mut near, &mut bytes).await.expect("read");
        assert!(hello.is_some_and(|hello| hello.is_of_sidecar));
        assert_eq!(bytes, all);
        sender.await.expect("the sender");
    }
}
