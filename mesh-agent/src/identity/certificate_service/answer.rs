//! From what an authority answers to a certificate that may be used: nothing
//! in it is believed that does not verify.

use std::sync::Arc;

use rcgen::{KeyPair, PublicKeyData};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::Identity;
use crate::identity::leaf::{self, Leaf, info};
use crate::identity::trust::{Anchors, Trust};
use crate::identity::verify::{self, Side};

/// Certificate and roots in a chain in PEM, leaf first, roots last. Each text
/// may hold several certificates.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(
    chain: &[String],
    identity: &Identity,
    key: &KeyPair,
) -> Result<(Leaf, Anchors), String> {
    let mut all = Vec::new();
    for text in chain {
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            all.push(certificate.map_err(|error| format!("not PEM: {error}"))?);
        }
    }
    let parsed = all
        .iter()
        .map(|der| X509Certificate::from_der(der).map(|(_, certificate)| certificate))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("not a certificate: {error}"))?;
    let Some((first, above)) = parsed.split_first() else {
        return Err("no certificate".to_owned());
    };
    if first.public_key().raw != key.subject_public_key_info() {
        return Err("the certificate is for another key".to_owned());
    }
    let got = verify::identity_of(&all[0]).map_err(|error| error.to_string())?;
    if got != *identity {
        return Err(format!("the certificate is for {got}"));
    }

    // What signed itself is a root; an operator may also have given a part of a longer chain.
    let is_self_signed = |one: &X509Certificate<'_>| one.subject() == one.issuer();
    let mut is_root: Vec<bool> = above.iter().map(is_self_signed).collect();
    if let (false, Some(last)) = (is_root.contains(&true), is_root.last_mut()) {
        *last = true;
    }
    let mut roots = RootCertStore::empty();
    let mut anchors = Anchors::default();
    let mut sent = vec![all[0].clone()];
    for ((certificate, der), is_root) in above.iter().zip(&all[1..]).zip(is_root) {
        if is_root {
            roots
                .add(der.clone())
                .map_err(|error| format!("its root cannot be used: {error}"))?;
            anchors.roots.push(info(certificate));
        } else {
            sent.push(der.clone());
            anchors.intermediates.push(info(certificate));
        }
    }
    if roots.is_empty() {
        return Err("no root above the certificate".to_owned());
    }
    anchors.trust = Arc::new(Trust::of(roots));
    for side in [Side::Server, Side::Client] {
        verify::chain(&anchors.trust, &sent, side)
            .map_err(|error| format!("the certificate does not verify: {error}"))?;
    }
    let of_leaf = info(first);
    let certified = leaf::certified(sent, key).map_err(|error| error.to_string())?;
    let leaf = Leaf {
        identity: got,
        certified: Arc::new(certified),
        serial: of_leaf.serial,
        not_before: of_leaf.not_before,
        not_after: of_leaf.not_after,
    };
    Ok((leaf, anchors))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::CertificateParams;
    use tempfile::TempDir;

    use super::*;
    use crate::identity::Authority;

    const HOUR: Duration = Duration::from_secs(3600);

    fn identity(account: &str) -> Identity {
        format!("spiffe://cluster.local/ns/default/sa/{account}")
            .parse()
            .unwrap()
    }

    fn given(dir: &TempDir, key: &KeyPair) -> Vec<String> {
        let authority = Authority::load_or_create(dir.path(), "cluster.local").unwrap();
        let request = CertificateParams::default().serialize_request(key).unwrap();
        authority
            .sign(&request.pem().unwrap(), &identity("a"), HOUR)
            .unwrap()
    }

    #[test]
    fn a_chain_becomes_a_certificate_and_roots() {
        let dir = TempDir::new().unwrap();
        let key = KeyPair::generate().unwrap();
        let chain = given(&dir, &key);
        let (leaf, anchors) = read(&chain, &identity("a"), &key).unwrap();
        assert_eq!(leaf.certified.cert.len(), 2);
        assert_eq!((anchors.roots.len(), anchors.intermediates.len()), (1, 1));
        assert_eq!(
            leaf.above(),
            [
                "O=cluster.local, CN=Undermesh CA",
                "O=cluster.local, CN=Undermesh root CA"
            ]
        );
        // All in one text, with a second root: how Istio sends several.
        let other = given(&TempDir::new().unwrap(), &key);
        let text = [chain.concat(), other[2].clone()].concat();
        let (_, anchors) = read(&[text], &identity("a"), &key).unwrap();
        assert_eq!(anchors.roots.len(), 2);
    }

    #[test]
    fn what_does_not_verify_is_refused() {
        let dir = TempDir::new().unwrap();
        let key = KeyPair::generate().unwrap();
        let chain = given(&dir, &key);
        let other = given(&TempDir::new().unwrap(), &key);
        let refused = |chain: &[String], account: &str, key: &KeyPair| match read(
            chain,
            &identity(account),
            key,
        ) {
            Ok(_) => panic!("accepted"),
            Err(reason) => reason,
        };
        for (chain, reason) in [
            (vec![], "no certificate"),
            (vec!["nonsense".to_owned()], "no certificate"),
            (chain[..1].to_vec(), "no root above"),
            (
                vec![chain[0].clone(), chain[1].clone(), other[2].clone()],
                "does not verify",
            ),
        ] {
            let said = refused(&chain, "a", &key);
            assert!(said.contains(reason), "{said}");
        }
        let said = refused(&chain, "b", &key);
        assert!(
            said.contains("is for spiffe://cluster.local/ns/default/sa/a"),
            "{said}"
        );
        let said = refused(&chain, "a", &KeyPair::generate().unwrap());
        assert!(said.contains("another key"), "{said}");
    }
}
