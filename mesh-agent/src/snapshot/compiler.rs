//! From resources to a snapshot. A change compiles only what it touches.

use std::sync::Arc;

use super::{Options, Snapshot, across};
use crate::policy::{authorization, peer_authentication};
use crate::resource::{Finding, ResourceSet, Severity};
use crate::route::{Settings, Sources};
use crate::telemetry::Rules;
use crate::{registry, route};

/// Compiles one configuration after the other: what a resource has become stays, until it
/// or something that it depends on changes.
#[derive(Debug)]
pub struct Compiler {
    options: Options,
    registry: registry::Compiler,
    routes: route::Compiler,
    peer_authentication: peer_authentication::Compiler,
    authorization: authorization::Compiler,
    made: Made,
}

/// How much of a configuration the last compilation had to compile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Workloads and services.
    pub registry: registry::Made,
    /// VirtualServices and DestinationRules.
    pub routes: route::Made,
    /// PeerAuthentications and AuthorizationPolicies.
    pub policies: usize,
}

impl Compiler {
    /// One that has compiled nothing yet.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            registry: registry::Compiler::default(),
            routes: route::Compiler::default(),
            peer_authentication: peer_authentication::Compiler::default(),
            authorization: authorization::Compiler::default(),
            made: Made::default(),
        }
    }

    /// How much the last compilation had to compile.
    pub fn made(&self) -> Made {
        self.made
    }

    /// Compiles a configuration. The result is the same as if nothing had been compiled
    /// before.
    ///
    /// # Errors
    /// It is refused as a whole, with all findings, if one of them is an error.
    pub fn compile(
        &mut self,
        generation: u64,
        resources: &ResourceSet,
    ) -> Result<Snapshot, Vec<Finding>> {
        let options = &self.options;
        let cluster_domain = &options.cluster_domain;
        let (registry, of_registry, registry_made) =
            (self.registry).compile(resources, &options.trust_domain, cluster_domain);
        let (peer_authentication, of_policy, peer_made) = (self.peer_authentication)
            .compile(&resources.peer_authentications, &options.root_namespace);
        let (routes, of_routes, routes_made) = self.routes.compile(
            &Sources::of(resources),
            &registry,
            &Settings {
                cluster_domain,
                root_namespace: &options.root_namespace,
                outbound: options.outbound_traffic_policy,
            },
        );
        let (authorization, of_authorization, authorization_made) = self.authorization.compile(
            &resources.authorization_policies,
            &registry,
            routes.ingress_protocols(&registry),
            &authorization::Options {
                root_namespace: options.root_namespace.clone(),
                trust_domain: options.trust_domain.clone(),
                trust_domain_aliases: options.trust_domain_aliases.clone(),
                path_normalization: options.path_normalization,
            },
        );
        let (telemetry, of_telemetry) =
            Rules::compile(&resources.telemetries, &registry, &options.root_namespace);
        self.made = Made {
            registry: registry_made,
            routes: routes_made,
            policies: peer_made + authorization_made,
        };
        let across = across::check(
            resources,
            &registry,
            &peer_authentication,
            &options.root_namespace,
            cluster_domain,
        );
        let findings = [
            &resources.warnings,
            &of_registry,
            &of_policy,
            &of_authorization,
            &of_routes,
            &of_telemetry,
            &across,
        ];
        let findings: Vec<Finding> = findings.into_iter().flatten().cloned().collect();
        if findings
            .iter()
            .any(|finding| finding.severity == Severity::Error)
        {
            return Err(findings);
        }
        Ok(Snapshot {
            generation,
            registry,
            routes: Arc::new(routes),
            peer_authentication,
            authorization,
            telemetry: Arc::new(telemetry),
            same_node: options.same_node,
            warnings: findings,
        })
    }
}
