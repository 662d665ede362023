//! What a DestinationRule means by `credentialName`: Secrets of its namespace.

use std::collections::HashMap;
use std::sync::Arc;

use super::Pem;
use crate::memo::Same;
use crate::resource::destination_rule::{ClientTls, TlsMode};
use crate::resource::{Kept, Resource, SecretSpec};

/// What Istio appends to the name for the authorities, where they stand apart.
const AUTHORITIES: &str = "-cacert";

/// All Secrets by namespace and name.
#[derive(Default)]
pub(in crate::route) struct Credentials<'a> {
    secrets: HashMap<(&'a str, &'a str), &'a Arc<Resource<SecretSpec>>>,
}

/// The Secrets that a name stands for, as they are now.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(in crate::route) struct Named {
    own: Option<Same<Resource<SecretSpec>>>,
    authorities: Option<Same<Resource<SecretSpec>>>,
}

/// What TLS is made with.
#[derive(Default)]
pub(in crate::route) struct Credential {
    pub(super) certificate: Option<(Pem, Pem)>,
    pub(super) authorities: Option<Pem>,
    pub(super) revoked: Option<Pem>,
}

impl<'a> Credentials<'a> {
    pub(in crate::route) fn new(secrets: &'a [Arc<Resource<SecretSpec>>]) -> Self {
        let entry = |secret: &'a Arc<Resource<SecretSpec>>| {
            let meta = &secret.meta;
            ((&*meta.namespace, &*meta.name), secret)
        };
        Self {
            secrets: secrets.iter().map(entry).collect(),
        }
    }

    fn get(&self, namespace: &str, name: &str) -> Option<&'a Arc<Resource<SecretSpec>>> {
        self.secrets.get(&(namespace, name)).copied()
    }

    /// What a compilation depends on that uses this name.
    pub(in crate::route) fn named(&self, namespace: &str, name: &str) -> Named {
        let authorities = format!("{name}{AUTHORITIES}");
        Named {
            own: self.get(namespace, name).map(Same::new),
            authorities: self.get(namespace, &authorities).map(Same::new),
        }
    }

    /// What a block asks for, where it names a Secret, or why it cannot have it.
    pub(in crate::route) fn of(
        &self,
        namespace: &str,
        tls: &ClientTls,
    ) -> Option<Result<Credential, String>> {
        let name = tls.credential_name.as_deref()?;
        let is_mutual = match tls.mode {
            TlsMode::Simple => false,
            TlsMode::Mutual => true,
            TlsMode::Disable | TlsMode::IstioMutual => return None,
        };
        let verifies = tls.insecure_skip_verify != Some(true);
        Some(self.find(namespace, name, is_mutual, verifies))
    }

    fn find(
        &self,
        namespace: &str,
        name: &str,
        is_mutual: bool,
        verifies: bool,
    ) -> Result<Credential, String> {
        let own = self.get(namespace, name);
        let mut credential = Credential::default();
        if is_mutual {
            let secret = own.ok_or_else(|| missing(namespace, name))?;
            let [chain, key] = secret.spec.certificate().ok_or_else(|| {
                format!(
                    "Secret {namespace}/{name} has neither tls.crt and tls.key nor cert and key"
                )
            })?;
            credential.certificate = Some((pem(secret, chain), pem(secret, key)));
        }
        if verifies {
            let apart = self.get(namespace, &format!("{name}{AUTHORITIES}"));
            let secret = apart.or(own).ok_or_else(|| missing(namespace, name))?;
            let (roots, revoked) = secret.spec.authorities().ok_or_else(|| {
                let name = &secret.meta.name;
                format!("Secret {namespace}/{name} has neither ca.crt nor cacert")
            })?;
            credential.authorities = Some(pem(secret, roots));
            credential.revoked = revoked.map(|part| pem(secret, part));
        }
        Ok(credential)
    }
}

fn missing(namespace: &str, name: &str) -> String {
    format!("there is no Secret {namespace}/{name}")
}

fn pem(secret: &Resource<SecretSpec>, (part, bytes): (&str, &Kept)) -> Pem {
    let meta = &secret.meta;
    let name = format!("Secret {}/{}, {part}", meta.namespace, meta.name);
    Pem::Secret(name.into(), bytes.clone())
}
