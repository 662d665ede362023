//! The authority's files: read, or written once for all agents of a directory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::AuthorityError;
use crate::file::{self, Stamp, stamp};

/// Trust anchors.
pub const ROOT_CERT: &str = "root-cert.pem";
/// The issuing certificate.
pub const CA_CERT: &str = "ca-cert.pem";
/// The issuing key.
pub const CA_KEY: &str = "ca-key.pem";
/// From the issuing certificate up to the root; may be left out where the
/// former was signed by the latter.
pub const CERT_CHAIN: &str = "cert-chain.pem";
/// Lists of revoked certificates; may be left out.
pub const CRL: &str = "crl.pem";
/// Key of a root that was made here, for a later intermediate; not read by the agent.
const ROOT_KEY: &str = "root-key.pem";

/// All files of an authority.
pub const AUTHORITY_FILES: [&str; 6] = [ROOT_CERT, CA_CERT, CA_KEY, CERT_CHAIN, CRL, ROOT_KEY];

/// Far above any real CA's files, so that a wrong path does not fill the memory.
const MAX_FILE_BYTES: usize = 1 << 20;
const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o700;

/// The texts of the files.
pub struct Files {
    pub root_cert: String,
    pub ca_cert: String,
    pub ca_key: String,
    pub cert_chain: Option<String>,
    pub crl: Option<String>,
    /// Written, never read.
    pub root_key: Option<String>,
}

/// Reads the files of `dir`, or writes those that `create` gives where there
/// are none. One agent at a time does this: the lock is on the directory
/// itself, because an operator's may be read-only.
pub fn load_or_create(
    dir: &Path,
    create: impl FnOnce() -> Result<Files, AuthorityError>,
) -> Result<Files, AuthorityError> {
    load(dir, Some(create))
}

/// Reads the files of `dir`.
pub fn load_existing(dir: &Path) -> Result<Files, AuthorityError> {
    load(dir, None::<fn() -> Result<Files, AuthorityError>>)
}

/// Changes whenever one of the files does.
pub fn fingerprint(dir: &Path) -> Vec<Option<Stamp>> {
    [ROOT_CERT, CA_CERT, CA_KEY, CERT_CHAIN, CRL]
        .iter()
        .map(|name| stamp(&dir.join(name)))
        .collect()
}

fn load(
    dir: &Path,
    create: Option<impl FnOnce() -> Result<Files, AuthorityError>>,
) -> Result<Files, AuthorityError> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(dir)
        .map_err(failed("create", dir))?;
    let lock = File::open(dir).map_err(failed("open", dir))?;
    lock.lock().map_err(failed("lock", dir))?;

    let root_cert = read(dir, ROOT_CERT)?;
    let ca_cert = read(dir, CA_CERT)?;
    let ca_key = read(dir, CA_KEY)?;
    let cert_chain = read(dir, CERT_CHAIN)?;
    let is_empty =
        root_cert.is_none() && ca_cert.is_none() && ca_key.is_none() && cert_chain.is_none();
    if let (true, Some(create)) = (is_empty, create) {
        let files = create()?;
        write(dir, &files)?;
        lock.sync_all().map_err(failed("sync", dir))?;
        return Ok(files);
    }
    let need = |text: Option<String>, missing| {
        text.ok_or_else(|| AuthorityError::Incomplete {
            dir: dir.to_owned(),
            missing,
        })
    };
    Ok(Files {
        root_cert: need(root_cert, ROOT_CERT)?,
        ca_cert: need(ca_cert, CA_CERT)?,
        ca_key: need(ca_key, CA_KEY)?,
        cert_chain,
        crl: read(dir, CRL)?,
        root_key: None,
    })
}

fn read(dir: &Path, name: &str) -> Result<Option<String>, AuthorityError> {
    let path = dir.join(name);
    let text = match file::read_text(&path, MAX_FILE_BYTES) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", &path)(error)),
    };
    if name == CA_KEY && path.metadata().is_ok_and(|data| data.mode() & 0o007 != 0) {
        tracing::warn!(path = %path.display(), "the CA's key is open to every user");
    }
    Ok(Some(text))
}

/// Each file appears whole or not at all.
fn write(dir: &Path, files: &Files) -> Result<(), AuthorityError> {
    let all = [
        (ROOT_KEY, SECRET_MODE, files.root_key.as_ref()),
        (CA_KEY, SECRET_MODE, Some(&files.ca_key)),
        (CERT_CHAIN, PUBLIC_MODE, files.cert_chain.as_ref()),
        (CA_CERT, PUBLIC_MODE, Some(&files.ca_cert)),
        (ROOT_CERT, PUBLIC_MODE, Some(&files.root_cert)),
    ];
    let present = || {
        all.iter()
            .filter_map(|(name, mode, text)| text.map(|text| (*name, *mode, text)))
    };
    let new = |name: &str| dir.join(format!(".{name}.new"));
    for (name, mode, text) in present() {
        let path = new(name);
        write_new(&path, mode, text).map_err(failed("write", &path))?;
    }
    for (name, ..) in present() {
        let path = dir.join(name);
        std::fs::rename(new(name), &path).map_err(failed("create", &path))?;
    }
    Ok(())
}

fn write_new(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    // What a crashed agent left: the directory is locked, nobody else writes it.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> AuthorityError + 'a {
    move |source| AuthorityError::File {
        action,
        path: path.to_owned(),
        source,
    }
}
