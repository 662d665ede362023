//! A new authority, where there is none: a root and an intermediate.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};

use super::files::Files;
use super::{AuthorityError, CLOCK_SKEW};

/// How long a self-signed root and its intermediate are valid.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A new root, and an intermediate that signs leaves. The root's key is kept
/// beside it for the operator, who may take it away.
pub(super) fn self_signed(trust_domain: &str) -> Result<Files, AuthorityError> {
    let root = ca_params(
        trust_domain,
        "Undermesh root CA",
        BasicConstraints::Unconstrained,
    );
    let root_key = KeyPair::generate()?;
    let root_cert = root.self_signed(&root_key)?.pem();
    let mut ca = ca_params(
        trust_domain,
        "Undermesh CA",
        BasicConstraints::Constrained(0),
    );
    ca.use_authority_key_identifier_extension = true;
    let ca_key = KeyPair::generate()?;
    let ca_cert = ca
        .signed_by(&ca_key, &Issuer::from_params(&root, &root_key))?
        .pem();
    Ok(Files {
        cert_chain: Some(format!("{ca_cert}{root_cert}")),
        root_cert,
        ca_cert,
        ca_key: ca_key.serialize_pem(),
        crl: None,
        root_key: Some(root_key.serialize_pem()),
    })
}

fn ca_params(trust_domain: &str, name: &str, constraints: BasicConstraints) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()));
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    params
}

/// 126 random bits: positive, never shortened by DER, at most 20 bytes
/// (RFC 5280, 4.1.2.2).
pub(super) fn random_serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = (serial[0] & 0x3f) | 0x40;
    serial
}
