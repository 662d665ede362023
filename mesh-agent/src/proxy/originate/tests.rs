//! TLS to servers that a rule wants, and to others.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber,
};
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::resource::Kept;

fn certificates(path: &str) -> Vec<CertificateDer<'static>> {
    let all = CertificateDer::pem_file_iter(path).expect("a file");
    all.collect::<Result<_, _>>().expect("certificates")
}

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

    fn file(&self, name: &str) -> Pem {
        Pem::File(self.path(name))
    }

    /// The same in a Secret.
    fn secret(&self, name: &str) -> Pem {
        let bytes = std::fs::read(self.path(name)).expect("a file");
        Pem::Secret(format!("Secret, {name}").into(), Kept(bytes.into()))
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
        let chain = certificates(&self.path("server.pem"));
        let key = PrivateKeyDer::from_pem_file(self.path("server.key")).expect("a key");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = if mutual {
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(certificates(&self.path("ca.pem")));
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
            authorities: Some(self.file("ca.pem")),
            revoked: None,
            sni: None,
            subject_alt_names: Vec::new(),
            verify: true,
        }
    }
}

#[tokio::test]
async fn a_server_may_be_its_own_authority() {
    let world = World::new();
    // As `openssl req -x509` makes it.
    let make = |file: &str, days: std::ops::Range<i32>| {
        let names = vec!["www.example.com".to_owned()];
        let mut params = CertificateParams::new(names).expect("names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(days.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(days.end, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        world.write(&format!("{file}.pem"), &certificate.pem());
        world.write(&format!("{file}.key"), &key.serialize_pem());
    };
    let trusting = |file: &str| TlsOrigination {
        authorities: Some(world.file(file)),
        ..world.simple()
    };
    make("server", 2020..2100);
    let seen = world.connect(trusting("server.pem"), &[], false).await;
    assert!(seen.is_ok(), "{seen:?}");
    // Another one of the same name is not trusted, nor is this one for another name, nor for ever.
    make("other", 2020..2100);
    for (tls, name) in [
        (trusting("other.pem"), "www.example.com"),
        (trusting("server.pem"), "other.example.com"),
    ] {
        let refused = world.connect(tls, &[name.to_owned()], false).await;
        assert!(refused.is_err(), "{name}");
    }
    make("server", 2020..2021);
    let refused = world.connect(trusting("server.pem"), &[], false).await;
    assert!(refused.is_err_and(|error| error.contains("Expired")));
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
        certificate: Some((world.file("client.pem"), world.file("client.key"))),
        ..world.simple()
    };
    assert!(world.connect(mutual, &[], true).await.is_ok());
    let missing = TlsOrigination {
        certificate: Some((world.file("nothing.pem"), world.file("client.key"))),
        ..world.simple()
    };
    let error = world
        .connect(missing, &[], true)
        .await
        .expect_err("no file");
    assert!(error.contains("nothing.pem"), "{error}");
}

#[tokio::test]
async fn what_stands_in_a_secret_counts_like_files() {
    let world = World::new();
    world.issue("server", &["www.example.com"], None);
    world.issue("client", &["client"], None);
    let mutual = TlsOrigination {
        certificate: Some((world.secret("client.pem"), world.secret("client.key"))),
        authorities: Some(world.secret("ca.pem")),
        ..world.simple()
    };
    assert!(world.connect(mutual.clone(), &[], true).await.is_ok());
    let stranger = TlsOrigination {
        authorities: Some(World::new().secret("ca.pem")),
        ..mutual.clone()
    };
    assert!(world.connect(stranger, &[], true).await.is_err());
    let no_key = TlsOrigination {
        certificate: Some((world.secret("client.pem"), world.secret("client.pem"))),
        ..mutual
    };
    let error = world.connect(no_key, &[], true).await.expect_err("no key");
    assert!(
        error.contains("Secret, client.pem: no private key"),
        "{error}"
    );
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
        revoked: Some(world.file("crl.pem")),
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
