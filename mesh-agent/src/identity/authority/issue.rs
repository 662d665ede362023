//! Certificates that the authority signs.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    Certificate, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::self_signed::random_serial;
use super::{Authority, AuthorityError, request};
use crate::identity::Identity;
use crate::identity::certificates::ALPN;
use crate::identity::leaf::{self, Leaf, hex, unix_seconds};
use crate::identity::verify::{self, ClientVerifier};

/// How far in the past validity begins, for peers whose clocks are behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// A leaf that is not signed yet.
struct Draft {
    params: CertificateParams,
    serial: [u8; 16],
    not_before: u64,
    not_after: u64,
}

impl Authority {
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
        let key = request::key_of(request)?;
        let draft = self.draft(identity, lifetime)?;
        let certificate = draft.params.signed_by(&key, &self.issuer)?;
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
        config.alpn_protocols = vec![ALPN.to_vec()];
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

fn pem(label: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der), config)
}
