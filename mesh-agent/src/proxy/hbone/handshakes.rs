//! The mutual TLS handshakes of the last minute, as they really were: who
//! proved to be whom to whom.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::identity::Identity;

/// How long a handshake is remembered.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Handshakes that are remembered; at the bound the oldest is forgotten.
const MAX_HANDSHAKES: usize = 16_384;

struct Handshake {
    at: Instant,
    client: Identity,
    server: Identity,
}

/// The handshakes of a node's clients.
#[derive(Default)]
pub struct Handshakes {
    recent: Mutex<VecDeque<Handshake>>,
}

impl Handshakes {
    /// One that succeeded.
    pub fn add(&self, client: &Identity, server: &Identity) {
        let mut recent = self.recent.lock();
        while recent.len() >= MAX_HANDSHAKES
            || recent
                .front()
                .is_some_and(|first| first.at.elapsed() > WINDOW)
        {
            recent.pop_front();
        }
        recent.push_back(Handshake {
            at: Instant::now(),
            client: client.clone(),
            server: server.clone(),
        });
    }

    /// How many there were in the last minute between a client and servers.
    pub fn count(&self, client: &Identity, is_server: impl Fn(&Identity) -> bool) -> u64 {
        let recent = self.recent.lock();
        let counted = recent.iter().filter(|handshake| {
            handshake.at.elapsed() <= WINDOW
                && handshake.client == *client
                && is_server(&handshake.server)
        });
        counted.count() as u64
    }
}

/// A handshake that is over for the client. In TLS 1.3 the server may still refuse the client's
/// certificate: it counts when the server has answered something.
pub struct Unanswered {
    handshakes: Arc<Handshakes>,
    client: Identity,
    server: Identity,
    is_counted: AtomicBool,
}

impl Unanswered {
    /// Of a client with a server.
    pub fn new(handshakes: Arc<Handshakes>, client: Identity, server: Identity) -> Self {
        Self {
            handshakes,
            client,
            server,
            is_counted: AtomicBool::new(false),
        }
    }

    /// The server has answered.
    pub fn answered(&self) {
        if !self.is_counted.load(Ordering::Relaxed)
            && !self.is_counted.swap(true, Ordering::Relaxed)
        {
            self.handshakes.add(&self.client, &self.server);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_are_counted_by_pair_and_bounded() {
        let identity = |name: &str| -> Identity {
            format!("spiffe://cluster.local/ns/default/sa/{name}")
                .parse()
                .unwrap()
        };
        let (a, b, c) = (identity("a"), identity("b"), identity("c"));
        let handshakes = Handshakes::default();
        handshakes.add(&a, &b);
        handshakes.add(&a, &c);
        handshakes.add(&b, &a);
        assert_eq!(handshakes.count(&a, |server| *server == b), 1);
        assert_eq!(handshakes.count(&a, |_| true), 2);
        assert_eq!(handshakes.count(&c, |_| true), 0);
        for _ in 0..MAX_HANDSHAKES {
            handshakes.add(&c, &a);
        }
        assert_eq!(handshakes.count(&a, |_| true), 0);
        assert_eq!(handshakes.count(&c, |_| true), MAX_HANDSHAKES as u64);
    }
}
