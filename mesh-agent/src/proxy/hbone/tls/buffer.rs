//! Bytes on their way between a socket and TLS.

use std::cell::RefCell;
use std::ops::Range;

/// Five of the longest records: four that carry a frame of 64 KiB, and what goes along with it.
const BYTES: usize = 5 * (16 * 1024 + 256 + 5);
/// Buffers that a thread keeps for whoever needs one next.
const SPARES: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Added behind, taken from the front. Only whoever has something on its way holds a whole buffer.
#[derive(Default)]
pub struct Buffer {
    /// As long as a whole buffer, or as what is held at rest.
    memory: Vec<u8>,
    held: Range<usize>,
}

impl Buffer {
    /// What is held.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.held.clone()]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.held.clone()]
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How much more fits.
    pub fn free(&self) -> usize {
        BYTES - self.held.len()
    }

    /// Room behind what is held: at least for `least` bytes, which must be [free](Self::free).
    pub fn room(&mut self, least: usize) -> &mut [u8] {
        if self.memory.len() < BYTES {
            let mut memory = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
            memory.resize(BYTES, 0);
            memory[..self.held.len()].copy_from_slice(self.bytes());
            self.held = 0..self.held.len();
            self.memory = memory;
        } else if BYTES - self.held.end < least {
            self.memory.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
        }
        &mut self.memory[self.held.end..]
    }

    /// So much of the room was filled.
    pub fn add(&mut self, bytes: usize) {
        self.held.end += bytes;
    }

    /// So much is not needed any more.
    pub fn take(&mut self, bytes: usize) {
        self.held.start += bytes;
        if self.held.is_empty() {
            self.held = 0..0;
        }
    }

    /// Nothing happens for a while: only as much memory is kept as what is held needs.
    pub fn rest(&mut self) {
        if self.memory.len() == BYTES {
            let held = self.bytes().to_vec();
            self.held = 0..held.len();
            give_back(std::mem::replace(&mut self.memory, held));
        }
    }
}

impl From<Vec<u8>> for Buffer {
    /// Holds these, which are less than a buffer.
    fn from(memory: Vec<u8>) -> Self {
        debug_assert!(memory.len() < BYTES);
        Self {
            held: 0..memory.len(),
            memory,
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.memory));
    }
}

fn give_back(memory: Vec<u8>) {
    // The thread may be about to end.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if memory.len() == BYTES && spare.len() < SPARES {
            spare.push(memory);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_in_which_they_came(
            steps in prop::collection::vec((0_usize..30_000, 0_usize..30_000, any::<bool>()), 1..30),
        ) {
            let mut buffer = Buffer::default();
            let mut expected = VecDeque::new();
            let mut next = 0_u8;
            for (added, taken, rests) in steps {
                let added = added.min(buffer.free());
                let room = buffer.room(added);
                prop_assert!(room.len() >= added);
                for byte in &mut room[..added] {
                    next = next.wrapping_add(7);
                    *byte = next;
                    expected.push_back(next);
                }
                buffer.add(added);
                let taken = taken.min(buffer.bytes().len());
                let left: Vec<u8> = expected.drain(..taken).collect();
                prop_assert_eq!(&buffer.bytes()[..taken], &left[..]);
                buffer.take(taken);
                if rests {
                    buffer.rest();
                    prop_assert!(buffer.memory.capacity() <= expected.len());
                }
                prop_assert_eq!(buffer.bytes().len(), expected.len());
                prop_assert_eq!(buffer.is_empty(), expected.is_empty());
            }
        }
    }
}
