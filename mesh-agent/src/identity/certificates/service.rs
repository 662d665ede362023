//! Certificates from an authority elsewhere, and what peers are verified
//! against then.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::held::{Held, renewal_time, unix_time};
use super::remote::{MAX_REQUESTS, Remote};
use super::{CertificateError, Certificates, MAX_IDENTITIES, Source, remaining};
use crate::file::{stamp, watch};
use crate::identity::certificate_service::ClientError;
use crate::identity::pem_files::{FileError, revocation_lists};
use crate::identity::trust::Anchors;
use crate::identity::{Identity, Leaf};

/// Why a revocation list is not in force.
#[derive(Debug, thiserror::Error)]
enum RevocationError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl Certificates {
    /// Has the certificates of these identities, those of the node's
    /// workloads, at hand before they are needed, where that takes time.
    pub fn want(&self, identities: HashSet<Identity>) {
        if let Source::Service(remote) = &self.source {
            remote.want(identities);
        }
    }

    /// Waits until all that are wanted are there.
    ///
    /// # Errors
    /// Where one is refused, or the authority is away.
    pub async fn ready(&self) -> Result<(), CertificateError> {
        if let Source::Service(remote) = &self.source {
            for identity in remote.wanted() {
                self.obtain(&identity).await?;
            }
        }
        Ok(())
    }

    /// Asks the authority elsewhere for all that is needed.
    pub(super) async fn ask(&self, remote: &Remote) {
        let mut requests = FuturesUnordered::new();
        loop {
            for identity in remote.start(MAX_REQUESTS - requests.len()) {
                requests.push(async move {
                    let result = remote.client.certificate(&identity, self.lifetime).await;
                    (identity, result)
                });
            }
            if requests.is_empty() {
                remote.client.rest().await;
            }
            let latest = Instant::now() + self.check_interval();
            let next = remote.next_due().map_or(latest, |due| due.min(latest));
            tokio::select! {
                Some((identity, result)) = requests.next() => {
                    self.answered(remote, &identity, result);
                }
                () = remote.asked.notified() => {}
                () = tokio::time::sleep_until(next), if requests.len() < MAX_REQUESTS => {
                    let mut held = self.held.lock();
                    held.retain(|identity, held| remote.is_wanted(identity) || held.in_use());
                    remote.forget(|identity| held.contains_key(identity));
                }
            }
        }
    }

    fn answered(
        &self,
        remote: &Remote,
        identity: &Identity,
        result: Result<(Leaf, Anchors), ClientError>,
    ) {
        let result = result.map_err(Arc::new).and_then(|(leaf, anchors)| {
            let renew_at = renewal_time(unix_time(), &leaf);
            tracing::debug!(%identity, serial = leaf.serial, "certificate received");
            match self.hold(remote, leaf, anchors, renew_at) {
                Ok(()) => Ok(renew_at - unix_time()),
                Err(error) => Err(Arc::new(remote.client.unusable(&error.to_string()))),
            }
        });
        match result {
            Ok(renew_in) => {
                remote.succeeded(
                    identity,
                    Duration::try_from_secs_f64(renew_in).unwrap_or_default(),
                );
            }
            Err(error) => {
                let (is_news, pause) = remote.failed(identity, &error);
                let valid_s = self
                    .not_after(identity)
                    .map_or(0, |end| remaining(end).as_secs());
                if is_news {
                    tracing::warn!(
                        %identity, %error, valid_s, retry_ms = pause.as_millis(),
                        "no new certificate; the one before, if any, stays until its end"
                    );
                }
            }
        }
        remote.answered.send_replace(());
    }

    /// Takes a certificate from elsewhere, and the roots that came with it.
    fn hold(
        &self,
        remote: &Remote,
        leaf: Leaf,
        anchors: Anchors,
        renew_at: f64,
    ) -> Result<(), CertificateError> {
        let identity = leaf.identity.clone();
        let mut all = self.held.lock();
        let before = remote.anchors.load();
        let other_roots = before.roots != anchors.roots;
        if other_roots || before.intermediates != anchors.intermediates {
            let revoked = remote.revoked.load_full();
            self.trust_in(remote, anchors.with_revoked(&revoked)?);
        }
        if other_roots {
            self.verify_anew(&mut all)?;
        }
        if let Some(held) = all.get_mut(&identity) {
            held.renew_at = renew_at;
            held.current.leaf.store(Arc::new(leaf));
        } else if all.len() < MAX_IDENTITIES {
            let held = self.make_held(leaf, renew_at)?;
            all.insert(identity, held);
        } else {
            return Err(CertificateError::TooMany(identity));
        }
        Ok(())
    }

    fn trust_in(&self, remote: &Remote, anchors: Anchors) {
        self.trust.send_replace(anchors.trust.clone());
        remote.anchors.store(Arc::new(anchors));
    }

    /// New handshakes are verified by what is trusted now.
    fn verify_anew(&self, all: &mut HashMap<Identity, Held>) -> Result<(), CertificateError> {
        for held in all.values_mut() {
            held.server = self.make_server(held.current.clone())?;
            held.clients.clear();
        }
        Ok(())
    }

    /// Reads the file of revoked certificates again whenever it changes, until `stop`.
    pub(super) async fn watch_revoked(&self, remote: &Remote, stop: CancellationToken) {
        let Some(path) = remote.client.crl() else {
            return;
        };
        let changed = || match self.read_revoked(remote, path) {
            Ok(()) => tracing::info!(path = %path.display(), "revocation list is renewed"),
            Err(error) => {
                tracing::error!(%error, "revocation list not renewed, the old one stays");
            }
        };
        watch(remote.revoked_at, || stamp(path), changed, stop).await;
    }

    fn read_revoked(&self, remote: &Remote, path: &Path) -> Result<(), RevocationError> {
        let revoked = revocation_lists(path)?;
        let mut all = self.held.lock();
        let anchors = remote.anchors.load().with_revoked(&revoked)?;
        remote.revoked.store(Arc::new(revoked));
        self.trust_in(remote, anchors);
        Ok(self.verify_anew(&mut all)?)
    }

    /// Waits for a certificate from elsewhere.
    pub(super) async fn obtain(&self, identity: &Identity) -> Result<(), CertificateError> {
        let Source::Service(remote) = &self.source else {
            return Ok(());
        };
        let mut answered = remote.answered.subscribe();
        loop {
            if self
                .not_after(identity)
                .is_some_and(|end| !remaining(end).is_zero())
            {
                return Ok(());
            }
            remote
                .need(identity)
                .map_err(|source| CertificateError::Service {
                    identity: identity.clone(),
                    source,
                })?;
            // The sender lives as long as we do.
            let _ = answered.changed().await;
        }
    }
}
