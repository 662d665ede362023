//! TLS 1.3 between agents: rustls agrees on the keys, and here data are sealed and opened with them
//! where they lie, so that they are copied once or not at all between a socket and HTTP/2.
//!
//! ```text
//! socket -> Buffer -> Opening -> HTTP/2        HTTP/2 -> Sealing -> Buffer -> socket
//! ```

mod buffer;
mod fault;
mod handshake;
mod opening;
mod record;
mod sealing;
mod session;

#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use buffer::Buffer;
use fault::Fault;
pub use handshake::{Established, accept, connect};
use opening::{Opened, Opening};
use record::{Kind, Message};
use sealing::Sealing;
use session::Session;

/// What is read at once at least: the rest of any record.
const READ_BYTES: usize = 17 * 1024;
/// Records and messages without data, one after the other: who sends more does nothing else.
const MAX_IDLE: u32 = 32;

const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
/// How bad an alert is means nothing in TLS 1.3, but both values stand for what they did.
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// A connection after its handshake. Whoever reads and writes it is one task, as HTTP/2 does: also a reader may
/// have to send something.
pub struct TlsStream<S> {
    stream: S,
    session: Session,
    opening: Opening,
    sealing: Sealing,
    idle: u32,
    /// The peer has said that nothing more comes.
    is_read: bool,
    /// We have.
    is_written: bool,
    fault: Option<Fault>,
}

impl<S> TlsStream<S> {
    fn new(stream: S, session: Session, opening: Opening, sealing: Sealing) -> Self {
        Self {
            stream,
            session,
            opening,
            sealing,
            idle: 0,
            is_read: false,
            is_written: false,
            fault: None,
        }
    }

    /// Opens what has come, as far as the reader has room. Says whether there was anything.
    fn open(&mut self, reader: &mut ReadBuf<'_>) -> Result<bool, Fault> {
        let mut any = false;
        while reader.remaining() > 0 && !self.is_read {
            let before = reader.filled().len();
            match self.opening.open(reader)? {
                Opened::Nothing => break,
                Opened::Data if reader.filled().len() > before => self.idle = 0,
                Opened::Data => count(&mut self.idle)?,
                Opened::Handshake => self.messages()?,
                Opened::Alert(CLOSE_NOTIFY) => {
                    self.is_read = true;
                    self.opening.incoming = Buffer::default();
                }
                Opened::Alert(USER_CANCELED) => count(&mut self.idle)?,
                Opened::Alert(number) => return Err(Fault::Alert(number)),
            }
            any = true;
        }
        Ok(any)
    }

    fn messages(&mut self) -> Result<(), Fault> {
        let takes_tickets = self.session.takes_tickets();
        while let Some((message, length)) = record::message(&self.opening.message, takes_tickets)? {
            count(&mut self.idle)?;
            match message {
                Message::Ticket(ticket) => self.session.ticket(ticket)?,
                Message::KeyUpdate { asked } => {
                    // What follows is sealed with the next key, so nothing may follow in this record.
                    if self.opening.message.len() > length {
                        return Err(Fault::Unexpected);
                    }
                    self.opening.key = self.session.next_to_open()?;
                    if asked {
                        self.sealing.update();
                    }
                }
            }
            self.opening.message.drain(..length);
        }
        if self.opening.message.is_empty() {
            self.opening.message = Vec::new();
        }
        Ok(())
    }
}

/// One more without data.
fn count(idle: &mut u32) -> Result<(), Fault> {
    *idle += 1;
    match *idle {
        ..=MAX_IDLE => Ok(()),
        _ => Err(Fault::Unexpected),
    }
}

impl<S: AsyncWrite + Unpin> TlsStream<S> {
    /// Nothing passes any more; the peer is told why.
    fn fail(&mut self, fault: Fault, cx: &mut Context<'_>) -> io::Error {
        self.fault = Some(fault);
        if let Some(number) = fault.alert()
            && !std::mem::replace(&mut self.is_written, true)
            && self.sealing.short(Kind::Alert, &[FATAL, number]).is_ok()
        {
            let _ = self.sealing.poll_send(&mut self.stream, cx);
        }
        fault.into()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        reader: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(fault) = this.fault {
            return Poll::Ready(Err(fault.into()));
        }
        let before = reader.filled().len();
        loop {
            let any = match this.open(reader) {
                Ok(any) => any,
                Err(fault) => {
                    let error = this.fail(fault, cx);
                    // What came before it is the reader's; he learns of it the next time.
                    return Poll::Ready(match reader.filled().len() > before {
                        true => Ok(()),
                        false => Err(error),
                    });
                }
            };
            if this.is_read || reader.remaining() == 0 || reader.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if any {
                // Records without data: others go first, and what has come to them.
                let _ = pin!(tokio::task::yield_now()).poll(cx);
                return Poll::Pending;
            }
            let mut room = ReadBuf::new(this.opening.incoming.room(READ_BYTES));
            let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, &mut room) else {
                this.opening.incoming.rest();
                return Poll::Pending;
            };
            let bytes = room.filled().len();
            read?;
            if bytes == 0 {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer left without an end (close_notify)",
                )));
            }
            this.opening.incoming.add(bytes);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.sealing.poll_send(&mut this.stream, cx))?;
        if let Some(fault) = this.fault {
            return Poll::Ready(Err(fault.into()));
        }
        if this.is_written {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = match this.sealing.data(slices, &mut this.session) {
            Ok(taken) => taken,
            Err(fault) => return Poll::Ready(Err(this.fail(fault, cx))),
        };
        // What does not get away now is sent before the next, or with a flush.
        match this.sealing.poll_send(&mut this.stream, cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(taken)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.sealing.poll_send(&mut this.stream, cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.is_written, true) {
            this.sealing.short(Kind::Alert, &[WARNING, CLOSE_NOTIFY])?;
        }
        ready!(this.sealing.poll_send(&mut this.stream, cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
