//! Numbers of identities, so that a record of a flow is small.
//!
//! They stay the same as long as the pinned map does, so that records of flows
//! that an earlier agent has seen can be read. A number that nothing in the
//! kernel mentions any more is given back, but never given to another identity:
//! whatever may still hold it, a socket that is about to connect or somebody's
//! dump, leads to the identity that it had or to none.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

use aya::maps::{HashMap as BpfMap, MapData, MapError};
use mesh_common::Identity;
use parking_lot::RwLock;

use super::bpf;

/// An identity that is not known, in the kernel's records.
pub(super) const UNKNOWN: u32 = 0;

/// So many numbers are no burden: none is given back.
const FEW: usize = 1024;
/// A number goes when so many looks in a row have found it unused: one that has just been given
/// is in no map yet.
const IDLE_LOOKS: u8 = 2;
/// As many of an agent's that is gone: what is in no map now will be in none.
const LEFT_BEHIND: u8 = IDLE_LOOKS - 1;

/// The map `identities` and its content.
pub(super) struct Identities {
    inner: RwLock<Inner>,
    /// The same map, to be read whole.
    all: OwnedFd,
    /// Whether an identity got no number since the last look.
    refused: AtomicBool,
}

struct Inner {
    map: BpfMap<MapData, u32, Identity>,
    numbers: Numbers,
}

impl Identities {
    pub(super) fn new(map: BpfMap<MapData, u32, Identity>, all: OwnedFd) -> Self {
        let mut numbers = Numbers::default();
        let known = map.iter().filter_map(Result::ok);
        known.for_each(|(number, identity)| numbers.learn(number, &identity, LEFT_BEHIND));
        Self {
            inner: RwLock::new(Inner { map, numbers }),
            all,
            refused: AtomicBool::default(),
        }
    }

    /// The number of an identity; a new one where it has none yet, and
    /// [`UNKNOWN`] where it is too long or the map is full.
    pub(super) fn number(&self, uri: &str) -> u32 {
        if let Some(number) = self.inner.read().numbers.of(uri) {
            return number;
        }
        let number = self.inner.write().number(uri);
        number.unwrap_or_else(|| {
            self.refused.store(true, Relaxed);
            UNKNOWN
        })
    }

    /// What a number stands for.
    pub(super) fn uri(&self, number: u32) -> Option<String> {
        if number == UNKNOWN {
            return None;
        }
        let inner = self.inner.read();
        match inner.numbers.uri(number) {
            Some(uri) => Some(uri.to_owned()),
            // Perhaps given by an agent that drains.
            None => text(&inner.map.get(&number, 0).ok()?).map(str::to_owned),
        }
    }

    /// Gives numbers back that nothing has mentioned for two looks; for the agent that works with
    /// the maps alone. `mentioned` gives those that the kernel's maps mention; it is only asked
    /// where there are many.
    pub(super) fn look(
        &self,
        mentioned: impl FnOnce() -> io::Result<HashSet<u32>>,
    ) -> io::Result<()> {
        let refused = self.refused.swap(false, Relaxed);
        if refused {
            tracing::warn!("the map identities is full: some flows are shown without identities");
        }
        if !refused && self.inner.read().numbers.count() <= FEW {
            return Ok(());
        }
        let mut others = Vec::new();
        bpf::lookup_all(self.all.as_fd(), |number: u32, identity: &Identity| {
            if self.inner.read().numbers.uri(number).is_none() {
                others.push((number, *identity));
            }
        })?;
        // Not under the lock: connections wait for it.
        let mentioned = mentioned()?;
        let mut inner = self.inner.write();
        for (number, identity) in &others {
            inner.numbers.learn(*number, identity, LEFT_BEHIND);
        }
        let unused = inner.numbers.look(&mentioned);
        for number in &unused {
            let _ = inner.map.remove(number);
        }
        tracing::debug!(
            given_back = unused.len(),
            left = inner.numbers.count(),
            "numbers of identities"
        );
        Ok(())
    }
}

impl Inner {
    fn number(&mut self, uri: &str) -> Option<u32> {
        const NOT_IF_IT_EXISTS: u64 = 1;
        if let Some(number) = self.numbers.of(uri) {
            return Some(number);
        }
        let identity = value(uri)?;
        loop {
            let number = self.numbers.next()?;
            match self.map.insert(number, identity, NOT_IF_IT_EXISTS) {
                Ok(()) => {
                    self.numbers.learn(number, &identity, 0);
                    return Some(number);
                }
                // Another agent, which drains, has given this one.
                Err(MapError::SyscallError(error))
                    if error.io_error.raw_os_error() == Some(libc::EEXIST) =>
                {
                    let theirs = self.map.get(&number, 0).ok()?;
                    self.numbers.learn(number, &theirs, 0);
                    if text(&theirs) == Some(uri) {
                        return Some(number);
                    }
                }
                Err(_) => return None,
            }
        }
    }
}

/// The numbers that have been given.
#[derive(Default)]
struct Numbers {
    by_uri: HashMap<Arc<str>, Arc<Given>>,
    by_number: HashMap<u32, Arc<Given>>,
    /// The last one. It is not given back, so that an agent that finds the map goes on behind it.
    last: u32,
}

struct Given {
    number: u32,
    uri: Arc<str>,
    /// How many looks have found it unused, one after the other.
    idle_looks: AtomicU8,
}

impl Numbers {
    /// The number of an identity that has one; it is used from now on.
    fn of(&self, uri: &str) -> Option<u32> {
        let given = self.by_uri.get(uri)?;
        // Read first: a line of memory that nobody writes is shared by all processors.
        if given.idle_looks.load(Relaxed) != 0 {
            given.idle_looks.store(0, Relaxed);
        }
        Some(given.number)
    }

    fn uri(&self, number: u32) -> Option<&str> {
        self.by_number.get(&number).map(|given| &*given.uri)
    }

    fn count(&self) -> usize {
        self.by_number.len()
    }

    /// The next one to give; none where all four thousand million have been.
    fn next(&self) -> Option<u32> {
        self.last.checked_add(1)
    }

    fn learn(&mut self, number: u32, identity: &Identity, idle_looks: u8) {
        self.last = self.last.max(number);
        let Some(uri) = text(identity) else { return };
        let given = Arc::new(Given {
            number,
            uri: uri.into(),
            idle_looks: AtomicU8::new(idle_looks),
        });
        self.by_uri.insert(given.uri.clone(), given.clone());
        self.by_number.insert(number, given);
    }

    /// Forgets those that are unused for long enough, and says which.
    fn look(&mut self, mentioned: &HashSet<u32>) -> Vec<u32> {
        let last = self.last;
        let unused: Vec<u32> = (self.by_number.values())
            .filter(|given| {
                let is_used = given.number == last || mentioned.contains(&given.number);
                let looks = match is_used {
                    true => 0,
                    false => given.idle_looks.load(Relaxed) + 1,
                };
                given.idle_looks.store(looks, Relaxed);
                looks >= IDLE_LOOKS
            })
            .map(|given| given.number)
            .collect();
        for number in &unused {
            let Some(given) = self.by_number.remove(number) else {
                continue;
            };
            // Two agents may have given one identity a number each.
            if (self.by_uri.get(&given.uri)).is_some_and(|other| other.number == *number) {
                self.by_uri.remove(&given.uri);
            }
        }
        unused
    }
}

fn value(uri: &str) -> Option<Identity> {
    let mut identity = Identity {
        length: u32::try_from(uri.len()).ok()?,
        ..Identity::default()
    };
    identity
        .uri
        .get_mut(..uri.len())?
        .copy_from_slice(uri.as_bytes());
    Some(identity)
}

fn text(identity: &Identity) -> Option<&str> {
    let uri = identity.uri.get(..identity.length as usize)?;
    std::str::from_utf8(uri).ok()
}

#[cfg(test)]
mod tests {
    use mesh_common::IDENTITY_BYTES;

    use super::*;

    /// Gives an identity a number as the agent does, in a map of so many entries.
    fn give(numbers: &mut Numbers, entries: usize, uri: &str) -> u32 {
        numbers.of(uri).unwrap_or_else(|| {
            if numbers.count() == entries {
                return UNKNOWN;
            }
            let number = numbers.next().unwrap();
            numbers.learn(number, &value(uri).unwrap(), 0);
            number
        })
    }

    #[test]
    fn far_more_identities_than_there_is_room_for_get_numbers_one_after_the_other() {
        const ENTRIES: usize = 100;
        let mut numbers = Numbers::default();
        let mut seen = HashSet::new();
        let stays = give(&mut numbers, ENTRIES, "stays");
        for round in 0..1_000 {
            let mut mentioned = HashSet::from([stays]);
            for one in 0..20 {
                let number = give(&mut numbers, ENTRIES, &format!("{round}/{one}"));
                assert_ne!(number, UNKNOWN);
                assert!(seen.insert(number), "{number} has been another's");
                mentioned.insert(number);
            }
            numbers.look(&mentioned);
        }
        assert_eq!(seen.len(), 20_000);
        assert_eq!(numbers.uri(stays), Some("stays"));
        assert_eq!(numbers.of("stays"), Some(stays));
    }

    #[test]
    fn what_is_mentioned_or_asked_for_keeps_its_number() {
        let mut numbers = Numbers::default();
        let [mentioned, asked, idle, last] =
            ["mentioned", "asked", "idle", "last"].map(|uri| give(&mut numbers, 9, uri));
        let mentions = HashSet::from([mentioned]);
        assert!(numbers.look(&mentions).is_empty());
        assert_eq!(numbers.of("asked"), Some(asked));
        assert_eq!(numbers.look(&mentions), [idle]);
        assert_eq!(numbers.of("idle"), None);
        assert_eq!(numbers.uri(idle), None);
        assert_eq!(numbers.look(&mentions), [asked]);
        // An agent that starts now finds the last number, and gives the one behind it.
        assert_eq!(numbers.uri(last), Some("last"));
        assert_eq!(give(&mut numbers, 9, "idle"), last + 1);
    }

    #[test]
    fn what_an_agent_has_left_goes_at_the_first_look() {
        let mut numbers = Numbers::default();
        for (number, uri) in [(1, "left"), (2, "mentioned"), (3, "asked for"), (4, "last")] {
            numbers.learn(number, &value(uri).unwrap(), LEFT_BEHIND);
        }
        numbers.of("asked for");
        assert_eq!(numbers.look(&HashSet::from([2])), [1]);
    }

    #[test]
    fn an_identity_with_two_numbers_is_found_by_both_until_one_goes() {
        let mut numbers = Numbers::default();
        for number in [3, 5] {
            numbers.learn(number, &value("twice").unwrap(), 0);
        }
        assert_eq!(numbers.of("twice"), Some(5));
        let mentions = HashSet::new();
        numbers.look(&mentions);
        assert_eq!(numbers.uri(3), Some("twice"));
        assert_eq!(numbers.look(&mentions), [3]);
        assert_eq!(numbers.of("twice"), Some(5));
    }

    #[test]
    fn an_identity_that_is_too_long_has_no_number() {
        assert!(value(&"x".repeat(IDENTITY_BYTES)).is_some());
        assert!(value(&"x".repeat(IDENTITY_BYTES + 1)).is_none());
    }
}
