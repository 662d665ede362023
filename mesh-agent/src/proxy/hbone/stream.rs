//! One tunnel as a byte stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use super::memory::Receiver;
use super::outbox::Payload;
use crate::identity::Identity;
use crate::proxy::copy::{Chunk, Duplex};

/// A tunnel: shutdown ends our direction, drop before both directions have
/// ended aborts it.
#[derive(Debug)]
pub struct TunnelStream {
    send: SendStream<Payload>,
    receive: Receiver,
    peer_identity: Identity,
    /// Received, counted against the window, not yet read.
    unread: Bytes,
    /// Read, and counted against the window until whoever has it has passed it on.
    in_hand: usize,
    sent_all: bool,
    received_all: bool,
    _slot: Option<OwnedSemaphorePermit>,
}

impl TunnelStream {
    /// A stream of a connection with `peer_identity`, which gives back `slot`
    /// when it ends.
    pub(super) fn new(
        send: SendStream<Payload>,
        receive: Receiver,
        peer_identity: Identity,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self {
            send,
            receive,
            peer_identity,
            unread: Bytes::new(),
            in_hand: 0,
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
            match ready!(self.receive.poll_data(cx))? {
                Some(data) => self.unread = data,
                None => self.received_all = true,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Opens the window by what was passed on: that is the back-pressure.
    fn release(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.in_hand) {
            0 => Ok(()),
            bytes => self.receive.release(bytes),
        }
    }

    /// Takes what was received.
    fn read(&mut self, bytes: usize) -> Bytes {
        self.in_hand += bytes;
        self.unread.split_to(bytes)
    }

    /// Waits for room in the windows, and says for how many of these bytes there is.
    fn poll_room(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<usize>> {
        if let Some(broken) = self.broken() {
            return Poll::Ready(Err(broken));
        }
        self.send.reserve_capacity(bytes);
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(capacity) => capacity.map_err(io_error)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        Poll::Ready(Ok(bytes.min(self.send.capacity())))
    }

    /// Gives the connection something for which there is room.
    fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        let payload = Payload::new(bytes, self.receive.unsent());
        let given = payload.counts();
        self.send.send_data(payload, false).map_err(io_error)?;
        self.receive.given(given);
        Ok(())
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
        buffer.put_slice(&self.read(bytes));
        Poll::Ready(self.release())
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
        self.send(Bytes::copy_from_slice(&bytes[..taken]))?;
        Poll::Ready(Ok(taken))
    }

    /// The connection sends by itself whatever the windows allow.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.broken().map_or(Ok(()), Err))
    }

    /// Ready when the connection has written all: until then somebody has to answer for what it holds.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(broken) = self.broken() {
            return Poll::Ready(Err(broken));
        }
        if !self.sent_all {
            let end = Payload::new(Bytes::new(), self.receive.unsent());
            self.send.send_data(end, true).map_err(io_error)?;
            self.sent_all = true;
        }
        self.receive.unsent().poll_none(cx).map(Ok)
    }
}

impl Duplex for TunnelStream {
    fn abort(&mut self) {
        let reason = match self.broken() {
            Some(_) => Reason::ENHANCE_YOUR_CALM,
            None => Reason::CANCEL,
        };
        // Does nothing to a stream that has ended both ways and was sent.
        self.send.send_reset(reason);
    }

    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        _buffer: &mut BytesMut,
    ) -> Poll<io::Result<Chunk>> {
        ready!(self.poll_received(cx))?;
        let all = self.unread.len();
        Poll::Ready(Ok(Chunk::Owned(self.read(all))))
    }

    fn all_written(&mut self) {
        // Where it fails, so will the next read.
        let _ = self.release();
    }

    fn broken(&self) -> Option<io::Error> {
        self.receive.broken()
    }

    fn keeps(&self) -> bool {
        true
    }

    fn poll_give(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let taken = ready!(self.poll_room(cx, bytes.len()))?;
        self.send(bytes.split_to(taken))?;
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

pub(super) fn io_error(error: h2::Error) -> io::Error {
    match error.reason() {
        Some(reason) if error.is_reset() => reset(reason),
        _ if error.is_io() => match error.into_io() {
            Some(error) => error,
            None => io::ErrorKind::BrokenPipe.into(),
        },
        _ => io::Error::other(error),
    }
}
