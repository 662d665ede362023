//! What has come to one workload, by who called: the server's side of Istio's metrics.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::connections::Connections;
use super::requests::Tally;
use crate::identity::Identity;
use crate::registry::Workload;

/// Callers that are told apart for one workload; the others count as unknown.
const MAX_CALLERS: usize = 4096;

/// Who calls, and how.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The workload at the caller's address, where the mesh knows one.
    pub workload: Option<Arc<Workload>>,
    /// Who it is, as it has proven.
    pub identity: Option<Identity>,
    /// Whether it came by mutual TLS.
    pub mutual_tls: bool,
    /// Port of the application.
    pub port: u16,
}

type Key = (
    Option<crate::registry::WorkloadName>,
    Option<Identity>,
    bool,
    u16,
);

impl Source {
    fn key(&self) -> Key {
        let name = self.workload.as_ref().map(|workload| workload.name.clone());
        (name, self.identity.clone(), self.mutual_tls, self.port)
    }
}

/// What has come from one caller to one port.
#[derive(Debug, Default)]
pub struct Arrived {
    /// Requests that were looked at.
    pub requests: Tally,
    /// Connections whose bytes nobody looks at.
    pub connections: Connections,
}

/// All callers of a workload.
#[derive(Debug, Default)]
pub struct Callers(Mutex<HashMap<Key, (Source, Arc<Arrived>)>>);

impl Callers {
    /// What has come from this one; asked for once for each connection.
    pub fn of(&self, source: Source) -> Arc<Arrived> {
        let mut all = self.0.lock();
        let mut key = source.key();
        let mut source = source;
        if all.len() >= MAX_CALLERS && !all.contains_key(&key) {
            source = Source {
                workload: None,
                identity: None,
                ..source
            };
            key = source.key();
        }
        let (_, arrived) = all.entry(key).or_insert_with(|| (source, Arc::default()));
        arrived.clone()
    }

    /// All of them.
    pub fn all(&self) -> Vec<(Source, Arc<Arrived>)> {
        self.0.lock().values().cloned().collect()
    }
}

/// Bytes of a connection that are collected before others see them: connections that last
/// are not counted at their end alone, nor byte by byte.
const TOLD_BYTES: u64 = 16 * 1024;

/// A connection to an application, counted until it is dropped.
#[derive(Debug)]
pub struct Counted {
    arrived: Arc<Arrived>,
    received: u64,
    sent: u64,
}

impl Counted {
    /// One that has just been made.
    pub fn open(arrived: Arc<Arrived>) -> Self {
        arrived.connections.open();
        Self {
            arrived,
            received: 0,
            sent: 0,
        }
    }

    /// Bytes from the caller, and to it.
    pub fn add(&mut self, received: usize, sent: usize) {
        self.received += received as u64;
        self.sent += sent as u64;
        if self.received + self.sent >= TOLD_BYTES {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let (received, sent) = (&mut self.received, &mut self.sent);
        let (received, sent) = (std::mem::take(received), std::mem::take(sent));
        self.arrived.connections.carry(received, sent);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.tell();
        self.arrived.connections.close(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_told_apart_up_to_a_bound() {
        let callers = Callers::default();
        let identity = |number: usize| {
            format!("spiffe://cluster.local/ns/default/sa/a{number}")
                .parse()
                .ok()
        };
        for number in 0..MAX_CALLERS + 10 {
            let source = Source {
                identity: identity(number),
                port: 80,
                ..Source::default()
            };
            let mut counted = Counted::open(callers.of(source));
            counted.add(3, 0);
        }
        let all = callers.all();
        assert_eq!(all.len(), MAX_CALLERS + 1);
        let unknown = all.iter().find(|(source, _)| source.identity.is_none());
        let counts = unknown.expect("the others").1.connections.counts();
        assert_eq!(
            (counts.opened, counts.closed, counts.received),
            (10, 10, 30)
        );
    }

    #[test]
    fn connections_that_last_are_counted_as_they_go() {
        let arrived = Arc::<Arrived>::default();
        let mut counted = Counted::open(arrived.clone());
        counted.add(0, TOLD_BYTES as usize - 1);
        assert_eq!(arrived.connections.counts().sent, 0);
        counted.add(1, 0);
        let counts = arrived.connections.counts();
        assert_eq!(
            (counts.received, counts.sent, counts.closed),
            (1, TOLD_BYTES - 1, 0)
        );
        counted.add(0, 5);
        drop(counted);
        let counts = arrived.connections.counts();
        assert_eq!((counts.sent, counts.closed), (TOLD_BYTES + 4, 1));
    }
}
