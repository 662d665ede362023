//! A stream whose first bytes have been read to recognise the protocol, and
//! are read again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::application_stream::ApplicationStream;
use super::copy::{Duplex, KernelPipe};
use super::writes_to::writes_to;

pub(super) struct Replay<S> {
    first: Bytes,
    stream: S,
    _counted: Option<TaskTrackerToken>,
}

impl<S> Replay<S> {
    pub(super) fn new(first: impl Into<Bytes>, stream: S) -> Self {
        Self {
            first: first.into(),
            stream,
            _counted: None,
        }
    }

    /// The stream itself.
    pub(super) fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Counts as open for as long as it lives.
    pub(super) fn counted(self, token: TaskTrackerToken) -> Self {
        Self {
            _counted: Some(token),
            ..self
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let count = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..count]);
        self.first.advance(count);
        Poll::Ready(Ok(()))
    }
}

writes_to!(Replay.stream);

impl<S: Duplex> Duplex for Replay<S> {
    fn abort(&mut self) {
        self.stream.abort();
    }

    fn batch_bytes(&self) -> usize {
        self.stream.batch_bytes()
    }

    fn application(&mut self) -> Option<&mut ApplicationStream> {
        // As long as bytes are held here, nothing may overtake them.
        match self.first.is_empty() {
            true => self.stream.application(),
            false => None,
        }
    }

    fn is_plain(&self) -> bool {
        self.first.is_empty() && self.stream.is_plain()
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut KernelPipe,
    ) -> Poll<io::Result<usize>> {
        self.stream.poll_fill(cx, pipe)
    }

    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut KernelPipe,
    ) -> Poll<io::Result<usize>> {
        self.stream.poll_drain(cx, pipe)
    }

    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.stream.poll_aborted(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_was_read_comes_first() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b"world").await.unwrap();
        drop(far);
        let mut all = String::new();
        Replay::new(&b"hello "[..], near)
            .read_to_string(&mut all)
            .await
            .unwrap();
        assert_eq!(all, "hello world");
    }
}
