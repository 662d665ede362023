//! Bytes both ways between two streams, exactly as two ends of one TCP
//! connection would have them: in order, each direction ended on its own, and
//! an abort passed on as an abort, never as a regular end.

mod duplex;
mod kernel_pipe;

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use crate::datapath::Bridge;

use duplex::{CHUNK_BYTES, SOCKET_BYTES};
pub use duplex::{Chunk, Duplex};
pub use kernel_pipe::KernelPipe;

/// What fills at least so much of the buffer is given away with it where the writer
/// keeps it, and the thread gets a new one; less is copied.
const LARGE_BYTES: usize = CHUNK_BYTES / 2;
/// After this many full buffers a stream lets others have their turn.
const MAX_ROUNDS: usize = 16;
/// Pieces that a tunnel has received and that are written to a socket at once; for so
/// many full buffers counts a larger one.
const PIECES: usize = SOCKET_BYTES / CHUNK_BYTES;
/// How long an end that has sent all to the other, while that other is gone, is
/// still listened to, so that what it was sent gets through before the abort.
const LINGER: Duration = Duration::from_millis(500);

/// Bytes that were taken by the receiver, readable while the copy runs.
#[derive(Debug, Default)]
pub struct Transferred {
    /// From the first stream to the second.
    first_to_second: Count,
    /// From the second stream to the first.
    second_to_first: Count,
}

/// Bytes of one direction.
#[derive(Debug, Default)]
struct Count {
    copied: AtomicU64,
    /// Counts what goes past the agent.
    bridge: OnceLock<Arc<Bridge>>,
}

impl Count {
    fn add(&self, bytes: usize) {
        self.copied.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        let bridged = self.bridge.get().map_or(0, |bridge| bridge.bytes());
        self.copied.load(Ordering::Relaxed) + bridged
    }
}

impl Transferred {
    /// Both counts: first to second, second to first.
    pub fn bytes(&self) -> (u64, u64) {
        (self.first_to_second.bytes(), self.second_to_first.bytes())
    }
}

/// One of the two streams of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The first argument.
    First,
    /// The second argument.
    Second,
}

/// A copy that did not end regularly; both streams were aborted.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", if *.writing { "write" } else { "read" })]
pub struct CopyError {
    /// The stream that failed.
    pub end: End,
    /// Whether it failed at writing.
    pub writing: bool,
    /// How it failed.
    pub source: io::Error,
}

/// Copies until both directions have ended. The end of one direction is passed
/// on while the other goes on. When a stream fails, and when the future is
/// dropped, both streams are aborted.
///
/// # Errors
/// The first failure of either stream.
pub fn copy_both<A: Duplex, B: Duplex>(
    first: A,
    second: B,
    transferred: &Transferred,
) -> impl Future<Output = Result<(), CopyError>> {
    // Not an async function: its future would have room for both streams twice.
    let mut ends = Ends {
        first,
        second,
        finished: false,
    };
    async move {
        let ends = &mut ends;
        let mut forward = Way::default();
        let mut backward = Way::default();
        let result = std::future::poll_fn(|cx| {
            let Ends { first, second, .. } = &mut *ends;
            for (end, other, broken) in [
                (End::First, End::Second, first.broken()),
                (End::Second, End::First, second.broken()),
            ] {
                if let Some(source) = broken {
                    return Poll::Ready(Err(Failure::reading(source).between(end, other)));
                }
            }
            let a = forward
                .poll(first, second, &transferred.first_to_second, cx)
                .map_err(|failure| failure.between(End::First, End::Second))?;
            let b = backward
                .poll(second, first, &transferred.second_to_first, cx)
                .map_err(|failure| failure.between(End::Second, End::First))?;
            if a.is_ready() && b.is_ready() {
                return Poll::Ready(Ok(()));
            }
            // Where all of a stream is read, only this can tell of its abort.
            if a.is_ready()
                && let Poll::Ready(source) = first.poll_aborted(cx)
            {
                return Poll::Ready(Err(
                    Failure::reading(source).between(End::First, End::Second)
                ));
            }
            if b.is_ready()
                && let Poll::Ready(source) = second.poll_aborted(cx)
            {
                return Poll::Ready(Err(
                    Failure::reading(source).between(End::Second, End::First)
                ));
            }
            Poll::Pending
        })
        .await;

        match &result {
            Ok(()) => ends.finished = true,
            Err(CopyError {
                end: End::First, ..
            }) if forward.is_done() => {
                ends.first.abort();
                discard(&mut ends.second).await;
            }
            Err(CopyError {
                end: End::Second, ..
            }) if backward.is_done() => {
                ends.second.abort();
                discard(&mut ends.first).await;
            }
            Err(_) => {}
        }
        result
    }
}

/// Both streams, aborted on drop unless the copy came to its regular end.
struct Ends<A: Duplex, B: Duplex> {
    first: A,
    second: B,
    finished: bool,
}

impl<A: Duplex, B: Duplex> Drop for Ends<A, B> {
    fn drop(&mut self) {
        if !self.finished {
            self.first.abort();
            self.second.abort();
        }
    }
}

/// Reads what nobody can take any more, for a while: an abort at once could
/// overtake the bytes and the end that were sent to this stream before.
async fn discard(stream: &mut impl Duplex) {
    let drain = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(1..) = stream.read(&mut buffer).await {}
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}

struct Failure {
    writing: bool,
    source: io::Error,
}

impl Failure {
    fn reading(source: io::Error) -> Self {
        Self {
            writing: false,
            source,
        }
    }

    fn writing(source: io::Error) -> Self {
        Self {
            writing: true,
            source,
        }
    }

    fn between(self, reader: End, writer: End) -> CopyError {
        CopyError {
            end: if self.writing { writer } else { reader },
            writing: self.writing,
            source: self.source,
        }
    }
}

/// One direction.
enum Way {
    /// Nothing is held; the writer may have to be flushed.
    Reading {
        /// The last read filled its buffer, and all of it was taken: a larger one may be
        /// filled as well. A stream whose receiver is slow does not hold so much.
        flows: bool,
    },
    /// This was read and waits for the writer.
    Writing(Bytes),
    /// The same in several pieces, the first of them last.
    WritingMany(Vec<Bytes>),
    /// The same in a pipe.
    Draining(KernelPipe),
    /// The reader ended, the writer is being told.
    Ending,
    /// The writer was told.
    Done,
}

impl Default for Way {
    fn default() -> Self {
        Self::Reading { flows: false }
    }
}

impl Way {
    fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    fn poll(
        &mut self,
        reader: &mut impl Duplex,
        writer: &mut impl Duplex,
        count: &Count,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failure>> {
        let mut rounds = 0;
        while rounds < MAX_ROUNDS {
            rounds += 1;
            match self {
                Self::Reading { flows } => {
                    reader.all_written();
                    pass_on(reader, writer, count, false);
                    match poll_pass(*flows, reader, writer, count, cx)? {
                        Poll::Ready(next) => {
                            if *flows {
                                rounds += PIECES - 1;
                            }
                            *self = next;
                        }
                        Poll::Pending => {
                            // Nothing to read: what is on its way shall not wait for more.
                            let _ = Pin::new(&mut *writer)
                                .poll_flush(cx)
                                .map_err(Failure::writing)?;
                            pass_on(reader, writer, count, true);
                            return Poll::Pending;
                        }
                    }
                }
                Self::Writing(rest) => {
                    let taken = ready!(writer.poll_give(cx, rest))
                        .and_then(taken)
                        .map_err(Failure::writing)?;
                    count.add(taken);
                    if rest.is_empty() {
                        *self = Self::default();
                    }
                }
                Self::WritingMany(pieces) => {
                    let Some(piece) = pieces.last_mut() else {
                        *self = Self::default();
                        continue;
                    };
                    let taken = ready!(writer.poll_give(cx, piece))
                        .and_then(taken)
                        .map_err(Failure::writing)?;
                    count.add(taken);
                    if piece.is_empty() {
                        pieces.pop();
                    }
                }
                Self::Draining(pipe) => {
                    let taken = ready!(writer.poll_drain(cx, pipe))
                        .and_then(taken)
                        .map_err(Failure::writing)?;
                    count.add(taken);
                    if pipe.is_empty()
                        && let Self::Draining(pipe) = std::mem::take(self)
                    {
                        pipe.give_back();
                    }
                }
                Self::Ending => {
                    match ready!(Pin::new(&mut *writer).poll_shutdown(cx)) {
                        // It has gone after it said all: nothing is left to be told.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        other => other.map_err(Failure::writing)?,
                    }
                    *self = Self::Done;
                }
                Self::Done => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Everything that was read has been written: more may go past the agent. It is said also before the
/// next read: one that is in full flow may never find that there is nothing to read (`is_idle`).
fn pass_on(reader: &mut impl Duplex, writer: &mut impl Duplex, count: &Count, is_idle: bool) {
    if let (Some(from), Some(to)) = (reader.application(), writer.application())
        && let Some(bridge) = from.passed_on(to, is_idle)
    {
        let _ = count.bridge.set(bridge);
    }
}

thread_local! {
    /// For all streams that this thread carries: a stream has memory of its own only
    /// for what its receiver did not take yet.
    static SCRATCH: Cell<BytesMut> = Cell::default();
    /// The same for those in full flow.
    static LARGE_SCRATCH: Cell<BytesMut> = Cell::default();
}

/// Has the kernel move what there is from one socket to the other; only what the writer does not take stays
/// in the pipe. `None`: it has moved nothing.
fn poll_move(
    mut pipe: KernelPipe,
    reader: &mut impl Duplex,
    writer: &mut impl Duplex,
    count: &Count,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Way>, Failure>> {
    let filled = reader.poll_fill(cx, &mut pipe);
    let Poll::Ready(Ok(moved @ 1..)) = filled else {
        pipe.give_back();
        return filled.map(|filled| filled.map(|_| None).map_err(Failure::reading));
    };
    if let Poll::Ready(result) = writer.poll_drain(cx, &mut pipe) {
        let taken = result.and_then(taken).map_err(Failure::writing)?;
        count.add(taken);
    }
    Poll::Ready(Ok(Some(match pipe.is_empty() {
        true => {
            pipe.give_back();
            Way::Reading {
                flows: moved >= CHUNK_BYTES,
            }
        }
        false => Way::Draining(pipe),
    })))
}

/// Reads once and writes what was read; only what the writer does not take is kept.
fn poll_pass(
    flows: bool,
    reader: &mut impl Duplex,
    writer: &mut impl Duplex,
    count: &Count,
    cx: &mut Context<'_>,
) -> Poll<Result<Way, Failure>> {
    if flows
        && reader.is_plain()
        && writer.is_plain()
        && let Some(pipe) = KernelPipe::take()
        && let Some(next) = ready!(poll_move(pipe, reader, writer, count, cx))?
    {
        return Poll::Ready(Ok(next));
    }
    let (scratch_of_thread, bytes) = match writer.batch_bytes() {
        bytes if flows && bytes > CHUNK_BYTES => (&LARGE_SCRATCH, bytes),
        _ => (&SCRATCH, CHUNK_BYTES),
    };
    let mut scratch = scratch_of_thread.take();
    if scratch.capacity() < bytes {
        scratch = BytesMut::with_capacity(bytes);
    }
    let next = match reader.poll_chunk(cx, &mut scratch) {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Err(error)) => Poll::Ready(Err(Failure::reading(error))),
        Poll::Ready(Ok(Chunk::Owned(bytes)))
            if bytes.len() >= LARGE_BYTES && writer.batch_bytes() > CHUNK_BYTES =>
        {
            let pieces = gather(bytes, reader, cx, &mut scratch);
            Poll::Ready(give_many(pieces, writer, count, cx))
        }
        Poll::Ready(Ok(Chunk::Owned(bytes))) => Poll::Ready(give(bytes, writer, count, cx)),
        Poll::Ready(Ok(Chunk::Lent)) if writer.keeps() && scratch.len() >= LARGE_BYTES => {
            let bytes = std::mem::take(&mut scratch).freeze();
            Poll::Ready(give(bytes, writer, count, cx))
        }
        Poll::Ready(Ok(Chunk::Lent)) => Poll::Ready(lend(&scratch, writer, count, cx)),
    };
    let is_full = scratch.len() >= CHUNK_BYTES;
    scratch.clear();
    scratch_of_thread.set(scratch);
    next.map_ok(|next| match next {
        Way::Reading { .. } => Way::Reading { flows: is_full },
        other => other,
    })
}

/// Writes what the writer may keep.
fn give(
    mut bytes: Bytes,
    writer: &mut impl Duplex,
    count: &Count,
    cx: &mut Context<'_>,
) -> Result<Way, Failure> {
    if bytes.is_empty() {
        return Ok(Way::Ending);
    }
    if let Poll::Ready(result) = writer.poll_give(cx, &mut bytes) {
        let taken = result.and_then(taken).map_err(Failure::writing)?;
        count.add(taken);
    }
    Ok(match bytes.is_empty() {
        true => Way::default(),
        false => Way::Writing(bytes),
    })
}

/// What else is there already. An end or a failure stays for the next to read.
fn gather(
    first: Bytes,
    reader: &mut impl Duplex,
    cx: &mut Context<'_>,
    scratch: &mut BytesMut,
) -> [Bytes; PIECES] {
    let mut pieces: [Bytes; PIECES] = Default::default();
    pieces[0] = first;
    for piece in &mut pieces[1..] {
        match reader.poll_chunk(cx, scratch) {
            Poll::Ready(Ok(Chunk::Owned(bytes))) if !bytes.is_empty() => *piece = bytes,
            _ => break,
        }
    }
    pieces
}

/// Writes several pieces with one system call.
fn give_many(
    mut pieces: [Bytes; PIECES],
    writer: &mut impl Duplex,
    count: &Count,
    cx: &mut Context<'_>,
) -> Result<Way, Failure> {
    let slices = pieces.each_ref().map(|piece| IoSlice::new(piece));
    let mut left = match Pin::new(writer).poll_write_vectored(cx, &slices) {
        Poll::Pending => 0,
        Poll::Ready(result) => result.and_then(taken).map_err(Failure::writing)?,
    };
    count.add(left);
    for piece in &mut pieces {
        let taken = left.min(piece.len());
        piece.advance(taken);
        left -= taken;
    }
    let rest: Vec<Bytes> = (pieces.into_iter().rev())
        .filter(|piece| !piece.is_empty())
        .collect();
    Ok(match rest.is_empty() {
        true => Way::default(),
        false => Way::WritingMany(rest),
    })
}

/// Writes what is in a buffer that others need, too.
fn lend(
    bytes: &[u8],
    writer: &mut impl Duplex,
    count: &Count,
    cx: &mut Context<'_>,
) -> Result<Way, Failure> {
    if bytes.is_empty() {
        return Ok(Way::Ending);
    }
    let taken = match Pin::new(writer).poll_write(cx, bytes) {
        Poll::Pending => 0,
        Poll::Ready(result) => result.and_then(taken).map_err(Failure::writing)?,
    };
    count.add(taken);
    Ok(match &bytes[taken..] {
        [] => Way::default(),
        rest => Way::Writing(Bytes::copy_from_slice(rest)),
    })
}

fn taken(bytes: usize) -> io::Result<usize> {
    match bytes {
        0 => Err(io::ErrorKind::WriteZero.into()),
        bytes => Ok(bytes),
    }
}
