//! One tunnel as a byte stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use crate::identity::Identity;
use crate::proxy::copy::{Chunk, Duplex};

/// A tunnel: shutdown ends our direction, drop before both directions have
/// ended aborts it.
#[derive(Debug)]
pub struct TunnelStream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    peer_identity: Identity,
    /// Received, counted against the window, not yet read.
    unread: Bytes,
    sent_all: bool,
    received_all: bool,
    _slot: Option<OwnedSemaphorePermit>,
}

impl TunnelStream {
    /// A stream of a connection with `peer_identity`, which gives back `slot`
    /// when it ends.
    pub(super) fn new(
        send: SendStream<Bytes>,
        receive: RecvStream,
        peer_identity: Identity,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self {
            send,
            receive,
            peer_identity,
            unread: Bytes::new(),
            sent_all: false,
            received_all: false,
            _slot: slot,
        }
    }

    /// Who is at the other end of the connection.
    pub fn peer_identity(&self) -> &Identity {
        &self.peer_identity
    }
}

impl TunnelStream {
    /// Waits for something to read; nothing is left where the end was read.
    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() && !self.received_all {
            match ready!(self.receive.poll_data(cx)) {
                Some(data) => self.unread = data.map_err(io_error)?,
                None => self.received_all = true,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what was received. The window opens only by what was read: that is the
    /// back-pressure.
    fn read(&mut self, bytes: usize) -> io::Result<Bytes> {
        let read = self.unread.split_to(bytes);
        self.receive
            .flow_control()
            .release_capacity(bytes)
            .map_err(io_error)?;
        Ok(read)
    }

    /// Waits for room in the windows, and says for how many of these bytes there is.
    fn poll_room(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(bytes);
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(capacity) => capacity.map_err(io_error)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        Poll::Ready(Ok(bytes.min(self.send.capacity())))
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_received(cx))?;
        let bytes = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.read(bytes)?);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let taken = ready!(self.poll_room(cx, bytes.len()))?;
        self.send
            .send_data(Bytes::copy_from_slice(&bytes[..taken]), false)
            .map_err(io_error)?;
        Poll::Ready(Ok(taken))
    }

    /// The connection sends by itself whatever the windows allow.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.sent_all {
            self.send.send_data(Bytes::new(), true).map_err(io_error)?;
            self.sent_all = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl Duplex for TunnelStream {
    fn abort(&mut self) {
        // Does nothing to a stream that has ended both ways and was sent.
        self.send.send_reset(Reason::CANCEL);
    }

    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        _buffer: &mut BytesMut,
    ) -> Poll<io::Result<Chunk>> {
        ready!(self.poll_received(cx))?;
        Poll::Ready(self.read(self.unread.len()).map(Chunk::Owned))
    }

    fn keeps(&self) -> bool {
        true
    }

    fn poll_give(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let taken = ready!(self.poll_room(cx, bytes.len()))?;
        self.send
            .send_data(bytes.split_to(taken), false)
            .map_err(io_error)?;
        Poll::Ready(Ok(taken))
    }

    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.sent_all {
            // Nothing is left that the far end could refuse.
            return Poll::Pending;
        }
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => Poll::Ready(reset(reason)),
            Poll::Ready(Err(error)) => Poll::Ready(io_error(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        if !(self.sent_all && self.received_all) {
            self.abort();
        }
    }
}

fn reset(reason: Reason) -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        format!("the tunnel was reset: {reason}"),
    )
}

fn io_error(error: h2::Error) -> io::Error {
    match error.reason() {
        Some(reason) if error.is_reset() => reset(reason),
        _ if error.is_io() => match error.into_io() {
            Some(error) => error,
            None => io::ErrorKind::BrokenPipe.into(),
        },
        _ => io::Error::other(error),
    }
}
