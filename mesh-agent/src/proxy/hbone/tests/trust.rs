//! Who is let in, and who is not.

use bytes::Bytes;
use http::{Method, Request};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;
use crate::identity::verify::ServerVerifier;

async fn refused(mesh: &Mesh, request: TunnelRequest) -> String {
    let error = patient(mesh.pool.open(request)).await.unwrap_err();
    assert!(mesh.server.handler.opened.lock().is_empty());
    error.to_string()
}

#[tokio::test]
async fn a_server_with_another_identity_is_refused() {
    let mut mesh = Mesh::new().await;
    let mut request = mesh.request();
    request.expected = vec![identity("reviews"), identity("ratings")];
    let error = refused(&mesh, request).await;
    for part in [
        "the peer is spiffe://cluster.local/ns/default/sa/server",
        "wanted one of spiffe://cluster.local/ns/default/sa/ratings, \
         spiffe://cluster.local/ns/default/sa/reviews",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(matches!(mesh.server.end().await, Err(ServeError::Tls(_))));
}

#[tokio::test]
async fn where_nobody_is_expected_nobody_is_accepted() {
    let mesh = Mesh::new().await;
    let mut request = mesh.request();
    request.expected.clear();
    let error = refused(&mesh, request).await;
    assert!(error.contains("wanted nobody"), "{error}");
}

#[tokio::test]
async fn another_root_is_refused_by_both_sides() {
    let (ours, theirs) = (Trust::new(), Trust::new());
    // The same names everywhere: only the root differs.
    let mut mesh = Mesh::of(&ours).await;
    mesh.pool = TunnelPool::new(theirs.certificates.clone(), Arc::default(), Arc::default());
    let error = refused(&mesh, mesh.request()).await;
    // Both roots bear one name, so it is the signature that tells.
    assert!(
        error.contains("UnknownIssuer") || error.contains("BadSignature"),
        "{error}"
    );
    assert!(matches!(mesh.server.end().await, Err(ServeError::Tls(_))));

    // A client that trusts the server, but is of another root.
    let leaf = theirs.authority.issue(&identity("client"), HOUR).unwrap();
    let error = knock(&mut mesh, client(&ours, &TLS13, Some(leaf.certified))).await;
    assert!(matches!(error, ServeError::Tls(_)), "{error}");
}

/// A client with whatever certificate it likes.
pub(super) fn client(
    trust: &Trust,
    version: &'static SupportedProtocolVersion,
    certificate: Option<Arc<CertifiedKey>>,
) -> ClientConfig {
    let verifier = ServerVerifier::new(
        trust.authority.trust().clone(),
        Arc::from([identity("server")]),
    );
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match certificate {
        Some(key) => {
            let resolver: Arc<dyn ResolvesClientCert> =
                Arc::new(SingleCertAndKey::from(Arc::unwrap_or_clone(key)));
            builder.with_client_cert_resolver(resolver)
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A certificate of the mesh's own CA that is not as it should be.
pub(super) fn signed(
    trust: &Trust,
    change: impl FnOnce(&mut CertificateParams),
) -> Arc<CertifiedKey> {
    let read = |name| std::fs::read_to_string(trust.dir.path().join(name)).unwrap();
    let ca_key = KeyPair::from_pem(&read("ca-key.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca-cert.pem"), ca_key).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/default/sa/client")];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = aws_lc_rs::sign::any_ecdsa_type(&key).unwrap();
    let ca = CertificateDer::from_pem_slice(read("ca-cert.pem").as_bytes()).unwrap();
    Arc::new(CertifiedKey::new(vec![certificate.der().clone(), ca], key))
}

pub(super) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Connects and asks for a tunnel; how the server saw the end of it.
pub(super) async fn knock(mesh: &mut Mesh, config: ClientConfig) -> ServeError {
    let tcp = TcpStream::connect(mesh.server.address).await.unwrap();
    let name = ServerName::from(mesh.server.address.ip());
    let connected = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await;
    if let Ok(tls) = connected
        && let Ok((sender, connection)) = h2::client::handshake(tls).await
    {
        let connection = tokio::spawn(connection);
        let answer = ask(sender, Method::CONNECT, "127.0.0.1:1").await;
        assert!(answer.is_err(), "the server answered: {answer:?}");
        let _ = connection.await.unwrap();
    }
    let error = mesh.server.end().await.unwrap_err();
    assert!(mesh.server.handler.opened.lock().is_empty());
    error
}

pub(super) async fn ask(
    sender: h2::client::SendRequest<Bytes>,
    method: Method,
    uri: &str,
) -> Result<StatusCode, h2::Error> {
    let request = Request::builder().method(method).uri(uri).body(()).unwrap();
    let (response, _send) = sender.ready().await?.send_request(request, false)?;
    Ok(patient(response).await?.status())
}

#[tokio::test]
async fn clients_that_prove_no_identity_are_refused() {
    let trust = Trust::new();
    let mut mesh = Mesh::of(&trust).await;
    let spiffe = "spiffe://cluster.local/ns/default/sa/client";
    let cases: [(&str, Option<Arc<CertifiedKey>>); 7] = [
        ("sent no certificates", None),
        (
            "expired",
            Some(signed(&trust, |params| {
                params.not_before = rcgen::date_time_ymd(2020, 1, 1);
                params.not_after = rcgen::date_time_ymd(2021, 1, 1);
            })),
        ),
        (
            "not valid yet",
            Some(signed(&trust, |params| {
                params.not_before = rcgen::date_time_ymd(2100, 1, 1);
                params.not_after = rcgen::date_time_ymd(2101, 1, 1);
            })),
        ),
        (
            "extended key usage",
            Some(signed(&trust, |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            })),
        ),
        (
            "0 URI names",
            Some(signed(&trust, |params| {
                params.subject_alt_names =
                    vec![SanType::DnsName("client.default".try_into().unwrap())];
            })),
        ),
        (
            "2 URI names",
            Some(signed(&trust, |params| {
                params.subject_alt_names = vec![uri(spiffe), uri(spiffe)];
            })),
        ),
        (
            "names no identity",
            Some(signed(&trust, |params| {
                params.subject_alt_names = vec![uri("https://cluster.local/")];
            })),
        ),
    ];
    for (reason, certificate) in cases {
        let error = knock(&mut mesh, client(&trust, &TLS13, certificate)).await;
        let text = error.to_string();
        assert!(text.contains(reason), "wanted {reason:?}, got {text:?}");
    }
    // With what they lack it works: the cases above fail for their own reason.
    let good = client(&trust, &TLS13, Some(signed(&trust, |_| {})));
    let tcp = TcpStream::connect(mesh.server.address).await.unwrap();
    let name = ServerName::from(mesh.server.address.ip());
    let tls = TlsConnector::from(Arc::new(good))
        .connect(name, tcp)
        .await
        .unwrap();
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    let status = ask(sender, Method::CONNECT, "127.0.0.1:1").await.unwrap();
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn only_tls_1_3_and_http_2_are_spoken() {
    let trust = Trust::new();
    let mut mesh = Mesh::of(&trust).await;
    let good = || Some(signed(&trust, |_| {}));
    let error = knock(&mut mesh, client(&trust, &TLS12, good())).await;
    assert!(matches!(error, ServeError::Tls(_)), "{error}");
    let mut config = client(&trust, &TLS13, good());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let error = knock(&mut mesh, config).await;
    assert!(matches!(error, ServeError::Tls(_)), "{error}");
    let mut config = client(&trust, &TLS13, good());
    config.alpn_protocols.clear();
    let error = knock(&mut mesh, config).await;
    assert!(matches!(error, ServeError::NotHttp2), "{error}");
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum_and_sessions_are_resumed() {
    let trust = Trust::new();
    let mesh = Mesh::of(&trust).await;
    let config = trust
        .certificates
        .client_config(&identity("client"), &[identity("server")])
        .await
        .unwrap();
    for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let tcp = TcpStream::connect(mesh.server.address).await.unwrap();
        let name = ServerName::from(mesh.server.address.ip());
        let mut tls = TlsConnector::from(config.clone())
            .connect(name, tcp)
            .await
            .unwrap();
        // The server's first frame comes after anything of TLS.
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        patient(tls.read_exact(&mut [0; 9])).await.unwrap();
        let session = tls.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(kind));
        let group = session.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    }
}

#[tokio::test]
async fn other_requests_are_answered_and_not_served() {
    let trust = Trust::new();
    let mesh = Mesh::of(&trust).await;
    let config = client(&trust, &TLS13, Some(signed(&trust, |_| {})));
    let tcp = TcpStream::connect(mesh.server.address).await.unwrap();
    let name = ServerName::from(mesh.server.address.ip());
    let tls = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .unwrap();
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    for (method, uri, status) in [
        (Method::GET, "https://127.0.0.1:80/", 405),
        (Method::POST, "https://127.0.0.1:80/", 405),
        (Method::CONNECT, "reviews.default:80", 400),
        (Method::CONNECT, "127.0.0.1", 400),
        (Method::CONNECT, "user@127.0.0.1:80", 400),
        (Method::CONNECT, "127.0.0.1:99999", 400),
        (Method::CONNECT, "[::1%25eth0]:80", 400),
    ] {
        let Ok(_) = uri.parse::<http::Uri>() else {
            continue;
        };
        let answer = ask(sender.clone(), method.clone(), uri).await.unwrap();
        assert_eq!(answer.as_u16(), status, "{method} {uri}");
    }
    assert!(mesh.server.handler.opened.lock().is_empty());
}

#[tokio::test]
async fn garbage_is_an_error_and_nothing_else() {
    let trust = Trust::new();
    let mut mesh = Mesh::of(&trust).await;
    // Before TLS ...
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        &[22, 3, 1, 255, 255, 1],
    ] {
        let mut tcp = TcpStream::connect(mesh.server.address).await.unwrap();
        tcp.write_all(garbage).await.unwrap();
        let _ = tcp.shutdown().await;
        let error = mesh.server.end().await.unwrap_err();
        assert!(matches!(error, ServeError::Tls(_)), "{error}");
    }
    // ... instead of HTTP/2, and within it: a frame on a stream that is not
    // there, one that is too long, a header block that is none.
    let preface = &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..];
    for garbage in [
        &[&b"GET / HTTP/1.1\r\n\r\n             "[..]][..],
        &[preface, b"\0\0\x04\0\0\0\0\0\x07data"],
        &[preface, b"\xff\xff\xff\0\0\0\0\0\x01"],
        &[preface, b"\0\0\x04\x01\x04\0\0\0\x01\xff\xff\xff\xff"],
    ] {
        let config = client(&trust, &TLS13, Some(signed(&trust, |_| {})));
        let tcp = TcpStream::connect(mesh.server.address).await.unwrap();
        let name = ServerName::from(mesh.server.address.ip());
        let mut tls = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .unwrap();
        for part in garbage {
            tls.write_all(part).await.unwrap();
        }
        tls.flush().await.unwrap();
        let error = mesh.server.end().await.unwrap_err();
        assert!(matches!(error, ServeError::Http2(_)), "{error}");
    }
    assert!(mesh.server.handler.opened.lock().is_empty());
    mesh.tunnel().await;
}

#[tokio::test]
async fn a_slow_handshake_is_cut_off() {
    let mut mesh = Mesh::new().await;
    let mut tcp = TcpStream::connect(mesh.server.address).await.unwrap();
    tcp.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    let error = mesh.server.end().await.unwrap_err();
    assert!(matches!(error, ServeError::HandshakeTimeout), "{error}");
    assert_eq!(patient(tcp.read(&mut [0])).await.unwrap_or(0), 0);
}
