//! A tunnel is as good as a TCP connection.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn noise(bytes: usize, mut state: u64) -> Vec<u8> {
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

#[tokio::test]
async fn a_tunnel_goes_there_and_back_and_says_who_it_is() {
    let mesh = Mesh::new().await;
    let (mut tunnel, mut application) = mesh.tunnel().await;
    assert_eq!(*tunnel.peer_identity(), identity("server"));
    tunnel.write_all(b"question").await.unwrap();
    let mut question = [0; 8];
    patient(application.read_exact(&mut question))
        .await
        .unwrap();
    application.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    patient(tunnel.read_exact(&mut answer)).await.unwrap();
    assert_eq!((&question, &answer), (b"question", b"answer"));

    let opened = mesh.server.handler.opened.lock()[0].clone();
    assert_eq!(opened.peer_identity, identity("client"));
    assert_eq!(opened.peer_address.ip().to_string(), "127.0.0.1");
    assert_eq!(opened.authority, mesh.application.local_addr().unwrap());
    assert_eq!(opened.forwarded_for, "127.0.0.1:40000".parse().ok());
    assert_eq!(opened.transferred.bytes(), (8, 6));
}

#[tokio::test]
async fn a_client_cannot_speak_for_another_address() {
    let mesh = Mesh::new().await;
    let mut request = mesh.request();
    request.source = "10.1.2.3:4".parse().unwrap();
    let _tunnel = patient(mesh.pool.open(request)).await.unwrap();
    assert_eq!(mesh.server.handler.opened.lock()[0].forwarded_for, None);
}

#[tokio::test]
async fn ipv6_works_as_ipv4_does() {
    let trust = Trust::new();
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let mesh = Mesh {
        pool: TunnelPool::new(trust.certificates.clone(), Arc::default(), Arc::default()),
        server: Server::on(listener, &trust.certificates, "server").await,
        application: TcpListener::bind("[::1]:0").await.unwrap(),
    };
    let mut request = mesh.request();
    request.from = "::1".parse().unwrap();
    request.source = "[::1]:40000".parse().unwrap();
    let mut tunnel = patient(mesh.pool.open(request)).await.unwrap();
    tunnel.write_all(b"x").await.unwrap();
    let (mut application, _) = patient(mesh.application.accept()).await.unwrap();
    patient(application.read_exact(&mut [0])).await.unwrap();
    let opened = mesh.server.handler.opened.lock()[0].clone();
    assert_eq!(opened.authority, mesh.application.local_addr().unwrap());
    assert_eq!(opened.forwarded_for, "[::1]:40000".parse().ok());
}

#[tokio::test]
async fn either_side_ends_first_and_hears_the_other_out() {
    let mesh = Mesh::new().await;

    let (mut tunnel, mut application) = mesh.tunnel().await;
    tunnel.write_all(b"question").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut question = Vec::new();
    patient(application.read_to_end(&mut question))
        .await
        .unwrap();
    application.write_all(b"answer").await.unwrap();
    application.shutdown().await.unwrap();
    let mut answer = Vec::new();
    patient(tunnel.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(
        (&question[..], &answer[..]),
        (&b"question"[..], &b"answer"[..])
    );

    let (mut tunnel, mut application) = mesh.tunnel().await;
    application.write_all(b"greeting").await.unwrap();
    application.shutdown().await.unwrap();
    let mut greeting = Vec::new();
    patient(tunnel.read_to_end(&mut greeting)).await.unwrap();
    tunnel.write_all(b"thanks").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut thanks = Vec::new();
    patient(application.read_to_end(&mut thanks)).await.unwrap();
    assert_eq!(
        (&greeting[..], &thanks[..]),
        (&b"greeting"[..], &b"thanks"[..])
    );

    until(|| mesh.server.handler.closed.lock().len() == 2).await;
    assert!(mesh.server.handler.closed.lock().iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn much_goes_both_ways_at_once_and_arrives_in_order() {
    // Made beforehand: it takes long enough to keep all threads from opening the next
    // tunnel in time.
    let pairs: Vec<_> = (1..=4)
        .map(|seed| (noise(6_000_000, seed), noise(9_000_000, seed + 100)))
        .collect();
    let mesh = Mesh::new().await;
    let mut transfers = tokio::task::JoinSet::new();
    for (there, back) in pairs {
        let (tunnel, application) = mesh.tunnel().await;
        transfers.spawn(async move {
            let (mut got_there, mut got_back) = (Vec::new(), Vec::new());
            let (mut tunnel_read, mut tunnel_write) = tokio::io::split(tunnel);
            let (mut application_read, mut application_write) = application.into_split();
            let results = patient(async {
                tokio::join!(
                    async {
                        tunnel_write.write_all(&there).await?;
                        tunnel_write.shutdown().await
                    },
                    async {
                        application_write.write_all(&back).await?;
                        application_write.shutdown().await
                    },
                    application_read.read_to_end(&mut got_there),
                    tunnel_read.read_to_end(&mut got_back),
                )
            })
            .await;
            results.0.unwrap();
            results.1.unwrap();
            results.2.unwrap();
            results.3.unwrap();
            assert!(got_there == there && got_back == back);
        });
    }
    while let Some(result) = transfers.join_next().await {
        if result.is_err() {
            until(|| mesh.server.handler.closed.lock().iter().any(Result::is_err)).await;
        }
        let ended = mesh.server.handler.closed.lock();
        assert!(result.is_ok(), "{result:?}; tunnels ended: {ended:?}");
    }
}

#[tokio::test]
async fn an_aborted_tunnel_resets_the_application() {
    let mesh = Mesh::new().await;
    let (mut tunnel, mut application) = mesh.tunnel().await;
    tunnel.write_all(b"half").await.unwrap();
    patient(application.read_exact(&mut [0; 4])).await.unwrap();
    drop(tunnel);
    let error = patient(application.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_aborted_application_resets_the_tunnel() {
    let mesh = Mesh::new().await;
    let (mut tunnel, mut application) = mesh.tunnel().await;
    application.write_all(b"half").await.unwrap();
    patient(tunnel.read_exact(&mut [0; 4])).await.unwrap();
    application.set_zero_linger().unwrap();
    drop(application);
    let error = patient(tunnel.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    tunnel.write_all(b"more").await.unwrap_err();
}

#[tokio::test]
async fn a_reset_passes_the_whole_way_after_one_direction_has_ended() {
    let mesh = Mesh::new().await;
    let (client, near) = {
        let (listener, address) = bind().await;
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    };
    let (tunnel, mut application) = mesh.tunnel().await;
    let transferred = crate::proxy::copy::Transferred::default();
    let copy =
        tokio::spawn(
            async move { crate::proxy::copy::copy_both(near, tunnel, &transferred).await },
        );
    // The application has said all; the client is idle when it then aborts.
    application.shutdown().await.unwrap();
    let mut client = client;
    assert_eq!(patient(client.read(&mut [0])).await.unwrap(), 0);
    application.set_zero_linger().unwrap();
    drop(application);
    client.write_all(b"are you there?").await.unwrap();
    patient(copy).await.unwrap().unwrap_err();
    let error = patient(async {
        loop {
            if let Err(error) = client.write_all(b"?").await {
                break error;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ),
        "{error}"
    );
}

#[tokio::test]
async fn the_loss_of_the_connection_is_not_an_end() {
    let mesh = Mesh::new().await;
    let (mut tunnel, mut application) = mesh.tunnel().await;
    application.write_all(b"half").await.unwrap();
    patient(tunnel.read_exact(&mut [0; 4])).await.unwrap();
    mesh.server.stop().await;
    patient(tunnel.read(&mut [0])).await.unwrap_err();
    let error = patient(application.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn tunnels_that_nobody_reads_hold_up_no_other() {
    let mesh = Mesh::new().await;
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let (tunnel, mut application) = mesh.tunnel().await;
        // The application writes until nothing more is taken.
        let chunk = vec![1; 1 << 20];
        while let Ok(result) =
            tokio::time::timeout(Duration::from_millis(50), application.write(&chunk)).await
        {
            result.unwrap();
        }
        stalled.push((tunnel, application));
    }
    assert_eq!(mesh.server.connections(), 1);
    let (mut tunnel, mut application) = mesh.tunnel().await;
    application.write_all(&[2; 100_000]).await.unwrap();
    patient(tunnel.read_exact(&mut vec![0; 100_000]))
        .await
        .unwrap();
    assert_eq!(mesh.server.connections(), 1);
}

#[tokio::test]
async fn refusals_arrive_with_their_reason() {
    let mesh = Mesh::new().await;
    let mut forbidden = mesh.request();
    forbidden.authority.set_port(FORBIDDEN_PORT);
    let refused = refusal(patient(mesh.pool.open(forbidden)).await);
    assert_eq!(
        refused,
        Refusal::new(StatusCode::FORBIDDEN, "policy \"x\" says no")
    );

    let mut closed = mesh.request();
    closed.authority = bind().await.1;
    let refused = refusal(patient(mesh.pool.open(closed)).await);
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.reason.contains("refused"), "{refused}");
    // The connection is as good as before.
    mesh.tunnel().await;
    assert_eq!(mesh.server.connections(), 1);
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_an_error_in_time() {
    let mesh = Mesh::new().await;
    let mut silent = mesh.request();
    silent.authority.set_port(SILENT_PORT);
    let begin = std::time::Instant::now();
    let error = mesh.pool.open(silent).await.unwrap_err();
    assert!(matches!(error, TunnelError::Timeout { .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5));
}
