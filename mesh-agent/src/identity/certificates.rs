//! The certificates that the agent holds, one per identity, always fresh, and
//! the TLS configurations that use them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rand::Rng;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use tokio_util::sync::CancellationToken;

use super::Identity;
use super::authority::{Authority, AuthorityError, CaInfo, Leaf, unix_seconds};
use super::authority_files;
use super::sessions::Sessions;
use super::verify::{ClientVerifier, ServerVerifier, provider};

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
/// A session may be resumed for this part of a certificate's life.
const RESUMPTIONS_PER_LIFE: u32 = 4;
/// Tickets that a server gives with each handshake; one serves once.
const TICKETS: usize = 2;
/// Servers whose sessions a client of one configuration keeps.
const MAX_CLIENT_SESSIONS: usize = 256;
/// How often the authority's files are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
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
    /// Certificates that are sent: the leaf and those above it, without the root.
    pub chain_length: usize,
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

/// The agent's certificates. A certificate is kept as long as a configuration
/// of its identity is; after that it is forgotten within a minute.
pub struct Certificates {
    authority: ArcSwap<Authority>,
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
        Self {
            authority: ArcSwap::new(authority),
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
        let mut seen = authority_files::fingerprint(&dir);
        while stop
            .run_until_cancelled(tokio::time::sleep(WATCH_INTERVAL))
            .await
            .is_some()
        {
            let now = authority_files::fingerprint(&dir);
            if now == seen {
                continue;
            }
            seen = now;
            let trust_domain = self.authority.load().trust_domain().clone();
            match Authority::load(&dir, trust_domain) {
                Ok(authority) => {
                    self.replace(Arc::new(authority));
                    tracing::info!(dir = %dir.display(), "certificate authority is renewed");
                }
                Err(error) => {
                    tracing::error!(%error, "certificate authority not renewed, the old one stays");
                }
            }
        }
    }

    /// Issues by another authority and verifies against its roots from now on.
    /// Sessions of before are not resumed.
    pub fn replace(&self, authority: Arc<Authority>) {
        self.authority.store(authority);
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

    /// Renews certificates at half of their life until `stop`. When a renewal
    /// fails, the old certificate stays and the next check tries again.
    pub async fn renew(&self, stop: CancellationToken) {
        let interval =
            (self.lifetime / CHECKS_PER_LIFE).clamp(MIN_CHECK_INTERVAL, MAX_CHECK_INTERVAL);
        while stop
            .run_until_cancelled(tokio::time::sleep(interval))
            .await
            .is_some()
        {
            self.forget_unused();
            self.renew_due();
        }
    }

    fn forget_unused(&self) {
        self.held.lock().retain(|_, held| held.in_use());
    }

    fn renew_due(&self) {
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
            match self.authority.load().issue(&identity, self.lifetime) {
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

    /// How a server that is `identity` talks TLS: 1.3 only, HTTP/2 only, and
    /// every client proves an identity.
    ///
    /// # Errors
    /// Where no certificate can be had for the identity.
    pub fn server_config(
        &self,
        identity: &Identity,
    ) -> Result<Arc<ServerConfig>, CertificateError> {
        self.with(identity, |held| Ok(held.server.clone()))
    }

    /// How a client that is `identity` talks TLS to a server that must be one
    /// of `expected` (nobody, if that is empty).
    ///
    /// # Errors
    /// Where no certificate can be had for the identity.
    pub fn client_config(
        &self,
        identity: &Identity,
        expected: &[Identity],
    ) -> Result<Arc<ClientConfig>, CertificateError> {
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
            let config = self.make_client(held.current.clone(), expected.clone())?;
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
                    chain_length: leaf.certified.cert.len(),
                }
            })
            .collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    /// The authority in use.
    pub fn authority(&self) -> Arc<Authority> {
        self.authority.load_full()
    }

    /// The roots that peers are verified against.
    pub fn roots(&self) -> Vec<CaInfo> {
        self.authority.load().root_info().to_vec()
    }

    /// The certificates between leaves and roots, the issuing one first.
    pub fn intermediates(&self) -> Vec<CaInfo> {
        self.authority.load().chain_info().to_vec()
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
        let leaf = self.authority.load().issue(identity, self.lifetime)?;
        let renew_at = renewal_time(unix_time(), &leaf);
        let current = Arc::new(Current {
            leaf: ArcSwap::from_pointee(leaf),
        });
        let mut held = Held {
            server: self.make_server(current.clone())?,
            current,
            renew_at,
            clients: HashMap::new(),
        };
        let result = action(&mut held)?;
        all.insert(identity.clone(), held);
        Ok(result)
    }

    // A resumed session carries the proof of an earlier handshake. It is short: each side's
    // certificate had half of its life before it then, and a new authority or revocation list
    // makes new configurations, without sessions.

    fn make_server(&self, current: Arc<Current>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let verifier = ClientVerifier::new(self.authority.load().trust())?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(current);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(Sessions::new(self.lifetime / RESUMPTIONS_PER_LIFE));
        config.send_tls13_tickets = TICKETS;
        Ok(Arc::new(config))
    }

    fn make_client(
        &self,
        current: Arc<Current>,
        expected: Arc<[Identity]>,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let verifier = ServerVerifier::new(self.authority.load().trust().clone(), expected);
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            // "Dangerous" to rustls because it is not the web's check of a DNS name.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(current);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::in_memory_sessions(MAX_CLIENT_SESSIONS);
        config.enable_sni = false;
        Ok(Arc::new(config))
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
