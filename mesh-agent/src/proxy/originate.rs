//! TLS towards destinations outside of the mesh, as a DestinationRule asks for
//! it (`tls: SIMPLE` and `MUTUAL`).

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::identity::Trust;
use crate::route::TlsOrigination;

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
    files: Vec<(PathBuf, Option<SystemTime>)>,
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
            && loaded.files.iter().all(|(path, at)| modified(path) == *at)
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

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).ok()?.modified().ok()
}

fn load(settings: &Settings) -> io::Result<Loaded> {
    let tls = &settings.tls;
    let mut files = Vec::new();
    let mut file = |path: &str| {
        let path = PathBuf::from(path);
        let at = modified(&path);
        files.push((path.clone(), at));
        path
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let roots = if tls.verify {
        let path = match &tls.authorities {
            Some(path) => path.clone(),
            None => system_roots()?,
        };
        roots(&file(&path))?
    } else {
        RootCertStore::empty()
    };
    let (revoked, what) = match &tls.revoked {
        Some(path) => {
            let path = file(path);
            (revocations(&path)?, path)
        }
        None => (Vec::new(), PathBuf::new()),
    };
    let trust = Trust::new(roots, revoked).map_err(|error| unreadable(&what, error))?;
    let verifier = Arc::new(Verifier {
        verify: tls.verify,
        trust,
        names: settings.names.clone(),
        algorithms,
    });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &tls.certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let (certificate, key) = (file(certificate), file(key));
            let chain = chain(&certificate)?;
            let key =
                PrivateKeyDer::from_pem_file(&key).map_err(|error| unreadable(&key, error))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(io::Error::other)?
        }
    };
    config.alpn_protocols = settings.alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Loaded {
        config: Arc::new(config),
        files,
    })
}

fn system_roots() -> io::Result<String> {
    let named = std::env::var("SSL_CERT_FILE").ok();
    let known = SYSTEM_ROOTS.iter().map(|path| (*path).to_owned());
    let mut all = named.into_iter().chain(known);
    all.find(|path| Path::new(path).is_file()).ok_or_else(|| {
        io::Error::other("this system has no file of trusted authorities: set tls.caCertificates")
    })
}

fn unreadable(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

fn chain(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, error))?;
    certificates
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(path, error))
}

fn roots(path: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    // One that cannot be used does not spoil the others.
    let (added, _) = roots.add_parsable_certificates(chain(path)?);
    if added == 0 {
        return Err(unreadable(path, "holds no certificate"));
    }
    Ok(roots)
}

fn revocations(path: &Path) -> io::Result<Vec<CertificateRevocationListDer<'static>>> {
    let lists: Vec<_> = CertificateRevocationListDer::pem_file_iter(path)
        .map_err(|error| unreadable(path, error))?
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(path, error))?;
    if lists.is_empty() {
        return Err(unreadable(path, "holds no list of revoked certificates"));
    }
    Ok(lists)
}

/// The chain by webpki, then one of the names that the rule allows, or else the
/// name that was asked for.
#[derive(Debug)]
struct Verifier {
    verify: bool,
    trust: Trust,
    names: Vec<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn has_name(&self, certificate: &CertificateDer<'_>) -> Result<bool, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let end_entity = webpki::EndEntityCert::try_from(certificate)
            .map_err(|_| Error::from(CertificateError::BadEncoding))?;
        let uris: Vec<&str> = end_entity.valid_uri_names().collect();
        Ok(self.names.iter().any(|name| {
            uris.contains(&name.as_str())
                || ServerName::try_from(name.as_str())
                    .is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
        }))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.verify {
            return Ok(ServerCertVerified::assertion());
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        (self.trust).verify_server(end_entity, intermediates, now, &self.algorithms)?;
        if self.names.is_empty() {
            verify_server_name(&parsed, server_name)?;
        } else if !self.has_name(end_entity)? {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
        DnType, IsCa, KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber,
    };
    use rustls::server::WebPkiClientVerifier;
    use rustls::{ServerConfig, ServerConnection};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    struct World {
        folder: tempfile::TempDir,
        authority: CertifiedIssuer<'static, KeyPair>,
    }

    impl World {
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).expect("parameters");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
                .distinguished_name
                .push(DnType::CommonName, "test authority");
            let key = KeyPair::generate().expect("a key");
            let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
            let world = Self {
                folder: tempfile::tempdir().expect("a folder"),
                authority,
            };
            world.write("ca.pem", &world.authority.pem());
            world
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.folder.path().join(name), text).expect("written");
        }

        fn path(&self, name: &str) -> String {
            self.folder.path().join(name).to_string_lossy().into_owned()
        }

        /// A certificate for these names, as `<file>.pem` and `<file>.key`.
        fn issue(&self, file: &str, names: &[&str], uri: Option<&str>) {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).expect("names");
            if let Some(uri) = uri {
                params
                    .subject_alt_names
                    .push(SanType::URI(uri.try_into().expect("a URI")));
            }
            let key = KeyPair::generate().expect("a key");
            let certificate = params.signed_by(&key, &self.authority).expect("signed");
            self.write(&format!("{file}.pem"), &certificate.pem());
            self.write(&format!("{file}.key"), &key.serialize_pem());
        }

        /// A server that accepts one connection; what it saw: server name and protocol.
        async fn serve(
            &self,
            mutual: bool,
        ) -> (
            std::net::SocketAddr,
            tokio::task::JoinHandle<Option<(String, Vec<u8>)>>,
        ) {
            let chain = chain(self.folder.path().join("server.pem").as_ref()).expect("a chain");
            let key = PrivateKeyDer::from_pem_file(self.path("server.key")).expect("a key");
            let provider = Arc::new(aws_lc_rs::default_provider());
            let builder = ServerConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .expect("versions");
            let builder = if mutual {
                let store = roots(Path::new(&self.path("ca.pem"))).expect("roots");
                let verifier = WebPkiClientVerifier::builder_with_provider(store.into(), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            } else {
                builder.with_no_client_auth()
            };
            let mut config = builder
                .with_single_cert(chain, key)
                .expect("a configuration");
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let seen = tokio::spawn(async move {
                let (stream, _) = listener.accept().await.ok()?;
                let stream = TlsAcceptor::from(Arc::new(config))
                    .accept(stream)
                    .await
                    .ok()?;
                let connection: &ServerConnection = stream.get_ref().1;
                let name = connection.server_name().unwrap_or_default().to_owned();
                Some((
                    name,
                    connection.alpn_protocol().unwrap_or_default().to_vec(),
                ))
            });
            (address, seen)
        }

        /// Connects as a rule says; what the server saw, or why there is no connection.
        async fn connect(
            &self,
            tls: TlsOrigination,
            names: &[String],
            mutual: bool,
        ) -> Result<(String, Vec<u8>), String> {
            let (address, seen) = self.serve(mutual).await;
            let stream = TcpStream::connect(address).await.expect("the server");
            let server = Server {
                host: "www.example.com",
                names,
                alpn: &[b"http/1.1"],
            };
            let stream = Originator::default()
                .connect(stream, &Arc::new(tls), &server)
                .await
                .map_err(|error| error.to_string())?;
            let seen = seen.await.expect("no panic").ok_or("the server refused");
            drop(stream);
            Ok(seen?)
        }

        fn simple(&self) -> TlsOrigination {
            TlsOrigination {
                certificate: None,
                authorities: Some(self.path("ca.pem")),
                revoked: None,
                sni: None,
                subject_alt_names: Vec::new(),
                verify: true,
            }
        }
    }

    #[tokio::test]
    async fn the_server_is_who_was_asked_for() {
        let world = World::new();
        world.issue("server", &["www.example.com"], None);
        let seen = world.connect(world.simple(), &[], false).await;
        assert_eq!(
            seen,
            Ok(("www.example.com".to_owned(), b"http/1.1".to_vec()))
        );
        // Another name in the handshake is another server to look for.
        let other = TlsOrigination {
            sni: Some("other.example.com".to_owned()),
            ..world.simple()
        };
        let refused = world.connect(other, &[], false).await.expect_err("refused");
        assert!(refused.contains("other.example.com"), "{refused}");
    }

    #[tokio::test]
    async fn names_of_the_rule_or_the_entry_count_instead() {
        let world = World::new();
        let uri = "spiffe://cluster.local/ns/x/sa/y";
        world.issue("server", &["backend.internal"], Some(uri));
        let with = |names: &[&str]| TlsOrigination {
            subject_alt_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..world.simple()
        };
        for names in [&["backend.internal"][..], &["nobody", uri]] {
            assert!(
                world.connect(with(names), &[], false).await.is_ok(),
                "{names:?}"
            );
        }
        assert!(world.connect(with(&["nobody"]), &[], false).await.is_err());
        let of_entry = ["backend.internal".to_owned()];
        assert!(
            world
                .connect(world.simple(), &of_entry, false)
                .await
                .is_ok()
        );
        assert!(world.connect(world.simple(), &[], false).await.is_err());
    }

    #[tokio::test]
    async fn an_unknown_authority_is_refused_unless_nothing_is_verified() {
        let (world, other) = (World::new(), World::new());
        world.issue("server", &["www.example.com"], None);
        assert!(world.connect(other.simple(), &[], false).await.is_err());
        let blind = TlsOrigination {
            verify: false,
            authorities: None,
            ..world.simple()
        };
        assert!(world.connect(blind, &[], false).await.is_ok());
    }

    #[tokio::test]
    async fn a_client_can_show_a_certificate() {
        let world = World::new();
        world.issue("server", &["www.example.com"], None);
        world.issue("client", &["client"], None);
        let mutual = TlsOrigination {
            certificate: Some((world.path("client.pem"), world.path("client.key"))),
            ..world.simple()
        };
        assert!(world.connect(mutual, &[], true).await.is_ok());
        let missing = TlsOrigination {
            certificate: Some((world.path("nothing.pem"), world.path("client.key"))),
            ..world.simple()
        };
        let error = world
            .connect(missing, &[], true)
            .await
            .expect_err("no file");
        assert!(error.contains("nothing.pem"), "{error}");
    }

    #[tokio::test]
    async fn a_revoked_server_is_refused() {
        let world = World::new();
        world.issue("server", &["www.example.com"], None);
        let pem = std::fs::read(world.path("server.pem")).expect("readable");
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).expect("PEM");
        let certificate = pem.parse_x509().expect("a certificate");
        let serial = certificate.raw_serial().to_vec();
        let list = |serials: &[&[u8]]| {
            let revoked = serials.iter().map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial),
                revocation_time: rcgen::date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            });
            let params = CertificateRevocationListParams {
                this_update: rcgen::date_time_ymd(2020, 1, 1),
                next_update: rcgen::date_time_ymd(2099, 1, 1),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: revoked.collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            let list = params.signed_by(&world.authority).expect("a list");
            world.write("crl.pem", &list.pem().expect("PEM"));
        };
        let with = || TlsOrigination {
            revoked: Some(world.path("crl.pem")),
            ..world.simple()
        };
        list(&[&[1, 2, 3]]);
        assert!(world.connect(with(), &[], false).await.is_ok());
        list(&[&serial]);
        let error = world
            .connect(with(), &[], false)
            .await
            .expect_err("revoked");
        assert!(error.contains("Revoked"), "{error}");
        world.write("crl.pem", "nothing");
        let error = world
            .connect(with(), &[], false)
            .await
            .expect_err("no list");
        assert!(error.contains("crl.pem"), "{error}");
    }
}
