//! TLS towards destinations outside of the mesh, as a DestinationRule asks for
//! it (`tls: SIMPLE` and `MUTUAL`).

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::file::{Stamp, stamp};
use crate::identity::pem_files::{self, client_config, trust};
use crate::identity::verify::{Names, ServerVerifier};
use crate::route::{Pem, TlsOrigination};

/// Where systems keep the authorities that they trust; the first that is there counts.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Settings that are kept; at the bound all are read again.
const MAX_CONFIGS: usize = 1024;

/// Makes TLS of plain connections. Files are read again when they have changed.
#[derive(Default)]
pub(crate) struct Originator {
    configs: Mutex<HashMap<Settings, Loaded>>,
}

/// What a configuration is made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Settings {
    tls: Arc<TlsOrigination>,
    names: Vec<String>,
    alpn: &'static [&'static [u8]],
}

struct Loaded {
    config: Arc<ClientConfig>,
    files: Vec<(PathBuf, Option<Stamp>)>,
}

/// Whom a connection is to.
pub(crate) struct Server<'a> {
    /// Host of the service.
    pub(crate) host: &'a str,
    /// Names that the ServiceEntry gives it.
    pub(crate) names: &'a [String],
    /// Protocols to offer.
    pub(crate) alpn: &'static [&'static [u8]],
}

impl Originator {
    /// Does the handshake.
    ///
    /// # Errors
    /// Files that cannot be read, a server that is not who it should be, or the like.
    pub(crate) async fn connect(
        &self,
        stream: TcpStream,
        tls: &Arc<TlsOrigination>,
        server: &Server<'_>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = tls.sni.as_deref().unwrap_or(server.host);
        let server_name = ServerName::try_from(name.to_owned()).map_err(|_| {
            io::Error::other(format!(
                "{name} is no server name: the DestinationRule needs tls.sni"
            ))
        })?;
        let names = if tls.subject_alt_names.is_empty() {
            server.names
        } else {
            &tls.subject_alt_names
        };
        let settings = Settings {
            tls: Arc::clone(tls),
            names: names.to_vec(),
            alpn: server.alpn,
        };
        let config = self.config(settings)?;
        TlsConnector::from(config)
            .connect(server_name, stream)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("TLS to {name}: {error}")))
    }

    fn config(&self, settings: Settings) -> io::Result<Arc<ClientConfig>> {
        let mut configs = self.configs.lock();
        if let Some(loaded) = configs.get(&settings)
            && loaded.files.iter().all(|(path, at)| stamp(path) == *at)
        {
            return Ok(Arc::clone(&loaded.config));
        }
        let loaded = load(&settings)?;
        let config = Arc::clone(&loaded.config);
        if configs.len() >= MAX_CONFIGS {
            configs.clear();
        }
        configs.insert(settings, loaded);
        Ok(config)
    }
}

fn load(settings: &Settings) -> io::Result<Loaded> {
    let tls = &settings.tls;
    let of_system = match &tls.authorities {
        None if tls.verify => Some(Pem::File(system_roots()?)),
        _ => None,
    };
    let mut files = Vec::new();
    let verifier = if tls.verify {
        let roots = tls.authorities.as_ref().or(of_system.as_ref());
        let roots = roots.map(|pem| used(pem, &mut files));
        let revoked = tls.revoked.as_ref().map(|pem| used(pem, &mut files));
        let trust = trust(roots, revoked)?;
        ServerVerifier::new(Arc::new(trust), Names(settings.names.clone()))
    } else {
        ServerVerifier::blind()
    };
    let own = tls.certificate.as_ref();
    let own = own.map(|(chain, key)| (used(chain, &mut files), used(key, &mut files)));
    let config = client_config(Arc::new(verifier), own, settings.alpn)?;
    Ok(Loaded {
        config: Arc::new(config),
        files,
    })
}

/// What is read of `pem`; a file is noted before: what changes meanwhile is another file.
fn used<'p>(pem: &'p Pem, files: &mut Vec<(PathBuf, Option<Stamp>)>) -> pem_files::Pem<'p> {
    match pem {
        Pem::File(path) => {
            let path = Path::new(path);
            files.push((path.to_owned(), stamp(path)));
            pem_files::Pem::File(path)
        }
        Pem::Secret(name, bytes) => pem_files::Pem::Given(Path::new(&**name), &bytes.0),
    }
}

fn system_roots() -> io::Result<String> {
    let named = std::env::var("SSL_CERT_FILE").ok();
    let known = SYSTEM_ROOTS.iter().map(|path| (*path).to_owned());
    let mut all = named.into_iter().chain(known);
    all.find(|path| Path::new(path).is_file()).ok_or_else(|| {
        io::Error::other("this system has no file of trusted authorities: set tls.caCertificates")
    })
}

#[cfg(test)]
mod tests;
