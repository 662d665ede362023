//! The agent's decisions in the kernel's cache.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use aya::maps::{Array, HashMap as BpfMap, MapData, MapError};
use mesh_common::{
    Algorithm, Endpoint, EndpointKey, Ip, Verdict, VerdictKey, VerdictKind, direction,
};
use parking_lot::Mutex;

/// What becomes of connections of one workload to one destination. Where there
/// is no verdict, they go to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The socket is left alone.
    Pass,
    /// Refused at once.
    Deny,
    /// To one of these endpoints, with no agent on the way.
    Direct {
        /// How it is chosen.
        algorithm: Algorithm,
        /// Workloads of this node; at least one.
        endpoints: Vec<DirectEndpoint>,
    },
}

/// An endpoint of a direct verdict.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DirectEndpoint {
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Its address and port.
    pub address: SocketAddr,
    /// Its identity.
    pub identity: String,
    /// How many of the choices fall on it, relative to the others; at least 1.
    pub weight: u32,
    /// Both ends may use the short-circuit.
    pub short_circuit: bool,
}

/// A decision, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadVerdict {
    /// Cookie of the workload's network namespace.
    pub netns_cookie: u64,
    /// What its application asks for.
    pub destination: SocketAddr,
    /// What becomes of it.
    pub decision: Decision,
}

/// Most slots of one set: weights are scaled down to it.
const MAX_SLOTS: u32 = 256;

/// The maps of verdicts.
pub(super) struct Verdicts(Mutex<Inner>);

struct Inner {
    verdicts: BpfMap<MapData, VerdictKey, Verdict>,
    endpoints: BpfMap<MapData, EndpointKey, Endpoint>,
    generation: Array<MapData, u64>,
}

impl Verdicts {
    pub(super) fn new(
        verdicts: BpfMap<MapData, VerdictKey, Verdict>,
        endpoints: BpfMap<MapData, EndpointKey, Endpoint>,
        generation: Array<MapData, u64>,
    ) -> Self {
        Self(Mutex::new(Inner {
            verdicts,
            endpoints,
            generation,
        }))
    }

    /// Puts new verdicts in the place of all old ones. Those that stay as they are count all
    /// the time; `in_between` runs when the others do not count any more and the new ones do
    /// not count yet: such connections go to the agent. An error leaves no verdict in force,
    /// which is slow but right.
    pub(super) fn replace(
        &self,
        verdicts: &[WorkloadVerdict],
        number: impl Fn(&str) -> u32,
        in_between: impl FnOnce(),
    ) -> Result<Replaced, MapError> {
        let mut inner = self.0.lock();
        let generation = inner.generation.get(&0, 0)?;
        let result = inner.replace(generation, verdicts, number, in_between);
        if result.is_err() {
            // A generation that no verdict has.
            inner.generation.set(0, generation + 1, 0)?;
        }
        result
    }

    /// How many verdicts are in force.
    pub(super) fn count(&self) -> usize {
        let inner = self.0.lock();
        let Ok(generation) = inner.generation.get(&0, 0) else {
            return 0;
        };
        let current = |verdict: &Verdict| verdict.generation == generation;
        (inner.verdicts.iter().filter_map(Result::ok))
            .filter(|(_, verdict)| current(verdict))
            .count()
    }
}

/// What a change of verdicts came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Verdicts that are as they were.
    pub kept: usize,
    /// New and changed ones.
    pub written: usize,
    /// Those of nothing any more.
    pub removed: usize,
}

impl Inner {
    fn replace(
        &mut self,
        generation: u64,
        verdicts: &[WorkloadVerdict],
        number: impl Fn(&str) -> u32,
        in_between: impl FnOnce(),
    ) -> Result<Replaced, MapError> {
        let mut sets = Sets::read(&self.endpoints);
        let mut known: HashMap<VerdictKey, Verdict> =
            self.verdicts.iter().filter_map(Result::ok).collect();
        let mut changed = Vec::new();
        for verdict in verdicts {
            let (kind, algorithm, (set, count)) = match &verdict.decision {
                Decision::Pass => (VerdictKind::Pass, Algorithm::Random, (0, 0)),
                Decision::Deny => (VerdictKind::Deny, Algorithm::Random, (0, 0)),
                Decision::Direct {
                    algorithm,
                    endpoints,
                } => {
                    let slots = slots(endpoints).into_iter();
                    let values = slots.map(|one| value(one, number(&one.identity))).collect();
                    (VerdictKind::Direct, *algorithm, sets.of(values))
                }
            };
            let value = Verdict {
                generation,
                kind: kind as u32,
                endpoint_set: set,
                endpoint_count: count,
                algorithm: algorithm as u32,
                turn: 0,
                lasting: 0,
                tried: 0,
            };
            let key = key(verdict);
            let before = known.get(&key).map(|before| Verdict {
                turn: 0,
                lasting: 0,
                tried: 0,
                ..*before
            });
            if before == Some(value) {
                known.remove(&key);
            } else {
                changed.push((key, value));
            }
        }
        let replaced = Replaced {
            kept: verdicts.len() - changed.len(),
            written: changed.len(),
            removed: known.len(),
        };
        for key in known.keys() {
            self.verdicts.remove(key)?;
        }
        in_between();
        for (set, values) in sets.to_write() {
            for (slot, value) in values.iter().enumerate() {
                let slot = slot as u32;
                self.endpoints.insert(EndpointKey { set, slot }, value, 0)?;
            }
        }
        for (key, value) in changed {
            self.verdicts.insert(key, value, 0)?;
        }
        // What cannot be removed now is later.
        for key in sets.unused() {
            let _ = self.endpoints.remove(&key);
        }
        Ok(replaced)
    }
}

/// Sets of endpoints, by what is in their slots.
struct Sets {
    by_content: HashMap<Vec<Endpoint>, Set>,
    /// In slots that no set begins with.
    broken: Vec<EndpointKey>,
    next: u32,
}

#[derive(Clone, Copy)]
struct Set {
    number: u32,
    is_new: bool,
    is_used: bool,
}

impl Sets {
    /// Those of the kernel.
    fn read(endpoints: &BpfMap<MapData, EndpointKey, Endpoint>) -> Self {
        let mut by_number: HashMap<u32, BTreeMap<u32, Endpoint>> = HashMap::new();
        for (key, endpoint) in endpoints.iter().filter_map(Result::ok) {
            let slots = by_number.entry(key.set).or_default();
            slots.insert(key.slot, endpoint);
        }
        let mut sets = Self {
            by_content: HashMap::new(),
            broken: Vec::new(),
            next: by_number.keys().max().map_or(1, |last| last + 1),
        };
        for (number, slots) in by_number {
            let is_whole = slots.keys().copied().eq(0..slots.len() as u32);
            let content: Vec<Endpoint> = slots.values().copied().collect();
            if is_whole && !sets.by_content.contains_key(&content) {
                let set = Set {
                    number,
                    is_new: false,
                    is_used: false,
                };
                sets.by_content.insert(content, set);
            } else {
                let keys = slots
                    .into_keys()
                    .map(|slot| EndpointKey { set: number, slot });
                sets.broken.extend(keys);
            }
        }
        sets
    }

    /// Number and size of the set of this content.
    fn of(&mut self, content: Vec<Endpoint>) -> (u32, u32) {
        let count = content.len() as u32;
        let next = self.next;
        let set = self.by_content.entry(content).or_insert(Set {
            number: next,
            is_new: true,
            is_used: true,
        });
        set.is_used = true;
        self.next += u32::from(set.number == next);
        (set.number, count)
    }

    /// Those that the kernel does not have yet.
    fn to_write(&self) -> impl Iterator<Item = (u32, &[Endpoint])> {
        let new = (self.by_content.iter()).filter(|(_, set)| set.is_new);
        new.map(|(content, set)| (set.number, content.as_slice()))
    }

    /// Slots that no verdict leads to.
    fn unused(&self) -> impl Iterator<Item = EndpointKey> {
        let unused = (self.by_content.iter()).filter(|(_, set)| !set.is_used);
        unused
            .flat_map(|(content, set)| {
                let set = set.number;
                (0..content.len() as u32).map(move |slot| EndpointKey { set, slot })
            })
            .chain(self.broken.iter().copied())
    }
}

fn key(verdict: &WorkloadVerdict) -> VerdictKey {
    VerdictKey {
        netns_cookie: verdict.netns_cookie,
        destination: Ip::from(verdict.destination.ip()),
        port: verdict.destination.port(),
        reserved: [0; 3],
    }
}

fn value(endpoint: &DirectEndpoint, identity: u32) -> Endpoint {
    Endpoint {
        netns_cookie: endpoint.netns_cookie,
        address: endpoint.address.into(),
        identity,
        splice: if endpoint.short_circuit {
            direction::CLIENT | direction::SERVER
        } else {
            0
        },
        reserved: 0,
    }
}

/// As many slots for each endpoint as its weight says, mixed, so that taking
/// turns does not stay with one endpoint for long.
fn slots(endpoints: &[DirectEndpoint]) -> Vec<&DirectEndpoint> {
    let weight = |endpoint: &DirectEndpoint| u64::from(endpoint.weight.max(1));
    let divisor = endpoints
        .iter()
        .map(weight)
        .fold(0, greatest_common_divisor);
    let sum: u64 = endpoints.iter().map(|e| weight(e) / divisor).sum();
    let scale = |endpoint: &DirectEndpoint| {
        let share = weight(endpoint) / divisor;
        if sum <= u64::from(MAX_SLOTS) {
            share
        } else {
            (share * u64::from(MAX_SLOTS) / sum).max(1)
        }
    };
    let mut left: Vec<(u64, &DirectEndpoint)> = endpoints
        .iter()
        .map(|endpoint| (scale(endpoint), endpoint))
        .collect();
    let mut slots = Vec::new();
    while !left.is_empty() {
        left.retain_mut(|(turns, endpoint)| {
            slots.push(*endpoint);
            *turns -= 1;
            *turns > 0
        });
    }
    slots
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(host: u8, weight: u32) -> DirectEndpoint {
        DirectEndpoint {
            netns_cookie: u64::from(host),
            address: SocketAddr::from(([10, 0, 0, host], 80)),
            identity: String::new(),
            weight,
            short_circuit: false,
        }
    }

    fn shares(weights: &[u32]) -> Vec<usize> {
        let endpoints: Vec<_> = (weights.iter().enumerate())
            .map(|(host, weight)| endpoint(host as u8, *weight))
            .collect();
        let slots = slots(&endpoints);
        (endpoints.iter())
            .map(|endpoint| slots.iter().filter(|slot| **slot == endpoint).count())
            .collect()
    }

    #[test]
    fn endpoints_have_slots_by_weight() {
        assert_eq!(shares(&[1]), [1]);
        assert_eq!(shares(&[7, 7, 7]), [1, 1, 1]);
        assert_eq!(shares(&[90, 10]), [9, 1]);
        assert_eq!(shares(&[0, 3]), [1, 3]);
    }

    #[test]
    fn the_number_of_slots_is_bounded_and_everybody_has_one() {
        let shares = shares(&[100_003, 1, 50_001]);
        assert!(
            shares.iter().sum::<usize>() <= MAX_SLOTS as usize + 1,
            "{shares:?}"
        );
        assert!(
            shares[0] > shares[2] && shares[2] > shares[1] && shares[1] == 1,
            "{shares:?}"
        );
    }

    #[test]
    fn turns_are_mixed() {
        let endpoints = [endpoint(1, 2), endpoint(2, 2), endpoint(3, 1)];
        let order: Vec<u64> = slots(&endpoints).iter().map(|e| e.netns_cookie).collect();
        assert_eq!(order, [1, 2, 3, 1, 2]);
    }
}
