//! What a stream must be able to do, beside reading and writing, to be copied.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};
use tokio_util::io::poll_read_buf;

use super::kernel_pipe::KernelPipe;
use crate::proxy::application_stream::ApplicationStream;

/// What is passed on at once. Behind the nine bytes that head an HTTP/2 frame it fills
/// four TLS records; a byte more would travel in a fifth.
pub(super) const CHUNK_BYTES: usize = 64 * 1024 - 9;
/// What is written to a socket at once when much is on its way: the ends of a stream take
/// turns on a processor less often. More than this is no faster (measured with two
/// processors and a buffer of 512 KiB).
pub(super) const SOCKET_BYTES: usize = 256 * 1024;

/// Where bytes are that were read.
#[derive(Debug)]
pub enum Chunk {
    /// In the buffer that was lent, which was empty.
    Lent,
    /// In memory of their own.
    Owned(Bytes),
}

/// A byte stream that can be aborted.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes the far end see an abort (a TCP or stream reset) rather than a
    /// regular end, at the latest when the stream is dropped.
    fn abort(&mut self);

    /// Reads once, into `buffer` unless the stream has what it received in memory of its
    /// own: that is passed on without a copy; a stream does always one or always the
    /// other. Nothing is read at the end of the stream.
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<Chunk>> {
        poll_read_buf(Pin::new(self), cx, buffer).map_ok(|_| Chunk::Lent)
    }

    /// All that was read by [`poll_chunk`](Self::poll_chunk) has been written elsewhere.
    fn all_written(&mut self) {}

    /// Why the stream is of no use any more, where that is found neither by reading nor by writing.
    fn broken(&self) -> Option<io::Error> {
        None
    }

    /// How much is best written to the stream at once.
    fn batch_bytes(&self) -> usize {
        CHUNK_BYTES
    }

    /// Whether the stream keeps what is written to it until it is sent: what it is given
    /// it does not have to copy.
    fn keeps(&self) -> bool {
        false
    }

    /// Writes the beginning of `bytes` and takes it off.
    fn poll_give(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, bytes).map_ok(|taken| {
            bytes.advance(taken);
            taken
        })
    }

    /// The connection to an application of this node that this is, as it is: nothing is
    /// between but bytes that are read first.
    fn application(&mut self) -> Option<&mut ApplicationStream> {
        None
    }

    /// Whether its bytes are those of a socket as they are, so that the kernel can move them from there
    /// and to it.
    fn is_plain(&self) -> bool {
        false
    }

    /// Reads into the pipe, where it [is plain](Self::is_plain); 0: whether there is more only reading tells.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut KernelPipe,
    ) -> Poll<io::Result<usize>> {
        let _ = (cx, pipe);
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    /// Writes from the pipe, where it [is plain](Self::is_plain).
    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut KernelPipe,
    ) -> Poll<io::Result<usize>> {
        let _ = (cx, pipe);
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    /// Ready when the far end aborted, for streams that can tell without being
    /// read or written.
    fn poll_aborted(&mut self, _cx: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }
}

impl Duplex for TcpStream {
    fn batch_bytes(&self) -> usize {
        SOCKET_BYTES
    }

    fn abort(&mut self) {
        // With no time to linger close(2) sends a reset. On failure the
        // connection is gone already.
        let _ = self.set_zero_linger();
    }

    fn is_plain(&self) -> bool {
        true
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut KernelPipe,
    ) -> Poll<io::Result<usize>> {
        pipe.poll_fill(self, cx)
    }

    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut KernelPipe,
    ) -> Poll<io::Result<usize>> {
        pipe.poll_drain(self, cx)
    }
}

impl Duplex for client::TlsStream<TcpStream> {
    fn abort(&mut self) {
        self.get_mut().0.abort();
    }
}

impl<S: Duplex> Duplex for server::TlsStream<S> {
    fn abort(&mut self) {
        self.get_mut().0.abort();
    }
}

impl<T: Duplex + ?Sized> Duplex for Box<T> {
    fn abort(&mut self) {
        (**self).abort();
    }

    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<Chunk>> {
        (**self).poll_chunk(cx, buffer)
    }

    fn all_written(&mut self) {
        (**self).all_written();
    }

    fn broken(&self) -> Option<io::Error> {
        (**self).broken()
    }

    fn batch_bytes(&self) -> usize {
        (**self).batch_bytes()
    }

    fn keeps(&self) -> bool {
        (**self).keeps()
    }

    fn poll_give(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        (**self).poll_give(cx, bytes)
    }

    fn application(&mut self) -> Option<&mut ApplicationStream> {
        (**self).application()
    }

    fn is_plain(&self) -> bool {
        (**self).is_plain()
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut KernelPipe,
    ) -> Poll<io::Result<usize>> {
        (**self).poll_fill(cx, pipe)
    }

    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut KernelPipe,
    ) -> Poll<io::Result<usize>> {
        (**self).poll_drain(cx, pipe)
    }

    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        (**self).poll_aborted(cx)
    }
}
