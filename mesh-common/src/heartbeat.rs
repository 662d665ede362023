//! Whether the agent still serves its listeners. That they are there, the kernel
//! knows by itself; of an agent that is there and hangs, it has to be told.

use crate::assert_layout;

/// Value of the one element of the map `heartbeat`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// When the agent was last seen to work, `CLOCK_MONOTONIC` in nanoseconds.
    pub alive_ns: u64,
    /// How much later it counts as gone, or 0 for never.
    pub limit_ns: u64,
}

assert_layout!(Heartbeat, size = 16, align = 8);

impl Heartbeat {
    /// Whether the agent hangs.
    #[inline(always)]
    pub const fn has_stopped(&self, now_ns: u64) -> bool {
        self.limit_ns != 0 && now_ns > self.alive_ns.saturating_add(self.limit_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_counts_as_gone_after_its_limit_and_never_without_one() {
        let heart = Heartbeat {
            alive_ns: 100,
            limit_ns: 10,
        };
        assert!(!heart.has_stopped(90), "another clock was a little earlier");
        assert!(!heart.has_stopped(110));
        assert!(heart.has_stopped(111));
        assert!(!Heartbeat::default().has_stopped(u64::MAX));
    }
}
