//! The certificate authority inside the agent.
//!
//! It lives in a directory with the file names of Istio's plug-in CA
//! (`root-cert.pem`, `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`): what an
//! operator puts there is used as it is, an empty directory gets a self-signed
//! root with an intermediate. `crl.pem` beside them revokes certificates.

mod error;
mod files;
mod issue;
mod request;
mod self_signed;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::leaf::{CaInfo, info, unix, unix_seconds};
use super::pem_files::private_key;
use super::verify::{self, Side};
use super::{Identity, Trust};
use crate::file;
pub use error::AuthorityError;
pub use files::AUTHORITY_FILES;
use files::{CA_CERT, CA_KEY, CERT_CHAIN, CRL, Files, ROOT_CERT};
pub use issue::CLOCK_SKEW;
use self_signed::self_signed;

/// Issues certificates for the identities of one trust domain.
pub struct Authority {
    trust_domain: Arc<str>,
    issuer: Issuer<'static, KeyPair>,
    /// End of the issuing certificate's validity; no leaf outlives it.
    issuer_not_after: u64,
    /// From the issuing certificate upwards; empty where that is a root itself.
    chain: Vec<CertificateDer<'static>>,
    trust: Arc<Trust>,
    root_info: Vec<CaInfo>,
    root_certificates: Vec<CertificateDer<'static>>,
    /// Of `chain`.
    chain_info: Vec<CaInfo>,
}

impl Authority {
    /// Loads the authority in `dir`, or makes a self-signed one where the
    /// directory holds none. Agents that start at once on one directory agree
    /// on one authority.
    ///
    /// # Errors
    /// Where a file is missing, unreadable, expired or does not fit the others;
    /// the error names the file.
    pub fn load_or_create(
        dir: &Path,
        trust_domain: impl Into<Arc<str>>,
    ) -> Result<Self, AuthorityError> {
        let trust_domain = trust_domain.into();
        let files = files::load_or_create(dir, || self_signed(&trust_domain))?;
        Self::from_files(dir, &files, trust_domain)
    }

    /// Loads the authority in `dir`.
    ///
    /// # Errors
    /// As [`load_or_create`](Self::load_or_create), also where there is none.
    pub fn load(dir: &Path, trust_domain: impl Into<Arc<str>>) -> Result<Self, AuthorityError> {
        let files = files::load_existing(dir)?;
        Self::from_files(dir, &files, trust_domain.into())
    }

    fn from_files(
        dir: &Path,
        files: &Files,
        trust_domain: Arc<str>,
    ) -> Result<Self, AuthorityError> {
        let invalid = |name: &str, reason: String| AuthorityError::Invalid {
            path: dir.join(name),
            reason,
        };

        let key = private_key(files.ca_key.as_bytes()).map_err(|reason| invalid(CA_KEY, reason))?;
        let key = KeyPair::try_from(&key)
            .map_err(|error| invalid(CA_KEY, format!("not a usable private key: {error}")))?;

        let ca = certificates(dir, CA_CERT, &files.ca_cert)?.swap_remove(0);
        let parsed = parse(dir, CA_CERT, &ca)?;
        check_validity(dir, CA_CERT, &parsed)?;
        if !parsed.is_ca() {
            return Err(invalid(
                CA_CERT,
                "the certificate is not that of a CA".into(),
            ));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(invalid(CA_KEY, format!("the key is not that of {CA_CERT}")));
        }
        let issuer_not_after = unix(parsed.validity().not_after.timestamp());
        let issuer = Issuer::from_ca_cert_der(&ca, key)
            .map_err(|error| invalid(CA_CERT, error.to_string()))?;

        let root_certificates = certificates(dir, ROOT_CERT, &files.root_cert)?;
        let mut roots = RootCertStore::empty();
        let mut root_info = Vec::new();
        for root in &root_certificates {
            let parsed = parse(dir, ROOT_CERT, root)?;
            check_validity(dir, ROOT_CERT, &parsed)?;
            roots
                .add(root.clone())
                .map_err(|error| invalid(ROOT_CERT, error.to_string()))?;
            root_info.push(info(&parsed));
        }
        let crls = match &files.crl {
            Some(text) => CertificateRevocationListDer::pem_slice_iter(text.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| invalid(CRL, format!("not PEM: {error}")))?,
            None => Vec::new(),
        };
        if files.crl.is_some() && crls.is_empty() {
            // Else who writes DER, or the wrong file, believes that something is revoked.
            return Err(invalid(
                CRL,
                "no list of revoked certificates in PEM".into(),
            ));
        }
        let trust = Trust::of(roots)
            .with_revoked(crls)
            .map_err(|error| invalid(CRL, format!("not a revocation list: {error}")))?;

        // Peers hold the roots: what is sent is the way up to them.
        let mut chain = vec![ca.clone()];
        if let Some(text) = &files.cert_chain {
            for certificate in certificates(dir, CERT_CHAIN, text)? {
                if certificate != ca {
                    check_validity(dir, CERT_CHAIN, &parse(dir, CERT_CHAIN, &certificate)?)?;
                    chain.push(certificate);
                }
            }
        }
        chain.retain(|certificate| !root_certificates.contains(certificate));
        let chain_info = chain
            .iter()
            .map(|certificate| Ok(info(&parse(dir, CERT_CHAIN, certificate)?)))
            .collect::<Result<_, AuthorityError>>()?;

        let authority = Self {
            trust_domain,
            issuer,
            issuer_not_after,
            chain,
            trust: Arc::new(trust),
            root_info,
            root_certificates,
            chain_info,
        };
        authority
            .prove()
            .map_err(|reason| invalid(CA_CERT, reason))?;
        Ok(authority)
    }

    /// Issues a certificate and verifies it as a peer would, so that a CA that
    /// does not lead to its root is found now, not at the first connection.
    fn prove(&self) -> Result<(), String> {
        let identity = Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: "self-test".into(),
            service_account: "self-test".into(),
        };
        let leaf = self
            .issue(&identity, Duration::from_secs(3600))
            .map_err(|error| error.to_string())?;
        for side in [Side::Server, Side::Client] {
            verify::chain(&self.trust, &leaf.certified.cert, side).map_err(|error| {
                format!("what this CA issues does not verify against {ROOT_CERT}: {error}")
            })?;
        }
        Ok(())
    }

    /// Who proves an identity by this chain, leaf first, at this moment.
    ///
    /// # Errors
    /// Where the chain does not lead to a root, has ended or is revoked, or names no identity.
    pub fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, rustls::Error> {
        verify::chain(&self.trust, chain, Side::Client)?;
        Ok(verify::peer(Some(chain))?.identity)
    }

    /// The trust domain whose identities this authority vouches for.
    pub fn trust_domain(&self) -> &Arc<str> {
        &self.trust_domain
    }

    /// What peers' certificates are verified against.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// The roots, for people to look at.
    pub fn root_info(&self) -> &[CaInfo] {
        &self.root_info
    }

    /// The certificates between leaves and roots, the issuing one first.
    pub fn chain_info(&self) -> &[CaInfo] {
        &self.chain_info
    }
}

/// Loads the authority in `dir` again whenever its files change, until `stop`.
/// What cannot be used is told.
pub async fn watch(
    dir: PathBuf,
    trust_domain: Arc<str>,
    renewed: impl Fn(Authority),
    stop: CancellationToken,
) {
    let look = || files::fingerprint(&dir);
    let changed = || match Authority::load(&dir, trust_domain.clone()) {
        Ok(authority) => {
            renewed(authority);
            tracing::info!(dir = %dir.display(), "certificate authority is renewed");
        }
        Err(error) => {
            tracing::error!(%error, "certificate authority not renewed, the old one stays");
        }
    };
    file::watch(look(), look, changed, stop).await;
}

/// All certificates of a PEM file; at least one.
fn certificates(
    dir: &Path,
    name: &str,
    text: &str,
) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let invalid = |reason: String| AuthorityError::Invalid {
        path: dir.join(name),
        reason,
    };
    let found = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| invalid(format!("not PEM: {error}")))?;
    if found.is_empty() {
        return Err(invalid("no certificate in PEM".into()));
    }
    Ok(found)
}

fn parse<'a>(
    dir: &Path,
    name: &str,
    der: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, AuthorityError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(AuthorityError::Invalid {
            path: dir.join(name),
            reason: format!("not a certificate: {error}"),
        }),
    }
}

fn check_validity(
    dir: &Path,
    name: &str,
    certificate: &X509Certificate<'_>,
) -> Result<(), AuthorityError> {
    let validity = certificate.validity();
    let now = unix_seconds(SystemTime::now());
    let (from, to) = (
        unix(validity.not_before.timestamp()),
        unix(validity.not_after.timestamp()),
    );
    if (from..=to).contains(&now) {
        return Ok(());
    }
    Err(AuthorityError::NotValidNow {
        path: dir.join(name),
        not_before: validity.not_before.to_string(),
        not_after: validity.not_after.to_string(),
    })
}
