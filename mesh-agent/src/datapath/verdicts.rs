//! The agent's decisions in the kernel's cache, replaced as a whole.

use std::collections::HashMap;
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

    /// Puts new verdicts in the place of all old ones. `in_between` runs when
    /// the old ones do not count any more and the new ones do not count yet:
    /// every connection of that moment goes to the agent. An error leaves no
    /// verdict in force, which is slow but right.
    pub(super) fn replace(
        &self,
        verdicts: &[WorkloadVerdict],
        number: impl Fn(&str) -> u32,
        in_between: impl FnOnce(),
    ) -> Result<(), MapError> {
        let mut inner = self.0.lock();
        let current = inner.generation.get(&0, 0)?;
        // One generation that no verdict has, then the new one.
        inner.generation.set(0, current + 1, 0)?;
        in_between();
        let generation = current + 2;
        let last = inner.endpoints.keys().filter_map(Result::ok);
        let mut next_set = last.map(|key| key.set).max().map_or(1, |set| set + 1);
        let mut sets: HashMap<&[DirectEndpoint], (u32, u32)> = HashMap::new();
        for verdict in verdicts {
            let (kind, algorithm, set, count) = match &verdict.decision {
                Decision::Pass => (VerdictKind::Pass, Algorithm::Random, 0, 0),
                Decision::Deny => (VerdictKind::Deny, Algorithm::Random, 0, 0),
                Decision::Direct {
                    algorithm,
                    endpoints,
                } => {
                    let (set, count) = match sets.get(endpoints.as_slice()) {
                        Some(known) => *known,
                        None => {
                            let slots = slots(endpoints);
                            for (slot, endpoint) in slots.iter().enumerate() {
                                let key = EndpointKey {
                                    set: next_set,
                                    slot: slot as u32,
                                };
                                let value = value(endpoint, number(&endpoint.identity));
                                inner.endpoints.insert(key, value, 0)?;
                            }
                            let new = (next_set, slots.len() as u32);
                            next_set += 1;
                            sets.insert(endpoints, new);
                            new
                        }
                    };
                    (VerdictKind::Direct, *algorithm, set, count)
                }
            };
            let value = Verdict {
                generation,
                kind: kind as u32,
                endpoint_set: set,
                endpoint_count: count,
                algorithm: algorithm as u32,
                turn: 0,
            };
            inner.verdicts.insert(key(verdict), value, 0)?;
        }
        inner.generation.set(0, generation, 0)?;
        inner.forget(generation, sets.values().map(|(set, _)| *set).collect());
        Ok(())
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

impl Inner {
    /// Removes what does not count any more; what cannot be removed now is later.
    fn forget(&mut self, generation: u64, sets: Vec<u32>) {
        let stale: Vec<VerdictKey> = (self.verdicts.iter().filter_map(Result::ok))
            .filter(|(_, verdict)| verdict.generation != generation)
            .map(|(key, _)| key)
            .collect();
        for key in stale {
            let _ = self.verdicts.remove(&key);
        }
        let stale: Vec<EndpointKey> = (self.endpoints.keys().filter_map(Result::ok))
            .filter(|key| !sets.contains(&key.set))
            .collect();
        for key in stale {
            let _ = self.endpoints.remove(&key);
        }
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
