//! A workload's certificate with its key, and what people see of certificates.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::KeyPair;
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Identity;

/// A certificate of a CA, for people to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaInfo {
    /// Distinguished name.
    pub subject: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Begin of validity, Unix seconds.
    pub not_before: u64,
    /// End of validity, Unix seconds.
    pub not_after: u64,
}

/// A workload's certificate with its key, which exists in memory only.
#[derive(Debug)]
pub struct Leaf {
    /// Whom it names.
    pub identity: Identity,
    /// Chain (leaf first, root left out) and key, as rustls takes them.
    pub certified: Arc<CertifiedKey>,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Begin of validity, Unix seconds.
    pub not_before: u64,
    /// End of validity, Unix seconds.
    pub not_after: u64,
}

impl Leaf {
    /// Subjects of the certificates above it, the root last.
    pub fn above(&self) -> Vec<String> {
        let parsed = self.certified.cert.iter().filter_map(|certificate| {
            let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
            Some((parsed.subject().to_string(), parsed.issuer().to_string()))
        });
        let (mut above, issuers): (Vec<_>, Vec<_>) = parsed.unzip();
        above.extend(issuers.last().cloned());
        above.drain(1..).collect()
    }
}

/// A chain, leaf first, with the leaf's key, as rustls takes them.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
) -> Result<CertifiedKey, rustls::Error> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(CertifiedKey::new(chain, any_ecdsa_type(&key)?))
}

/// What people see of a certificate.
pub(super) fn info(certificate: &X509Certificate<'_>) -> CaInfo {
    CaInfo {
        subject: certificate.subject().to_string(),
        serial: hex(certificate.raw_serial()),
        not_before: unix(certificate.validity().not_before.timestamp()),
        not_after: unix(certificate.validity().not_after.timestamp()),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seconds since 1970, where a certificate has them.
pub(super) fn unix(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0)
}

/// Whole seconds since 1970.
pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
