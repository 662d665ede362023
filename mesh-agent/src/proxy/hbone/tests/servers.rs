//! Servers that mean no good, or are not who they should be.

use http::Response;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType};
use rustls::crypto::aws_lc_rs;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::super::client::OPEN_TIMEOUT;
use super::trust::{signed, uri};
use super::*;

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

/// What a server of the mesh has in its certificate.
fn proper(params: &mut CertificateParams) {
    params.subject_alt_names = vec![uri(SERVER)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
}

/// A server with this certificate, which talks to its clients as `after` says.
async fn serve_tls<F: Future<Output = ()> + Send + 'static>(
    certificate: Arc<CertifiedKey>,
    version: &'static SupportedProtocolVersion,
    protocol: &[u8],
    after: impl Fn(TlsStream<TcpStream>) -> F + Send + 'static,
) -> SocketAddr {
    let resolver = SingleCertAndKey::from(Arc::unwrap_or_clone(certificate));
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![protocol.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, address) = bind().await;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(tls) = acceptor.accept(tcp).await {
                tokio::spawn(after(tls));
            }
        }
    });
    address
}

async fn ends(_tls: TlsStream<TcpStream>) {}

async fn refused(mesh: &Mesh, node: SocketAddr) -> TunnelError {
    let request = TunnelRequest {
        node,
        ..mesh.request()
    };
    patient(mesh.pool.open(request)).await.unwrap_err()
}

#[tokio::test]
async fn a_certificate_that_is_not_as_it_should_be_gets_no_tunnel() {
    let trust = Trust::new();
    let mesh = Mesh::of(&trust).await;
    type Change = fn(&mut CertificateParams);
    let cases: [(&str, Change); 6] = [
        ("expired", |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }),
        ("not valid yet", |params| {
            params.not_before = rcgen::date_time_ymd(2100, 1, 1);
            params.not_after = rcgen::date_time_ymd(2101, 1, 1);
        }),
        ("extended key usage", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }),
        ("0 URI names", |params| {
            let name = "server.default.svc.cluster.local".try_into().unwrap();
            params.subject_alt_names = vec![SanType::DnsName(name)];
        }),
        ("2 URI names", |params| {
            params.subject_alt_names = vec![uri(SERVER), uri(SERVER)];
        }),
        (
            "wanted spiffe://cluster.local/ns/default/sa/server",
            |params| {
                params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/default/sa/client")];
            },
        ),
    ];
    for (reason, change) in cases {
        let certificate = signed(&trust, |params| {
            proper(params);
            change(params);
        });
        let node = serve_tls(certificate, &TLS13, b"h2", ends).await;
        let error = refused(&mesh, node).await.to_string();
        assert!(error.contains(reason), "wanted {reason:?}, got {error:?}");
    }
    // With what they lack the handshake is good: the server ends it later.
    let node = serve_tls(signed(&trust, proper), &TLS13, b"h2", ends).await;
    let error = refused(&mesh, node).await;
    assert!(matches!(error, TunnelError::Broken { .. }), "{error}");
}

#[tokio::test]
async fn another_protocol_is_an_error_and_silence_one_in_time() {
    let trust = Trust::new();
    let mesh = Mesh::of(&trust).await;
    let node = serve_tls(signed(&trust, proper), &TLS12, b"h2", ends).await;
    let error = refused(&mesh, node).await.to_string();
    assert!(error.contains("TLS"), "{error}");
    let node = serve_tls(signed(&trust, proper), &TLS13, b"http/1.1", ends).await;
    refused(&mesh, node).await;

    // No TLS at all, or nothing.
    let (listener, node) = bind().await;
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut tcp, _)) = listener.accept().await {
            if held.is_empty() {
                let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            }
            held.push(tcp);
        }
    });
    let error = refused(&mesh, node).await.to_string();
    assert!(error.contains("TLS"), "{error}");
    let began = std::time::Instant::now();
    refused(&mesh, node).await;
    assert!(began.elapsed() <= OPEN_TIMEOUT + HOUR / 3600, "in time");
    mesh.tunnel().await;
}

#[tokio::test]
async fn an_answer_of_forty_kilobytes_opens_no_tunnel() {
    let trust = Trust::new();
    let mesh = Mesh::of(&trust).await;
    let answer = async |tls| {
        let Ok(mut http2) = h2::server::handshake(tls).await else {
            return;
        };
        while let Some(Ok((_, mut respond))) = http2.accept().await {
            let answer = Response::builder()
                .header("x-large", "a".repeat(40_000))
                .body(())
                .unwrap();
            let _ = respond.send_response(answer, false);
        }
    };
    let certificate = signed(&trust, proper);
    let node = serve_tls(certificate, &TLS13, b"h2", answer).await;
    refused(&mesh, node).await;
    mesh.tunnel().await;
}
