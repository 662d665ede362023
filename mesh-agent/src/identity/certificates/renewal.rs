//! Certificates are renewed before they end.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::held::{renewal_time, unix_time};
use super::{Certificates, Source};
use crate::identity::{Authority, Identity};

/// How often certificates are looked at, as a part of their life and at most.
const CHECKS_PER_LIFE: u32 = 16;
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(60);
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(50);

impl Certificates {
    /// Renews certificates at half of their life until `stop`. When a renewal
    /// fails, the old certificate stays and it is tried again.
    pub async fn renew(&self, stop: CancellationToken) {
        match &self.source {
            Source::Authority(authority) => {
                stop.run_until_cancelled(self.renew_here(authority)).await
            }
            Source::Service(remote) => stop.run_until_cancelled(self.ask(remote)).await,
        };
    }

    pub(super) fn check_interval(&self) -> Duration {
        (self.lifetime / CHECKS_PER_LIFE).clamp(MIN_CHECK_INTERVAL, MAX_CHECK_INTERVAL)
    }

    async fn renew_here(&self, authority: &ArcSwap<Authority>) {
        loop {
            tokio::time::sleep(self.check_interval()).await;
            self.held.lock().retain(|_, held| held.in_use());
            self.renew_due(authority);
        }
    }

    fn renew_due(&self, authority: &ArcSwap<Authority>) {
        let now = unix_time();
        let due: Vec<Identity> = self
            .held
            .lock()
            .iter()
            // A clock set back makes a certificate one of the future.
            .filter(|(_, held)| {
                now >= held.renew_at || now < held.current.leaf.load().not_before as f64
            })
            .map(|(identity, _)| identity.clone())
            .collect();
        // Signing is done without the lock, connections wait for it.
        for identity in due {
            match authority.load().issue(&identity, self.lifetime) {
                Ok(leaf) => {
                    tracing::debug!(%identity, serial = leaf.serial, "certificate renewed");
                    if let Some(held) = self.held.lock().get_mut(&identity) {
                        held.renew_at = renewal_time(now, &leaf);
                        held.current.leaf.store(Arc::new(leaf));
                    }
                }
                Err(error) => {
                    tracing::warn!(%identity, %error, "certificate not renewed, the old one stays");
                }
            }
        }
    }
}
