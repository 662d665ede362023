//! The connection to an application: aborted when the leave for it is revoked, and counted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::admissions::Admission;
use crate::proxy::application_stream::ApplicationStream;
use crate::proxy::copy::{Duplex, KernelPipe};
use crate::route::TcpLimits;
use crate::telemetry::callers::Counted;

/// A stream that is aborted when its leave is revoked.
pub struct Revocable<S> {
    stream: S,
    admission: Admission,
    counted: Option<Counted>,
    /// Boxed: most have none.
    bounds: Option<Box<Bounds>>,
}

/// How long it may last.
struct Bounds {
    end: Option<Pin<Box<Sleep>>>,
    idle: Option<Idle>,
}

/// How long nothing may be read or written.
struct Idle {
    limit: Duration,
    last: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Bounds {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready("maxConnectionDuration is over");
        }
        let Some(idle) = &mut self.idle else {
            return Poll::Pending;
        };
        while idle.timer.as_mut().poll(cx).is_ready() {
            let until = idle.last + idle.limit;
            if until <= Instant::now() {
                return Poll::Ready("idleTimeout is over");
            }
            idle.timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}

impl<S: Duplex> Revocable<S> {
    pub(super) fn new(stream: S, admission: Admission, counted: Option<Counted>) -> Self {
        Self {
            stream,
            admission,
            counted,
            bounds: None,
        }
    }

    /// It is aborted when it has lasted, or been silent, for longer than that.
    pub(super) fn bounded(mut self, limits: &TcpLimits) -> Self {
        let bounds = Bounds {
            end: limits.max_duration.map(|limit| Box::pin(sleep(limit))),
            idle: limits.idle_timeout.map(|limit| Idle {
                limit,
                last: Instant::now(),
                timer: Box::pin(sleep(limit)),
            }),
        };
        let has_any = bounds.end.is_some() || bounds.idle.is_some();
        self.bounds = has_any.then(|| Box::new(bounds));
        self
    }

    fn moved(&mut self) {
        if let Some(Bounds {
            idle: Some(idle), ..
        }) = self.bounds.as_deref_mut()
        {
            idle.last = Instant::now();
        }
    }

    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.poll_ended(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(error) => Err(error),
        }
    }

    /// Ready when it has been aborted: the leave is revoked, or the time over.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let over = |bounds: &mut Box<Bounds>| bounds.poll_over(cx);
        let over = self.bounds.as_mut().map_or(Poll::Pending, over);
        let error = match (self.admission.poll_revoked(cx), over) {
            (Poll::Ready(error), _) => error,
            (_, Poll::Ready(reason)) => io::Error::new(io::ErrorKind::TimedOut, reason),
            (Poll::Pending, Poll::Pending) => return Poll::Pending,
        };
        self.stream.abort();
        Poll::Ready(error)
    }

    /// Counts what came from the application.
    fn gave(&mut self, bytes: usize) {
        if let Some(counted) = &mut self.counted {
            counted.add(0, bytes);
        }
        if bytes > 0 {
            self.moved();
        }
    }

    /// Counts what the application took.
    fn took(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            if let Some(counted) = &mut self.counted {
                counted.add(*bytes, 0);
            }
            self.moved();
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
        let read = buffer.filled().len() - before;
        self.gave(read);
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
        // Of what goes past the agent nobody would know when it last moved.
        if matches!(self.bounds.as_deref(), Some(Bounds { idle: Some(_), .. })) {
            return None;
        }
        self.stream.application()
    }

    fn is_plain(&self) -> bool {
        self.stream.is_plain()
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut KernelPipe,
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let result = self.stream.poll_fill(cx, pipe);
        if let Poll::Ready(Ok(bytes)) = &result {
            self.gave(*bytes);
        }
        result
    }

    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut KernelPipe,
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let result = self.stream.poll_drain(cx, pipe);
        self.took(result)
    }

    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        // Where all has been read nobody reads any more, and this alone can tell.
        match self.poll_ended(cx) {
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => self.stream.poll_aborted(cx),
        }
    }
}
