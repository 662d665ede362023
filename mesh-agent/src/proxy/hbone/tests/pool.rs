//! Connections are shared, replaced and given up.

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_opened_at_once_share_connections() {
    let mesh = Mesh::new().await;
    let accept = async {
        let mut accepted = Vec::new();
        while accepted.len() < 250 {
            accepted.push(mesh.application.accept().await.unwrap());
        }
        accepted
    };
    let hundred = || join_all((0..100).map(|_| mesh.pool.open(mesh.request())));
    let opened = async {
        let mut tunnels = hundred().await;
        assert_eq!(mesh.server.connections(), 1);
        tunnels.extend(hundred().await);
        assert_eq!(mesh.server.connections(), 2);
        tunnels.extend(join_all((0..50).map(|_| mesh.pool.open(mesh.request()))).await);
        tunnels
    };
    let (accepted, opened) = patient(async { tokio::join!(accept, opened) }).await;
    let tunnels: Vec<_> = opened.into_iter().map(Result::unwrap).collect();
    assert_eq!((accepted.len(), tunnels.len()), (250, 250));
    assert_eq!(mesh.server.connections(), 3);
    drop(tunnels);
    // Room that was given back is used again.
    until(|| mesh.server.handler.closed.lock().len() == 250).await;
    mesh.tunnel().await;
    assert_eq!(mesh.server.connections(), 3);
}

#[tokio::test]
async fn who_expects_another_identity_gets_another_connection() {
    let mesh = Mesh::new().await;
    let mut request = mesh.request();
    request.expected.push(identity("other"));
    let _one = patient(mesh.pool.open(request)).await.unwrap();
    let mut request = mesh.request();
    request.expected = vec![identity("other"), identity("server"), identity("other")];
    let _same = patient(mesh.pool.open(request)).await.unwrap();
    assert_eq!(mesh.server.connections(), 1);
    let _other = patient(mesh.pool.open(mesh.request())).await.unwrap();
    assert_eq!(mesh.server.connections(), 2);
    let mut request = mesh.request();
    request.source_identity = identity("client2");
    let _as_another = patient(mesh.pool.open(request)).await.unwrap();
    assert_eq!(mesh.server.connections(), 3);
    assert_eq!(mesh.pool.connections(), 3);
}

#[tokio::test]
async fn a_connection_that_had_gone_is_replaced() {
    let trust = Trust::new();
    let Mesh {
        pool,
        server,
        application,
    } = Mesh::of(&trust).await;
    let to = application.local_addr().unwrap();
    patient(pool.open(request(&server, to, &["server"])))
        .await
        .unwrap();
    let address = server.address;
    server.stop().await;
    let listener = TcpListener::bind(address).await.unwrap();
    let server = Server::on(listener, &trust.certificates, "server").await;
    // Many at once: each finds the old connection broken, all share a new one.
    let opened = patient(join_all(
        (0..20).map(|_| pool.open(request(&server, to, &["server"]))),
    ))
    .await;
    assert!(opened.iter().all(Result::is_ok));
    assert_eq!(server.connections(), 1);
}

/// Passes bytes on until it is told to hold them back.
async fn freezing_relay(to: SocketAddr) -> (SocketAddr, CancellationToken) {
    let (listener, address) = bind().await;
    let freeze = CancellationToken::new();
    tokio::spawn({
        let freeze = freeze.clone();
        async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                // Only connections from before are frozen.
                let frozen = if freeze.is_cancelled() {
                    CancellationToken::new()
                } else {
                    freeze.clone()
                };
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    let _ = frozen
                        .run_until_cancelled(tokio::io::copy_bidirectional(&mut near, &mut far))
                        .await;
                    std::future::pending::<()>().await;
                });
            }
        }
    });
    (address, freeze)
}

#[tokio::test]
async fn a_peer_that_vanished_silently_is_replaced_in_time() {
    let mesh = Mesh::new().await;
    let (relay, freeze) = freezing_relay(mesh.server.address).await;
    let request = || {
        let mut request = mesh.request();
        request.node = relay;
        request
    };
    patient(mesh.pool.open(request())).await.unwrap();
    freeze.cancel();
    let begin = std::time::Instant::now();
    mesh.pool.open(request()).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(4));
    // The frozen connection is not tried again.
    let begin = std::time::Instant::now();
    mesh.pool.open(request()).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_one_error_for_all() {
    let mesh = Mesh::new().await;
    let request = || {
        let mut request = mesh.request();
        request.node.set_port(FORBIDDEN_PORT);
        request
    };
    let all = patient(join_all((0..50).map(|_| mesh.pool.open(request())))).await;
    for result in all {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("cannot connect to 127.0.0.1:1"), "{error}");
    }
    assert_eq!(mesh.pool.connections(), 0);
}

#[tokio::test]
async fn unused_connections_are_closed() {
    let trust = Trust::new();
    let mut mesh = Mesh::of(&trust).await;
    mesh.pool =
        TunnelPool::with_idle_timeout(trust.certificates.clone(), Duration::from_millis(100));
    let (mut tunnel, mut application) = mesh.tunnel().await;
    // Not while there is a tunnel, even one that is silent.
    tokio::time::sleep(Duration::from_millis(500)).await;
    tunnel.write_all(b"x").await.unwrap();
    patient(application.read_exact(&mut [0])).await.unwrap();
    assert_eq!(mesh.pool.connections(), 1);
    drop(tunnel);
    mesh.server.end().await.unwrap();
    assert_eq!(mesh.pool.connections(), 0);
}

#[tokio::test]
async fn a_forgotten_workload_keeps_its_open_tunnels_only() {
    let mut mesh = Mesh::new().await;
    let (mut tunnel, mut application) = mesh.tunnel().await;
    mesh.pool.forget("127.0.0.1".parse().unwrap());
    assert_eq!(mesh.pool.connections(), 0);
    tunnel.write_all(b"x").await.unwrap();
    patient(application.read_exact(&mut [0])).await.unwrap();
    drop(tunnel);
    mesh.server.end().await.unwrap();
}

#[tokio::test]
async fn a_draining_connection_ends_no_tunnel_and_sends_new_ones_elsewhere() {
    let mut mesh = Mesh::new().await;
    let (mut tunnel, mut application) = mesh.tunnel().await;
    mesh.server.drain.cancel();
    // Whatever the client opens before it knows is still served.
    patient(async {
        while mesh.server.connections() == 1 {
            mesh.pool.open(mesh.request()).await.unwrap();
        }
    })
    .await;
    tunnel.write_all(b"still here").await.unwrap();
    patient(application.read_exact(&mut [0; 10])).await.unwrap();
    tunnel.shutdown().await.unwrap();
    application.shutdown().await.unwrap();
    patient(tunnel.read_to_end(&mut Vec::new())).await.unwrap();
    until(|| {
        let closed = mesh.server.handler.closed.lock();
        closed.iter().any(Result::is_ok)
    })
    .await;
    mesh.server.end().await.unwrap();
    mesh.server.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn short_certificates_are_renewed_under_load() {
    let trust = Trust::with_lifetime(Duration::from_secs(3));
    let mesh = Mesh::of(&trust).await;
    let stop = CancellationToken::new();
    let renewal = tokio::spawn({
        let (certificates, stop) = (trust.certificates.clone(), stop.clone());
        async move { certificates.renew(stop).await }
    });
    let serials = || -> Vec<String> {
        let all = trust.certificates.certificates();
        all.into_iter()
            .map(|certificate| certificate.serial)
            .collect()
    };

    // A tunnel that outlives several certificates, and new ones all the time.
    let (mut old, mut old_application) = mesh.tunnel().await;
    let first = serials();
    let begin = std::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(9) {
        let (mut tunnel, mut application) = mesh.tunnel().await;
        for stream in [
            (&mut tunnel, &mut application),
            (&mut old, &mut old_application),
        ] {
            stream.0.write_all(b"x").await.unwrap();
            patient(stream.1.read_exact(&mut [0])).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let last = serials();
    assert_eq!(last.len(), 2);
    assert!(first.iter().all(|serial| !last.contains(serial)));
    // Peers have seen new certificates: no connection takes new tunnels longer
    // than the certificates last with which it was made.
    assert!(mesh.server.connections() >= 3);
    stop.cancel();
    renewal.await.unwrap();
}
