//! From resources to routes: each resource by itself, then all together.

mod checks;
mod rules;

use std::sync::Arc;

use super::model::{Rules, VirtualHost};
use super::policy::{self, DestinationRules};
use super::sidecar::Sidecars;
use super::upstream_policy::Credentials;
use super::{Routes, Settings, Sources, delegate, hosts};
use crate::memo::{Memo, Same};
use crate::registry::Registry;
use crate::resource::{Finding, Resource, VirtualServiceSpec};

/// Compiles routes, and remembers what it has made of which resource.
#[derive(Debug, Default)]
pub struct Compiler {
    delegates: delegate::Merged,
    rules: Memo<Same<Resource<VirtualServiceSpec>>, Arc<Rules>>,
    destination_rules: policy::Compiled,
}

/// How much of a configuration the last compilation had to compile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// VirtualServices.
    pub virtual_services: usize,
    /// Hosts of DestinationRules.
    pub destination_rules: usize,
}

impl Compiler {
    /// Compiles resources that have been validated, always with the same settings. Resources
    /// stand in order of age, the oldest first. The findings are warnings: about hosts that
    /// belong to an older resource and names that nothing defines.
    pub fn compile(
        &mut self,
        sources: &Sources<'_>,
        registry: &Registry,
        settings: &Settings<'_>,
    ) -> (Routes, Vec<Finding>, Made) {
        let &Sources {
            virtual_services,
            destination_rules,
            sidecars,
            secrets,
        } = sources;
        let &Settings {
            cluster_domain,
            root_namespace,
            outbound,
        } = settings;
        let mut findings = Vec::new();
        let virtual_services =
            self.delegates
                .resolve(virtual_services, cluster_domain, &mut findings);
        let mut routes = Routes {
            cluster_domain: cluster_domain.to_owned(),
            destination_rules: DestinationRules::compile(
                destination_rules,
                &Credentials::new(secrets),
                cluster_domain,
                root_namespace,
                &mut self.destination_rules,
                &mut findings,
            ),
            sidecars: Sidecars::compile(
                sidecars,
                registry,
                root_namespace,
                outbound,
                &mut findings,
            ),
            ..Routes::default()
        };
        for resource in destination_rules {
            checks::check_rule(resource, registry, cluster_domain, &mut findings);
        }
        for resource in virtual_services.iter() {
            let gateways = &resource.spec.gateways;
            if gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh") {
                let rules = (self.rules).get(Same::new(resource), || {
                    Arc::new(rules::compile(resource, cluster_domain))
                });
                routes.add(resource, &rules, &mut findings);
            }
        }
        for resource in virtual_services.iter() {
            routes.check_destinations(resource, registry, &mut findings);
        }
        let made = Made {
            virtual_services: self.rules.end(),
            destination_rules: self.destination_rules.end(),
        };
        self.delegates.end();
        (routes, findings, made)
    }
}

impl Routes {
    /// Makes rules those of their hosts, as far as no older ones are.
    fn add(
        &mut self,
        resource: &Resource<VirtualServiceSpec>,
        rules: &Arc<Rules>,
        findings: &mut Vec<Finding>,
    ) {
        let meta = &resource.meta;
        for (i, host) in resource.spec.hosts.iter().enumerate() {
            let host = hosts::expand(host, &meta.namespace, &self.cluster_domain);
            let owners = self.virtual_hosts.entry(&host);
            let mut older = owners.iter().map(|owner| &owner.0);
            if let Some(owner) = older.find(|owner| owner.visibility.includes(&meta.namespace)) {
                let reason = format!(
                    "has no effect: {host} belongs to the older {}",
                    owner.origin
                );
                let field = format!("spec.hosts[{i}]");
                findings.push(Finding::warning(meta, field, reason).with_code("IST0109"));
            }
            owners.push(VirtualHost(Arc::clone(rules)));
        }
    }
}
