//! Kubernetes `Secret` (v1): certificates and keys, which a DestinationRule names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::value::Base64;

/// What is read of a Secret: the names that Istio knows, those of type `kubernetes.io/tls`
/// and the general ones. Nothing else of it is kept in memory.
const NAMES: [&str; 8] = [
    "tls.crt", "tls.key", "ca.crt", "ca.crl", "cert", "key", "cacert", "crl",
];

/// A Secret, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretSpec {
    data: BTreeMap<&'static str, Kept>,
}

/// A part of a Secret, by its name.
pub type Part<'s> = (&'static str, &'s Kept);

/// Bytes that nobody gets to see.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Kept(pub Arc<[u8]>);

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({} bytes)", self.0.len())
    }
}

impl SecretSpec {
    /// Reads the fields of an object; the error is a field's path and the reason, without
    /// what stands there.
    pub(super) fn read(object: &Map<String, Value>) -> Result<Self, (String, String)> {
        let mut data = BTreeMap::new();
        // `stringData` counts before `data`, as in Kubernetes.
        for field in ["data", "stringData"] {
            let entries = match object.get(field) {
                None | Some(Value::Null) => continue,
                Some(Value::Object(entries)) => entries,
                Some(_) => return Err((field.to_owned(), "is not a mapping".to_owned())),
            };
            for (name, value) in entries {
                let Some(text) = value.as_str() else {
                    let reason = "must be a text".to_owned();
                    return Err((format!("{field}[{name}]"), reason));
                };
                let bytes = if field == "stringData" {
                    text.as_bytes().to_vec()
                } else {
                    // kubectl prints it in one line, people fold it.
                    let text: String = text.split_ascii_whitespace().collect();
                    Base64::try_from(text)
                        .map_err(|error| (format!("{field}[{name}]"), error.to_string()))?
                        .0
                };
                if let Some(known) = NAMES.into_iter().find(|known| known == name) {
                    data.insert(known, Kept(bytes.into()));
                }
            }
        }
        data.retain(|_, bytes| !bytes.0.is_empty());
        Ok(Self { data })
    }

    /// The certificate and its key, with their names in the Secret.
    pub fn certificate(&self) -> Option<[Part<'_>; 2]> {
        (self.both("cert", "key")).or_else(|| self.both("tls.crt", "tls.key"))
    }

    /// The authorities that it trusts, and what they have revoked.
    pub fn authorities(&self) -> Option<(Part<'_>, Option<Part<'_>>)> {
        let with = |roots, revoked| Some((self.part(roots)?, self.part(revoked)));
        with("cacert", "crl").or_else(|| with("ca.crt", "ca.crl"))
    }

    fn both(&self, one: &'static str, other: &'static str) -> Option<[Part<'_>; 2]> {
        Some([self.part(one)?, self.part(other)?])
    }

    fn part(&self, name: &'static str) -> Option<Part<'_>> {
        Some((name, self.data.get(name)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<SecretSpec, (String, String)> {
        SecretSpec::read(&serde_saphyr::from_str(text).expect("a mapping"))
    }

    #[test]
    fn both_spellings_of_istio_are_read() {
        let tls = read(
            "{type: kubernetes.io/tls, data: {tls.crt: YQ==, tls.key: \"Y\\n g==\", ca.crt: Yw==}}",
        )
        .expect("a Secret");
        let names = |secret: &SecretSpec| {
            let certificate = secret.certificate();
            certificate.map(|parts| parts.map(|(name, kept)| (name, kept.0.to_vec())))
        };
        assert_eq!(
            names(&tls),
            Some([("tls.crt", b"a".to_vec()), ("tls.key", b"b".to_vec())])
        );
        assert_eq!(tls.authorities().map(|(roots, _)| roots.0), Some("ca.crt"));
        let general = read("{stringData: {cert: a, key: b, cacert: c, crl: d, other: e}}");
        let general = general.expect("a Secret");
        assert_eq!(names(&general).map(|[one, _]| one.0), Some("cert"));
        let (roots, revoked) = general.authorities().expect("authorities");
        assert_eq!(
            (roots.0, revoked.map(|part| part.0)),
            ("cacert", Some("crl"))
        );
        let half = read("{stringData: {tls.crt: a, tls.key: \"\", ca.crl: d}}").expect("a Secret");
        assert_eq!((names(&half), half.authorities()), (None, None));
    }

    #[test]
    fn what_is_wrong_is_said_and_no_secret_is() {
        for (text, field, reason) in [
            ("{data: hush}", "data", "is not a mapping"),
            (
                "{data: {tls.key: hu-sh}}",
                "data[tls.key]",
                "is not base64 (RFC 4648)",
            ),
            (
                "{stringData: {key: 5}}",
                "stringData[key]",
                "must be a text",
            ),
        ] {
            assert_eq!(
                read(text),
                Err((field.to_owned(), reason.to_owned())),
                "{text}"
            );
        }
        let shown = format!("{:?}", read("{stringData: {key: hush}}"));
        assert!(!shown.contains("hush"), "{shown}");
    }
}
