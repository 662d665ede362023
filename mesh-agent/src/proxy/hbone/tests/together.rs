//! What tunnels send at the same time travels together.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::*;

const TUNNELS: usize = 50;

/// Passes one connection on to `server`, and counts the TLS records that the client sends.
async fn counting_relay(server: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let (listener, address) = bind().await;
    let records = Arc::new(AtomicUsize::new(0));
    let counted = records.clone();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, to_server) = TcpStream::connect(server).await.unwrap().into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let _ = pass_records(&mut from_client, to_server, &counted).await;
    });
    (address, records)
}

async fn pass_records(
    from: &mut OwnedReadHalf,
    mut to: OwnedWriteHalf,
    records: &AtomicUsize,
) -> std::io::Result<()> {
    loop {
        // Type, version, length (RFC 8446, 5.1).
        let mut record = vec![0; 5];
        from.read_exact(&mut record).await?;
        let length = u16::from_be_bytes([record[3], record[4]]);
        record.resize(5 + usize::from(length), 0);
        from.read_exact(&mut record[5..]).await?;
        records.fetch_add(1, Ordering::Relaxed);
        to.write_all(&record).await?;
    }
}

// One worker, as on a small node, so that all that is ready waits for the same thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_many_tunnels_write_at_once_is_one_record() {
    tokio::spawn(async {
        let mesh = Mesh::new().await;
        let (relay, records) = counting_relay(mesh.server.address).await;
        let (go, mut writers, mut applications) = (Arc::new(Notify::new()), vec![], vec![]);
        for _ in 0..TUNNELS {
            let mut request = mesh.request();
            request.node = relay;
            let (tunnel, accepted) =
                patient(async { tokio::join!(mesh.pool.open(request), mesh.application.accept()) })
                    .await;
            let (mut tunnel, go) = (tunnel.unwrap(), go.clone());
            applications.push(accepted.unwrap().0);
            writers.push(tokio::spawn(async move {
                go.notified().await;
                tunnel.write_all(&[7; 500]).await.unwrap();
                tunnel
            }));
        }
        // All of them wait by now.
        for _ in 0..TUNNELS {
            tokio::task::yield_now().await;
        }
        let before = records.load(Ordering::Relaxed);
        go.notify_waiters();
        for application in &mut applications {
            let mut message = [0; 500];
            patient(application.read_exact(&mut message)).await.unwrap();
            assert_eq!(message, [7; 500]);
        }
        // Frames of 25 kB in all: a record takes 16 kB.
        let sent = records.load(Ordering::Relaxed) - before;
        assert!(sent <= 4, "{TUNNELS} messages took {sent} records");
        for writer in writers {
            writer.await.unwrap();
        }
    })
    .await
    .unwrap();
}
