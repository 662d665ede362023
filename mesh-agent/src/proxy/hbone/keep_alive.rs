//! Notices peers that vanished without a word.

use std::io;
use std::time::Duration;

use h2::{Ping, PingPong};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// How often a peer is asked whether it is there.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long it may take to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Questions of the kernel that stay unanswered, [`PROBE_INTERVAL`] apart.
const PROBES: u32 = 2;
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Lets the kernels of both ends ask one another while nothing passes (`SO_KEEPALIVE`, socket(7)),
/// and wait no longer for the receipt of what was sent last (`TCP_USER_TIMEOUT`, tcp(7)): a
/// connection at rest to a node that is gone ends as soon as one with tunnels, and neither agent is
/// woken for it.
///
/// # Errors
/// What the system says.
pub fn by_kernel(stream: &TcpStream) -> io::Result<()> {
    let questions = TcpKeepalive::new()
        .with_time(INTERVAL)
        .with_interval(PROBE_INTERVAL)
        .with_retries(PROBES);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&questions)?;
    socket.set_tcp_user_timeout(Some(INTERVAL + PROBES * PROBE_INTERVAL))
}

/// Returns when the peer does not answer any more, though there are tunnels. At rest a peer that
/// hangs does no harm: whoever opens a tunnel waits for an answer himself.
pub async fn lost(pings: Option<PingPong>, has_tunnels: impl Fn() -> bool) {
    match pings {
        Some(pings) => unanswered(pings, has_tunnels, INTERVAL, PING_TIMEOUT).await,
        None => std::future::pending().await,
    }
}

async fn unanswered(
    mut pings: PingPong,
    has_tunnels: impl Fn() -> bool,
    interval: Duration,
    limit: Duration,
) {
    loop {
        tokio::time::sleep(interval).await;
        if !has_tunnels() {
            continue;
        }
        let pong = tokio::time::timeout(limit, pings.ping(Ping::opaque()));
        if !matches!(pong.await, Ok(Ok(_))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use bytes::Bytes;
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio::net::TcpListener;

    use super::*;

    /// Type of a PING frame (RFC 9113, section 6.7).
    const PING: u8 = 6;

    const OFTEN: Duration = Duration::from_millis(5);

    /// A client whose connection runs by itself, and its peer, who reads and says nothing.
    async fn client() -> (PingPong, DuplexStream) {
        let (near, far) = tokio::io::duplex(4096);
        let (requests, mut connection) = h2::client::Builder::new()
            .handshake::<_, Bytes>(near)
            .await
            .unwrap();
        let pings = connection.ping_pong().unwrap();
        tokio::spawn(async move {
            let _ends_with_the_last = requests;
            connection.await
        });
        (pings, far)
    }

    /// Type of the next frame, behind the preface of a client.
    async fn next_frame(peer: &mut DuplexStream) -> u8 {
        let mut head = [0; 9];
        peer.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        peer.read_exact(&mut payload).await.unwrap();
        head[3]
    }

    async fn read_preface(peer: &mut DuplexStream) {
        peer.read_exact(&mut [0; 24]).await.unwrap();
        assert_ne!(next_frame(peer).await, PING);
    }

    #[tokio::test]
    async fn a_peer_with_tunnels_is_asked_and_missed() {
        let (pings, mut peer) = client().await;
        read_preface(&mut peer).await;
        let lost = tokio::spawn(unanswered(pings, || true, OFTEN, OFTEN));
        assert_eq!(next_frame(&mut peer).await, PING);
        lost.await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_at_rest_is_left_alone_until_there_is_a_tunnel() {
        let (pings, mut peer) = client().await;
        read_preface(&mut peer).await;
        let (tunnels, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
        let has_tunnels = || {
            asked.fetch_add(1, Ordering::Relaxed);
            tunnels.load(Ordering::Relaxed)
        };
        let at_rest = async {
            while asked.load(Ordering::Relaxed) < 10 {
                tokio::task::yield_now().await;
            }
            let heard = peer.read_u8().now_or_never();
            assert!(heard.is_none(), "{heard:?}");
            tunnels.store(true, Ordering::Relaxed);
            assert_eq!(next_frame(&mut peer).await, PING);
        };
        tokio::select! {
            () = at_rest => {}
            () = unanswered(pings, has_tunnels, OFTEN, OFTEN) => panic!("it was asked at rest"),
        }
    }

    #[tokio::test]
    async fn the_kernel_asks_within_twenty_seconds() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        by_kernel(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        let given_up = socket.tcp_keepalive_time().unwrap()
            + socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        assert_eq!(given_up, INTERVAL + PING_TIMEOUT);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(given_up));
    }
}
