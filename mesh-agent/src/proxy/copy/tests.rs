use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

pub(super) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

struct Proxied {
    left: TcpStream,
    right: TcpStream,
    transferred: Arc<Transferred>,
    copy: JoinHandle<Result<(), CopyError>>,
}

async fn proxied() -> Proxied {
    let (left, first) = pair().await;
    let (right, second) = pair().await;
    let transferred = Arc::new(Transferred::default());
    let copy = tokio::spawn({
        let transferred = transferred.clone();
        async move { copy_both(first, second, &transferred).await }
    });
    Proxied {
        left,
        right,
        transferred,
        copy,
    }
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
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
async fn much_goes_both_ways_at_once_and_arrives_in_order() {
    let proxied = proxied().await;
    let (mut left_read, mut left_write) = proxied.left.into_split();
    let (mut right_read, mut right_write) = proxied.right.into_split();
    let (there, back) = (noise(5_000_000, 1), noise(7_000_000, 2));
    let (mut got_there, mut got_back) = (Vec::new(), Vec::new());
    let all = tokio::join!(
        async {
            left_write.write_all(&there).await?;
            left_write.shutdown().await
        },
        async {
            right_write.write_all(&back).await?;
            right_write.shutdown().await
        },
        right_read.read_to_end(&mut got_there),
        left_read.read_to_end(&mut got_back),
    );
    all.0.unwrap();
    all.1.unwrap();
    assert!(got_there == there && got_back == back);
    proxied.copy.await.unwrap().unwrap();
    assert_eq!(proxied.transferred.bytes(), (5_000_000, 7_000_000));
}

#[tokio::test]
async fn one_direction_ends_and_the_other_goes_on() {
    let mut proxied = proxied().await;
    proxied.left.write_all(b"question").await.unwrap();
    proxied.left.shutdown().await.unwrap();
    let mut question = Vec::new();
    proxied.right.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    assert_eq!(proxied.transferred.bytes(), (8, 0));
    proxied.right.write_all(b"answer").await.unwrap();
    proxied.right.shutdown().await.unwrap();
    let mut answer = Vec::new();
    proxied.left.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    proxied.copy.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reset_stays_a_reset() {
    let mut proxied = proxied().await;
    proxied.left.set_zero_linger().unwrap();
    drop(proxied.left);
    let error = proxied.right.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let error = proxied.copy.await.unwrap().unwrap_err();
    assert_eq!((error.end, error.writing), (End::First, false));
}

#[tokio::test]
async fn a_copy_that_is_cut_off_does_not_look_finished() {
    let mut proxied = proxied().await;
    proxied.left.write_all(b"half of it").await.unwrap();
    proxied.right.read_exact(&mut [0; 10]).await.unwrap();
    proxied.copy.abort();
    for stream in [&mut proxied.left, &mut proxied.right] {
        let error = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_slow_reader_holds_the_writer_back() {
    let mut proxied = proxied().await;
    let chunk = vec![1; 1 << 20];
    let mut written = 0;
    // Sockets and one buffer fill up; then nothing more is taken.
    while let Ok(result) =
        tokio::time::timeout(Duration::from_millis(500), proxied.left.write(&chunk)).await
    {
        written += result.unwrap();
        assert!(written < 64 << 20, "no back-pressure");
    }
    proxied.left.shutdown().await.unwrap();
    let mut all = Vec::new();
    proxied.right.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), written);
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_question_arrives_whole() {
    let mut proxied = proxied().await;
    let answer = noise(1 << 20, 3);
    // The server answers, stops listening and goes, while the client still asks.
    let server = async {
        proxied.right.write_all(&answer).await.unwrap();
        proxied.right.shutdown().await.unwrap();
        proxied.right.read_exact(&mut [0; 1000]).await.unwrap();
        drop(proxied.right);
    };
    let (mut read, mut write) = proxied.left.into_split();
    let client = async {
        let mut got = Vec::new();
        let chunk = [0; 1000];
        let ask = async {
            while write.write_all(&chunk).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            result = read.read_to_end(&mut got) => result.unwrap(),
            () = ask => panic!("cut off"),
        };
        got
    };
    let ((), got) = tokio::join!(server, client);
    assert!(got == answer);
}

/// Has received pieces in memory of their own, then its end; takes whatever is written.
struct Received(std::collections::VecDeque<Bytes>);

impl tokio::io::AsyncRead for Received {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        unreachable!("it is read in pieces")
    }
}

impl tokio::io::AsyncWrite for Received {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Duplex for Received {
    fn abort(&mut self) {
        self.0.clear();
    }

    fn poll_chunk(&mut self, _: &mut Context<'_>, _: &mut BytesMut) -> Poll<io::Result<Chunk>> {
        let piece = self.0.pop_front().unwrap_or_default();
        Poll::Ready(Ok(Chunk::Owned(piece)))
    }
}

#[tokio::test]
async fn pieces_arrive_whole_and_in_order_at_a_slow_reader() {
    let sent = noise(20_000_000, 3);
    // Large ones, which go together, and small ones between.
    let sizes = [
        CHUNK_BYTES,
        CHUNK_BYTES,
        1,
        LARGE_BYTES,
        70_000,
        17,
        CHUNK_BYTES,
    ];
    let (mut rest, mut pieces) = (Bytes::from(sent.clone()), std::collections::VecDeque::new());
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        pieces.push_back(rest.split_to(rest.len().min(*size)));
    }
    let (mut right, second) = pair().await;
    let transferred = Arc::new(Transferred::default());
    let copy = tokio::spawn({
        let transferred = transferred.clone();
        async move { copy_both(Received(pieces), second, &transferred).await }
    });
    let mut got = Vec::new();
    let mut buffer = vec![0; 1_000_000];
    loop {
        match right.read(&mut buffer).await.unwrap() {
            0 => break,
            count => got.extend_from_slice(&buffer[..count]),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    right.shutdown().await.unwrap();
    copy.await.unwrap().unwrap();
    assert_eq!(transferred.bytes(), (sent.len() as u64, 0));
    assert!(got == sent);
}
