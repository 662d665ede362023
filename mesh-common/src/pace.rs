//! Which way a stream goes faster at present: handed over, or by TCP.
//!
//! Request and answer are always faster handed over. A stream is not: whoever hands a large message
//! over takes the receiver's lock and has to wake it, and which of the two ways is faster then depends
//! on what it costs here to wake a processor, and on where the scheduler puts both ends. That changes
//! from one moment to the next and cannot be known beforehand; so each stream tries both.

use crate::assert_layout;

/// Bytes after which one time is compared with another.
const LEG_BYTES: u32 = 32 << 20;
/// What takes longer is no stream: 100 MB/s.
const SLOW: u32 = 320 << 10;
/// After so many legs the other way is tried again, for one leg.
const LEGS: u32 = 64;
/// Where TCP seems faster by one leg that was handed over, that is tried again after so many more: the leg may have been
/// held up by anything, as by both ends on one processor, which is over in some hundredths of a second.
const DOUBTED: u32 = 7;

/// One direction of a connection. Times are in units of 1,024 ns; 0 is not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// When this leg began.
    pub since: u32,
    /// What has been sent on it.
    pub bytes: u32,
    /// How long the last leg took that was handed over.
    pub handed_over: u32,
    /// How long the last leg took that went by TCP.
    pub by_tcp: u32,
    /// 1: this leg goes by TCP.
    pub is_by_tcp: u32,
    /// Legs until the other way is tried again.
    pub legs: u32,
}

assert_layout!(Pace, size = 24, align = 4);

impl Pace {
    /// Counts a message of that size; asks for the time (ns) once a leg.
    #[inline(always)]
    pub fn count(&mut self, size: u32, now: impl FnOnce() -> u64) {
        self.bytes = self.bytes.wrapping_add(size);
        if self.bytes >= LEG_BYTES {
            self.turn((now() >> 10) as u32);
        }
    }

    /// Whether TCP is faster.
    #[inline(always)]
    pub const fn is_slower_handed_over(&self) -> bool {
        self.is_by_tcp != 0
    }

    /// A leg has ended.
    #[inline(always)]
    const fn turn(&mut self, now: u32) {
        let took = now.wrapping_sub(self.since);
        self.since = now;
        self.bytes = 0;
        if took > SLOW {
            self.handed_over = 0;
            self.by_tcp = 0;
            self.is_by_tcp = 0;
            return;
        }
        let other = if self.is_by_tcp != 0 {
            self.by_tcp = took;
            self.handed_over
        } else {
            self.handed_over = took;
            self.by_tcp
        };
        if other == 0 {
            self.is_by_tcp ^= 1;
            self.legs = DOUBTED;
            return;
        }
        if self.legs == 0 {
            self.is_by_tcp ^= 1;
            self.legs = LEGS;
            return;
        }
        let was_by_tcp = self.is_by_tcp;
        self.is_by_tcp = (self.by_tcp < self.handed_over) as u32;
        let is_driven_off = was_by_tcp < self.is_by_tcp;
        self.legs = if is_driven_off && self.legs < LEGS {
            DOUBTED
        } else {
            self.legs - 1
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a leg in messages, at these speeds, and says whether it went by TCP.
    fn leg(pace: &mut Pace, now: &mut u64, handed_over: u64, by_tcp: u64) -> bool {
        const MESSAGE: u32 = 128 << 10;
        let is_by_tcp = pace.is_slower_handed_over();
        let megabytes_per_second = if is_by_tcp { by_tcp } else { handed_over };
        for _ in 0..LEG_BYTES / MESSAGE {
            *now += u64::from(MESSAGE) * 1000 / megabytes_per_second;
            pace.count(MESSAGE, || *now);
        }
        is_by_tcp
    }

    /// How many of so many legs went by TCP.
    fn by_tcp(pace: &mut Pace, now: &mut u64, legs: u32, speeds: (u64, u64)) -> u32 {
        (0..legs)
            .map(|_| u32::from(leg(pace, now, speeds.0, speeds.1)))
            .sum()
    }

    #[test]
    fn a_stream_goes_the_way_that_is_faster() {
        for (speeds, expected) in [((3000, 6000), 950..=1000), ((8000, 6000), 1..=25)] {
            let (mut pace, mut now) = (Pace::default(), 1 << 40);
            let legs = by_tcp(&mut pace, &mut now, 1000, speeds);
            assert!(expected.contains(&legs), "{speeds:?}: {legs} by TCP");
        }
    }

    #[test]
    fn a_stream_changes_over_when_the_other_way_becomes_faster() {
        let (mut pace, mut now) = (Pace::default(), 1 << 40);
        by_tcp(&mut pace, &mut now, 100, (8000, 6000));
        // At once, where its own way becomes slower.
        assert!(by_tcp(&mut pace, &mut now, 50, (3000, 6000)) >= 48);
        // At the next trial, where the other has become faster.
        by_tcp(&mut pace, &mut now, LEGS + 2, (8000, 6000));
        assert!(by_tcp(&mut pace, &mut now, LEGS, (8000, 6000)) <= 1);
    }

    #[test]
    fn one_leg_that_was_held_up_is_not_believed_for_long() {
        let (mut pace, mut now) = (Pace::default(), 1 << 40);
        // When the first began is not known.
        assert!(!leg(&mut pace, &mut now, 8000, 6000));
        for _ in 0..2 {
            assert!(!leg(&mut pace, &mut now, 3000, 6000));
            let legs = by_tcp(&mut pace, &mut now, 50, (8000, 6000));
            assert_eq!(legs, 1 + DOUBTED);
        }
    }

    #[test]
    fn what_is_no_stream_is_always_handed_over() {
        let (mut pace, mut now) = (Pace::default(), 1 << 40);
        assert_eq!(by_tcp(&mut pace, &mut now, 100, (90, 60)), 0);
        // Nor what was one.
        by_tcp(&mut pace, &mut now, 100, (3000, 6000));
        assert!(by_tcp(&mut pace, &mut now, 50, (90, 60)) <= 1);
    }
}
