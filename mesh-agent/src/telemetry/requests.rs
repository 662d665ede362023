//! How requests ended, counted as Istio counts them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Flags;
use crate::registry::{Workload, WorkloadName};

/// Outcomes that are told apart for one endpoint; of the others only the number is known.
const MAX_OUTCOMES: usize = 64;
/// Pairs of a client and a service that none of its requests has reached; further ones are
/// not counted.
const MAX_UNREACHED: usize = 4096;
/// Upper bounds of the buckets, Envoy's: of times in milliseconds, of sizes in bytes.
pub const BOUNDS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5,
    1.8e6, 3.6e6,
];

/// What is told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// Status of HTTP; 0 where none was sent.
    pub code: u16,
    /// What happened beside.
    pub flags: Flags,
    /// Whether the request was gRPC.
    pub is_grpc: bool,
    /// The status of the call, where it had one.
    pub grpc_status: Option<u16>,
}

/// Size and duration of one request.
#[derive(Clone, Copy, Debug)]
pub struct Measures {
    /// From its beginning to its end.
    pub took: Duration,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
}

/// A distribution over [`BOUNDS`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// How many lie in each bucket, and behind the last.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// The sum of all.
    pub sum: f64,
}

impl Histogram {
    fn add(&mut self, value: f64) {
        self.buckets[BOUNDS.partition_point(|bound| *bound < value)] += 1;
        self.sum += value;
    }

    /// Adds those of another.
    pub fn merge(&mut self, other: &Self) {
        for (own, other) in self.buckets.iter_mut().zip(other.buckets) {
            *own += other;
        }
        self.sum += other.sum;
    }
}

/// Requests with the same outcome.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// How many.
    pub requests: u64,
    /// How long they took, in milliseconds.
    pub duration: Histogram,
    /// Their bodies, in bytes.
    pub request_bytes: Histogram,
    /// The bodies of their answers, in bytes.
    pub response_bytes: Histogram,
}

impl Counts {
    fn add(&mut self, of: Measures) {
        self.requests += 1;
        self.duration.add(of.took.as_secs_f64() * 1e3);
        self.request_bytes.add(of.received as f64);
        self.response_bytes.add(of.sent as f64);
    }
}

/// The requests of one client to one place.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Vec<(Outcome, Counts)>>);

impl Tally {
    /// Counts one that has ended.
    pub fn add(&self, outcome: Outcome, of: Measures) {
        let mut all = self.0.lock();
        let outcome = match all.len() {
            MAX_OUTCOMES.. if !all.iter().any(|(known, _)| *known == outcome) => Outcome::default(),
            _ => outcome,
        };
        match all.iter_mut().find(|(known, _)| *known == outcome) {
            Some((_, counts)) => counts.add(of),
            None => {
                let mut counts = Counts::default();
                counts.add(of);
                all.push((outcome, counts));
            }
        }
    }

    /// All outcomes.
    pub fn all(&self) -> Vec<(Outcome, Counts)> {
        self.0.lock().clone()
    }
}

/// Requests that were answered before an endpoint was chosen, by client and host.
#[derive(Debug, Default)]
pub struct Unreached(Mutex<HashMap<(WorkloadName, String), ByClient>>);

type ByClient = (Arc<Workload>, Arc<Tally>);

impl Unreached {
    /// Counts one that has ended.
    pub fn add(&self, client: &Arc<Workload>, host: &str, outcome: Outcome, of: Measures) {
        let mut all = self.0.lock();
        let key = (client.name.clone(), host.to_owned());
        if all.len() >= MAX_UNREACHED && !all.contains_key(&key) {
            return;
        }
        let (_, tally) = all
            .entry(key)
            .or_insert_with(|| (client.clone(), Arc::default()));
        tally.add(outcome, of);
    }

    /// All, as client, host and outcomes.
    pub fn all(&self) -> Vec<(Arc<Workload>, String, Arc<Tally>)> {
        let all = self.0.lock();
        all.iter()
            .map(|((_, host), (client, tally))| (client.clone(), host.clone(), tally.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measures(ms: u64) -> Measures {
        Measures {
            took: Duration::from_millis(ms),
            received: 0,
            sent: 100,
        }
    }

    #[test]
    fn a_value_at_a_bound_lies_below_it() {
        let mut histogram = Histogram::default();
        for value in [0.0, 0.5, 0.6, 3.6e6, 3.7e6] {
            histogram.add(value);
        }
        assert_eq!(histogram.buckets[..3], [2, 1, 0]);
        assert_eq!(histogram.buckets[18..], [1, 1]);
    }

    #[test]
    fn outcomes_are_told_apart_up_to_a_bound() {
        let tally = Tally::default();
        for code in 0..200 {
            for _ in 0..2 {
                let code = 300 + code;
                tally.add(
                    Outcome {
                        code,
                        ..Outcome::default()
                    },
                    measures(7),
                );
            }
        }
        let all = tally.all();
        assert_eq!(all.len(), MAX_OUTCOMES + 1);
        let sum: u64 = all.iter().map(|(_, counts)| counts.requests).sum();
        assert_eq!(sum, 400);
        let (first, counts) = &all[0];
        assert_eq!((first.code, counts.requests), (300, 2));
        assert_eq!(counts.duration.buckets[3], 2);
        assert!((counts.response_bytes.sum - 200.0).abs() < 1e-9);
    }
}
