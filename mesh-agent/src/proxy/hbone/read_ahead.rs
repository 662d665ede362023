//! The TCP connection below TLS, read in larger pieces than rustls asks for.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::proxy::writes_to::writes_to;

/// What is read at once: four TLS records.
const BUFFER_BYTES: usize = 4 * (16 * 1024 + 256);

/// Reads ahead while there is more than rustls asks for (4 KiB where it has nothing yet,
/// else the rest of a record), and holds no memory while there is nothing to read.
pub struct ReadAhead<S> {
    stream: S,
    ahead: BytesMut,
    /// Whether the last read got all it asked for, so that there may be more.
    is_more: bool,
}

impl<S> ReadAhead<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            ahead: BytesMut::new(),
            is_more: false,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            if !this.is_more {
                let before = buffer.filled().len();
                ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
                this.is_more = buffer.remaining() == 0 && buffer.filled().len() > before;
                return Poll::Ready(Ok(()));
            }
            this.ahead.reserve(BUFFER_BYTES);
            match poll_read_buf(Pin::new(&mut this.stream), cx, &mut this.ahead) {
                Poll::Ready(read) => this.is_more = read? >= BUFFER_BYTES,
                Poll::Pending => {
                    (this.ahead, this.is_more) = (BytesMut::new(), false);
                    return Poll::Pending;
                }
            }
        }
        let bytes = this.ahead.len().min(buffer.remaining());
        buffer.put_slice(&this.ahead[..bytes]);
        this.ahead.advance(bytes);
        if this.ahead.is_empty() && !this.is_more {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

writes_to!(ReadAhead.stream);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_asked_for_comes_in_order(
            written in prop::collection::vec(1_usize..200_000, 1..6),
            asked in prop::collection::vec(1_usize..20_000, 1..6),
            pipe in 1_usize..300_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (near, mut far) = tokio::io::duplex(pipe);
                let sent: Vec<u8> = (0..written.iter().sum()).map(|at: usize| (at % 251) as u8).collect();
                let expected = sent.clone();
                let write = async move {
                    let mut rest = &sent[..];
                    for bytes in written {
                        far.write_all(&rest[..bytes]).await.unwrap();
                        rest = &rest[bytes..];
                        tokio::task::yield_now().await;
                    }
                };
                let read = async {
                    let mut stream = ReadAhead::new(near);
                    let mut got = Vec::new();
                    for bytes in asked.iter().cycle() {
                        let mut buffer = vec![0; *bytes];
                        match stream.read(&mut buffer).await.unwrap() {
                            0 => break,
                            read => got.extend_from_slice(&buffer[..read]),
                        }
                    }
                    prop_assert!(stream.ahead.capacity() == 0, "memory is held at the end");
                    Ok(got)
                };
                let ((), got) = tokio::join!(write, read);
                prop_assert!(got? == expected);
                Ok(())
            })?;
        }
    }
}
