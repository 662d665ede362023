//! What is open to the applications of a workload, port by port, where its Sidecar bounds it:
//! the circuit breakers of the server's side, for all callers together.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::balance::{Gauge, Overflow};

/// All ports of a workload to which something has been open.
#[derive(Default)]
pub struct Ports {
    by_number: Mutex<HashMap<u16, Arc<Port>>>,
}

impl Ports {
    pub(super) fn at(&self, number: u16) -> Arc<Port> {
        let mut by_number = self.by_number.lock();
        by_number.entry(number).or_default().clone()
    }

    /// All of them, with their numbers.
    pub fn all(&self) -> Vec<(u16, Arc<Port>)> {
        let by_number = self.by_number.lock();
        let all = by_number.iter();
        all.map(|(number, port)| (*number, port.clone())).collect()
    }
}

/// What is open to one port.
#[derive(Default)]
pub struct Port {
    /// Connections, those being made included.
    pub connections: Gauge,
    /// Requests that wait for a connection.
    pub pending: Gauge,
    /// Requests on their way.
    pub requests: Gauge,
    /// A connection has ended, or nobody uses it any more.
    freed: Notify,
    keepers: Mutex<Vec<Weak<dyn Keeper>>>,
}

/// Somebody who keeps a connection for the next request.
pub(super) trait Keeper: Send + Sync {
    /// Gives it up if nobody uses it. Returns whether there was one.
    fn give_up(&self) -> bool;
}

impl Port {
    /// Somebody to ask when all connections are taken.
    pub(super) fn meet(&self, keeper: Weak<dyn Keeper>) {
        let mut keepers = self.keepers.lock();
        // Only then: looking at all of them for each one would cost more than the rest.
        if keepers.len() == keepers.capacity() {
            keepers.retain(|keeper| keeper.strong_count() > 0);
        }
        keepers.push(keeper);
    }

    /// A connection, unless there are so many.
    pub(super) fn enter(self: &Arc<Self>, limit: Option<u32>) -> Result<Place, Overflow> {
        if self.connections.enter(limit) {
            return Ok(Place(self.clone()));
        }
        self.connections.refuse();
        Err(Overflow)
    }

    /// The same, as soon as there is room. What nobody uses is closed for it.
    pub(super) async fn entered(self: &Arc<Self>, limit: Option<u32>) -> Place {
        loop {
            let mut freed = pin!(self.freed.notified());
            // From here on nothing that happens is missed.
            freed.as_mut().enable();
            if self.connections.enter(limit) {
                return Place(self.clone());
            }
            let keepers = self.keepers.lock().clone();
            let mut kept = keepers.iter().filter_map(Weak::upgrade);
            let _ = kept.any(|keeper| keeper.give_up());
            freed.await;
        }
    }

    /// A request that waits for a connection, unless so many do.
    pub(super) fn wait(self: &Arc<Self>, limit: Option<u32>) -> Result<Waiting, Overflow> {
        if self.pending.enter(limit) {
            return Ok(Waiting(self.clone()));
        }
        self.pending.refuse();
        Err(Overflow)
    }

    /// A request, unless there are so many.
    pub(super) fn ask(self: &Arc<Self>, limit: Option<u32>) -> Result<Asking, Overflow> {
        if self.requests.enter(limit) {
            return Ok(Asking(self.clone()));
        }
        self.requests.refuse();
        Err(Overflow)
    }

    /// Nobody uses a connection any more.
    pub(super) fn unused(&self) {
        self.freed.notify_one();
    }
}

/// A connection that is open or being made.
pub struct Place(Arc<Port>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.leave();
        self.0.freed.notify_one();
    }
}

/// A request that waits for a connection.
pub(super) struct Waiting(Arc<Port>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.pending.leave();
    }
}

/// A request on its way.
pub(super) struct Asking(Arc<Port>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.requests.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Kept(Mutex<Option<Place>>);

    impl Keeper for Kept {
        fn give_up(&self) -> bool {
            self.0.lock().take().is_some()
        }
    }

    #[tokio::test]
    async fn who_waits_gets_what_nobody_uses() {
        let ports = Ports::default();
        let port = ports.at(80);
        let kept = Arc::new(Kept(Mutex::new(port.enter(Some(1)).ok())));
        assert!(port.enter(Some(1)).is_err());
        let keeper: Arc<dyn Keeper> = kept.clone();
        port.meet(Arc::downgrade(&keeper));
        let place = port.entered(Some(1)).await;
        assert!(kept.0.lock().is_none());

        let waiting = tokio::spawn({
            let port = port.clone();
            async move { port.entered(Some(1)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(place);
        drop(waiting.await.unwrap());
        assert!(ports.at(80).enter(Some(1)).is_ok());
    }

    #[test]
    fn what_is_beyond_a_bound_is_counted() {
        let port = Ports::default().at(80);
        let _one = port.ask(Some(1)).unwrap();
        assert!(port.ask(Some(1)).is_err());
        let _waits = port.wait(Some(1)).unwrap();
        assert!(port.wait(Some(1)).is_err());
        let refused = [&port.requests, &port.pending, &port.connections];
        assert_eq!(refused.map(Gauge::refused), [1, 1, 0]);
    }
}
