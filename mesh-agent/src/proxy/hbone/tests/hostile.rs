//! Peers with certificates of the mesh that mean no good.

use http::{Method, Request};
use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::MAX_STREAMS;
use super::trust::{ask, client, knock, signed};
use super::*;

/// A connection to the mesh's server with a good certificate.
pub(super) async fn connected(trust: &Trust, mesh: &Mesh) -> TlsStream<TcpStream> {
    let config = client(trust, &TLS13, Some(signed(trust, |_| {})));
    let tcp = TcpStream::connect(mesh.server.address).await.unwrap();
    let name = ServerName::from(mesh.server.address.ip());
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.unwrap()
}

/// The serial of the certificate in force for an identity.
fn serial(trust: &Trust, name: &str) -> Vec<u8> {
    let all = trust.certificates.certificates();
    let own = all.iter().find(|one| one.identity == identity(name));
    let serial = &own.unwrap().serial;
    (0..serial.len() / 2)
        .map(|at| u8::from_str_radix(&serial[2 * at..][..2], 16).unwrap())
        .collect()
}

/// The authority, after these certificates were revoked.
fn revoked(trust: &Trust, serials: &[Vec<u8>]) -> Authority {
    let read = |name| std::fs::read_to_string(trust.dir.path().join(name)).unwrap();
    let ca_key = KeyPair::from_pem(&read("ca-key.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca-cert.pem"), ca_key).unwrap();
    let now = std::time::SystemTime::now();
    let revoked = |serial: &Vec<u8>| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: (now - HOUR).into(),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: (now - HOUR).into(),
        next_update: (now + HOUR).into(),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let text = list.signed_by(&issuer).unwrap().pem().unwrap();
    std::fs::write(trust.dir.path().join("crl.pem"), text).unwrap();
    Authority::load(trust.dir.path(), "cluster.local").unwrap()
}

#[tokio::test]
async fn revoked_certificates_are_refused_on_both_sides() {
    let trust = Trust::new();
    let mut mesh = Mesh::of(&trust).await;
    let bad = signed(&trust, |params| {
        params.serial_number = Some(SerialNumber::from(4711));
    });
    let of_server = serial(&trust, "server");
    let with_list = Arc::new(revoked(&trust, &[vec![0x12, 0x67], of_server]));

    // A client that knows of the list, and a server with a certificate on it.
    let certificates = Arc::new(Certificates::new(with_list.clone(), HOUR));
    let pool = TunnelPool::new(certificates, Arc::default(), Arc::default());
    let error = patient(pool.open(mesh.request())).await.unwrap_err();
    assert!(error.to_string().contains("Revoked"), "{error}");
    assert!(mesh.server.end().await.is_err());

    // The same list at the server; it has a new certificate now.
    trust.certificates.replace(with_list);
    mesh.server = Server::start(&trust.certificates, "server").await;
    let error = knock(&mut mesh, client(&trust, &TLS13, Some(bad))).await;
    assert!(error.to_string().contains("Revoked"), "{error}");
    mesh.pool = TunnelPool::new(trust.certificates.clone(), Arc::default(), Arc::default());
    mesh.tunnel().await;
}

#[tokio::test]
async fn a_revocation_cuts_open_connections_at_either_side() {
    for name in ["client", "server"] {
        // One side hears of it, the other goes on as before.
        let trust = Trust::new();
        let of_client = Arc::new(Certificates::new(trust.authority.clone(), HOUR));
        let mut mesh = Mesh::of(&trust).await;
        mesh.pool = TunnelPool::new(of_client.clone(), Arc::default(), Arc::default());
        let (mut tunnel, mut accepted) = mesh.tunnel().await;
        let theirs = Trust {
            certificates: if name == "client" {
                &of_client
            } else {
                &trust.certificates
            }
            .clone(),
            authority: trust.authority.clone(),
            dir: TempDir::new().unwrap(),
        };
        let bad = serial(&theirs, name);
        let hears = if name == "client" {
            &trust.certificates
        } else {
            &of_client
        };

        // A list without it changes nothing.
        hears.replace(Arc::new(revoked(&trust, &[vec![1, 2, 3]])));
        tunnel.write_all(b"a").await.unwrap();
        patient(accepted.read_exact(&mut [0])).await.unwrap();
        hears.replace(Arc::new(revoked(&trust, &[bad])));
        let ended = patient(accepted.read(&mut [0])).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        let ended = patient(tunnel.read(&mut [0])).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        let ended = mesh.server.end().await;
        if name == "client" {
            assert!(matches!(ended, Err(ServeError::Revoked)), "{ended:?}");
        }
    }
}

#[tokio::test]
async fn when_a_root_is_gone_open_tunnels_go_on_and_new_ones_take_new_connections() {
    let (trust, other) = (Trust::new(), Trust::new());
    let of_client = Arc::new(Certificates::new(trust.authority.clone(), HOUR));
    let mut mesh = Mesh::of(&trust).await;
    mesh.pool = TunnelPool::new(of_client.clone(), Arc::default(), Arc::default());
    let (mut tunnel, mut accepted) = mesh.tunnel().await;
    trust.certificates.replace(other.authority.clone());
    // The server says so, and the next tunnel proves again who it is of.
    while mesh.server.connections() < 2 {
        mesh.tunnel().await;
    }
    tunnel.write_all(b"a").await.unwrap();
    patient(accepted.read_exact(&mut [0])).await.unwrap();
    accepted.write_all(b"b").await.unwrap();
    patient(tunnel.read_exact(&mut [0])).await.unwrap();
    drop((tunnel, accepted));
    assert!(mesh.server.end().await.is_ok());
}

#[tokio::test]
async fn oversized_headers_open_no_tunnel() {
    let trust = Trust::new();
    let mesh = Mesh::of(&trust).await;
    let (sender, connection) = h2::client::handshake(connected(&trust, &mesh).await)
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("127.0.0.1:80")
        .header("x-large", "a".repeat(40_000))
        .body(())
        .unwrap();
    let mut ready = sender.clone().ready().await.unwrap();
    let (response, _send) = ready.send_request(request, false).unwrap();
    match patient(response).await {
        Ok(response) => assert_eq!(response.status().as_u16(), 431),
        Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
    }
    assert!(mesh.server.handler.opened.lock().is_empty());
    mesh.tunnel().await;
}

/// An HTTP/2 frame (RFC 9113, section 4.1).
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HEADERS of a CONNECT, without compression (RFC 7541, section 6.2.2).
pub(super) fn connect(stream: u32, authority: &str) -> Vec<u8> {
    let mut block = vec![0x02, 7];
    block.extend(b"CONNECT");
    block.extend([0x01, u8::try_from(authority.len()).unwrap()]);
    block.extend(authority.as_bytes());
    frame(1, 4, stream, &block)
}

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Reads whatever comes, and throws it away.
pub(super) fn drain(
    mut read: tokio::io::ReadHalf<TlsStream<TcpStream>>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let _ = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
    })
}

#[tokio::test]
async fn who_says_nothing_after_the_handshake_is_cut_off() {
    let trust = Trust::new();
    let mut mesh = Mesh::of(&trust).await;
    let _silent = connected(&trust, &mesh).await;
    let ended = mesh.server.end().await;
    assert!(
        matches!(ended, Err(ServeError::HandshakeTimeout)),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_header_block_without_end_ends_the_connection() {
    let trust = Trust::new();
    let mut mesh = Mesh::of(&trust).await;
    let (read, mut write) = tokio::io::split(connected(&trust, &mesh).await);
    let reading = drain(read);
    let mut flood = PREFACE.to_vec();
    // HEADERS that do not end, and CONTINUATION after CONTINUATION, all of good fields.
    flood.extend(frame(1, 0, 1, b"\x02\x07CONNECT"));
    let field = [&b"\x00\x01a\x64"[..], &[b'b'; 100]].concat();
    for _ in 0..2_000 {
        flood.extend(frame(9, 0, 1, &field.repeat(150)));
    }
    let _ = write.write_all(&flood).await;
    let _ = write.flush().await;
    let ended = mesh.server.end().await;
    assert!(matches!(ended, Err(ServeError::Http2(_))), "{ended:?}");
    assert!(mesh.server.handler.opened.lock().is_empty());
    reading.abort();
    mesh.tunnel().await;
}

#[tokio::test]
async fn a_flood_of_pings_and_settings_does_not_keep_others_waiting() {
    let trust = Trust::new();
    let mesh = Mesh::of(&trust).await;
    let (read, mut write) = tokio::io::split(connected(&trust, &mesh).await);
    let (reading, mut flood) = (drain(read), Vec::new());
    for _ in 0..1_000 {
        flood.extend(frame(6, 0, 0, &[0; 8]));
        flood.extend(frame(4, 0, 0, &[]));
    }
    let rounds = Arc::new(AtomicUsize::new(0));
    let flooding = tokio::spawn({
        let rounds = rounds.clone();
        async move {
            let _ = write.write_all(PREFACE).await;
            while write.write_all(&flood).await.is_ok() {
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    until(|| rounds.load(Ordering::Relaxed) > 0).await;
    for _ in 0..20 {
        mesh.tunnel().await;
    }
    flooding.abort();
    reading.abort();
}

#[tokio::test]
async fn a_flood_of_streams_is_bounded_and_others_are_served() {
    let trust = Trust::new();
    let mesh = Mesh::of(&trust).await;
    let (read, mut write) = tokio::io::split(connected(&trust, &mesh).await);
    let reading = drain(read);
    let silent = format!("127.0.0.1:{SILENT_PORT}");
    let mut flood = PREFACE.to_vec();
    for number in 0..4 * MAX_STREAMS as u32 {
        flood.extend(connect(2 * number + 1, &silent));
    }
    // The server may have had enough before all is written.
    let _ = write.write_all(&flood).await;
    let _ = write.flush().await;
    until(|| mesh.server.handler.opened.lock().len() >= MAX_STREAMS).await;
    mesh.tunnel().await;
    let silent = |tunnel: &&IncomingTunnel| tunnel.authority.port() == SILENT_PORT;
    let opened = mesh
        .server
        .handler
        .opened
        .lock()
        .iter()
        .filter(silent)
        .count();
    assert_eq!(opened, MAX_STREAMS, "the rest was refused");
    drop(write);
    reading.abort();
}

#[tokio::test]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let trust = Trust::new();
    let mut mesh = Mesh::of(&trust).await;
    let (read, mut write) = tokio::io::split(connected(&trust, &mesh).await);
    let reading = drain(read);
    let silent = format!("127.0.0.1:{SILENT_PORT}");
    let mut flood = PREFACE.to_vec();
    for number in 0..20_000 {
        flood.extend(connect(2 * number + 1, &silent));
        flood.extend(frame(3, 0, 2 * number + 1, &8u32.to_be_bytes()));
    }
    let _ = write.write_all(&flood).await;
    let _ = write.flush().await;
    let ended = mesh.server.end().await;
    assert!(matches!(ended, Err(ServeError::Http2(_))), "{ended:?}");
    reading.abort();
    mesh.tunnel().await;
    let config = client(&trust, &TLS13, Some(signed(&trust, |_| {})));
    let tcp = TcpStream::connect(mesh.server.address).await.unwrap();
    let name = ServerName::from(mesh.server.address.ip());
    let tls = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .unwrap();
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    let status = ask(sender, Method::CONNECT, "127.0.0.1:1").await.unwrap();
    assert_eq!(status, StatusCode::FORBIDDEN);
}
