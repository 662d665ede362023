//! Who still speaks plaintext to the node's workloads: they are whom STRICT
//! would cut off.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::registry::WorkloadName;

/// Clients that are remembered. At the bound, the one that was last seen
/// longest ago gives way.
const MAX_CLIENTS: usize = 4096;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    server: WorkloadName,
    port: u16,
    client: IpAddr,
}

#[derive(Clone, Copy)]
struct Seen {
    connections: u64,
    last: Instant,
}

/// A client that has spoken plaintext to a port of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaintextClient {
    /// The workload.
    pub server: WorkloadName,
    /// Its port.
    pub port: u16,
    /// From where.
    pub client: IpAddr,
    /// Connections that were accepted since the agent started.
    pub connections: u64,
    /// Time since the last of them.
    pub ago: Duration,
}

/// All of them since the agent started.
#[derive(Default)]
pub struct PlaintextClients {
    seen: Mutex<HashMap<Key, Seen>>,
}

impl PlaintextClients {
    /// A connection in the clear is accepted.
    pub fn add(&self, server: &WorkloadName, port: u16, client: IpAddr) {
        let key = Key {
            server: server.clone(),
            port,
            client: client.to_canonical(),
        };
        let mut seen = self.seen.lock();
        if seen.len() >= MAX_CLIENTS && !seen.contains_key(&key) {
            let oldest = seen.iter().min_by_key(|(_, seen)| seen.last);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                seen.remove(&oldest);
            }
        }
        let seen = seen.entry(key).or_insert(Seen {
            connections: 0,
            last: Instant::now(),
        });
        seen.connections += 1;
        seen.last = Instant::now();
    }

    /// Those that were seen within `window`, by server, port and client.
    pub fn within(&self, window: Duration) -> Vec<PlaintextClient> {
        let seen = self.seen.lock();
        let mut clients: Vec<_> = seen
            .iter()
            .map(|(key, seen)| PlaintextClient {
                server: key.server.clone(),
                port: key.port,
                client: key.client,
                connections: seen.connections,
                ago: seen.last.elapsed(),
            })
            .filter(|client| client.ago <= window)
            .collect();
        clients.sort_by(|a, b| (&a.server, a.port, a.client).cmp(&(&b.server, b.port, b.client)));
        clients
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_counted_and_bounded() {
        let clients = PlaintextClients::default();
        let server = WorkloadName {
            name: "a".into(),
            namespace: "shop".into(),
        };
        let add = |client: &str| clients.add(&server, 80, client.parse().unwrap());
        add("10.0.0.1");
        add("::ffff:10.0.0.1");
        let seen = clients.within(Duration::from_secs(60));
        assert_eq!((seen.len(), seen[0].connections), (1, 2));
        assert_eq!(clients.within(Duration::ZERO), []);
        for number in 0..MAX_CLIENTS {
            clients.add(&server, 80, IpAddr::from((number as u128).to_be_bytes()));
        }
        let seen = clients.within(Duration::from_secs(60));
        assert_eq!(seen.len(), MAX_CLIENTS);
        assert!(seen.iter().all(|client| client.client.is_ipv6()));
    }
}
