//! A connection inside the agent, with the manners of a TCP connection: each
//! direction ends on its own, and an abort is seen as a reset.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::proxy::copy::Duplex;

/// Bytes of one direction that wait for the reader.
const BUFFER_BYTES: usize = 64 * 1024;

/// One end.
pub struct Pipe {
    stream: DuplexStream,
    aborted: Arc<AtomicBool>,
    far_aborted: Arc<AtomicBool>,
}

impl Pipe {
    /// Both ends.
    pub fn pair() -> (Self, Self) {
        let (near, far) = tokio::io::duplex(BUFFER_BYTES);
        let (a, b) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let end = |stream, aborted: &Arc<AtomicBool>, far_aborted: &Arc<AtomicBool>| Self {
            stream,
            aborted: aborted.clone(),
            far_aborted: far_aborted.clone(),
        };
        (end(near, &a, &b), end(far, &b, &a))
    }

    fn reset(&self) -> io::Result<()> {
        if self.far_aborted.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() == before && buffer.remaining() > 0 {
            self.reset()?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.reset()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Duplex for Pipe {
    fn abort(&mut self) {
        // Seen by the far end when this one is dropped.
        self.aborted.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_end_is_an_end_and_an_abort_a_reset() {
        let (mut near, mut far) = Pipe::pair();
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut question = Vec::new();
        far.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        far.write_all(b"answer").await.unwrap();
        far.abort();
        drop(far);
        let mut answer = Vec::new();
        let error = near.read_to_end(&mut answer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(answer, b"answer");
        let error = near.write(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
