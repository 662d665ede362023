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
pub use policy::{Algorithm, Subset, UpstreamPolicy, UpstreamTls};
pub use redirect::Redirection;
pub use retry::{Retries, RetryOn};
pub use tcp::TcpDecision;

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

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
