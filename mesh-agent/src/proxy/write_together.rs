//! Below HTTP/2: what it writes in small pieces goes out together, and it reads for a
//! moment at a time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::turn::Moment;

/// Pieces below this wait for the next one, or for the flush.
const SMALL_BYTES: usize = 4 * 1024;

/// Each write costs a system call, and to TLS a record. So small writes are kept until HTTP/2
/// flushes, or until a large one takes them along. It holds no memory while nothing waits.
///
/// It takes no slices: h2 then copies frames below 1 KiB together in its own buffer
/// instead of writing and flushing each by itself.
pub struct WriteTogether<S> {
    stream: S,
    kept: BytesMut,
    reading: Moment,
}

impl<S> WriteTogether<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            kept: BytesMut::new(),
            reading: Moment::default(),
        }
    }
}

impl<S: AsyncWrite + Unpin> WriteTogether<S> {
    /// Writes what was kept; then the memory is given back.
    fn poll_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.kept.is_empty() {
            let taken = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.kept))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.kept.advance(taken);
        }
        self.kept = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTogether<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.kept.len() + bytes.len() < SMALL_BYTES {
            this.kept.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        while !this.kept.is_empty() {
            let slices = [IoSlice::new(&this.kept), IoSlice::new(bytes)];
            let taken = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, &slices))?;
            if taken == 0 {
                return Poll::Ready(Ok(0));
            }
            let of_kept = taken.min(this.kept.len());
            this.kept.advance(of_kept);
            if this.kept.is_empty() {
                this.kept = BytesMut::new();
            }
            if taken > of_kept {
                return Poll::Ready(Ok(taken - of_kept));
            }
        }
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_kept(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_kept(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTogether<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            stream, reading, ..
        } = self.get_mut();
        reading.poll(cx, |cx| Pin::new(stream).poll_read(cx, buffer))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_written_arrives_in_order_once_it_is_flushed(
            written in prop::collection::vec((1_usize..10_000, any::<bool>()), 1..20),
            pipe in 1_usize..20_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (near, mut far) = tokio::io::duplex(pipe);
                let (count, mut arrived) = tokio::sync::mpsc::unbounded_channel();
                let all: usize = written.iter().map(|(bytes, _)| bytes).sum();
                let sent: Vec<u8> = (0..all).map(|at: usize| (at % 251) as u8).collect();
                let expected = sent.clone();
                let write = async move {
                    let mut stream = WriteTogether::new(near);
                    let (mut rest, mut so_far) = (&sent[..], 0);
                    for (bytes, flushes) in written {
                        stream.write_all(&rest[..bytes]).await.unwrap();
                        rest = &rest[bytes..];
                        so_far += bytes;
                        prop_assert!(stream.kept.len() < SMALL_BYTES);
                        if flushes {
                            stream.flush().await.unwrap();
                            prop_assert!(stream.kept.capacity() == 0, "memory is held at rest");
                            // Nobody waits for more before he has got all of this.
                            while arrived.recv().await.unwrap() < so_far {}
                        }
                    }
                    stream.shutdown().await.unwrap();
                    Ok(())
                };
                let read = async move {
                    let mut got = Vec::new();
                    while far.read_buf(&mut got).await.unwrap() > 0 {
                        let _ = count.send(got.len());
                    }
                    got
                };
                let (wrote, got) = tokio::join!(write, read);
                wrote?;
                prop_assert!(got == expected);
                Ok(())
            })?;
        }
    }

    /// How much each write had.
    #[derive(Default)]
    struct Writes(Vec<usize>);

    impl AsyncWrite for Writes {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.push(bytes.len());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let bytes = slices.iter().map(|slice| slice.len()).sum();
            self.0.push(bytes);
            Poll::Ready(Ok(bytes))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn small_writes_leave_together_and_a_large_one_takes_them_along() {
        let mut stream = WriteTogether::new(Writes::default());
        for _ in 0..10 {
            stream.write_all(&[0; 100]).await.unwrap();
        }
        stream.flush().await.unwrap();
        stream.write_all(&[0; 1_000]).await.unwrap();
        stream.write_all(&[0; 64_000]).await.unwrap();
        stream.write_all(&[0; 64_000]).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(stream.stream.0, [1_000, 65_000, 64_000]);
    }
}
