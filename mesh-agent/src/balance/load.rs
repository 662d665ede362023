//! What is known of endpoints beside configuration: requests in flight, and
//! whose turn it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;

use super::EndpointAddress;

/// Endpoints whose load is known. At the bound the idle ones are forgotten.
const MAX_ENDPOINTS: usize = 65_536;
/// Cursors of round robin. Services that share one still take turns, only not from the first endpoint.
const CURSORS: usize = 1024;

/// Load of endpoints, by address: it outlives changes of configuration.
#[derive(Debug)]
pub struct Load {
    /// Read with every request, copied when an endpoint is seen for the first time.
    counters: ArcSwap<HashMap<EndpointAddress, Arc<AtomicU32>>>,
    cursors: Box<[AtomicU64]>,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            counters: ArcSwap::default(),
            cursors: (0..CURSORS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Load {
    /// Requests (or connections) that are on their way to an endpoint.
    pub fn in_flight(&self, endpoint: &EndpointAddress) -> u32 {
        self.counters
            .load()
            .get(endpoint)
            .map_or(0, |counter| counter.load(Relaxed))
    }

    /// Counts a request until the guard is dropped.
    pub fn begin(&self, endpoint: &EndpointAddress) -> InFlight {
        let known = self.counters.load().get(endpoint).cloned();
        let counter = known.unwrap_or_else(|| self.add(endpoint));
        counter.fetch_add(1, Relaxed);
        InFlight(counter)
    }

    fn add(&self, endpoint: &EndpointAddress) -> Arc<AtomicU32> {
        let new = Arc::new(AtomicU32::new(0));
        self.counters.rcu(|counters| {
            let mut counters = HashMap::clone(counters);
            if counters.len() >= MAX_ENDPOINTS {
                counters.retain(|_, counter| counter.load(Relaxed) > 0);
            }
            counters
                .entry(endpoint.clone())
                .or_insert_with(|| Arc::clone(&new));
            counters
        });
        let known = self.counters.load().get(endpoint).cloned();
        known.unwrap_or(new)
    }

    /// The next number of a cursor.
    pub(super) fn next(&self, key: u64) -> u64 {
        self.cursors[(key % CURSORS as u64) as usize].fetch_add(1, Relaxed)
    }
}

/// A request that is on its way.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicU32>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
