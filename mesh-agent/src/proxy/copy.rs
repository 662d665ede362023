//! Bytes both ways between two streams, exactly as two ends of one TCP
//! connection would have them: in order, each direction ended on its own, and
//! an abort passed on as an abort, never as a regular end.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// What is read at once. One buffer per thread serves all streams; a stream has
/// memory of its own only for what its receiver did not take yet.
/// Behind the nine bytes that head an HTTP/2 frame it fills four TLS records; a
/// byte more would travel in a fifth.
const BUFFER_BYTES: usize = 64 * 1024 - 9;
/// After this many full buffers a stream lets others have their turn.
const MAX_ROUNDS: usize = 16;
/// How long an end that has sent all to the other, while that other is gone, is
/// still listened to, so that what it was sent gets through before the abort.
const LINGER: Duration = Duration::from_millis(500);

/// A byte stream that can be aborted.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes the far end see an abort (a TCP or stream reset) rather than a
    /// regular end, at the latest when the stream is dropped.
    fn abort(&mut self);

    /// Ready when the far end aborted, for streams that can tell without being
    /// read or written.
    fn poll_aborted(&mut self, _cx: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }
}

impl Duplex for TcpStream {
    fn abort(&mut self) {
        // With no time to linger close(2) sends a reset. On failure the
        // connection is gone already.
        let _ = self.set_zero_linger();
    }
}

impl Duplex for TlsStream<TcpStream> {
    fn abort(&mut self) {
        self.get_mut().0.abort();
    }
}

impl<T: Duplex + ?Sized> Duplex for Box<T> {
    fn abort(&mut self) {
        (**self).abort();
    }

    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        (**self).poll_aborted(cx)
    }
}

/// Bytes that were taken by the receiver, readable while the copy runs.
#[derive(Debug, Default)]
pub struct Transferred {
    /// From the first stream to the second.
    pub first_to_second: AtomicU64,
    /// From the second stream to the first.
    pub second_to_first: AtomicU64,
}

impl Transferred {
    /// Both counts: first to second, second to first.
    pub fn bytes(&self) -> (u64, u64) {
        (
            self.first_to_second.load(Ordering::Relaxed),
            self.second_to_first.load(Ordering::Relaxed),
        )
    }
}

/// One of the two streams of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The first argument.
    First,
    /// The second argument.
    Second,
}

/// A copy that did not end regularly; both streams were aborted.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", if *.writing { "write" } else { "read" })]
pub struct CopyError {
    /// The stream that failed.
    pub end: End,
    /// Whether it failed at writing.
    pub writing: bool,
    /// How it failed.
    pub source: io::Error,
}

/// Copies until both directions have ended. The end of one direction is passed
/// on while the other goes on. When a stream fails, and when the future is
/// dropped, both streams are aborted.
///
/// # Errors
/// The first failure of either stream.
pub async fn copy_both<A: Duplex, B: Duplex>(
    first: A,
    second: B,
    transferred: &Transferred,
) -> Result<(), CopyError> {
    let mut ends = Ends {
        first,
        second,
        finished: false,
    };
    let mut forward = Way::default();
    let mut backward = Way::default();
    let result = std::future::poll_fn(|cx| {
        let Ends { first, second, .. } = &mut ends;
        let a = forward
            .poll(first, second, &transferred.first_to_second, cx)
            .map_err(|failure| failure.between(End::First, End::Second))?;
        let b = backward
            .poll(second, first, &transferred.second_to_first, cx)
            .map_err(|failure| failure.between(End::Second, End::First))?;
        if a.is_ready() && b.is_ready() {
            return Poll::Ready(Ok(()));
        }
        // Where all of a stream is read, only this can tell of its abort.
        if a.is_ready()
            && let Poll::Ready(source) = first.poll_aborted(cx)
        {
            return Poll::Ready(Err(
                Failure::reading(source).between(End::First, End::Second)
            ));
        }
        if b.is_ready()
            && let Poll::Ready(source) = second.poll_aborted(cx)
        {
            return Poll::Ready(Err(
                Failure::reading(source).between(End::Second, End::First)
            ));
        }
        Poll::Pending
    })
    .await;

    match &result {
        Ok(()) => ends.finished = true,
        Err(CopyError {
            end: End::First, ..
        }) if forward.is_done() => {
            ends.first.abort();
            discard(&mut ends.second).await;
        }
        Err(CopyError {
            end: End::Second, ..
        }) if backward.is_done() => {
            ends.second.abort();
            discard(&mut ends.first).await;
        }
        Err(_) => {}
    }
    result
}

/// Both streams, aborted on drop unless the copy came to its regular end.
struct Ends<A: Duplex, B: Duplex> {
    first: A,
    second: B,
    finished: bool,
}

impl<A: Duplex, B: Duplex> Drop for Ends<A, B> {
    fn drop(&mut self) {
        if !self.finished {
            self.first.abort();
            self.second.abort();
        }
    }
}

/// Reads what nobody can take any more, for a while: an abort at once could
/// overtake the bytes and the end that were sent to this stream before.
async fn discard(stream: &mut impl Duplex) {
    let drain = async {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Ok(1..) = stream.read(&mut buffer).await {}
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}

struct Failure {
    writing: bool,
    source: io::Error,
}

impl Failure {
    fn reading(source: io::Error) -> Self {
        Self {
            writing: false,
            source,
        }
    }

    fn writing(source: io::Error) -> Self {
        Self {
            writing: true,
            source,
        }
    }

    fn between(self, reader: End, writer: End) -> CopyError {
        CopyError {
            end: if self.writing { writer } else { reader },
            writing: self.writing,
            source: self.source,
        }
    }
}

/// One direction.
#[derive(Default)]
enum Way {
    /// Nothing is held; the writer may have to be flushed.
    #[default]
    Reading,
    /// `bytes[from..]` were read and wait for the writer.
    Writing { bytes: Vec<u8>, from: usize },
    /// The reader ended, the writer is being told.
    Ending,
    /// The writer was told.
    Done,
}

impl Way {
    fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    fn poll(
        &mut self,
        reader: &mut impl Duplex,
        writer: &mut impl Duplex,
        count: &AtomicU64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failure>> {
        for _ in 0..MAX_ROUNDS {
            match self {
                Self::Reading => match poll_pass(reader, writer, count, cx)? {
                    Poll::Ready(next) => *self = next,
                    Poll::Pending => {
                        // Nothing to read: what is on its way shall not wait for more.
                        let _ = Pin::new(writer).poll_flush(cx).map_err(Failure::writing)?;
                        return Poll::Pending;
                    }
                },
                Self::Writing { bytes, from } => {
                    let taken = ready!(Pin::new(&mut *writer).poll_write(cx, &bytes[*from..]))
                        .and_then(taken)
                        .map_err(Failure::writing)?;
                    count.fetch_add(taken as u64, Ordering::Relaxed);
                    *from += taken;
                    if *from == bytes.len() {
                        *self = Self::Reading;
                    }
                }
                Self::Ending => {
                    match ready!(Pin::new(&mut *writer).poll_shutdown(cx)) {
                        // It has gone after it said all: nothing is left to be told.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        other => other.map_err(Failure::writing)?,
                    }
                    *self = Self::Done;
                }
                Self::Done => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

thread_local! {
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Reads once and writes what was read; only what the writer does not take is kept.
fn poll_pass(
    reader: &mut impl Duplex,
    writer: &mut impl Duplex,
    count: &AtomicU64,
    cx: &mut Context<'_>,
) -> Poll<Result<Way, Failure>> {
    let mut scratch = SCRATCH
        .take()
        .unwrap_or_else(|| vec![0; BUFFER_BYTES].into());
    let mut buffer = ReadBuf::new(&mut scratch);
    let next = match Pin::new(reader).poll_read(cx, &mut buffer) {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Err(error)) => Poll::Ready(Err(Failure::reading(error))),
        Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(Ok(Way::Ending)),
        Poll::Ready(Ok(())) => {
            let bytes = buffer.filled();
            Poll::Ready(match Pin::new(writer).poll_write(cx, bytes) {
                Poll::Pending => Ok(Way::Writing {
                    bytes: bytes.to_vec(),
                    from: 0,
                }),
                Poll::Ready(result) => match result.and_then(taken) {
                    Ok(taken) => {
                        count.fetch_add(taken as u64, Ordering::Relaxed);
                        Ok(match &bytes[taken..] {
                            [] => Way::Reading,
                            rest => Way::Writing {
                                bytes: rest.to_vec(),
                                from: 0,
                            },
                        })
                    }
                    Err(error) => Err(Failure::writing(error)),
                },
            })
        }
    };
    SCRATCH.set(Some(scratch));
    next
}

fn taken(bytes: usize) -> io::Result<usize> {
    match bytes {
        0 => Err(io::ErrorKind::WriteZero.into()),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
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
}
