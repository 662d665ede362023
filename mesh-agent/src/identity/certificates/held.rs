//! The certificate of one identity that is in force, and when it is to be
//! renewed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rand::Rng;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use crate::identity::{Identity, Leaf};

/// A certificate is renewed when this share of its life is over...
const RENEW_AFTER: f64 = 0.5;
/// ... or up to this share earlier, so that those issued together part.
const RENEW_JITTER: f64 = 0.1;

/// The certificate in force for one identity. rustls asks for it in every
/// handshake, so a renewal needs no new configuration.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) leaf: ArcSwap<Leaf>,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.leaf.load().certified.clone())
    }
}

impl ResolvesClientCert for Current {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(self.leaf.load().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What is held for one identity.
pub(super) struct Held {
    pub(super) current: Arc<Current>,
    /// When the certificate is to be renewed, Unix seconds with fraction.
    pub(super) renew_at: f64,
    pub(super) server: Arc<ServerConfig>,
    pub(super) clients: HashMap<Arc<[Identity]>, Arc<ClientConfig>>,
}

impl Held {
    /// Whether anybody outside holds a configuration of this identity.
    pub(super) fn in_use(&self) -> bool {
        // The resolver is ours and that of each configuration kept here: more
        // means a client configuration above the bound.
        Arc::strong_count(&self.current) > 2 + self.clients.len()
            || Arc::strong_count(&self.server) > 1
            || self
                .clients
                .values()
                .any(|client| Arc::strong_count(client) > 1)
    }
}

pub(super) fn unix_time() -> f64 {
    SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0.0, |since| since.as_secs_f64())
}

/// When a certificate is to be renewed that is given `now`.
pub(super) fn renewal_time(now: f64, leaf: &Leaf) -> f64 {
    let life = (leaf.not_after as f64 - now).max(0.0);
    let share = RENEW_AFTER - rand::rng().random_range(0.0..RENEW_JITTER);
    now + life * share
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::Authority;

    #[test]
    fn certificates_issued_together_are_renewed_apart_and_none_after_half_of_its_life() {
        const LIFE: Duration = Duration::from_secs(1000);
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(folder.path(), "cluster.local").unwrap();
        let identity = "spiffe://cluster.local/ns/default/sa/a".parse().unwrap();
        let leaf = authority.issue(&identity, LIFE).unwrap();
        let now = leaf.not_after as f64 - LIFE.as_secs_f64();
        let mut times: Vec<f64> = (0..200).map(|_| renewal_time(now, &leaf) - now).collect();
        times.sort_by(f64::total_cmp);
        let (first, last) = (times[0], times[times.len() - 1]);
        assert!(first >= 400.0 && last <= 500.0, "{first} to {last}");
        assert!(last - first > 50.0, "{first} to {last}");
    }
}
