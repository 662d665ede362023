//! The certificates that the agent holds, one per identity, always fresh, and
//! the TLS configurations that use them.

mod held;
mod remote;
mod renewal;
mod service;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::authority::{self, Authority, AuthorityError};
use super::certificate_service::{ClientError, ServiceClient};
use super::leaf::unix_seconds;
use super::pem_files::FileError;
use super::trust::Trust;
use super::{CaInfo, Identity, Leaf, TrustWatch, tls};
use held::{Current, Held, renewal_time, unix_time};
use remote::Remote;

/// The protocol inside TLS: HTTP/2, as HBONE demands.
pub const ALPN: &[u8] = b"h2";
/// How many identities one agent may hold; above it new ones are refused.
pub const MAX_IDENTITIES: usize = 4096;
/// How many client configurations are kept per identity; further ones are made
/// for each connection.
pub const MAX_CLIENT_CONFIGS: usize = 1024;

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

/// Where certificates come from.
enum Source {
    /// An authority in this process.
    Authority(ArcSwap<Authority>),
    /// One elsewhere.
    Service(Box<Remote>),
}

/// The agent's certificates. A certificate is kept as long as a configuration
/// of its identity is; after that it is forgotten within a minute.
pub struct Certificates {
    source: Source,
    /// What peers are verified against.
    trust: watch::Sender<Arc<Trust>>,
    lifetime: Duration,
    /// Further names of the trust domain that peers may bear.
    aliases: Vec<Arc<str>>,
    held: Mutex<HashMap<Identity, Held>>,
}

impl Certificates {
    /// Certificates of `authority`, each valid for `lifetime`. Have [`renew`]
    /// run beside it.
    ///
    /// [`renew`]: Self::renew
    pub fn new(authority: Arc<Authority>, lifetime: Duration) -> Self {
        let trust = authority.trust().clone();
        Self::of(Source::Authority(ArcSwap::new(authority)), trust, lifetime)
    }

    /// Certificates of the authority that `client` asks, each valid for
    /// `lifetime`. There are none unless [`renew`] runs beside it.
    ///
    /// # Errors
    /// Where the client's file of revoked certificates cannot be used.
    ///
    /// [`renew`]: Self::renew
    pub fn from_service(client: ServiceClient, lifetime: Duration) -> Result<Self, FileError> {
        let remote = Remote::new(client)?;
        let trust = remote.anchors.load().trust.clone();
        Ok(Self::of(Source::Service(Box::new(remote)), trust, lifetime))
    }

    fn of(source: Source, trust: Arc<Trust>, lifetime: Duration) -> Self {
        Self {
            source,
            trust: watch::Sender::new(trust),
            lifetime,
            aliases: Vec::new(),
            held: Mutex::default(),
        }
    }

    /// The same, where the trust domain has further names: a server that is expected may bear
    /// any of them, and so may a client.
    #[must_use]
    pub fn with_aliases(mut self, aliases: &[String]) -> Self {
        self.aliases = aliases.iter().map(|alias| alias.as_str().into()).collect();
        self
    }

    /// Uses the authority in `dir` again whenever its files change, until
    /// `stop`: a new intermediate, another root, a revocation list. Of an
    /// authority elsewhere that is the revocation list alone. What cannot
    /// be used is told, and the one before stays. Open connections go on.
    pub async fn watch(&self, dir: PathBuf, stop: CancellationToken) {
        match &self.source {
            Source::Authority(current) => {
                let trust_domain = current.load().trust_domain().clone();
                let renewed = |authority| self.replace(Arc::new(authority));
                authority::watch(dir, trust_domain, renewed, stop).await;
            }
            Source::Service(remote) => self.watch_revoked(remote, stop).await,
        }
    }

    /// Issues by another authority and verifies against its roots from now on.
    /// Sessions of before are not resumed.
    pub fn replace(&self, authority: Arc<Authority>) {
        if let Source::Authority(current) = &self.source {
            self.trust.send_replace(authority.trust().clone());
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

    /// The address of the authority elsewhere, where there is one, and why it
    /// does not give certificates.
    pub fn service(&self) -> Option<(&str, Vec<(Identity, String)>)> {
        match &self.source {
            Source::Authority(_) => None,
            Source::Service(remote) => Some((remote.client.address(), remote.failures())),
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

    /// The same for sidecars of Istio, which come to the application's own port.
    ///
    /// # Errors
    /// Where no certificate can be had for the identity.
    pub async fn server_config_to_sidecars(
        &self,
        identity: &Identity,
    ) -> Result<Arc<ServerConfig>, CertificateError> {
        let config = self.server_config(identity).await?;
        Ok(tls::to_sidecars(&config))
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
            let trust = self.trust.borrow().clone();
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

    /// The same to a server that has a sidecar of Istio; `inside` are the protocols that the
    /// application may speak (RFC 7301).
    ///
    /// # Errors
    /// Where no certificate can be had for the identity.
    pub async fn client_config_to_sidecar(
        &self,
        identity: &Identity,
        expected: &Identity,
        inside: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, CertificateError> {
        let expected = std::slice::from_ref(expected);
        let config = self.client_config(identity, expected).await?;
        Ok(tls::from_sidecar(&config, inside))
    }

    /// Hears of changes of what is trusted from now on. For a connection it is to be
    /// made before the connection's configuration.
    pub fn watch_trust(&self) -> TrustWatch {
        TrustWatch(self.trust.subscribe())
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
        let own = current.leaf.load().identity.trust_domain.clone();
        let aliases = self.aliases.iter().cloned();
        let domains = std::iter::once(own).chain(aliases).collect();
        tls::server(&self.trust.borrow(), domains, current, self.lifetime)
    }
}

/// How long a certificate that ends at `not_after` (Unix seconds) is still valid.
pub fn remaining(not_after: u64) -> Duration {
    Duration::from_secs(not_after.saturating_sub(unix_seconds(SystemTime::now())))
}
