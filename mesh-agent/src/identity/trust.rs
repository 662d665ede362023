//! What peers' certificates are verified against: roots, and lists of
//! certificates that are revoked.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::CertificateRevocationListDer;
use webpki::{CertRevocationList, OwnedCertRevocationList};

/// Roots and revocation lists.
#[derive(Debug)]
pub struct Trust {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) crls: Vec<CertificateRevocationListDer<'static>>,
    /// The same, parsed.
    pub(super) revoked: Vec<CertRevocationList<'static>>,
}

impl Trust {
    /// Trusts what leads to one of `roots`, unless one of `crls` revokes it.
    ///
    /// # Errors
    /// Where a list is none.
    pub(super) fn new(
        roots: RootCertStore,
        crls: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, webpki::Error> {
        let revoked = crls
            .iter()
            .map(|crl| Ok(OwnedCertRevocationList::from_der(crl)?.into()))
            .collect::<Result<_, webpki::Error>>()?;
        Ok(Self {
            roots: Arc::new(roots),
            crls,
            revoked,
        })
    }
}
