//! TLS sessions that may be resumed: for a short time only, so that what a
//! resumed session proves is never older than a part of a certificate's life.
//! They are kept here; a ticket is only the name of one, and good once.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::server::StoresServerSessions;

/// Sessions that are kept for one identity; at the bound the oldest is forgotten.
const MAX_SESSIONS: usize = 1024;

/// The sessions of the servers that bear one identity.
#[derive(Debug)]
pub(super) struct Sessions {
    lifetime: Duration,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_key: HashMap<Vec<u8>, (Instant, Vec<u8>)>,
    /// Keys, the oldest first; some of them are gone.
    order: VecDeque<Vec<u8>>,
}

impl Sessions {
    /// Sessions that may be resumed for `lifetime`.
    pub(super) fn new(lifetime: Duration) -> Self {
        Self {
            lifetime,
            kept: Mutex::default(),
        }
    }

    fn fresh(&self, (since, session): (Instant, Vec<u8>)) -> Option<Vec<u8>> {
        (since.elapsed() < self.lifetime).then_some(session)
    }
}

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let mut kept = self.kept.lock();
        while kept.order.len() >= MAX_SESSIONS {
            if let Some(oldest) = kept.order.pop_front() {
                kept.by_key.remove(&oldest);
            }
        }
        kept.order.push_back(key.clone());
        kept.by_key.insert(key, (Instant::now(), value));
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let session = self.kept.lock().by_key.get(key)?.clone();
        self.fresh(session)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let session = self.kept.lock().by_key.remove(key)?;
        self.fresh(session)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_good_once_and_for_its_time() {
        let sessions = Sessions::new(Duration::from_secs(60));
        sessions.put(vec![1], vec![2]);
        assert_eq!(sessions.get(&[1]), Some(vec![2]));
        assert_eq!(sessions.take(&[1]), Some(vec![2]));
        assert_eq!(sessions.take(&[1]), None);
        let sessions = Sessions::new(Duration::ZERO);
        sessions.put(vec![1], vec![2]);
        assert_eq!(sessions.take(&[1]), None);
    }

    #[test]
    fn the_oldest_gives_way() {
        let sessions = Sessions::new(Duration::from_secs(60));
        for number in 0..=MAX_SESSIONS {
            sessions.put(number.to_be_bytes().to_vec(), vec![0]);
        }
        assert_eq!(sessions.get(&0usize.to_be_bytes()), None);
        assert!(sessions.get(&1usize.to_be_bytes()).is_some());
        assert_eq!(sessions.kept.lock().by_key.len(), MAX_SESSIONS);
    }
}
