//! How requests and connections ended, counted as Istio counts them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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

/// The connections of one client to one endpoint that are not HTTP.
#[derive(Debug, Default)]
pub struct Connections {
    opened: AtomicU64,
    closed: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// What others count, of connections that are open.
    elsewhere: Mutex<Vec<Elsewhere>>,
}

/// A counter of bytes that somebody else raises.
pub trait Counter: std::fmt::Debug + Send + Sync {
    /// As many have passed.
    fn bytes(&self) -> u64;
}

/// Whose bytes a [`Counter`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// The client's.
    Received,
    /// Those for the client.
    Sent,
}

#[derive(Debug)]
struct Elsewhere {
    counter: Arc<dyn Counter>,
    bytes: Bytes,
}

/// What [`Connections`] say at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// That were opened.
    pub opened: u64,
    /// That have ended.
    pub closed: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
}

impl Connections {
    /// Counts one that was opened.
    pub fn open(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    /// Counts one that has ended, with its bytes.
    pub fn close(&self, received: u64, sent: u64) {
        self.closed.fetch_add(1, Relaxed);
        self.carry(received, sent);
    }

    /// Counts bytes of one that goes on.
    pub fn carry(&self, received: u64, sent: u64) {
        self.received.fetch_add(received, Relaxed);
        self.sent.fetch_add(sent, Relaxed);
    }

    /// Counts also what this one counts, until it is told to [`Self::settle`].
    pub fn follow(&self, counter: Arc<dyn Counter>, bytes: Bytes) {
        self.elsewhere.lock().push(Elsewhere { counter, bytes });
    }

    /// Nothing more will come of it.
    pub fn settle(&self, counter: &Arc<dyn Counter>) {
        let mut elsewhere = self.elsewhere.lock();
        let is_it = |other: &Elsewhere| {
            std::ptr::addr_eq(Arc::as_ptr(&other.counter), Arc::as_ptr(counter))
        };
        if let Some(at) = elsewhere.iter().position(is_it) {
            let settled = elsewhere.swap_remove(at);
            self.bytes(settled.bytes)
                .fetch_add(settled.counter.bytes(), Relaxed);
        }
    }

    fn bytes(&self, bytes: Bytes) -> &AtomicU64 {
        match bytes {
            Bytes::Received => &self.received,
            Bytes::Sent => &self.sent,
        }
    }

    /// As they are now.
    pub fn counts(&self) -> ConnectionCounts {
        let elsewhere = self.elsewhere.lock();
        let all = |bytes: Bytes| {
            let those = elsewhere.iter().filter(|other| other.bytes == bytes);
            let elsewhere: u64 = those.map(|other| other.counter.bytes()).sum();
            self.bytes(bytes).load(Relaxed) + elsewhere
        };
        ConnectionCounts {
            opened: self.opened.load(Relaxed),
            closed: self.closed.load(Relaxed),
            received: all(Bytes::Received),
            sent: all(Bytes::Sent),
        }
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

    #[derive(Debug)]
    struct Elsewhere(AtomicU64);

    impl Counter for Elsewhere {
        fn bytes(&self) -> u64 {
            self.0.load(Relaxed)
        }
    }

    #[test]
    fn what_others_count_is_in_it_at_once_and_stays_in_it() {
        let connections = Connections::default();
        let counters = [3, 5].map(|bytes| Arc::new(Elsewhere(AtomicU64::new(bytes))));
        connections.follow(counters[0].clone(), Bytes::Received);
        connections.follow(counters[1].clone(), Bytes::Sent);
        connections.carry(10, 20);
        let counts = || {
            let counts = connections.counts();
            (counts.received, counts.sent)
        };
        assert_eq!(counts(), (13, 25));
        counters[0].0.store(4, Relaxed);
        assert_eq!(counts(), (14, 25));
        for counter in counters {
            let counter: Arc<dyn Counter> = counter;
            connections.settle(&counter);
            // Not twice.
            connections.settle(&counter);
        }
        assert_eq!(counts(), (14, 25));
    }
}
