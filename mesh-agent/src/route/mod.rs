//! Istio `VirtualService` and `DestinationRule`, compiled to one small model
//! and matched without I/O. Other kinds of routes (Gateway API) compile into
//! the same model: hosts, rules in order, weighted targets.

mod compile;
mod cors;
mod decide;
mod delegate;
pub mod direct;
mod edit;
mod explain;
pub(crate) mod format;
mod hashing;
mod hosts;
mod ingress;
mod locality;
mod matching;
mod model;
mod plan;
mod policy;
mod redirect;
mod retry;
mod sidecar;
mod tcp;
mod tls;
mod upstream_policy;
mod view;

pub use compile::{Compiler, Made};
pub use cors::Allowed;
pub use decide::{Abort, Decision, Outcome};
pub use edit::Rewritten;
pub use explain::{DestinationNote, Explanation, RuleNote};
pub use hashing::{Cookie, HashKey, HashPolicy, HashTable};
pub use hosts::{expand, host_of};
pub use ingress::{InboundLimits, InboundPort};
pub use locality::{LocalitySetting, Shares, lies_in};
pub use model::{DirectResponse, RouteLimits, Target};
pub use plan::{Plan, Unroutable};
pub use policy::{DestinationRule, Subset};
pub use redirect::Redirection;
pub use retry::{AskedRetries, Retries, RetryOn};
pub use sidecar::OutboundPolicy;
pub use tcp::TcpDecision;
pub use upstream_policy::{
    Algorithm, Balancer, HttpLimits, HttpTunnel, Keepalive, LatencyPolicy, OutlierPolicy, Pem,
    ProtocolPolicy, RetryBudget, SuccessRatePolicy, TcpLimits, TlsOrigination, UpstreamPolicy,
    UpstreamTls, Warmup,
};
pub use view::{ClientView, Facts, RequestView};

use std::sync::Arc;

use crate::registry::Service;
use crate::resource::{
    DestinationRuleSpec, Resource, ResourceSet, SecretSpec, SidecarSpec, VirtualServiceSpec,
};
use hosts::HostTable;
use model::VirtualHost;
use policy::DestinationRules;
use sidecar::Sidecars;

/// Resources that routes are compiled from, each kind in order of age, the oldest first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// Istio `VirtualService`.
    pub virtual_services: &'a [Arc<Resource<VirtualServiceSpec>>],
    /// Istio `DestinationRule`.
    pub destination_rules: &'a [Arc<Resource<DestinationRuleSpec>>],
    /// Istio `Sidecar`.
    pub sidecars: &'a [Arc<Resource<SidecarSpec>>],
    /// Kubernetes `Secret`.
    pub secrets: &'a [Arc<Resource<SecretSpec>>],
}

impl<'a> Sources<'a> {
    /// Those of a configuration.
    pub fn of(set: &'a ResourceSet) -> Self {
        Self {
            virtual_services: &set.virtual_services,
            destination_rules: &set.destination_rules,
            sidecars: &set.sidecars,
            secrets: &set.secrets,
        }
    }
}

/// What resources do not say about the mesh.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// DNS suffix of services.
    pub cluster_domain: &'a str,
    /// Namespace whose DestinationRules and Sidecar are for all (Istio's `meshConfig.rootNamespace`).
    pub root_namespace: &'a str,
    /// What becomes of connections to what is no service (Istio's `meshConfig.outboundTrafficPolicy`).
    pub outbound: OutboundPolicy,
}

/// All routes and destination rules, compiled.
#[derive(Debug, Default)]
pub struct Routes {
    cluster_domain: String,
    virtual_hosts: HostTable<VirtualHost>,
    destination_rules: DestinationRules,
    sidecars: Sidecars,
}

impl Routes {
    /// Whether a VirtualService may send connections to this host (fully
    /// qualified, in lower case) elsewhere.
    pub fn may_divert(&self, host: &str) -> bool {
        self.virtual_hosts.find(host).next().is_some()
    }

    /// The DestinationRule that a client's connections to a service follow.
    pub fn destination_rule(
        &self,
        client: &ClientView<'_>,
        service: &Service,
    ) -> Option<&DestinationRule> {
        self.destination_rules.find(client, service)
    }

    /// Whether a VirtualService has rules, of any protocol, for a client's connections to `host`.
    fn has_rules_for(&self, host: &str, client: &ClientView<'_>) -> bool {
        self.rules_of(host, client)
            .is_some_and(|rules| rules.http_is_for(client) || rules.tcp_is_for(client))
    }
}

#[cfg(test)]
impl Routes {
    /// All of it, in an order that does not depend on chance.
    pub(crate) fn inspect(&self) -> Vec<String> {
        let mut shown = self.virtual_hosts.inspect();
        for (namespace, rules) in &self.destination_rules.namespaces {
            let rules = rules.inspect().into_iter();
            shown.extend(rules.map(|rule| format!("{namespace} {rule}")));
        }
        shown.sort();
        shown
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
