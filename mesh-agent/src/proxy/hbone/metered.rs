//! Counts what HTTP/2 gets to read, by a look at the heads of its frames.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::memory::{REPORTED_BYTES, Tunnels};
use super::outbox::FRAME_BYTES;
use crate::proxy::writes_to::writes_to;

/// So many frames of data may wait in HTTP/2's list, which never shrinks.
const COLLECTED_FRAMES: usize = 2048;

/// Length of the head of a frame (RFC 9113, section 4.1), and its kind DATA.
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
/// What a client says before its first frame (RFC 9113, section 3.4).
pub const PREFACE_BYTES: usize = 24;

/// Where a connection is in its frames.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    /// Of the frame at hand.
    left: usize,
}

/// What was passed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Data {
    frames: usize,
    bytes: usize,
}

impl Frames {
    fn pass(&mut self, mut bytes: &[u8]) -> Data {
        let mut data = Data::default();
        loop {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return data;
            }
            let taken = (HEAD_BYTES - self.head_bytes).min(bytes.len());
            self.head[self.head_bytes..][..taken].copy_from_slice(&bytes[..taken]);
            self.head_bytes += taken;
            bytes = &bytes[taken..];
            if self.head_bytes < HEAD_BYTES {
                return data;
            }
            let [a, b, c, kind, ..] = self.head;
            self.left = u32::from_be_bytes([0, a, b, c]) as usize;
            self.head_bytes = 0;
            if kind == DATA {
                data.frames += 1;
                data.bytes += self.left;
            }
        }
    }
}

/// A connection below HTTP/2.
pub struct Metered<S> {
    stream: S,
    frames: Frames,
    tunnels: Arc<Tunnels>,
    unreported_bytes: usize,
    uncollected_frames: usize,
}

impl<S> Metered<S> {
    /// A connection that begins with so many bytes that are no frame.
    pub fn new(stream: S, tunnels: Arc<Tunnels>, preface_bytes: usize) -> Self {
        let frames = Frames {
            left: preface_bytes,
            ..Frames::default()
        };
        Self {
            stream,
            frames,
            tunnels,
            unreported_bytes: 0,
            uncollected_frames: 0,
        }
    }

    fn passed(&mut self, data: Data) {
        self.uncollected_frames += data.frames;
        if self.uncollected_frames >= COLLECTED_FRAMES {
            self.uncollected_frames = 0;
            self.tunnels.collect();
        }
        self.unreported_bytes += data.bytes + FRAME_BYTES * data.frames;
        if self.unreported_bytes >= REPORTED_BYTES {
            self.tunnels
                .arrived(std::mem::take(&mut self.unreported_bytes));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let data = this.frames.pass(&buffer.filled()[before..]);
        // HTTP/2 holds no lock of its own while it reads, and what it has read before is with the tunnels.
        this.passed(data);
        Poll::Ready(Ok(()))
    }
}

writes_to!(Metered.stream);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_of_data_are_counted_however_they_are_cut(
            frames in prop::collection::vec((0_u8..10, 0_usize..70_000), 0..20),
            cuts in prop::collection::vec(1_usize..40_000, 1..10),
        ) {
            let mut sent = vec![b'p'; PREFACE_BYTES];
            let mut expected = Data::default();
            for (kind, length) in frames {
                sent.extend(&u32::try_from(length).unwrap().to_be_bytes()[1..]);
                sent.extend([kind, 0, 0, 0, 0, 1]);
                sent.resize(sent.len() + length, 0);
                if kind == DATA {
                    expected.frames += 1;
                    expected.bytes += length;
                }
            }
            let mut passing = Frames { left: PREFACE_BYTES, ..Frames::default() };
            let (mut rest, mut counted) = (&sent[..], Data::default());
            for cut in cuts.iter().cycle() {
                let (part, others) = rest.split_at((*cut).min(rest.len()));
                let data = passing.pass(part);
                counted.frames += data.frames;
                counted.bytes += data.bytes;
                rest = others;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(counted, expected);
        }
    }
}
