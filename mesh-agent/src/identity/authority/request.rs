//! Requests for certificates (PKCS #10, RFC 2986): the key, and the proof that whoever asks holds it.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::AuthorityError;

const OTHER_KEY: &str = "its key or the signature by it is of another kind than RSA of 2048 to 8192 bits, \
     ECDSA P-256 or P-384, or Ed25519";

/// The key of a request in PEM. Nothing else in it matters, not what it asks for either: rcgen's own
/// reading refuses extensions that it does not know, and takes the kind of the key from the signature.
pub(super) fn key_of(request: &str) -> Result<SubjectPublicKeyInfo, AuthorityError> {
    let refused = |reason: &str| AuthorityError::Request(reason.to_owned());
    let (_, pem) = parse_x509_pem(request.as_bytes()).map_err(|_| refused("not PEM"))?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents)
        .map_err(|_| refused("not of the form of PKCS #10"))?;
    let key = &request.certification_request_info.subject_pki;
    if let Ok(PublicKey::RSA(rsa)) = key.parsed()
        && !(2048..=8192).contains(&rsa.key_size())
    {
        return Err(refused(OTHER_KEY));
    }
    request.verify_signature().map_err(|error| match error {
        X509Error::SignatureUnsupportedAlgorithm => refused(OTHER_KEY),
        _ => refused("not signed by its own key"),
    })?;
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| refused(OTHER_KEY))
}
