//! The certificate authority inside the agent.
//!
//! It lives in a directory with the file names of Istio's plug-in CA
//! (`root-cert.pem`, `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`): what an
//! operator puts there is used as it is, an empty directory gets a self-signed
//! root with an intermediate. `crl.pem` beside them revokes certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority_files::{self, CA_CERT, CA_KEY, CERT_CHAIN, CRL, Files, ROOT_CERT};
use super::leaf::{self, CaInfo, Leaf, hex, info, unix, unix_seconds};
use super::self_signed::{random_serial, self_signed};
use super::verify::{self, ClientVerifier};
use super::{Identity, Trust};

/// How far in the past validity begins, for peers whose clocks are behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// How often the files are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Why an authority cannot be used, or cannot issue.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was being done, as in "cannot read".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Some files of a CA are there, but not all that are needed.
    #[error(
        "{} holds a part of a CA, but no {missing}: add it, or remove the other CA files to have a new CA made",
        dir.display()
    )]
    Incomplete {
        /// The CA's directory.
        dir: PathBuf,
        /// The name of the file that is missing.
        missing: &'static str,
    },
    /// A file does not hold what its name says.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate in a file is expired, or not valid yet.
    #[error("{}: the certificate is valid from {not_before} to {not_after}, which is not now", path.display())]
    NotValidNow {
        /// The file.
        path: PathBuf,
        /// Begin of validity, as text.
        not_before: String,
        /// End of validity, as text.
        not_after: String,
    },
    /// The identity belongs to another trust domain than the authority.
    #[error("{identity} is not in this authority's trust domain {trust_domain}")]
    ForeignTrustDomain {
        /// The identity asked for.
        identity: Identity,
        /// The authority's own trust domain.
        trust_domain: Arc<str>,
    },
    /// What was sent is no request for a certificate.
    #[error("not a request for a certificate: {0}")]
    Request(#[source] rcgen::Error),
    /// Key or certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The key that was made cannot be used for TLS.
    #[error("cannot use the key that was made: {0}")]
    Key(#[from] rustls::Error),
}

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
        let files = authority_files::load_or_create(dir, || self_signed(&trust_domain))?;
        Self::from_files(dir, &files, trust_domain)
    }

    /// Loads the authority in `dir`.
    ///
    /// # Errors
    /// As [`load_or_create`](Self::load_or_create), also where there is none.
    pub fn load(dir: &Path, trust_domain: impl Into<Arc<str>>) -> Result<Self, AuthorityError> {
        let files = authority_files::load_existing(dir)?;
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

        let key = PrivateKeyDer::from_pem_slice(files.ca_key.as_bytes())
            .map_err(|error| invalid(CA_KEY, format!("no private key in PEM: {error}")))?;
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
        let trust = Trust::new(roots, crls)
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
        verify::chain(&self.trust, &leaf.certified.cert).map_err(|error| {
            format!("what this CA issues does not verify against {ROOT_CERT}: {error}")
        })
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

    /// Makes a key and a certificate for `identity`, valid for `lifetime` from
    /// now, yet no longer than the authority's own certificate.
    ///
    /// # Errors
    /// Where the identity is of another trust domain, or signing fails.
    pub fn issue(&self, identity: &Identity, lifetime: Duration) -> Result<Leaf, AuthorityError> {
        let draft = self.draft(identity, lifetime)?;
        let key = KeyPair::generate()?;
        let certificate = draft.params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            identity: identity.clone(),
            certified: Arc::new(self.certified(&certificate, &key)?),
            serial: hex(&draft.serial),
            not_before: draft.not_before,
            not_after: draft.not_after,
        })
    }

    /// Gives a certificate for `identity` to whoever made `request` (PKCS #10,
    /// in PEM) and holds its key; what the request says beside the key does not
    /// matter. The chain in PEM, the root last.
    ///
    /// # Errors
    /// As [`issue`](Self::issue), and where the request is none, or not signed
    /// by its own key.
    pub fn sign(
        &self,
        request: &str,
        identity: &Identity,
        lifetime: Duration,
    ) -> Result<Vec<String>, AuthorityError> {
        let mut request =
            CertificateSigningRequestParams::from_pem(request).map_err(AuthorityError::Request)?;
        request.params = self.draft(identity, lifetime)?.params;
        let certificate = request.signed_by(&self.issuer)?;
        let roots = self.root_certificates.iter();
        Ok(std::iter::once(certificate.der())
            .chain(&self.chain)
            .chain(roots)
            .map(|certificate| pem("CERTIFICATE", certificate))
            .collect())
    }

    /// How a server of these names, which is not a workload, talks TLS: clients
    /// need no certificate, but one that they show is verified.
    ///
    /// # Errors
    /// Where a name is none, or signing fails.
    pub fn service_config(
        &self,
        dns_names: &[String],
        lifetime: Duration,
    ) -> Result<ServerConfig, AuthorityError> {
        let identity = Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: "istio-system".into(),
            service_account: "istiod".into(),
        };
        let mut draft = self.draft(&identity, lifetime)?;
        for name in dns_names {
            let name = SanType::DnsName(name.as_str().try_into()?);
            draft.params.subject_alt_names.push(name);
        }
        let key = KeyPair::generate()?;
        let certificate = draft.params.signed_by(&key, &self.issuer)?;
        let resolver = SingleCertAndKey::from(self.certified(&certificate, &key)?);
        let mut config = ServerConfig::builder_with_provider(verify::provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(ClientVerifier::optional(&self.trust)?))
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![super::certificates::ALPN.to_vec()];
        Ok(config)
    }

    fn draft(&self, identity: &Identity, lifetime: Duration) -> Result<Draft, AuthorityError> {
        if identity.trust_domain != self.trust_domain {
            return Err(AuthorityError::ForeignTrustDomain {
                identity: identity.clone(),
                trust_domain: self.trust_domain.clone(),
            });
        }
        let now = SystemTime::now();
        let not_before = unix_seconds(now - CLOCK_SKEW);
        // Certificates count whole seconds: round up, or a short life loses much of itself.
        let not_after = (unix_seconds(now + lifetime) + 1).min(self.issuer_not_after);
        let serial = random_serial();

        let mut params = CertificateParams::default();
        // With no subject the alternative name is critical (RFC 5280, 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = (UNIX_EPOCH + Duration::from_secs(not_before)).into();
        params.not_after = (UNIX_EPOCH + Duration::from_secs(not_after)).into();
        Ok(Draft {
            params,
            serial,
            not_before,
            not_after,
        })
    }

    /// A certificate with its key and the way up.
    fn certified(
        &self,
        certificate: &Certificate,
        key: &KeyPair,
    ) -> Result<CertifiedKey, rustls::Error> {
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.chain.iter().cloned());
        leaf::certified(chain, key)
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
        match Authority::load(&dir, trust_domain.clone()) {
            Ok(authority) => {
                renewed(authority);
                tracing::info!(dir = %dir.display(), "certificate authority is renewed");
            }
            Err(error) => {
                tracing::error!(%error, "certificate authority not renewed, the old one stays");
            }
        }
    }
}

/// A leaf that is not signed yet.
struct Draft {
    params: CertificateParams,
    serial: [u8; 16],
    not_before: u64,
    not_after: u64,
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

fn pem(label: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der), config)
}
