//! What a tunnel was given to send and its connection has not written yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;

/// What a frame costs beside its bytes while HTTP/2 holds it.
pub const FRAME_BYTES: usize = 256;

/// Counts what HTTP/2 holds of one tunnel, in bytes. Nothing of HTTP/2's own is in here: it lets go of
/// the last [payload](Payload) while it has its lock.
#[derive(Clone, Debug, Default)]
pub struct Unsent(Arc<Counted>);

#[derive(Debug, Default)]
struct Counted {
    bytes: AtomicUsize,
    /// Whoever waits until there is nothing.
    waiting: AtomicWaker,
}

impl Unsent {
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Acquire)
    }

    /// Ready when HTTP/2 has written all of it, or thrown it away.
    pub fn poll_none(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.bytes() == 0 {
            return Poll::Ready(());
        }
        self.0.waiting.register(cx.waker());
        if self.bytes() == 0 {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// A piece of a tunnel on its way, which counts until HTTP/2 lets go of it: when it is written, when its
/// stream is reset, when the connection is gone.
#[derive(Debug)]
pub struct Payload {
    bytes: Bytes,
    /// For how much it counts.
    counts: usize,
    unsent: Unsent,
}

impl Payload {
    pub fn new(bytes: Bytes, unsent: &Unsent) -> Self {
        let counts = match bytes.len() {
            0 => 0,
            length => length + FRAME_BYTES,
        };
        unsent.0.bytes.fetch_add(counts, Ordering::Relaxed);
        Self {
            bytes,
            counts,
            unsent: unsent.clone(),
        }
    }

    /// For how much it counts.
    pub fn counts(&self) -> usize {
        self.counts
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let before = self.unsent.0.bytes.fetch_sub(self.counts, Ordering::AcqRel);
        if before == self.counts {
            self.unsent.0.waiting.wake();
        }
    }
}

impl Buf for Payload {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
    }
}
