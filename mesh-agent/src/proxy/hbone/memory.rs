//! How much peers can make the node hold: what its tunnels have received and nobody has read, and what
//! they were given and the peers do not take.
//!
//! Nothing is counted while bytes pass. A connection says after some kilobytes that they have come;
//! after as many as there is room for, all that is held is counted, by whoever brought the last of
//! them. So no more is ever held than the bound and what may come between two counts, however fast it
//! comes, and a node at rest does nothing at all.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use h2::{RecvStream, StreamId};
use parking_lot::Mutex;

use super::clients::Client;
use super::inbox::Inbox;
use super::outbox::Unsent;
use super::window;
use crate::proxy::sparse_log::SparseLog;

/// What tunnels may hold unless the operator says otherwise, in MiB.
pub const DEFAULT_MAX_MIB: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// When there is no room, so much of the bound is made free: what comes next does not meet it at once.
const FREED: usize = 8;
/// At least this part of the bound may come between two counts.
const LEAST_ALLOWANCE: usize = 16;
/// A connection says that so much has come.
pub const REPORTED_BYTES: usize = 16 * 1024;

/// What the tunnels of a node hold, whichever side of them it is.
#[derive(Debug)]
pub struct TunnelMemory {
    max_bytes: usize,
    /// What has come since all was counted, whether it was read or not.
    arrived: AtomicUsize,
    /// How much of it may come until all is counted again.
    allowance: AtomicUsize,
    /// What a tunnel may hold at present.
    window: AtomicU32,
    counting: Mutex<()>,
    next_number: AtomicU64,
    connections: Mutex<HashMap<u64, Weak<Tunnels>>>,
    /// Tunnels that were reset.
    reset: AtomicU64,
    log: SparseLog,
}

impl Default for TunnelMemory {
    fn default() -> Self {
        Self::new(DEFAULT_MAX_MIB)
    }
}

impl TunnelMemory {
    /// No more than `max_mib` MiB are held.
    pub fn new(max_mib: NonZeroUsize) -> Self {
        Self::of(max_mib.get().saturating_mul(1 << 20))
    }

    fn of(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            arrived: AtomicUsize::new(0),
            allowance: AtomicUsize::new(window::until_next(0, max_bytes)),
            window: AtomicU32::new(window::MAX_BYTES),
            counting: Mutex::default(),
            next_number: AtomicU64::new(0),
            connections: Mutex::default(),
            reset: AtomicU64::new(0),
            log: SparseLog::of(1),
        }
    }

    /// Tunnels that were reset for want of room.
    pub fn reset(&self) -> u64 {
        self.reset.load(Ordering::Relaxed)
    }

    /// The tunnels of a new connection. `client` pays for them: it has opened them, whether the
    /// applications behind this node do not read or its own, where it is on this node.
    pub fn connection(self: &Arc<Self>, client: Client) -> Arc<Tunnels> {
        let tunnels = Arc::new(Tunnels {
            memory: self.clone(),
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
            client,
            open: Mutex::default(),
            given: AtomicUsize::new(0),
        });
        let mut connections = self.connections.lock();
        connections.insert(tunnels.number, Arc::downgrade(&tunnels));
        drop(connections);
        tunnels
    }

    /// How much is held.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        let connections = self.connections();
        let open = connections.iter().flat_map(|tunnels| tunnels.open());
        open.map(|tunnel| tunnel.held()).sum()
    }

    /// How much has been taken out of HTTP/2's memory.
    #[cfg(test)]
    pub fn collected(&self) -> usize {
        let connections = self.connections();
        let open = connections.iter().flat_map(|tunnels| tunnels.open());
        open.map(|tunnel| tunnel.inbox.collected()).sum()
    }

    /// What a tunnel may hold at present.
    #[cfg(test)]
    pub fn window(&self) -> u32 {
        self.window.load(Ordering::Relaxed)
    }

    /// What has come since all was counted.
    #[cfg(test)]
    pub fn arrived(&self) -> usize {
        self.arrived.load(Ordering::Relaxed)
    }

    fn connections(&self) -> Vec<Arc<Tunnels>> {
        let connections = self.connections.lock();
        connections.values().filter_map(Weak::upgrade).collect()
    }

    fn is_due(&self) -> bool {
        self.arrived.load(Ordering::Relaxed) >= self.allowance.load(Ordering::Relaxed)
    }

    /// Counts all that is held; where that is too much, whoever holds most loses most.
    fn count(&self) {
        // Others who bring more wait meanwhile, and do not count again.
        let _alone = self.counting.lock();
        if !self.is_due() {
            return;
        }
        self.arrived.store(0, Ordering::Relaxed);
        let (mut held, mut holding) = (Vec::new(), Vec::new());
        let connections = self.connections();
        for tunnels in &connections {
            for tunnel in tunnels.open() {
                let bytes = tunnel.held();
                if bytes > 0 {
                    held.push((&tunnels.client, bytes));
                    holding.push(tunnel);
                }
            }
        }
        let mut total: usize = held.iter().map(|(_, bytes)| bytes).sum();
        if total > self.max_bytes {
            let target = self.max_bytes - self.max_bytes / FREED;
            let paying = who_pays(&held, target);
            for &index in &paying {
                holding[index].inbox.give_up();
                total -= held[index].1;
            }
            let paying: Vec<_> = paying.iter().map(|&index| held[index]).collect();
            self.tell(&paying);
        }
        let window = window::next(self.window.load(Ordering::Relaxed), total, self.max_bytes);
        self.window.store(window, Ordering::Relaxed);
        let left = window::until_next(total, self.max_bytes);
        let allowance = left.max(self.max_bytes / LEAST_ALLOWANCE);
        self.allowance.store(allowance, Ordering::Relaxed);
    }

    fn tell(&self, paying: &[(&Client, usize)]) {
        self.reset.fetch_add(paying.len() as u64, Ordering::Relaxed);
        // The first is of whoever held most.
        let Some(((identity, address), _)) = paying.first() else {
            return;
        };
        if let Some(line) = self.log.line() {
            tracing::warn!(
                %identity, %address,
                tunnels = paying.len(),
                held_bytes = paying.iter().map(|(_, bytes)| bytes).sum::<usize>(),
                max_bytes = self.max_bytes,
                left_out = line.left_out,
                "tunnels hold too much that nobody takes, the largest are reset (--max-tunnel-memory)"
            );
        }
    }
}

/// Whose tunnels are reset so that no more than `target` is held: the largest of whoever holds most at
/// the time.
fn who_pays<C: Eq + std::hash::Hash>(held: &[(C, usize)], target: usize) -> Vec<usize> {
    let mut total: usize = held.iter().map(|(_, bytes)| bytes).sum();
    let mut by_size: Vec<usize> = (0..held.len()).collect();
    by_size.sort_unstable_by_key(|&index| held[index].1);
    let mut clients: HashMap<&C, (usize, Vec<usize>)> = HashMap::new();
    for index in by_size {
        let (client, bytes) = &held[index];
        let (sum, own) = clients.entry(client).or_default();
        *sum += bytes;
        own.push(index);
    }
    let mut paying = Vec::new();
    while total > target {
        let most = clients.values_mut().max_by_key(|(sum, _)| *sum);
        let Some((index, sum)) = most.and_then(|(sum, own)| Some((own.pop()?, sum))) else {
            break;
        };
        *sum -= held[index].1;
        total -= held[index].1;
        paying.push(index);
    }
    paying
}

/// The tunnels of one connection.
#[derive(Debug)]
pub struct Tunnels {
    memory: Arc<TunnelMemory>,
    number: u64,
    client: Client,
    open: Mutex<HashMap<StreamId, Arc<Tunnel>>>,
    /// Given to tunnels, and not told yet.
    given: AtomicUsize,
}

/// What a tunnel holds.
#[derive(Debug)]
struct Tunnel {
    inbox: Inbox,
    unsent: Unsent,
}

impl Tunnel {
    fn held(&self) -> usize {
        self.inbox.collect() + self.unsent.bytes()
    }
}

impl Tunnels {
    /// The receiving half of a tunnel, from its first byte on.
    pub fn receiver(self: &Arc<Self>, stream: RecvStream) -> Receiver {
        let id = stream.stream_id();
        let tunnel = Arc::new(Tunnel {
            inbox: Inbox::new(stream),
            unsent: Unsent::default(),
        });
        self.open.lock().insert(id, tunnel.clone());
        Receiver {
            tunnel,
            id,
            tunnels: self.clone(),
        }
    }

    /// How much each may hold at present.
    pub fn window(&self) -> u32 {
        self.memory.window.load(Ordering::Relaxed)
    }

    /// So much has come, all in all.
    pub fn arrived(&self, bytes: usize) {
        self.memory.arrived.fetch_add(bytes, Ordering::Relaxed);
        if self.memory.is_due() {
            self.memory.count();
        }
    }

    /// Takes what waits out of HTTP/2's memory.
    pub fn collect(&self) {
        for tunnel in self.open() {
            tunnel.inbox.collect();
        }
    }

    fn open(&self) -> Vec<Arc<Tunnel>> {
        self.open.lock().values().cloned().collect()
    }
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.memory.connections.lock().remove(&self.number);
    }
}

/// A tunnel's [inbox](Inbox). What the tunnel holds counts until this is dropped.
#[derive(Debug)]
pub struct Receiver {
    tunnel: Arc<Tunnel>,
    id: StreamId,
    tunnels: Arc<Tunnels>,
}

impl Receiver {
    /// Counts what the tunnel is given.
    pub fn unsent(&self) -> &Unsent {
        &self.tunnel.unsent
    }

    /// The tunnel was given so much.
    pub fn given(&self, bytes: usize) {
        let given = &self.tunnels.given;
        if given.fetch_add(bytes, Ordering::Relaxed) + bytes >= REPORTED_BYTES {
            self.tunnels.arrived(given.swap(0, Ordering::Relaxed));
        }
    }
}

impl std::ops::Deref for Receiver {
    type Target = Inbox;

    fn deref(&self) -> &Inbox {
        &self.tunnel.inbox
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let gone = self.tunnels.open.lock().remove(&self.id);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_most_pays_with_what_is_largest() {
        let held = [("a", 10), ("b", 30), ("a", 5), ("b", 40), ("c", 20)];
        assert_eq!(who_pays(&held, 105), [] as [usize; 0]);
        assert_eq!(who_pays(&held, 104), [3]);
        assert_eq!(who_pays(&held, 64), [3, 1]);
        // `b` has paid all, `c` holds more than `a` then.
        assert_eq!(who_pays(&held, 34), [3, 1, 4]);
        assert_eq!(who_pays(&held, 0), [3, 1, 4, 0, 2]);
        // Many small ones are as much as a large one.
        let held = [("a", 10), ("b", 4), ("b", 4), ("b", 4)];
        assert_eq!(who_pays(&held, 21).len(), 1);
        assert_ne!(who_pays(&held, 21), [0]);
    }
}
