//! Files by which we are clients of servers that are not of the mesh: roots,
//! certificates, tokens. They are read anew for each use, because others renew them.

use std::path::{Path, PathBuf};

use http::HeaderValue;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::verify;

/// A file that is not there, or not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Verifies servers against the roots in a file, and shows them a certificate
/// (files of the chain and of its key) where there is one.
///
/// # Errors
/// Where a file cannot be used.
pub fn client_tls(
    roots: &Path,
    own: Option<&(PathBuf, PathBuf)>,
    alpn: &[u8],
) -> Result<ClientConfig, FileError> {
    let mut store = RootCertStore::empty();
    for root in certificates(roots)? {
        store
            .add(root)
            .map_err(|error| unusable(roots, error.to_string()))?;
    }
    let builder = ClientConfig::builder_with_provider(verify::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(roots, error.to_string()))?
        .with_root_certificates(store);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let text = read(key)?;
            let secret = PrivateKeyDer::from_pem_slice(text.as_bytes())
                .map_err(|error| unusable(key, format!("no private key in PEM: {error}")))?;
            builder
                .with_client_auth_cert(certificates(chain)?, secret)
                .map_err(|error| unusable(key, error.to_string()))?
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
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

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found = CertificateDer::pem_slice_iter(read(path)?.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(path, format!("not PEM: {error}")))?;
    if found.is_empty() {
        return Err(unusable(path, "no certificate in PEM".to_owned()));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(|error| unusable(path, error.to_string()))
}

fn unusable(path: &Path, reason: String) -> FileError {
    FileError {
        path: path.to_owned(),
        reason,
    }
}
