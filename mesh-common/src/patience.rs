//! How long a sender of large messages waits for its bridge, which is free in a moment.
//!
//! Once the agent carries a stream, it does so for long: the sender fills all buffers on the way, and what
//! is in them has to be read before anything may pass the agent again. To wait costs less, as long as
//! everybody reads. Where the receiver is the slow one, it must not cost more than it is worth.
//!
//! Times are in units of 1,024 ns.

use crate::assert_layout;

/// What a message waits for at most: ns a byte, ...
const LIMIT_PER_BYTE: u64 = 2;
/// ... and of whatever size.
const LIMIT: u64 = 1 << 18;

/// So many bytes are worth one unit of time: for the agent to carry them takes twice as long.
const WORTH: u32 = 2048;

/// One direction of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// How long it has waited beyond what its bytes are worth.
    pub spent: u16,
    /// 1: the advance is spent; it does not wait until all of it is there again.
    pub rests: u16,
}

assert_layout!(Patience, size = 4, align = 2);

impl Patience {
    /// What an application may spend more at once, to have everything read that is in the buffers on the way.
    pub const OF_APPLICATION: u16 = 20_000;
    /// The same for a thread of the agent.
    pub const OF_AGENT: u16 = 2_000;

    /// For how many nanoseconds a message of that size waits at most, if it waits.
    #[inline(always)]
    pub const fn limit(size: u32) -> u64 {
        let limit = size as u64 * LIMIT_PER_BYTE;
        if limit > LIMIT { LIMIT } else { limit }
    }

    /// Counts a message of that size, and says whether it may wait.
    #[inline(always)]
    pub const fn waits(&mut self, size: u32, advance: u16) -> bool {
        let worth = size / WORTH;
        let spent = (self.spent as u32).saturating_sub(worth) as u16;
        self.spent = spent;
        if spent == 0 {
            self.rests = 0;
        } else if spent >= advance {
            self.rests = 1;
        }
        self.rests == 0
    }

    /// It has waited for so many nanoseconds.
    #[inline(always)]
    pub const fn waited(&mut self, ns: u64) {
        let units = ns.div_ceil(1024);
        let units = if units > u16::MAX as u64 {
            u16::MAX
        } else {
            units as u16
        };
        self.spent = self.spent.saturating_add(units);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: u32 = 128 << 10;
    const ADVANCE: u16 = Patience::OF_APPLICATION;

    /// Sends so many messages, each of which would have to wait for so long; how long they have waited,
    /// and how many.
    fn wait(patience: &mut Patience, messages: u32, ns: u64) -> (u64, u32) {
        let mut waited = (0, 0);
        for _ in 0..messages {
            if patience.waits(MESSAGE, ADVANCE) {
                let ns = ns.min(Patience::limit(MESSAGE));
                patience.waited(ns);
                waited = (waited.0 + ns, waited.1 + 1);
            }
        }
        waited
    }

    #[test]
    fn waiting_costs_no_more_than_the_bytes_are_worth() {
        for ns in [100_000, 250_000, u64::MAX] {
            let mut patience = Patience::default();
            let worth = u64::from(MESSAGE) / 2 * 100_000;
            let (waited, _) = wait(&mut patience, 100_000, ns);
            let most = worth + (u64::from(ADVANCE) << 10) + LIMIT;
            assert!((worth * 9 / 10..=most).contains(&waited), "{ns}: {waited}");
        }
    }

    #[test]
    fn who_waits_little_always_does() {
        let mut patience = Patience::default();
        assert_eq!(wait(&mut patience, 1000, 50_000).1, 1000);
    }

    #[test]
    fn who_waits_in_vain_does_so_many_times_in_a_row_and_then_not_for_long() {
        let mut patience = Patience::default();
        for _ in 0..3 {
            assert_eq!(wait(&mut patience, 100, u64::MAX).1, 100);
            let (_, waiting) = wait(&mut patience, 300, u64::MAX);
            assert!(waiting < 10, "{waiting}");
            while patience.rests != 0 {
                patience.waits(MESSAGE, ADVANCE);
            }
        }
    }

    #[test]
    fn a_message_waits_no_longer_than_it_is_worth() {
        assert_eq!(Patience::limit(4096), 8192);
        assert_eq!(Patience::limit(128 << 10), LIMIT);
        assert_eq!(Patience::limit(u32::MAX), LIMIT);
    }
}
