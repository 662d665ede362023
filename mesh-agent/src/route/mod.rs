//! Istio `VirtualService` and `DestinationRule`, compiled to one small model
//! and matched without I/O. Other kinds of routes (Gateway API) compile into
//! the same model: hosts, rules in order, weighted targets.

mod compile;
mod decide;
mod edit;
mod hosts;
mod matching;
mod model;
mod policy;
mod redirect;
mod retry;
mod tcp;

pub use decide::{Abort, ClientView, Decision, Outcome, Plan, RequestView, Unroutable};
pub use edit::{HeaderEdits, Rewritten};
pub use hosts::{host_of, resolve_host};
pub use model::DirectResponse;
pub use policy::{Algorithm, DestinationRule, Subset, UpstreamPolicy, UpstreamTls};
pub use redirect::Redirection;
pub use retry::{Retries, RetryOn};
pub use tcp::TcpDecision;

use crate::registry::Service;
use hosts::HostTable;
use model::VirtualHost;
use policy::DestinationRules;

/// Namespace whose DestinationRules are for all, Istio's `meshConfig.rootNamespace`.
pub const ROOT_NAMESPACE: &str = "istio-system";

/// All routes and destination rules, compiled.
#[derive(Debug, Default)]
pub struct Routes {
    cluster_domain: String,
    virtual_hosts: HostTable<VirtualHost>,
    destination_rules: DestinationRules,
}

impl Routes {
    /// The DestinationRule that a client's connections to a service follow.
    pub fn destination_rule(
        &self,
        client: &ClientView<'_>,
        service: &Service,
    ) -> Option<&DestinationRule> {
        self.destination_rules.find(client, service)
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
