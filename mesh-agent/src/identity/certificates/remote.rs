//! Which certificates are asked for at an authority elsewhere, and when: at
//! once when they are needed, again at half of their life, and after a while
//! when the authority was away.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rand::Rng;
use rustls_pki_types::CertificateRevocationListDer;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::file::{Stamp, stamp};
use crate::identity::Identity;
use crate::identity::certificate_service::{ClientError, ServiceClient};
use crate::identity::pem_files::{FileError, revocation_lists};
use crate::identity::trust::Anchors;

/// Requests at a time.
pub(super) const MAX_REQUESTS: usize = 8;
/// Pause after the first failure; doubled with each further one...
const MIN_PAUSE: Duration = Duration::from_millis(500);
/// ... up to this.
const MAX_PAUSE: Duration = Duration::from_secs(150);

/// An authority elsewhere.
pub(super) struct Remote {
    pub(super) client: ServiceClient,
    /// Certificates that count no more, from a file of ours.
    pub(super) revoked: ArcSwap<Vec<CertificateRevocationListDer<'static>>>,
    /// When that file was read.
    pub(super) revoked_at: Option<Stamp>,
    /// As the last answer had them, without those that are revoked.
    pub(super) anchors: ArcSwap<Anchors>,
    asks: Mutex<Asks>,
    /// There is something to ask for.
    pub(super) asked: Notify,
    /// A request has come to an end.
    pub(super) answered: watch::Sender<()>,
}

#[derive(Default)]
struct Asks {
    /// Identities of the workloads that are here: their certificates are kept.
    wanted: HashSet<Identity>,
    by_identity: HashMap<Identity, Ask>,
}

struct Ask {
    state: State,
    /// Failures since the last success.
    failures: u32,
    error: Option<Arc<ClientError>>,
}

enum State {
    Due(Instant),
    Asking,
}

impl Ask {
    fn now() -> Self {
        Self {
            state: State::Due(Instant::now()),
            failures: 0,
            error: None,
        }
    }
}

impl Remote {
    /// # Errors
    /// Where the file of revoked certificates cannot be used.
    pub(super) fn new(client: ServiceClient) -> Result<Self, FileError> {
        // Before it is read: what changes meanwhile is seen later.
        let revoked_at = client.crl().and_then(stamp);
        let revoked = client.crl().map(revocation_lists).transpose()?;
        Ok(Self {
            client,
            revoked: ArcSwap::from_pointee(revoked.unwrap_or_default()),
            revoked_at,
            anchors: ArcSwap::default(),
            asks: Mutex::default(),
            asked: Notify::new(),
            answered: watch::Sender::new(()),
        })
    }

    /// Certificates of these identities, and of no others, are kept without
    /// being used.
    pub(super) fn want(&self, identities: HashSet<Identity>) {
        let mut asks = self.asks.lock();
        for identity in &identities {
            asks.by_identity
                .entry(identity.clone())
                .or_insert_with(Ask::now);
        }
        asks.wanted = identities;
        self.asked.notify_one();
    }

    pub(super) fn is_wanted(&self, identity: &Identity) -> bool {
        self.asks.lock().wanted.contains(identity)
    }

    pub(super) fn wanted(&self) -> Vec<Identity> {
        self.asks.lock().wanted.iter().cloned().collect()
    }

    /// A certificate is needed that is not there; why the last request failed,
    /// where it did.
    pub(super) fn need(&self, identity: &Identity) -> Result<(), Arc<ClientError>> {
        let mut asks = self.asks.lock();
        let ask = asks
            .by_identity
            .entry(identity.clone())
            .or_insert_with(Ask::now);
        if let Some(error) = &ask.error {
            return Err(error.clone());
        }
        if let State::Due(due) = &mut ask.state {
            // It may be due later only where time has jumped, as over a suspension.
            *due = Instant::now();
            self.asked.notify_one();
        }
        Ok(())
    }

    /// Identities to ask for now, at most `room`.
    pub(super) fn start(&self, room: usize) -> Vec<Identity> {
        let now = Instant::now();
        let mut asks = self.asks.lock();
        asks.by_identity
            .iter_mut()
            .filter(|(_, ask)| matches!(ask.state, State::Due(due) if due <= now))
            .take(room)
            .map(|(identity, ask)| {
                ask.state = State::Asking;
                identity.clone()
            })
            .collect()
    }

    /// When there is something to ask for again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let asks = self.asks.lock();
        let due = asks.by_identity.values().filter_map(|ask| match ask.state {
            State::Due(due) => Some(due),
            State::Asking => None,
        });
        due.min()
    }

    pub(super) fn succeeded(&self, identity: &Identity, renew_in: Duration) {
        if let Some(ask) = self.asks.lock().by_identity.get_mut(identity) {
            *ask = Ask {
                state: State::Due(Instant::now() + renew_in),
                failures: 0,
                error: None,
            };
        }
    }

    /// Notes a failure; whether people are to be told, and the pause until the next request.
    pub(super) fn failed(&self, identity: &Identity, error: &Arc<ClientError>) -> (bool, Duration) {
        let mut asks = self.asks.lock();
        let Some(ask) = asks.by_identity.get_mut(identity) else {
            return (false, Duration::ZERO);
        };
        let pause = pause(ask.failures, rand::rng().random_range(0.5..1.0));
        let before = ask.error.replace(error.clone());
        ask.failures += 1;
        ask.state = State::Due(Instant::now() + pause);
        let is_news = before.is_none_or(|before| before.to_string() != error.to_string());
        (is_news, pause)
    }

    /// Forgets what is neither wanted nor held.
    pub(super) fn forget(&self, is_held: impl Fn(&Identity) -> bool) {
        let mut asks = self.asks.lock();
        let Asks {
            wanted,
            by_identity,
        } = &mut *asks;
        by_identity.retain(|identity, ask| {
            wanted.contains(identity) || is_held(identity) || matches!(ask.state, State::Asking)
        });
    }

    /// Why requests fail, ordered by identity.
    pub(super) fn failures(&self) -> Vec<(Identity, String)> {
        let asks = self.asks.lock();
        let failed = asks.by_identity.iter();
        let mut failed: Vec<_> = failed
            .filter_map(|(identity, ask)| Some((identity.clone(), ask.error.as_ref()?.to_string())))
            .collect();
        failed.sort();
        failed
    }
}

/// Doubled with each failure; `share`, from a half to 1, keeps agents apart
/// that an authority has left at one time.
fn pause(failures: u32, share: f64) -> Duration {
    MIN_PAUSE
        .saturating_mul(1 << failures.min(16))
        .min(MAX_PAUSE)
        .mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let pauses: Vec<_> = (0..4).map(|failures| pause(failures, 1.0)).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000].map(Duration::from_millis));
        assert_eq!(pause(9, 1.0), MAX_PAUSE);
        assert_eq!(pause(u32::MAX, 0.5), MAX_PAUSE / 2);
    }
}
