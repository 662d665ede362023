//! The agent's end of a connection whose other end is an application of this node.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::application::Place;
use super::copy::{Duplex, KernelPipe};
use crate::datapath::{Bridge, Bridges, Bridging};
use crate::telemetry::callers::Arrived;
use crate::telemetry::connections::{BytesOf, Counter};

/// A connection to an application or from one, with the short-circuit or without.
///
/// Bytes that were handed over and bytes that came by TCP wait in two queues of one
/// socket, and recv(2) empties one at a time: a read of less than was asked for does not
/// mean that nothing is left. Tokio takes it for that, and would wait for an event that
/// has been before. So here only `EAGAIN` says that there is nothing, and that there is
/// no room.
pub struct ApplicationStream {
    /// Boxed: most streams have none. Before the socket, as fields are dropped in order: no byte
    /// passes beside a socket that is being closed.
    splice: Option<Box<Splice>>,
    stream: TcpStream,
    /// After the socket: free when it is closed.
    place: Option<Place>,
}

/// What is known where the short-circuit knows the socket.
struct Splice {
    from_here: Passage,
    /// The other direction's, which the other stream opens and closes.
    to_here: Option<Arc<Bridge>>,
    /// Where the bytes that go past are counted, too.
    arrived: Option<Arc<Arrived>>,
}

/// How often a bridge is asked for: the far application has accepted by then.
const MAX_ATTEMPTS: u8 = 8;

/// The way of what is read here past the agent.
enum Passage {
    /// Asked for too early so often.
    Wanted(Arc<Bridges>, u8),
    There(Arc<Bridge>),
    None,
}

impl ApplicationStream {
    /// `is_spliced`: whether the short-circuit knows the socket.
    pub(super) fn new(stream: TcpStream, is_spliced: bool, bridges: Option<&Arc<Bridges>>) -> Self {
        let splice = || Splice {
            from_here: bridges.map_or(Passage::None, |bridges| Passage::Wanted(bridges.clone(), 0)),
            to_here: None,
            arrived: None,
        };
        Self {
            splice: is_spliced.then(|| Box::new(splice())),
            stream,
            place: None,
        }
    }

    /// Holds a place among those that may be open as long as the connection is.
    pub(super) fn hold(&mut self, place: Option<Place>) {
        self.place = place;
    }

    /// Bytes that go past the agent to the application and from it are counted there.
    pub(super) fn count_in(&mut self, arrived: Option<Arc<Arrived>>) {
        if let Some(splice) = &mut self.splice {
            splice.arrived = arrived;
        }
    }

    /// All that was read here has been written to `to`, and what comes goes there as well: it
    /// need not come through the agent, as long as it does not read. Returns the way
    /// past when that has just come about. `is_idle`: there is nothing to read.
    pub(super) fn passed_on(&mut self, to: &mut Self, is_idle: bool) -> Option<Arc<Bridge>> {
        let (here, there) = (self.splice.as_mut()?, to.splice.as_mut()?);
        let mut new = None;
        if let Passage::Wanted(bridges, attempts) = &mut here.from_here {
            *attempts += u8::from(is_idle);
            here.from_here = match bridges.make(&self.stream, &to.stream) {
                Bridging::NotYet if *attempts < MAX_ATTEMPTS => return None,
                Bridging::NotYet | Bridging::Never => Passage::None,
                Bridging::Made(bridge) => {
                    let bridge = Arc::new(bridge);
                    there.to_here = Some(bridge.clone());
                    there.follow(&bridge, BytesOf::Client);
                    here.follow(&bridge, BytesOf::Server);
                    new = Some(bridge.clone());
                    Passage::There(bridge)
                }
            };
        }
        if let Passage::There(bridge) = &here.from_here {
            bridge.open();
        }
        new
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

impl Splice {
    fn follow(&self, bridge: &Arc<Bridge>, of: BytesOf) {
        if let Some(arrived) = &self.arrived {
            arrived.connections.follow(bridge.clone(), of);
        }
    }

    /// What is read here passes no more beside the agent.
    fn close_from_here(&self) {
        if let Passage::There(bridge) = &self.from_here {
            bridge.close();
        }
    }

    /// The ways past, from here and to here.
    fn bridges(&self) -> impl Iterator<Item = &Arc<Bridge>> {
        let from_here = match &self.from_here {
            Passage::There(bridge) => Some(bridge),
            Passage::Wanted(..) | Passage::None => None,
        };
        from_here.into_iter().chain(&self.to_here)
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        for bridge in self.bridges() {
            bridge.close();
            if let Some(arrived) = &self.arrived {
                let counter: Arc<dyn Counter> = bridge.clone();
                arrived.connections.settle(&counter);
            }
        }
    }
}

impl Counter for Bridge {
    fn bytes(&self) -> u64 {
        Bridge::bytes(self)
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
        let this = &mut *self;
        let Some(splice) = &this.splice else {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        };
        loop {
            ready!(this.stream.poll_read_ready(cx))?;
            splice.close_from_here();
            // SAFETY: only ever written to, by the call below.
            let mut room: &mut [MaybeUninit<u8>] = unsafe { buffer.unfilled_mut() };
            match this.stream.try_read_buf(&mut room) {
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
        if self.splice.is_some() {
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
        if self.splice.is_some() {
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
        // Only the agent carries anything now.
        let bridges = self.splice.iter().flat_map(|splice| splice.bridges());
        bridges.for_each(|bridge| bridge.close());
        self.stream.abort();
    }

    fn application(&mut self) -> Option<&mut ApplicationStream> {
        Some(self)
    }

    fn is_plain(&self) -> bool {
        // splice(2) does not find what was handed over.
        self.splice.is_none()
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
            let wrap = |stream| ApplicationStream::new(stream, is_spliced, None);
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
