//! The authority's directory and the certificates that come from it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{Authority, AuthorityError};
use super::certificates::Certificates;
use super::verify::{self, Side};
use super::{Identity, pem_files};

const HOUR: Duration = Duration::from_secs(3600);

fn identity(service_account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/default/sa/{service_account}")
        .parse()
        .unwrap()
}

fn load(dir: &Path) -> Result<Authority, AuthorityError> {
    Authority::load_or_create(dir, "cluster.local")
}

fn error(dir: &Path) -> String {
    match load(dir) {
        Ok(_) => panic!("the authority was accepted"),
        Err(error) => error.to_string(),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_new_authority_is_private_and_stays_the_same() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("ca");
    let first = load(&dir).unwrap();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("ca-key.pem")), 0o600);
    assert_eq!(mode(&dir.join("root-key.pem")), 0o600);
    assert_eq!(first.chain_info().len(), 1, "an intermediate signs");
    let second = load(&dir).unwrap();
    assert_eq!(first.root_info(), second.root_info());
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "ca-cert.pem",
            "ca-key.pem",
            "cert-chain.pem",
            "root-cert.pem",
            "root-key.pem"
        ]
    );
    let root = &first.root_info()[0];
    let years = (root.not_after - root.not_before) / (365 * 24 * 3600);
    assert_eq!(years, 10);
}

#[test]
fn agents_that_start_at_once_agree() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("ca");
    let roots: Vec<_> = std::thread::scope(|scope| {
        let agents: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| load(&dir).unwrap().root_info().to_vec()))
            .collect();
        agents
            .into_iter()
            .map(|agent| agent.join().unwrap())
            .collect()
    });
    assert!(roots.iter().all(|root| *root == roots[0]));
}

#[test]
fn a_leaf_is_a_spiffe_document_for_both_sides() {
    let dir = TempDir::new().unwrap();
    let authority = load(dir.path()).unwrap();
    let leaf = authority.issue(&identity("reviews"), HOUR).unwrap();
    for side in [Side::Server, Side::Client] {
        verify::chain(authority.trust(), &leaf.certified.cert, side).unwrap();
    }
    assert_eq!(
        verify::identity_of(&leaf.certified.cert[0]).unwrap(),
        identity("reviews")
    );
    // The intermediate is sent, the root is not.
    assert_eq!(leaf.certified.cert.len(), 2);
    let (_, sent) = X509Certificate::from_der(&leaf.certified.cert[1]).unwrap();
    assert_eq!(
        sent.subject().to_string(),
        authority.chain_info()[0].subject
    );

    let (_, parsed) = X509Certificate::from_der(&leaf.certified.cert[0]).unwrap();
    assert_eq!(parsed.subject().iter().count(), 0);
    assert!(parsed.subject_alternative_name().unwrap().unwrap().critical);
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth);
    assert!(!parsed.is_ca());
    let now = super::leaf::unix_seconds(std::time::SystemTime::now());
    assert!((now - 62..=now - 60).contains(&leaf.not_before));
    assert!((now + 3600..=now + 3602).contains(&leaf.not_after));
    let other = authority.issue(&identity("reviews"), HOUR).unwrap();
    assert_ne!(other.serial, leaf.serial);
    leaf.certified.keys_match().unwrap();
}

#[test]
fn identities_of_another_trust_domain_are_not_issued() {
    let dir = TempDir::new().unwrap();
    let foreign: Identity = "spiffe://elsewhere/ns/a/sa/b".parse().unwrap();
    let error = load(dir.path()).unwrap().issue(&foreign, HOUR).unwrap_err();
    assert_eq!(
        error.to_string(),
        "spiffe://elsewhere/ns/a/sa/b is not in this authority's trust domain cluster.local"
    );
}

#[test]
fn errors_name_the_file() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    load(dir.path()).unwrap();
    let key = fs::read_to_string(path("ca-key.pem")).unwrap();

    fs::remove_file(path("ca-key.pem")).unwrap();
    assert!(error(dir.path()).contains("no ca-key.pem"));

    fs::write(path("ca-key.pem"), "nothing").unwrap();
    assert!(error(dir.path()).contains("ca-key.pem: no private key in PEM"));

    let other = TempDir::new().unwrap();
    load(other.path()).unwrap();
    fs::copy(other.path().join("ca-key.pem"), path("ca-key.pem")).unwrap();
    assert!(error(dir.path()).contains("ca-key.pem: the key is not that of ca-cert.pem"));

    fs::write(path("ca-key.pem"), key).unwrap();
    load(dir.path()).unwrap();
    fs::copy(other.path().join("root-cert.pem"), path("root-cert.pem")).unwrap();
    let text = error(dir.path());
    assert!(
        text.contains("ca-cert.pem: what this CA issues does not verify"),
        "{text}"
    );

    fs::write(path("root-cert.pem"), "").unwrap();
    assert!(error(dir.path()).contains("root-cert.pem: no certificate in PEM"));
}

fn openssl(dir: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(dir)
        .output()
        .expect("openssl is installed");
    assert!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A root and an intermediate made the way Istio's documentation does it.
fn operators_ca(dir: &Path, key: &str) {
    fs::write(
        dir.join("ca.conf"),
        "basicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n\
         subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n",
    )
    .unwrap();
    openssl(
        dir,
        "req -x509 -newkey rsa:2048 -nodes -keyout root-key.pem -out root-cert.pem -days 30 -subj /O=Istio/CN=Root",
    );
    openssl(dir, key);
    openssl(
        dir,
        "req -new -key ca-key.pem -out ca.csr -subj /O=Istio/CN=Intermediate",
    );
    openssl(
        dir,
        "x509 -req -in ca.csr -CA root-cert.pem -CAkey root-key.pem -CAcreateserial -extfile ca.conf -out ca-cert.pem -days 10",
    );
    let mut chain = fs::read_to_string(dir.join("ca-cert.pem")).unwrap();
    chain += &fs::read_to_string(dir.join("root-cert.pem")).unwrap();
    fs::write(dir.join("cert-chain.pem"), chain).unwrap();
}

#[test]
fn an_operators_ca_is_used_as_it_is() {
    for key in [
        "genrsa -out ca-key.pem 2048",
        "genrsa -traditional -out ca-key.pem 2048",
        "ecparam -name prime256v1 -genkey -out ca-key.pem",
        "genpkey -algorithm ed25519 -out ca-key.pem",
    ] {
        let dir = TempDir::new().unwrap();
        operators_ca(dir.path(), key);
        let before = fs::read(dir.path().join("ca-key.pem")).unwrap();
        let authority = load(dir.path()).unwrap_or_else(|error| panic!("{key}: {error}"));
        let leaf = authority.issue(&identity("a"), 1000 * HOUR).unwrap();
        assert_eq!(leaf.certified.cert.len(), 2, "leaf and intermediate");
        let (_, ca) = X509Certificate::from_der(&leaf.certified.cert[1]).unwrap();
        assert_eq!(
            leaf.not_after as i64,
            ca.validity().not_after.timestamp(),
            "no leaf outlives its issuer"
        );
        assert_eq!(fs::read(dir.path().join("ca-key.pem")).unwrap(), before);
    }
}

#[test]
fn an_expired_ca_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    fs::write(dir.path().join("ca-key.pem"), key.serialize_pem()).unwrap();
    for name in ["ca-cert.pem", "root-cert.pem"] {
        fs::write(dir.path().join(name), &certificate).unwrap();
    }
    let text = error(dir.path());
    assert!(
        text.contains("ca-cert.pem: the certificate is valid from"),
        "{text}"
    );
    assert!(text.contains("2021"), "{text}");
}

#[tokio::test]
async fn a_held_certificate_is_renewed_and_a_dropped_one_forgotten() {
    let dir = TempDir::new().unwrap();
    let authority = Arc::new(load(dir.path()).unwrap());
    let certificates = Arc::new(Certificates::new(authority, Duration::from_secs(2)));
    let stop = CancellationToken::new();
    let renewal = tokio::spawn({
        let (certificates, stop) = (certificates.clone(), stop.clone());
        async move { certificates.renew(stop).await }
    });

    let server = certificates.server_config(&identity("held")).await.unwrap();
    let other = certificates
        .client_config(&identity("dropped"), &[])
        .await
        .unwrap();
    let first = certificates.certificates();
    assert_eq!(first.len(), 2);
    drop(other);

    let renewed = async {
        loop {
            let now = certificates.certificates();
            if now.len() == 1 && now[0].serial != first[1].serial {
                break now;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let now = tokio::time::timeout(Duration::from_secs(10), renewed)
        .await
        .unwrap();
    assert_eq!(now[0].identity, identity("held"));
    assert!(now[0].not_after >= first[1].not_after);
    assert_eq!(certificates.not_after(&identity("dropped")), None);
    drop(server);
    stop.cancel();
    renewal.await.unwrap();
}

#[tokio::test]
async fn configurations_are_shared_by_what_they_expect() {
    let dir = TempDir::new().unwrap();
    let authority = Arc::new(load(dir.path()).unwrap());
    let certificates = Certificates::new(authority, HOUR);
    let client = async |expected: &[Identity]| {
        certificates
            .client_config(&identity("me"), expected)
            .await
            .unwrap()
    };
    let both = client(&[identity("a"), identity("b")]).await;
    assert!(Arc::ptr_eq(
        &both,
        &client(&[identity("b"), identity("a"), identity("b")]).await
    ));
    assert!(!Arc::ptr_eq(&both, &client(&[identity("a")]).await));
    assert_eq!(certificates.certificates().len(), 1);
}

#[test]
fn while_a_root_is_replaced_both_are_trusted() {
    let (old, new) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    load(old.path()).unwrap();
    load(new.path()).unwrap();
    let root = |dir: &TempDir| fs::read_to_string(dir.path().join("root-cert.pem")).unwrap();
    let (old_root, new_root) = (root(&old), root(&new));
    let leaf = |authority: &Authority| authority.issue(&identity("a"), HOUR).unwrap();
    let verifies = |by: &Authority, of: &Authority| {
        verify::chain(by.trust(), &leaf(of).certified.cert, Side::Client).is_ok()
    };
    let strangers = (load(old.path()).unwrap(), load(new.path()).unwrap());
    assert!(!verifies(&strangers.0, &strangers.1));

    for dir in [&old, &new] {
        fs::write(
            dir.path().join("root-cert.pem"),
            format!("{old_root}{new_root}"),
        )
        .unwrap();
    }
    let (before, after) = (load(old.path()).unwrap(), load(new.path()).unwrap());
    assert!(verifies(&before, &after) && verifies(&after, &before));
    assert_eq!(before.root_info().len(), 2);

    fs::write(new.path().join("root-cert.pem"), new_root).unwrap();
    let last = load(new.path()).unwrap();
    assert!(verifies(&last, &after) && !verifies(&last, &before));
}

#[tokio::test]
async fn a_new_authority_is_taken_up_and_a_broken_one_is_not() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let certificates = Arc::new(Certificates::new(Arc::new(load(dir.path()).unwrap()), HOUR));
    let config = certificates.server_config(&identity("a")).await.unwrap();
    let first = certificates.certificates()[0].serial.clone();
    let stop = CancellationToken::new();
    let watch = tokio::spawn({
        let (certificates, stop) = (certificates.clone(), stop.clone());
        let dir = dir.path().to_owned();
        async move { certificates.watch(dir, stop).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    fs::write(dir.path().join("ca-key.pem"), "broken").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(certificates.certificates()[0].serial, first);

    let root = load(other.path()).unwrap().root_info()[0].clone();
    for name in [
        "root-cert.pem",
        "cert-chain.pem",
        "ca-cert.pem",
        "ca-key.pem",
    ] {
        fs::copy(other.path().join(name), dir.path().join(name)).unwrap();
    }
    let taken_up = async {
        while certificates.roots() != [root.clone()] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken_up)
        .await
        .unwrap();
    assert_ne!(certificates.certificates()[0].serial, first);
    let again = certificates.server_config(&identity("a")).await.unwrap();
    assert!(!Arc::ptr_eq(&config, &again));
    stop.cancel();
    watch.await.unwrap();
}

#[test]
fn a_revocation_list_that_is_none_is_refused() {
    let dir = TempDir::new().unwrap();
    load(dir.path()).unwrap();
    let list = dir.path().join("crl.pem");
    let pem = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    fs::write(&list, pem).unwrap();
    assert!(error(dir.path()).contains("crl.pem: not a revocation list"));
    let root = fs::read_to_string(dir.path().join("root-cert.pem")).unwrap();
    for text in ["", "nonsense", &*root] {
        fs::write(&list, text).unwrap();
        let said = error(dir.path());
        assert!(said.contains("crl.pem: no list of revoked"), "{said}");
    }
}

#[test]
fn an_encrypted_key_is_called_so() {
    let dir = TempDir::new().unwrap();
    operators_ca(
        dir.path(),
        "ecparam -name prime256v1 -genkey -out ca-key.pem",
    );
    let path = |name: &str| dir.path().join(name);
    fs::copy(path("ca-key.pem"), path("plain.pem")).unwrap();
    for (command, form) in [
        ("pkcs8 -topk8", "BEGIN ENCRYPTED PRIVATE KEY"),
        ("ec -aes128", "Proc-Type: 4,ENCRYPTED"),
    ] {
        let passphrase = "-passout pass:hush-hush";
        let command = format!("{command} -in plain.pem -out ca-key.pem {passphrase}");
        openssl(dir.path(), &command);
        let text = fs::read_to_string(path("ca-key.pem")).unwrap();
        assert!(text.contains(form), "{text}");
        let said = error(dir.path());
        let reason = "ca-key.pem: the private key is encrypted";
        assert!(said.contains(reason), "{said}");
        let own = (&*path("ca-cert.pem"), &*path("ca-key.pem"));
        let refused = pem_files::client_tls(&path("root-cert.pem"), Some(own), &[]);
        let said = refused.unwrap_err().to_string();
        assert!(said.contains(reason), "{said}");
    }
}
