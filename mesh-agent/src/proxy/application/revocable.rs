//! The connection to an application: aborted when the leave for it is revoked, and counted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::admissions::Admission;
use crate::proxy::application_stream::ApplicationStream;
use crate::proxy::copy::Duplex;
use crate::telemetry::callers::Counted;

/// A stream that is aborted when its leave is revoked.
pub struct Revocable<S> {
    stream: S,
    admission: Admission,
    counted: Option<Counted>,
}

impl<S: Duplex> Revocable<S> {
    pub(super) fn new(stream: S, admission: Admission, counted: Option<Counted>) -> Self {
        Self {
            stream,
            admission,
            counted,
        }
    }

    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.admission.poll_revoked(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(error) => {
                self.stream.abort();
                Err(error)
            }
        }
    }

    /// Counts what the application took.
    fn took(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Poll::Ready(Ok(bytes)), Some(counted)) = (&result, &mut self.counted) {
            counted.add(*bytes, 0);
        }
        result
    }
}

impl<S: Duplex> AsyncRead for Revocable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Some(counted) = &mut self.counted {
            counted.add(0, buffer.filled().len() - before);
        }
        result
    }
}

impl<S: Duplex> AsyncWrite for Revocable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.took(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.took(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: Duplex> Duplex for Revocable<S> {
    fn abort(&mut self) {
        self.stream.abort();
    }

    fn batch_bytes(&self) -> usize {
        self.stream.batch_bytes()
    }

    fn application(&mut self) -> Option<&mut ApplicationStream> {
        self.stream.application()
    }

    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        // Where all has been read nobody reads any more, and this alone can tell.
        match self.admission.poll_revoked(cx) {
            Poll::Ready(error) => {
                self.stream.abort();
                Poll::Ready(error)
            }
            Poll::Pending => self.stream.poll_aborted(cx),
        }
    }
}
