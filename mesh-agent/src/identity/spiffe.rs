//! SPIFFE identities in the form that Istio uses.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`
/// (SPIFFE-ID specification, section 2; path as in Istio).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Trust domain, `cluster.local` unless the operator names another.
    pub trust_domain: Arc<str>,
    /// Namespace of the workload.
    pub namespace: Arc<str>,
    /// Service account of the workload.
    pub service_account: Arc<str>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

/// A text that is not a SPIFFE identity of the Istio form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct ParseIdentityError(pub String);

impl FromStr for Identity {
    type Err = ParseIdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.strip_prefix("spiffe://")?.split('/');
            let trust_domain = parts.next()?;
            let ("ns", namespace) = (parts.next()?, parts.next()?) else {
                return None;
            };
            let ("sa", service_account) = (parts.next()?, parts.next()?) else {
                return None;
            };
            if parts.next().is_some()
                || [trust_domain, namespace, service_account]
                    .iter()
                    .any(|part| part.is_empty())
            {
                return None;
            }
            Some(Self {
                trust_domain: trust_domain.into(),
                namespace: namespace.into(),
                service_account: service_account.into(),
            })
        };
        parse().ok_or_else(|| ParseIdentityError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_what_it_prints() {
        let text = "spiffe://cluster.local/ns/default/sa/reviews";
        assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "spiffe://",
            "https://a/ns/b/sa/c",
            "spiffe://a/ns//sa/c",
            "spiffe://a/ns/b/sa/c/d",
            "spiffe://a/sa/c/ns/b",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
