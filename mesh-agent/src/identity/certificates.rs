//! The certificates that the agent holds, one per identity, always fresh, and
//! the TLS configurations that use them.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use rand::Rng;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::authority::{self, Authority, AuthorityError};
use super::certificate_service::{ClientError, ServiceClient};
use super::leaf::unix_seconds;
use super::remote::{MAX_REQUESTS, Remote};
use super::trust::{Anchors, Trust};
use super::{CaInfo, Identity, Leaf, tls};

/// The protocol inside TLS: HTTP/2, as HBONE demands.
pub const ALPN: &[u8] = b"h2";
/// How many identities one agent may hold; above it new ones are refused.
pub const MAX_IDENTITIES: usize = 4096;
/// How many client configurations are kept per identity; further ones are made
/// for each connection.
pub const MAX_CLIENT_CONFIGS: usize = 1024;
/// A certificate is renewed when this share of its life is over...
const RENEW_AFTER: f64 = 0.5;
/// ... or up to this share earlier, so that those issued together part.
const RENEW_JITTER: f64 = 0.1;
/// How often certificates are looked at, as a part of their life and at most.
const CHECKS_PER_LIFE: u32 = 16;
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(60);
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Why there is no certificate for an identity.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The authority gave none.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The authority elsewhere gave none, and there is none from before that is valid.
    #[error("no certificate for {identity}: {source}")]
    Service {
        /// Who needs one.
        identity: Identity,
        /// What it said.
        source: Arc<ClientError>,
    },
    /// It was forgotten in the moment in which it was needed.
    #[error("no certificate for {0} yet")]
    NotYet(Identity),
    /// The agent holds as many identities as it may.
    #[error("no certificate for {0}: this agent already holds {MAX_IDENTITIES} identities")]
    TooMany(Identity),
    /// rustls does not take the configuration.
    #[error("no TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
}

/// A certificate as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Whom it names.
    pub identity: Identity,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Begin of validity, Unix seconds.
    pub not_before: u64,
    /// End of validity, Unix seconds.
    pub not_after: u64,
    /// Subjects of the certificates above it, the root last.
    pub chain: Vec<String>,
}

/// The certificate in force for one identity. rustls asks for it in every
/// handshake, so a renewal needs no new configuration.
#[derive(Debug)]
struct Current {
    leaf: ArcSwap<Leaf>,
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

struct Held {
    current: Arc<Current>,
    /// When the certificate is to be renewed, Unix seconds with fraction.
    renew_at: f64,
    server: Arc<ServerConfig>,
    clients: HashMap<Arc<[Identity]>, Arc<ClientConfig>>,
}

impl Held {
    /// Whether anybody outside holds a configuration of this identity.
    fn in_use(&self) -> bool {
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

/// Where certificates come from.
enum Source {
    /// An authority in this process.
    Authority(ArcSwap<Authority>),
    /// One elsewhere.
    Service(Box<Remote>),
}

impl Source {
    fn trust(&self) -> Arc<Trust> {
        match self {
            Self::Authority(authority) => authority.load().trust().clone(),
            Self::Service(remote) => remote.anchors.load().trust.clone(),
        }
    }
}

/// The agent's certificates. A certificate is kept as long as a configuration
/// of its identity is; after that it is forgotten within a minute.
pub struct Certificates {
    source: Source,
    lifetime: Duration,
    /// Further names of the trust domain that servers may bear.
    aliases: Vec<Arc<str>>,
    held: Mutex<HashMap<Identity, Held>>,
}

impl Certificates {
    /// Certificates of `authority`, each valid for `lifetime`. Have [`renew`]
    /// run beside it.
    ///
    /// [`renew`]: Self::renew
    pub fn new(authority: Arc<Authority>, lifetime: Duration) -> Self {
        Self::of(Source::Authority(ArcSwap::new(authority)), lifetime)
    }

    /// Certificates of the authority that `client` asks, each valid for
    /// `lifetime`. There are none unless [`renew`] runs beside it.
    ///
    /// [`renew`]: Self::renew
    pub fn from_service(client: ServiceClient, lifetime: Duration) -> Self {
        Self::of(Source::Service(Box::new(Remote::new(client))), lifetime)
    }

    fn of(source: Source, lifetime: Duration) -> Self {
        Self {
            source,
            lifetime,
            aliases: Vec::new(),
            held: Mutex::default(),
        }
    }

    /// The same, where the trust domain has further names: a server that is expected may bear
    /// any of them.
    #[must_use]
    pub fn with_aliases(mut self, aliases: &[String]) -> Self {
        self.aliases = aliases.iter().map(|alias| alias.as_str().into()).collect();
        self
    }

    /// Uses the authority in `dir` again whenever its files change, until
    /// `stop`: a new intermediate, another root, a revocation list. What cannot
    /// be used is told, and the one before stays. Open connections go on.
    pub async fn watch(&self, dir: PathBuf, stop: CancellationToken) {
        if let Source::Authority(current) = &self.source {
            let trust_domain = current.load().trust_domain().clone();
            let renewed = |authority| self.replace(Arc::new(authority));
            authority::watch(dir, trust_domain, renewed, stop).await;
        }
    }

    /// Issues by another authority and verifies against its roots from now on.
    /// Sessions of before are not resumed.
    pub fn replace(&self, authority: Arc<Authority>) {
        if let Source::Authority(current) = &self.source {
            current.store(authority);
        }
        let identities: Vec<Identity> = {
            let mut held = self.held.lock();
            held.drain().map(|(identity, _)| identity).collect()
        };
        for identity in identities {
            if let Err(error) = self.with(&identity, |_| Ok(())) {
                tracing::warn!(%identity, %error, "no certificate by the new authority");
            }
        }
    }

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

    /// The address of the authority elsewhere, where there is one, and why it
    /// does not give certificates.
    pub fn service(&self) -> Option<(&str, Vec<(Identity, String)>)> {
        match &self.source {
            Source::Authority(_) => None,
            Source::Service(remote) => Some((remote.client.address(), remote.failures())),
        }
    }

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

    fn check_interval(&self) -> Duration {
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

    /// Asks the authority elsewhere for all that is needed.
    async fn ask(&self, remote: &Remote) {
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
            remote.anchors.store(Arc::new(anchors));
        }
        if other_roots {
            for held in all.values_mut() {
                held.server = self.make_server(held.current.clone())?;
                held.clients.clear();
            }
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

    /// Waits for a certificate from elsewhere.
    async fn obtain(&self, identity: &Identity) -> Result<(), CertificateError> {
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

    /// How a server that is `identity` talks TLS: 1.3 only, HTTP/2 only, and
    /// every client proves an identity.
    ///
    /// # Errors
    /// Where no certificate can be had for the identity.
    pub async fn server_config(
        &self,
        identity: &Identity,
    ) -> Result<Arc<ServerConfig>, CertificateError> {
        self.obtain(identity).await?;
        self.with(identity, |held| Ok(held.server.clone()))
    }

    /// How a client that is `identity` talks TLS to a server that must be one
    /// of `expected` (nobody, if that is empty).
    ///
    /// # Errors
    /// Where no certificate can be had for the identity.
    pub async fn client_config(
        &self,
        identity: &Identity,
        expected: &[Identity],
    ) -> Result<Arc<ClientConfig>, CertificateError> {
        self.obtain(identity).await?;
        let mut expected = expected.to_vec();
        for index in 0..expected.len() {
            let others = self.aliases.iter().map(|alias| Identity {
                trust_domain: alias.clone(),
                ..expected[index].clone()
            });
            expected.extend(others.collect::<Vec<_>>());
        }
        expected.sort_unstable();
        expected.dedup();
        self.with(identity, |held| {
            if let Some(config) = held.clients.get(expected.as_slice()) {
                return Ok(config.clone());
            }
            let expected: Arc<[Identity]> = expected.into();
            let trust = self.source.trust();
            let config = tls::client(trust, held.current.clone(), expected.clone())?;
            if held.clients.len() >= MAX_CLIENT_CONFIGS {
                held.clients
                    .retain(|_, config| Arc::strong_count(config) > 1);
            }
            if held.clients.len() < MAX_CLIENT_CONFIGS {
                held.clients.insert(expected, config.clone());
            }
            Ok(config)
        })
    }

    /// When the certificate in force for `identity` ends, Unix seconds; `None`
    /// where none is held.
    pub fn not_after(&self, identity: &Identity) -> Option<u64> {
        let held = self.held.lock();
        Some(held.get(identity)?.current.leaf.load().not_after)
    }

    /// The certificates held, ordered by identity.
    pub fn certificates(&self) -> Vec<CertificateInfo> {
        let mut all: Vec<_> = self
            .held
            .lock()
            .values()
            .map(|held| {
                let leaf = held.current.leaf.load();
                CertificateInfo {
                    identity: leaf.identity.clone(),
                    serial: leaf.serial.clone(),
                    not_before: leaf.not_before,
                    not_after: leaf.not_after,
                    chain: leaf.above(),
                }
            })
            .collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    /// The roots that peers are verified against.
    pub fn roots(&self) -> Vec<CaInfo> {
        match &self.source {
            Source::Authority(authority) => authority.load().root_info().to_vec(),
            Source::Service(remote) => remote.anchors.load().roots.clone(),
        }
    }

    /// The certificates between leaves and roots, the issuing one first.
    pub fn intermediates(&self) -> Vec<CaInfo> {
        match &self.source {
            Source::Authority(authority) => authority.load().chain_info().to_vec(),
            Source::Service(remote) => remote.anchors.load().intermediates.clone(),
        }
    }

    fn with<T>(
        &self,
        identity: &Identity,
        action: impl FnOnce(&mut Held) -> Result<T, CertificateError>,
    ) -> Result<T, CertificateError> {
        let mut all = self.held.lock();
        if let Some(held) = all.get_mut(identity) {
            return action(held);
        }
        if all.len() >= MAX_IDENTITIES {
            all.retain(|_, held| held.in_use());
        }
        if all.len() >= MAX_IDENTITIES {
            return Err(CertificateError::TooMany(identity.clone()));
        }
        let Source::Authority(authority) = &self.source else {
            return Err(CertificateError::NotYet(identity.clone()));
        };
        let leaf = authority.load().issue(identity, self.lifetime)?;
        let renew_at = renewal_time(unix_time(), &leaf);
        let mut held = self.make_held(leaf, renew_at)?;
        let result = action(&mut held)?;
        all.insert(identity.clone(), held);
        Ok(result)
    }

    fn make_held(&self, leaf: Leaf, renew_at: f64) -> Result<Held, rustls::Error> {
        let current = Arc::new(Current {
            leaf: ArcSwap::from_pointee(leaf),
        });
        Ok(Held {
            server: self.make_server(current.clone())?,
            current,
            renew_at,
            clients: HashMap::new(),
        })
    }

    fn make_server(&self, current: Arc<Current>) -> Result<Arc<ServerConfig>, rustls::Error> {
        tls::server(&self.source.trust(), current, self.lifetime)
    }
}

fn unix_time() -> f64 {
    SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0.0, |since| since.as_secs_f64())
}

fn renewal_time(now: f64, leaf: &Leaf) -> f64 {
    let life = (leaf.not_after as f64 - now).max(0.0);
    let share = RENEW_AFTER - rand::rng().random_range(0.0..RENEW_JITTER);
    now + life * share
}

/// How long a certificate that ends at `not_after` (Unix seconds) is still valid.
pub fn remaining(not_after: u64) -> Duration {
    Duration::from_secs(not_after.saturating_sub(unix_seconds(SystemTime::now())))
}
