//! What tunnels hold that nobody takes.

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::super::MAX_STREAMS;
use super::hostile::{PREFACE, connect, connected, drain, frame};
use super::*;

const MIB: usize = 1 << 20;

fn memory(mib: usize) -> Arc<TunnelMemory> {
    Arc::new(TunnelMemory::new(NonZeroUsize::new(mib).unwrap()))
}

/// A mesh in which the server's side and the client's hold so much.
async fn mesh(of_server: Arc<TunnelMemory>, of_client: Arc<TunnelMemory>) -> Mesh {
    mesh_of(&Trust::new(), of_server, of_client).await
}

async fn mesh_of(
    trust: &Trust,
    of_server: Arc<TunnelMemory>,
    of_client: Arc<TunnelMemory>,
) -> Mesh {
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
    // Somebody else, who holds less, which his application reads later.
    let other = TunnelRequest {
        source_identity: identity("other"),
        ..mesh.request()
    };
    let (tunnel, accepted) = tokio::join!(mesh.pool.open(other), mesh.application.accept());
    let (mut modest, mut modest_application) = (tunnel.unwrap(), accepted.unwrap().0);
    let (part, mut sent) = ([7; 16 << 10], 0);
    // What the kernel takes is not held.
    while memory.held() < MIB / 2 {
        modest.write_all(&part).await.unwrap();
        sent += part.len();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    let (mut flooding, mut applications) = (JoinSet::new(), Vec::new());
    // Even the smallest windows of so many are more than the bound.
    for _ in 0..90 {
        let (mut tunnel, application) = mesh.tunnel().await;
        applications.push(application);
        flooding.spawn(async move {
            let flood = vec![0; MIB];
            while tunnel.write_all(&flood).await.is_ok() {}
            tunnel.read(&mut [0]).await.unwrap_err()
        });
    }
    let error = patient(flooding.join_next()).await.unwrap().unwrap();
    assert!(error.to_string().contains("reset"), "{error}");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    until(|| memory.reset() > 0 && memory.held() <= 5 * MIB).await;

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
    assert_eq!(got.len(), sent);
}

/// Writes until nothing is taken any more, and says how much was.
async fn stuff(tunnel: &mut TunnelStream) -> usize {
    let mut sent = 0;
    let mut part = tunnel.write(&[7; 16 << 10]);
    while let Ok(taken) = tokio::time::timeout(Duration::from_millis(200), part).await {
        sent += taken.unwrap();
        part = tunnel.write(&[7; 16 << 10]);
    }
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fuller_a_node_is_the_less_each_tunnel_holds_and_none_is_reset() {
    let memory = memory(8);
    let mesh = mesh(memory.clone(), Arc::default()).await;
    let mut stuffed = Vec::new();
    // Two of the largest windows would be all that there is.
    for _ in 0..12 {
        let (mut tunnel, application) = mesh.tunnel().await;
        let sent = stuff(&mut tunnel).await;
        stuffed.push((tunnel, application, sent));
    }
    assert_eq!(memory.reset(), 0);
    assert!(memory.held() > 4 * MIB, "{}", memory.held());
    assert!(memory.window() < MIB as u32, "{}", memory.window());
    for (mut tunnel, mut application, sent) in stuffed {
        let (closed, got) = patient(async {
            let mut got = Vec::new();
            tokio::join!(tunnel.shutdown(), async {
                application.read_to_end(&mut got).await.map(|_| got.len())
            })
        })
        .await;
        closed.unwrap();
        assert_eq!(got.unwrap(), sent);
    }
    // Who comes then has all of it again.
    let (mut tunnel, mut application) = mesh.tunnel().await;
    let sent = vec![7; 16 * MIB];
    let (written, read) = patient(async {
        tokio::join!(
            async {
                tunnel.write_all(&sent).await?;
                tunnel.shutdown().await
            },
            end(&mut application)
        )
    })
    .await;
    written.unwrap();
    read.unwrap();
    assert_eq!(memory.window(), 4 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_the_clients_applications_do_not_read_are_bounded_as_well() {
    let memory = memory(2);
    let mesh = mesh(Arc::default(), memory.clone()).await;
    let (mut tunnels, mut flooding) = (Vec::new(), JoinSet::new());
    for _ in 0..60 {
        let (tunnel, mut application) = mesh.tunnel().await;
        tunnels.push(tunnel);
        flooding.spawn(async move {
            let flood = vec![0; MIB];
            while application.write_all(&flood).await.is_ok() {}
        });
    }
    until(|| memory.reset() > 0).await;
    assert!(memory.held() <= 3 * MIB, "{}", memory.held());
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
    let sent: Vec<u8> = (0..16 * MIB).map(|at| (at % 251) as u8).collect();
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
    // The kernel takes no more, and it is counted again and again what waits.
    until(|| memory.held() > MIB).await;
    let mut got = Vec::new();
    let mut buffer = vec![0; 50_000];
    loop {
        memory.held();
        match patient(application.read(&mut buffer)).await.unwrap() {
            0 => break,
            read => got.extend_from_slice(&buffer[..read]),
        }
        tokio::task::yield_now().await;
    }
    assert!(got == expected, "{} bytes", got.len());
    assert_eq!((memory.held(), memory.reset()), (0, 0));
    writing.await.unwrap();
}

/// As many tunnels as a connection may have, whose client leaves everything to them that comes, and takes
/// nothing of it from the connection; and the applications' ends of them.
async fn untaken(trust: &Trust, mesh: &Mesh, is_ended: bool) -> (impl Sized, Vec<TcpStream>) {
    const ALL: u32 = (1 << 31) - 1;
    let (mut sender, mut connection) = h2::client::Builder::new()
        .initial_window_size(ALL)
        .initial_connection_window_size(ALL)
        .handshake::<_, Bytes>(connected(trust, mesh).await)
        .await
        .unwrap();
    let authority = mesh.application.local_addr().unwrap().to_string();
    let mut asked = Vec::new();
    for _ in 0..MAX_STREAMS {
        let request = Request::builder().method(Method::CONNECT);
        let request = request.uri(&authority).body(()).unwrap();
        std::future::poll_fn(|cx| {
            let _ = std::pin::Pin::new(&mut connection).poll(cx);
            sender.poll_ready(cx)
        })
        .await
        .unwrap();
        asked.push(sender.send_request(request, is_ended).unwrap());
    }
    let (answers, streams): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
    let opened = async {
        tokio::select! {
            answers = join_all(answers) => answers,
            ended = &mut connection => panic!("{ended:?}"),
        }
    };
    let mut accepted = Vec::new();
    let accepting = async {
        while accepted.len() < MAX_STREAMS {
            accepted.push(mesh.application.accept().await.unwrap().0);
        }
    };
    let (answers, ()) = patient(async { tokio::join!(opened, accepting) }).await;
    ((sender, connection, answers, streams), accepted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_does_not_take_from_its_connection_is_bounded_as_well() {
    let (trust, memory) = (Trust::new(), memory(4));
    let mesh = mesh_of(&trust, memory.clone(), Arc::default()).await;
    let (_silent, applications) = untaken(&trust, &mesh, false).await;
    let mut flooding = JoinSet::new();
    for mut application in applications {
        flooding.spawn(async move {
            let flood = vec![0; MIB];
            while application.write_all(&flood).await.is_ok() {}
        });
    }
    until(|| memory.reset() > 0).await;
    until(|| memory.held() <= 5 * MIB).await;
    // Somebody else is served, and by him what was taken is not counted any more.
    let (mut tunnel, mut application) = mesh.tunnel().await;
    application.write_all(&vec![7; MIB]).await.unwrap();
    application.shutdown().await.unwrap();
    patient(end(&mut tunnel)).await.unwrap();
    patient(flooding.join_next()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_applications_have_left_behind_is_bounded_until_the_client_takes_it() {
    let (trust, memory) = (Trust::new(), memory(4));
    let mesh = mesh_of(&trust, memory.clone(), Arc::default()).await;
    let (silent, applications) = untaken(&trust, &mesh, true).await;
    // Less than a tunnel holds: each can say all, and goes.
    for mut application in applications {
        application.write_all(&vec![0; MIB / 5]).await.unwrap();
    }
    until(|| memory.reset() > 0).await;
    until(|| memory.held() <= 5 * MIB).await;
    drop(silent);
    until(|| memory.held() == 0).await;
    // The tunnels have ended with their connection.
    until(|| mesh.server.handler.closed.lock().len() == MAX_STREAMS).await;
}

#[tokio::test]
async fn small_frames_count_for_what_they_cost_and_do_not_stay_in_the_list_of_http2() {
    const FRAMES: usize = 100_000;
    let (trust, memory) = (Trust::new(), Arc::<TunnelMemory>::default());
    let mesh = mesh_of(&trust, memory.clone(), Arc::default()).await;
    let (read, mut write) = tokio::io::split(connected(&trust, &mesh).await);
    let reading = drain(read);
    // Nobody ever reads this one.
    let tunnel = connect(1, &format!("127.0.0.1:{SILENT_PORT}"));
    // The window is that of the server's settings once these are acknowledged.
    let begun = [PREFACE, &frame(4, 1, 0, &[]), &tunnel].concat();
    write.write_all(&begun).await.unwrap();
    let flood = frame(0, 0, 1, b"x").repeat(FRAMES);
    patient(write.write_all(&flood)).await.unwrap();
    write.flush().await.unwrap();
    // Far below what makes anybody count all.
    until(|| memory.collected() >= FRAMES - 4_096).await;
    until(|| memory.arrived() >= FRAMES * 256).await;
    until(|| memory.held() == FRAMES).await;
    reading.abort();
}
