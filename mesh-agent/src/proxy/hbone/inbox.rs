//! What a tunnel has received and nobody has read yet.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use parking_lot::Mutex;

use super::stream::io_error;

/// Smaller frames are copied together when they wait. Each would keep the whole of what HTTP/2 read
/// with it, up to so much, and a place in HTTP/2's own list.
const SMALL_BYTES: usize = 8 * 1024;
/// What is copied together becomes a piece when it has this size.
const PIECE_BYTES: usize = 64 * 1024;

/// The tunnel was reset, since the node held too much that nobody took.
#[derive(Debug, thiserror::Error)]
#[error("too much is held that nobody takes (--max-tunnel-memory)")]
pub struct Overfull;

/// Whether a tunnel ended since the node held too much.
pub fn is_overfull(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<Overfull>())
}

fn overfull() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, Overfull)
}

/// The receiving half of a tunnel. Its reader is not the only one who takes it in hand: whoever
/// counts what the node holds takes what waits out of HTTP/2's own memory, and may end it.
#[derive(Debug)]
pub struct Inbox {
    state: Mutex<State>,
    /// The same as [`State::Overfull`], for those who look often.
    is_overfull: AtomicBool,
}

#[derive(Debug)]
enum State {
    Open(Box<Waiting>),
    /// Nothing more is received or read.
    Overfull,
}

#[derive(Debug)]
struct Waiting {
    stream: RecvStream,
    /// Taken out of `stream`, in order.
    pieces: VecDeque<Bytes>,
    /// The last of them, while it may grow.
    growing: BytesMut,
    /// How the stream ended, behind the pieces.
    end: Option<Result<(), h2::Error>>,
    /// Whoever read last.
    reader: Option<Waker>,
}

impl Inbox {
    pub fn new(stream: RecvStream) -> Self {
        let waiting = Waiting {
            stream,
            pieces: VecDeque::new(),
            growing: BytesMut::new(),
            end: None,
            reader: None,
        };
        Self {
            state: Mutex::new(State::Open(Box::new(waiting))),
            is_overfull: AtomicBool::new(false),
        }
    }

    /// The next bytes; none at the end. They count as unread until they are [released](Self::release).
    pub fn poll_data(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        match &mut *self.state.lock() {
            State::Open(waiting) => waiting.poll_data(cx),
            State::Overfull => Poll::Ready(Err(overfull())),
        }
    }

    /// Opens the window by what was read.
    pub fn release(&self, bytes: usize) -> io::Result<()> {
        match &mut *self.state.lock() {
            State::Open(waiting) => {
                let mut window = waiting.stream.flow_control().clone();
                window.release_capacity(bytes).map_err(io_error)
            }
            State::Overfull => Err(overfull()),
        }
    }

    /// Why nothing passes any more, where the node held too much.
    pub fn broken(&self) -> Option<io::Error> {
        self.is_overfull.load(Ordering::Acquire).then(overfull)
    }

    /// Takes what has come out of HTTP/2's memory into as little as it needs, and says how many bytes
    /// are unread.
    pub fn collect(&self) -> usize {
        match &mut *self.state.lock() {
            State::Open(waiting) => waiting.collect(),
            State::Overfull => 0,
        }
    }

    /// How much has been taken out of HTTP/2's memory.
    #[cfg(test)]
    pub fn collected(&self) -> usize {
        match &*self.state.lock() {
            State::Open(waiting) => {
                waiting.growing.len() + waiting.pieces.iter().map(Bytes::len).sum::<usize>()
            }
            State::Overfull => 0,
        }
    }

    /// Throws away what waits, at once, and lets the reader see a reset.
    pub fn give_up(&self) {
        let mut state = self.state.lock();
        let State::Open(waiting) = std::mem::replace(&mut *state, State::Overfull) else {
            return;
        };
        self.is_overfull.store(true, Ordering::Release);
        drop(state);
        if let Some(reader) = &waiting.reader {
            reader.wake_by_ref();
        }
    }
}

impl Waiting {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        match &mut self.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Ok(Some(piece)));
        }
        if !self.growing.is_empty() {
            let piece = std::mem::take(&mut self.growing).freeze();
            return Poll::Ready(Ok(Some(piece)));
        }
        match self.end.take() {
            Some(Ok(())) => {
                self.end = Some(Ok(()));
                return Poll::Ready(Ok(None));
            }
            Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            None => {}
        }
        let data = ready!(self.stream.poll_data(cx));
        Poll::Ready(data.transpose().map_err(io_error))
    }

    fn collect(&mut self) -> usize {
        // Whoever waits for bytes goes on waiting: HTTP/2 wakes the last who asked.
        let reader = self.reader.clone();
        let mut cx = Context::from_waker(reader.as_ref().unwrap_or(Waker::noop()));
        while self.end.is_none() {
            match self.stream.poll_data(&mut cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(bytes))) => self.keep(bytes),
                Poll::Ready(Some(Err(error))) => self.end = Some(Err(error)),
                Poll::Ready(None) => self.end = Some(Ok(())),
            }
        }
        self.stream.flow_control().used_capacity()
    }

    fn keep(&mut self, bytes: Bytes) {
        let is_small = bytes.len() < SMALL_BYTES;
        if !self.growing.is_empty() && (!is_small || self.growing.len() + bytes.len() > PIECE_BYTES)
        {
            self.pieces
                .push_back(std::mem::take(&mut self.growing).freeze());
        }
        if is_small {
            self.growing.extend_from_slice(&bytes);
        } else {
            self.pieces.push_back(bytes);
        }
    }
}
