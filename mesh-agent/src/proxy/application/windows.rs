//! How much may wait in the HTTP/2 that the agent ends between callers and applications.
//!
//! What waits there has left the tunnel, or not come to it, and HTTP/2 does not say how much it is. So what
//! counts is what may come: together the windows are bounded, and each new connection gets a part of what is
//! left, down to the least that HTTP/2 knows.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::proxy::http::{CONNECTION_WINDOW, STREAM_WINDOW};

/// So much every connection has (RFC 9113, section 6.9.2), and no part of what is bounded.
const LEAST: u32 = 65_535;
/// A connection gets this part of what is left: the first full windows, the hundredth a fifth of them.
const PARTS: usize = 64;
/// Written bytes of one stream that wait for the connection, as a part of its window.
const SEND_PARTS: u32 = 16;

/// What windows of a node may be given beyond the least.
#[derive(Debug)]
pub struct Windows {
    left_bytes: AtomicUsize,
}

impl Windows {
    /// No more than `max_mib` MiB all together.
    pub fn new(max_mib: NonZeroUsize) -> Self {
        Self {
            left_bytes: AtomicUsize::new(max_mib.get().saturating_mul(1 << 20)),
        }
    }

    /// Those of a new connection.
    pub(super) fn take(self: &Arc<Self>) -> Window {
        let part = |left: usize| (left / PARTS).min((CONNECTION_WINDOW - LEAST) as usize);
        let taken = self
            .left_bytes
            .fetch_update(Relaxed, Relaxed, |left| Some(left - part(left)));
        Window {
            beyond_least: taken.map_or(0, part) as u32,
            windows: Arc::clone(self),
        }
    }
}

/// The windows of a connection, given back when it has ended.
pub(super) struct Window {
    beyond_least: u32,
    windows: Arc<Windows>,
}

impl Window {
    /// Of all of its requests together, in bytes.
    pub fn connection(&self) -> u32 {
        LEAST + self.beyond_least
    }

    /// Of one of them, in bytes.
    pub fn stream(&self) -> u32 {
        self.connection().min(STREAM_WINDOW)
    }

    /// How much of an answer waits for the caller, in bytes.
    pub fn send_buffer(&self) -> usize {
        (self.stream() / SEND_PARTS) as usize
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let back = self.beyond_least as usize;
        self.windows.left_bytes.fetch_add(back, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_have_full_windows_and_all_together_are_bounded() {
        const MIB: usize = 1 << 20;
        let windows = Arc::new(Windows::new(NonZeroUsize::new(256).unwrap()));
        let first = windows.take();
        assert_eq!(
            (first.connection(), first.stream()),
            (CONNECTION_WINDOW, STREAM_WINDOW)
        );
        let many: Vec<_> = (0..10_000).map(|_| windows.take()).collect();
        assert!(many[100].connection() > CONNECTION_WINDOW / 8);
        let last = many.last().unwrap();
        assert!(last.connection() < 2 * LEAST && last.stream() == last.connection());
        let beyond = |window: &Window| window.connection() as usize - LEAST as usize;
        let all = many.iter().chain([&first]).map(beyond).sum::<usize>();
        assert!((200 * MIB..=256 * MIB).contains(&all), "{all} bytes");
        drop((first, many));
        assert_eq!(windows.take().connection(), CONNECTION_WINDOW);
    }
}
