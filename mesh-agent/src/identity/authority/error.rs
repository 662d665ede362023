//! What can be wrong with an authority, and with what is asked of it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::identity::Identity;

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
    Request(String),
    /// Key or certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The key that was made cannot be used for TLS.
    #[error("cannot use the key that was made: {0}")]
    Key(#[from] rustls::Error),
}
