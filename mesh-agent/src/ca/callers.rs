//! Who asks for a certificate, and for which identities.

use std::sync::Arc;

use http::{HeaderMap, header};

use super::kubernetes::{Account, ApiError, ApiServer};
use super::status::Status;
use super::tokens::TokenFile;
use crate::identity::Identity;

/// Knows who may ask.
pub struct Callers {
    /// Tokens of a file.
    pub tokens: Arc<TokenFile>,
    /// Tokens of service accounts.
    pub api_server: Option<ApiServer>,
    /// Service accounts of node agents, `(namespace, name)`: they may ask for all that run beside them.
    pub node_accounts: Vec<(String, String)>,
    /// Trust domain of service accounts.
    pub trust_domain: String,
}

/// Somebody who has shown who it is.
pub struct Caller {
    /// Identities that it may have in any case, the first by default.
    own: Vec<Identity>,
    /// A node's agent.
    agent: Option<Account>,
}

impl Callers {
    /// Who asks: by the certificate that it `proven`ly has, and by its token.
    ///
    /// # Errors
    /// Where it is nobody.
    pub async fn caller(
        &self,
        proven: Option<Identity>,
        headers: &HeaderMap,
    ) -> Result<Caller, Status> {
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(str::trim);
        let tokens = self.tokens.current();
        let of_token = token.map_or(&[][..], |token| tokens.identities(token));
        let mut caller = Caller {
            own: of_token.iter().cloned().chain(proven).collect(),
            agent: None,
        };
        if let (Some(token), Some(api_server), true) =
            (token, &self.api_server, of_token.is_empty())
        {
            match api_server.review(token).await {
                Ok(account) => {
                    caller.own.insert(0, self.identity(&account));
                    caller.agent = Some(account).filter(|account| self.is_agent(account));
                }
                // Whoever has a certificate needs no token.
                Err(ApiError::NotAuthenticated(_)) if !caller.own.is_empty() => {}
                Err(error) => return Err(error.into()),
            }
        }
        if caller.own.is_empty() {
            let reason = "neither a certificate of the mesh nor a token that is known";
            return Err(Status(Status::UNAUTHENTICATED, reason.to_owned()));
        }
        Ok(caller)
    }

    /// The identity that `caller` gets, where it `wanted` one or did not say.
    ///
    /// # Errors
    /// Where it may not have it.
    pub async fn chosen(&self, caller: &Caller, wanted: Option<&str>) -> Result<Identity, Status> {
        let denied = |why: &str| {
            let wanted = wanted.unwrap_or_default();
            Status(
                Status::PERMISSION_DENIED,
                format!("who asks may not be {wanted}{why}"),
            )
        };
        let Some(text) = wanted else {
            return caller.own.first().cloned().ok_or_else(|| denied(""));
        };
        if let Some(own) = caller.own.iter().find(|own| own.to_string() == text) {
            return Ok(own.clone());
        }
        let (Some(agent), Some(api_server)) = (&caller.agent, &self.api_server) else {
            return Err(denied(""));
        };
        let wanted: Identity = text.parse().map_err(|_| denied(""))?;
        let (namespace, account) = (&wanted.namespace, &wanted.service_account);
        if *wanted.trust_domain != *self.trust_domain
            || !api_server.is_beside(agent, namespace, account).await?
        {
            return Err(denied(": no pod of it is on the node"));
        }
        Ok(wanted)
    }

    fn identity(&self, account: &Account) -> Identity {
        Identity {
            trust_domain: self.trust_domain.as_str().into(),
            namespace: account.namespace.as_str().into(),
            service_account: account.name.as_str().into(),
        }
    }

    fn is_agent(&self, account: &Account) -> bool {
        let is_same = |(namespace, name): &(String, String)| {
            *namespace == account.namespace && *name == account.name
        };
        self.node_accounts.iter().any(is_same)
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let code = match error {
            ApiError::NotAuthenticated(_) => Self::UNAUTHENTICATED,
            ApiError::NoAnswer { .. } => Self::UNAVAILABLE,
        };
        Self(code, error.to_string())
    }
}
