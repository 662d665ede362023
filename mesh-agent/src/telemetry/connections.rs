//! Connections that are not HTTP, and the bytes that they carry.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// The connections of one client to one endpoint that are not HTTP.
#[derive(Debug, Default)]
pub struct Connections {
    opened: AtomicU64,
    closed: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// What others count, of connections that are open, by the counter's place in memory.
    elsewhere: Mutex<HashMap<usize, Elsewhere>>,
}

/// A counter of bytes that somebody else raises.
pub trait Counter: std::fmt::Debug + Send + Sync {
    /// As many have passed.
    fn bytes(&self) -> u64;
}

/// Whose bytes a [`Counter`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BytesOf {
    /// What the client sends.
    Client,
    /// What the server sends.
    Server,
}

#[derive(Debug)]
struct Elsewhere {
    counter: Arc<dyn Counter>,
    of: BytesOf,
}

/// Where a counter is: it stays there as long as it is followed.
fn place(counter: &Arc<dyn Counter>) -> usize {
    Arc::as_ptr(counter).addr()
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
    pub fn follow(&self, counter: Arc<dyn Counter>, of: BytesOf) {
        let place = place(&counter);
        self.elsewhere
            .lock()
            .insert(place, Elsewhere { counter, of });
    }

    /// Nothing more will come of it.
    pub fn settle(&self, counter: &Arc<dyn Counter>) {
        let mut elsewhere = self.elsewhere.lock();
        if let Some(settled) = elsewhere.remove(&place(counter)) {
            let bytes = settled.counter.bytes();
            self.bytes(settled.of).fetch_add(bytes, Relaxed);
        }
    }

    fn bytes(&self, of: BytesOf) -> &AtomicU64 {
        match of {
            BytesOf::Client => &self.received,
            BytesOf::Server => &self.sent,
        }
    }

    /// As they are now.
    pub fn counts(&self) -> ConnectionCounts {
        let elsewhere = self.elsewhere.lock();
        let all = |of: BytesOf| {
            let those = elsewhere.values().filter(|other| other.of == of);
            let elsewhere: u64 = those.map(|other| other.counter.bytes()).sum();
            self.bytes(of).load(Relaxed) + elsewhere
        };
        ConnectionCounts {
            opened: self.opened.load(Relaxed),
            closed: self.closed.load(Relaxed),
            received: all(BytesOf::Client),
            sent: all(BytesOf::Server),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        connections.follow(counters[0].clone(), BytesOf::Client);
        connections.follow(counters[1].clone(), BytesOf::Server);
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
