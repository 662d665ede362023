//! How much a tunnel may hold that nobody has read: the fuller the node, the less.

use std::sync::Arc;

use super::memory::Tunnels;

/// The window of a tunnel while less than a quarter of what the node may hold is held, less than a half,
/// three quarters, or all. A stream is fast with a large one, since the agents at both ends of it read and write
/// for a while at a time; where many hold something, it is that nobody reads, and a small one is enough.
const WINDOWS: [u32; 4] = [4 << 20, 1 << 20, 256 << 10, 64 << 10];

/// The largest, in bytes.
pub const MAX_BYTES: u32 = WINDOWS[0];

/// What a tunnel gets while `held` of `max` bytes are held.
fn window(held: usize, max: usize) -> u32 {
    let quarter = held.saturating_mul(WINDOWS.len()) / max.max(1);
    WINDOWS[quarter.min(WINDOWS.len() - 1)]
}

/// What comes after the window `now`: a smaller one at once, a larger one when half as much is held as it may.
pub fn next(now: u32, held: usize, max: usize) -> u32 {
    let larger = window(held.saturating_mul(2), max);
    window(held, max).min(now.max(larger))
}

/// How much may come before the window is another one.
pub fn until_next(held: usize, max: usize) -> usize {
    let quarter = (max / WINDOWS.len()).max(1);
    quarter - held % quarter
}

/// The windows of one connection.
pub struct Windows {
    tunnels: Arc<Tunnels>,
    applied: u32,
}

impl Windows {
    /// Of a new connection.
    pub fn new(tunnels: Arc<Tunnels>) -> Self {
        let applied = tunnels.window();
        Self { tunnels, applied }
    }

    /// The window that the peer knows of, in bytes.
    pub fn bytes(&self) -> u32 {
        self.applied
    }

    /// Says to the peer what has changed. While it has not acknowledged the last change there is none; then
    /// it is for the next time, and nothing has to come before: a connection that does nothing holds no more.
    pub fn keep(&mut self, apply: impl FnOnce(u32) -> Result<(), h2::Error>) {
        let wanted = self.tunnels.window();
        if wanted != self.applied && apply(wanted).is_ok() {
            self.applied = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_as_the_node_fills_and_grow_again_when_there_is_room() {
        const MIB: usize = 1 << 20;
        let kib = |now: u32, held: usize| next(now << 10, held * MIB, 256 * MIB) >> 10;
        let filling = [0, 63, 64, 127, 128, 191, 192, 256, 300].map(|held| kib(4096, held));
        assert_eq!(filling, [4096, 4096, 1024, 1024, 256, 256, 64, 64, 64]);
        let emptying = [200, 100, 95, 70, 33, 31].map(|held| kib(64, held));
        assert_eq!(emptying, [64, 64, 256, 256, 1024, 4096]);
        // As long as nothing changes.
        assert_eq!([kib(1024, 60), kib(4096, 60)], [1024, 4096]);
        let left = [0, 10, 64, 250].map(|held| until_next(held * MIB, 256 * MIB) / MIB);
        assert_eq!(left, [64, 54, 64, 6]);
    }
}
