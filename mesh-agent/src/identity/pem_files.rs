//! Files by which we are clients of servers that are not of the mesh: roots,
//! certificates, revocation lists, tokens. Others renew them.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::HeaderValue;
use rustls::client::danger::ServerCertVerifier;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::Trust;
use super::verify::{self, Names, ServerVerifier};
use crate::file;

/// More than the largest revocation lists that are in use.
const MAX_FILE_BYTES: usize = 64 << 20;
/// What keys have that are encrypted (RFC 7468, section 11; RFC 1421, section 4.6.1.1).
const ENCRYPTED: [&str; 2] = ["-----BEGIN ENCRYPTED PRIVATE KEY-----", "4,ENCRYPTED"];

/// A file that is not there, or not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl From<FileError> for std::io::Error {
    fn from(error: FileError) -> Self {
        Self::other(error)
    }
}

/// PEM, and where it stands.
#[derive(Clone, Copy, Debug)]
pub enum Pem<'a> {
    /// In a file.
    File(&'a Path),
    /// In memory, under a name that errors say.
    Given(&'a Path, &'a [u8]),
}

impl<'a> Pem<'a> {
    fn name(self) -> &'a Path {
        match self {
            Self::File(path) | Self::Given(path, _) => path,
        }
    }

    fn read(self) -> Result<Cow<'a, [u8]>, FileError> {
        match self {
            Self::File(path) => match file::read(path, MAX_FILE_BYTES) {
                Ok(bytes) => Ok(bytes.into()),
                Err(error) => Err(unusable(path, error.to_string())),
            },
            Self::Given(_, bytes) => Ok(bytes.into()),
        }
    }
}

/// Verifies servers against the roots in a file and the name that is dialled, and shows them
/// a certificate (files of the chain and of its key) where there is one.
///
/// # Errors
/// Where a file cannot be used.
pub fn client_tls(
    roots: &Path,
    own: Option<(&Path, &Path)>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, FileError> {
    let trust = trust(Some(Pem::File(roots)), None)?;
    let own = own.map(|(chain, key)| (Pem::File(chain), Pem::File(key)));
    let verifier = ServerVerifier::new(Arc::new(trust), Names(Vec::new()));
    client_config(Arc::new(verifier), own, alpn)
}

/// The same with any verifier.
///
/// # Errors
/// As above.
pub fn client_config(
    verifier: Arc<dyn ServerCertVerifier>,
    own: Option<(Pem<'_>, Pem<'_>)>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, FileError> {
    // rustls refuses versions only where the provider has none of their ciphers.
    let impossible = |error: rustls::Error| unusable(Path::new("TLS"), error.to_string());
    let builder = ClientConfig::builder_with_provider(verify::provider())
        .with_safe_default_protocol_versions()
        .map_err(impossible)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let secret =
                private_key(&key.read()?).map_err(|reason| unusable(key.name(), reason))?;
            builder
                .with_client_auth_cert(certificates(chain)?, secret)
                .map_err(|error| unusable(key.name(), error.to_string()))?
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// Roots and revocation lists from files.
///
/// # Errors
/// Where a file cannot be used.
pub fn trust(roots: Option<Pem<'_>>, revoked: Option<Pem<'_>>) -> Result<Trust, FileError> {
    let mut store = RootCertStore::empty();
    if let Some(roots) = roots {
        // One that cannot be used does not spoil the others.
        let (added, _) = store.add_parsable_certificates(certificates(roots)?);
        if added == 0 {
            return Err(unusable(
                roots.name(),
                "no root that can be used".to_owned(),
            ));
        }
    }
    let trust = Trust::of(store);
    let Some(revoked) = revoked else {
        return Ok(trust);
    };
    let trust = trust.with_revoked(lists(revoked)?);
    trust.map_err(|error| unusable(revoked.name(), error.to_string()))
}

/// The header `authorization` with the token in a file.
///
/// # Errors
/// Where the file cannot be used.
pub fn bearer(path: &Path) -> Result<HeaderValue, FileError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", read(path)?.trim()))
        .map_err(|_| unusable(path, "not a token".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The private key in this PEM, or the reason why there is none.
pub(super) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
        let text = String::from_utf8_lossy(pem);
        if ENCRYPTED.iter().any(|mark| text.contains(mark)) {
            "the private key is encrypted, and must not be: there is nobody to ask for its passphrase"
                .to_owned()
        } else {
            format!("no private key in PEM: {error}")
        }
    })
}

fn certificates(pem: Pem<'_>) -> Result<Vec<CertificateDer<'static>>, FileError> {
    all(pem, "certificate")
}

/// The lists of revoked certificates in a file; at least one.
///
/// # Errors
/// Where the file cannot be used.
pub(super) fn revocation_lists(
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, FileError> {
    lists(Pem::File(path))
}

fn lists(pem: Pem<'_>) -> Result<Vec<CertificateRevocationListDer<'static>>, FileError> {
    let lists = all(pem, "list of revoked certificates")?;
    let nobody = Trust::of(RootCertStore::empty());
    match nobody.with_revoked(lists.clone()) {
        Ok(_) => Ok(lists),
        Err(error) => Err(unusable(
            pem.name(),
            format!("not a revocation list: {error}"),
        )),
    }
}

fn all<T: PemObject>(pem: Pem<'_>, what: &str) -> Result<Vec<T>, FileError> {
    let found = T::pem_slice_iter(&pem.read()?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(pem.name(), format!("not PEM: {error}")))?;
    if found.is_empty() {
        return Err(unusable(pem.name(), format!("no {what} in PEM")));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String, FileError> {
    file::read_text(path, MAX_FILE_BYTES).map_err(|error| unusable(path, error.to_string()))
}

fn unusable(path: &Path, reason: String) -> FileError {
    FileError {
        path: path.to_owned(),
        reason,
    }
}
