//! The agent's end of a connection whose other end is an application of this node.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::copy::Duplex;

/// A connection to an application or from one, with the short-circuit or without.
///
/// Bytes that were handed over and bytes that came by TCP wait in two queues of one
/// socket, and recv(2) empties one at a time: a read of less than was asked for does not
/// mean that nothing is left. Tokio takes it for that, and would wait for an event that
/// has been before. So here only `EAGAIN` says that there is nothing, and that there is
/// no room.
pub struct ApplicationStream {
    stream: TcpStream,
    is_spliced: bool,
}

impl ApplicationStream {
    /// `is_spliced`: whether the short-circuit knows the socket.
    pub(super) fn new(stream: TcpStream, is_spliced: bool) -> Self {
        Self { stream, is_spliced }
    }

    fn poll_written(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl Deref for ApplicationStream {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsyncRead for ApplicationStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_spliced {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            // SAFETY: only ever written to, by the call below.
            let mut room: &mut [MaybeUninit<u8>] = unsafe { buffer.unfilled_mut() };
            match self.stream.try_read_buf(&mut room) {
                Ok(count) => {
                    // SAFETY: so many bytes have been written.
                    unsafe { buffer.assume_init(count) };
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ApplicationStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_spliced {
            self.poll_written(cx, |stream| stream.try_write(bytes))
        } else {
            Pin::new(&mut self.stream).poll_write(cx, bytes)
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_spliced {
            self.poll_written(cx, |stream| stream.try_write_vectored(slices))
        } else {
            Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
        }
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

impl Duplex for ApplicationStream {
    fn batch_bytes(&self) -> usize {
        self.stream.batch_bytes()
    }

    fn abort(&mut self) {
        self.stream.abort();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Both ways of reading and writing carry every byte, and wait where they must.
    #[tokio::test]
    async fn all_bytes_come_through_and_then_the_end() {
        const BYTES: usize = 8 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        for is_spliced in [true, false] {
            let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
            let wrap = |stream| ApplicationStream::new(stream, is_spliced);
            let (mut far, mut near) = (
                wrap(far.expect("connected")),
                wrap(near.expect("accepted").0),
            );
            let sent: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
            let expected = sent.clone();
            let write = async move {
                far.write_all(&sent).await.expect("written");
                far.shutdown().await.expect("ended");
            };
            let mut got = Vec::new();
            let (read, ()) = tokio::join!(near.read_to_end(&mut got), write);
            assert_eq!(read.expect("read"), BYTES);
            assert!(got == expected, "spliced: {is_spliced}");
        }
    }
}
