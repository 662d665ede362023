//! What tunnels hold that nobody reads.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::*;

const MIB: usize = 1 << 20;

fn memory(mib: usize) -> Arc<TunnelMemory> {
    Arc::new(TunnelMemory::new(NonZeroUsize::new(mib).unwrap()))
}

/// A mesh in which the server's side and the client's hold so much.
async fn mesh(of_server: Arc<TunnelMemory>, of_client: Arc<TunnelMemory>) -> Mesh {
    let trust = Trust::new();
    let certificates = &trust.certificates;
    Mesh {
        pool: TunnelPool::new(certificates.clone(), Arc::default(), of_client),
        server: Server::holding(of_server, certificates, "server").await,
        application: bind().await.0,
    }
}

/// How a stream ends for who reads all of it.
async fn end(mut stream: impl tokio::io::AsyncRead + Unpin) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn above_the_bound_whoever_has_most_unread_is_reset_and_nobody_else() {
    let memory = memory(4);
    let mesh = mesh(memory.clone(), Arc::default()).await;
    // Somebody else, with less, which his application reads later.
    let other = TunnelRequest {
        source_identity: identity("other"),
        ..mesh.request()
    };
    let (tunnel, accepted) = tokio::join!(mesh.pool.open(other), mesh.application.accept());
    let (mut modest, mut modest_application) = (tunnel.unwrap(), accepted.unwrap().0);
    let sent = vec![7; MIB / 2];
    modest.write_all(&sent).await.unwrap();

    let (mut flooding, mut applications) = (JoinSet::new(), Vec::new());
    for _ in 0..12 {
        let (mut tunnel, application) = mesh.tunnel().await;
        applications.push(application);
        flooding.spawn(async move {
            let flood = vec![0; MIB];
            while tunnel.write_all(&flood).await.is_ok() {}
            tunnel.read(&mut [0]).await.unwrap_err()
        });
    }
    // What the kernel takes is not held: each tunnel brings more than that.
    let error = patient(flooding.join_next()).await.unwrap().unwrap();
    assert!(error.to_string().contains("reset"), "{error}");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    until(|| memory.reset() > 0 && memory.unread() <= 5 * MIB).await;

    // Their applications see a reset, not an end.
    flooding.abort_all();
    for application in applications {
        let ended = patient(end(application)).await.unwrap_err();
        assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
    }
    modest.shutdown().await.unwrap();
    let mut got = Vec::new();
    patient(modest_application.read_to_end(&mut got))
        .await
        .unwrap();
    assert!(got == sent, "{} bytes", got.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_the_clients_applications_do_not_read_are_bounded_as_well() {
    let memory = memory(2);
    let mesh = mesh(Arc::default(), memory.clone()).await;
    let (mut tunnels, mut flooding) = (Vec::new(), JoinSet::new());
    for _ in 0..8 {
        let (tunnel, mut application) = mesh.tunnel().await;
        tunnels.push(tunnel);
        flooding.spawn(async move {
            let flood = vec![0; MIB];
            while application.write_all(&flood).await.is_ok() {}
        });
    }
    until(|| memory.reset() > 0).await;
    assert!(memory.unread() <= 3 * MIB, "{}", memory.unread());
    // Whoever reads is told, and so is the far application.
    let ends = tunnels.into_iter().map(|mut tunnel| {
        tokio::spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            loop {
                match tunnel.read(&mut buffer).await {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) => return is_overfull(&error),
                }
            }
        })
    });
    let ends: Vec<_> = ends.collect();
    patient(flooding.join_next()).await.unwrap().unwrap();
    flooding.shutdown().await;
    let mut overfull = 0;
    for end in ends {
        overfull += u64::from(patient(end).await.unwrap());
    }
    assert_eq!(overfull, memory.reset());
}

#[tokio::test]
async fn below_the_bound_all_arrives_however_often_it_is_counted() {
    let memory = memory(64);
    let mesh = mesh(memory.clone(), Arc::default()).await;
    let (mut tunnel, mut application) = mesh.tunnel().await;
    let sent: Vec<u8> = (0..3 * MIB).map(|at| (at % 251) as u8).collect();
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        let mut rest = &sent[..];
        for size in [1, 70_000, 13, 8_000, 9_000, 300].into_iter().cycle() {
            let (part, others) = rest.split_at(size.min(rest.len()));
            tunnel.write_all(part).await.unwrap();
            rest = others;
            if rest.is_empty() {
                break;
            }
        }
        tunnel.shutdown().await.unwrap();
        tunnel
    });
    let mut got = Vec::new();
    let mut buffer = vec![0; 50_000];
    loop {
        memory.unread();
        match patient(application.read(&mut buffer)).await.unwrap() {
            0 => break,
            read => got.extend_from_slice(&buffer[..read]),
        }
        tokio::task::yield_now().await;
    }
    assert!(got == expected, "{} bytes", got.len());
    assert_eq!((memory.unread(), memory.reset()), (0, 0));
    writing.await.unwrap();
}
