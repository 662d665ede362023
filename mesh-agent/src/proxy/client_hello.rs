//! The server name that a TLS client asks for (RFC 6066, section 3).

use rustls::server::Acceptor;

/// Longest ClientHello that is waited for, in bytes.
pub(super) const MAX_CLIENT_HELLO: usize = 64 * 1024;

/// What the first bytes of a TLS connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// Too few bytes to tell.
    NeedMore,
    /// A ClientHello with the server name, which may be left out.
    Name(Option<String>),
    /// No TLS.
    Other,
}

/// Reads the server name. `bytes` are all that have been received so far.
pub(super) fn server_name(mut bytes: &[u8]) -> Hello {
    let mut acceptor = Acceptor::default();
    loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_owned);
                return Hello::Name(name);
            }
            Ok(None) if bytes.is_empty() => return Hello::NeedMore,
            Ok(None) => {}
            Err(_) => return Hello::Other,
        }
        // A slice is always read.
        if !matches!(acceptor.read_tls(&mut bytes), Ok(1..)) {
            return Hello::Other;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(name: &'static str) -> Vec<u8> {
        let config = ClientConfig::builder()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = name.try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("a ClientHello");
        bytes
    }

    #[test]
    fn the_name_is_told_as_soon_as_it_is_there() {
        let bytes = hello("www.example.com");
        assert_eq!(
            server_name(&bytes),
            Hello::Name(Some("www.example.com".to_owned()))
        );
        for length in [0, 1, 5, 40, bytes.len() - 1] {
            assert_eq!(server_name(&bytes[..length]), Hello::NeedMore, "{length}");
        }
        assert_eq!(server_name(&hello("10.0.0.1")), Hello::Name(None));
        assert_eq!(server_name(b"GET / HTTP/1.1\r\n\r\n"), Hello::Other);
    }
}
