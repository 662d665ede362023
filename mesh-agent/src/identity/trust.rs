//! What peers' certificates are verified against: roots, and lists of
//! certificates that are revoked.

use std::sync::Arc;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, OtherError, RootCertStore};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio::sync::watch;
use webpki::{
    CertRevocationList, OwnedCertRevocationList, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use x509_parser::prelude::{FromDer, X509Certificate};

use super::leaf::CaInfo;
use super::verify::{self, Side};

/// Roots and revocation lists.
#[derive(Debug)]
pub struct Trust {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) crls: Vec<CertificateRevocationListDer<'static>>,
    /// The same, parsed.
    pub(super) revoked: Vec<CertRevocationList<'static>>,
}

impl Trust {
    /// Trusts what leads to one of `roots`.
    pub(crate) fn of(roots: RootCertStore) -> Self {
        Self {
            roots: Arc::new(roots),
            crls: Vec::new(),
            revoked: Vec::new(),
        }
    }

    /// Trusts the same, unless one of `crls` revokes it.
    ///
    /// # Errors
    /// Where a list is none.
    pub(crate) fn with_revoked(
        &self,
        crls: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, webpki::Error> {
        let revoked = crls
            .iter()
            .map(|crl| Ok(OwnedCertRevocationList::from_der(crl)?.into()))
            .collect::<Result<_, webpki::Error>>()?;
        Ok(Self {
            roots: self.roots.clone(),
            crls,
            revoked,
        })
    }

    /// Whether a server's chain leads to one of the roots, and nothing of it is revoked.
    pub(crate) fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), Error> {
        let signed = verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &self.roots,
            intermediates,
            now,
            algorithms.all,
        );
        match signed {
            Err(_) if self.has_root(leaf) => is_in_time(leaf, now),
            Err(error) => Err(error),
            Ok(()) => self.not_revoked(leaf, intermediates, now, algorithms),
        }
    }

    /// Whether a certificate is itself one of the roots. webpki takes no authority for a server, but
    /// `openssl req -x509` makes servers that are their own, and whoever trusts one names it.
    fn has_root(&self, leaf: &CertificateDer<'_>) -> bool {
        webpki::anchor_from_trusted_cert(leaf).is_ok_and(|own| self.roots.roots.contains(&own))
    }

    /// Once more with the revocation lists, which rustls's own check does not take.
    fn not_revoked(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), Error> {
        let lists: Vec<_> = self.revoked.iter().collect();
        let Ok(options) = RevocationOptionsBuilder::new(&lists) else {
            // There are none.
            return Ok(());
        };
        let options = options
            .with_status_policy(UnknownStatusPolicy::Allow)
            .build();
        webpki::EndEntityCert::try_from(leaf)
            .map_err(|_| Error::from(CertificateError::BadEncoding))?
            .verify_for_usage(
                algorithms.all,
                &self.roots.roots,
                intermediates,
                now,
                webpki::KeyUsage::server_auth(),
                Some(options),
                None,
            )
            .map(drop)
            .map_err(|error| match error {
                webpki::Error::CertRevoked => CertificateError::Revoked.into(),
                error => CertificateError::Other(OtherError(Arc::new(error))).into(),
            })
    }
}

fn is_in_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| Error::from(CertificateError::BadEncoding))?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    if now < validity.not_before.timestamp() {
        Err(CertificateError::NotValidYet.into())
    } else if now > validity.not_after.timestamp() {
        Err(CertificateError::Expired.into())
    } else {
        Ok(())
    }
}

/// Hears of changes of what is trusted.
#[derive(Clone, Debug)]
pub struct TrustWatch(pub(super) watch::Receiver<Arc<Trust>>);

impl TrustWatch {
    /// Returns when the certificates of a peer, leaf first, are trusted no more,
    /// and why. Changes count since `self` was made.
    pub async fn distrusts(mut self, chain: Vec<CertificateDer<'static>>, peer: Side) -> Error {
        while self.0.changed().await.is_ok() {
            let trust = self.0.borrow_and_update().clone();
            if let Err(error) = verify::chain(&trust, &chain, peer) {
                return error;
            }
        }
        // There are no certificates any more: the agent stops.
        std::future::pending().await
    }
}

/// Whether somebody has taken a certificate back.
pub fn is_revoked(error: &Error) -> bool {
    *error == Error::InvalidCertificate(CertificateError::Revoked)
}

/// Roots that are trusted, with what people see of them and of the
/// certificates between them and leaves.
#[derive(Clone, Debug)]
pub(super) struct Anchors {
    pub(super) trust: Arc<Trust>,
    pub(super) roots: Vec<CaInfo>,
    /// The issuing one first.
    pub(super) intermediates: Vec<CaInfo>,
}

impl Anchors {
    /// The same, where `crls` revoke what they do.
    ///
    /// # Errors
    /// Where a list is none.
    pub(super) fn with_revoked(
        &self,
        crls: &[CertificateRevocationListDer<'static>],
    ) -> Result<Self, Error> {
        let trust = self.trust.with_revoked(crls.to_vec());
        let trust = trust.map_err(|error| Error::General(error.to_string()))?;
        Ok(Self {
            trust: Arc::new(trust),
            ..self.clone()
        })
    }
}

impl Default for Anchors {
    /// Nobody is trusted.
    fn default() -> Self {
        Self {
            trust: Arc::new(Trust::of(RootCertStore::empty())),
            roots: Vec::new(),
            intermediates: Vec::new(),
        }
    }
}
