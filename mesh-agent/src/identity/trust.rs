//! What peers' certificates are verified against: roots, and lists of
//! certificates that are revoked.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::CertificateRevocationListDer;
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::leaf::CaInfo;

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

/// Roots that are trusted, with what people see of them and of the
/// certificates between them and leaves.
#[derive(Clone, Debug)]
pub(super) struct Anchors {
    pub(super) trust: Arc<Trust>,
    pub(super) roots: Vec<CaInfo>,
    /// The issuing one first.
    pub(super) intermediates: Vec<CaInfo>,
}

impl Default for Anchors {
    /// Nobody is trusted.
    fn default() -> Self {
        Self {
            trust: Arc::new(Trust {
                roots: Arc::new(RootCertStore::empty()),
                crls: Vec::new(),
                revoked: Vec::new(),
            }),
            roots: Vec::new(),
            intermediates: Vec::new(),
        }
    }
}
