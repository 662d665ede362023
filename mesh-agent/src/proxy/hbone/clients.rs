//! How many connections each client has to this node, so that none can take all of its memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::identity::Identity;
use crate::proxy::sparse_log::SparseLog;

/// Connections of one client that are accepted unless the operator says otherwise. An agent makes one
/// to each workload that it calls, and one more for each hundred tunnels; an Envoy one for each of
/// its threads.
pub const DEFAULT_MAX_CONNECTIONS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// A proven identity and the address that it comes from: replicas have one identity.
pub type Client = (Identity, IpAddr);

/// The clients of a node, by their open connections.
#[derive(Debug)]
pub struct Clients {
    max: usize,
    open: Mutex<HashMap<Client, usize>>,
    refused: AtomicU64,
    log: SparseLog,
}

/// One connection; it counts until this is dropped.
#[derive(Debug)]
pub struct Place {
    clients: Arc<Clients>,
    client: Client,
}

impl Clients {
    /// No client has more connections than `max`.
    pub fn new(max: NonZeroUsize) -> Self {
        Self {
            max: max.get(),
            open: Mutex::default(),
            refused: AtomicU64::new(0),
            log: SparseLog::of(1),
        }
    }

    /// A place for one more connection of a client, unless it has too many.
    pub fn place(self: &Arc<Self>, identity: &Identity, address: IpAddr) -> Option<Place> {
        let client = (identity.clone(), address);
        let mut all = self.open.lock();
        let open = all.entry(client.clone()).or_default();
        if *open >= self.max {
            drop(all);
            self.refuse(&client);
            return None;
        }
        *open += 1;
        Some(Place {
            clients: self.clone(),
            client,
        })
    }

    /// Connections that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn refuse(&self, (identity, address): &Client) {
        let refused = 1 + self.refused.fetch_add(1, Ordering::Relaxed);
        if self.log.line().is_some() {
            tracing::warn!(
                %identity, %address, max = self.max, refused,
                "client has too many connections, more are refused (--max-client-connections)"
            );
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.clients.open.lock();
        if let Some(open) = all.get_mut(&self.client) {
            *open -= 1;
            if *open == 0 {
                all.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_so_many_connections_and_no_more() {
        let identity = |name: &str| -> Identity {
            format!("spiffe://cluster.local/ns/default/sa/{name}")
                .parse()
                .unwrap()
        };
        let (one, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let clients = Arc::new(Clients::new(NonZeroUsize::new(2).unwrap()));
        let place = |name, address| clients.place(&identity(name), address);
        let (first, second) = (place("a", one), place("a", one));
        assert!(first.is_some() && second.is_some());
        assert!(place("a", one).is_none());
        assert!(place("a", other).is_some(), "a replica");
        assert!(place("b", one).is_some(), "somebody else");
        assert_eq!(clients.refused(), 1);
        drop(first);
        assert!(place("a", one).is_some());
        drop(second);
        assert!(clients.open.lock().is_empty());
    }
}
