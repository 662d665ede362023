//! One immutable state of the whole configuration. The data path holds a
//! snapshot per connection or request and never a lock.

use std::sync::Arc;

use ipnet::IpNet;

use crate::policy::{Authorization, PathNormalization, PeerAuthentications, authorization};
pub use crate::registry::SameNode;
use crate::registry::{Protocol, Registry, Resolution, Served, Service, Workload};
use crate::resource::{Finding, ResourceSet, Severity};
use crate::route::{OutboundPolicy, Routes, Settings, Sources};

/// All that the agent decides by, compiled from the resources.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts the configurations that have been put in force, from 1.
    pub generation: u64,
    /// Workloads, services, endpoints.
    pub registry: Arc<Registry>,
    /// HTTP routes and destination rules.
    pub routes: Arc<Routes>,
    /// PeerAuthentication.
    pub peer_authentication: PeerAuthentications,
    /// AuthorizationPolicy.
    pub authorization: Authorization,
    /// How connections between two workloads of one node travel, where neither says it.
    pub same_node: SameNode,
    /// Fields that are not applied, and the like.
    pub warnings: Vec<Finding>,
}

/// What a configuration does not say about the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// DNS suffix of services.
    pub cluster_domain: String,
    /// Namespace whose security policies apply to the whole mesh.
    pub root_namespace: String,
    /// Further names of the trust domain.
    pub trust_domain_aliases: Vec<String>,
    /// The form in which policies compare paths.
    pub path_normalization: PathNormalization,
    /// How connections between two workloads of one node travel.
    pub same_node: SameNode,
    /// What becomes of connections to what is no service.
    pub outbound_traffic_policy: OutboundPolicy,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            trust_domain_aliases: Vec::new(),
            path_normalization: PathNormalization::default(),
            same_node: SameNode::default(),
            outbound_traffic_policy: OutboundPolicy::default(),
        }
    }
}

impl Snapshot {
    /// Which configuration this is, for what is remembered of endpoints.
    pub fn version(&self) -> crate::balance::Version {
        crate::balance::Version {
            generation: self.generation,
            policies: self.authorization.epoch,
        }
    }

    /// Compiles a configuration. It is refused as a whole, with all findings,
    /// if one of them is an error.
    pub fn compile(
        generation: u64,
        resources: &ResourceSet,
        options: &Options,
    ) -> Result<Self, Vec<Finding>> {
        let cluster_domain = &options.cluster_domain;
        let (registry, of_registry) =
            Registry::compile(resources, &options.trust_domain, cluster_domain);
        let (peer_authentication, of_policy) =
            PeerAuthentications::compile(&resources.peer_authentications, &options.root_namespace);
        let (authorization, of_authorization) = Authorization::compile(
            &resources.authorization_policies,
            &registry,
            &authorization::Options {
                root_namespace: options.root_namespace.clone(),
                trust_domain: options.trust_domain.clone(),
                trust_domain_aliases: options.trust_domain_aliases.clone(),
                path_normalization: options.path_normalization,
            },
        );
        let (routes, of_routes) = Routes::compile(
            &Sources::of(resources),
            &registry,
            &Settings {
                cluster_domain,
                root_namespace: &options.root_namespace,
                outbound: options.outbound_traffic_policy,
            },
        );
        let findings = [
            &resources.warnings,
            &of_registry,
            &of_policy,
            &of_authorization,
            &of_routes,
        ];
        let findings: Vec<Finding> = findings.into_iter().flatten().cloned().collect();
        if findings
            .iter()
            .any(|finding| finding.severity == Severity::Error)
        {
            return Err(findings);
        }
        Ok(Self {
            generation,
            registry: Arc::new(registry),
            routes: Arc::new(routes),
            peer_authentication,
            authorization,
            same_node: options.same_node,
            warnings: findings,
        })
    }

    /// How connections between these two travel on their node: encrypted, where
    /// one of them demands it.
    pub fn same_node(&self, one: &Workload, other: &Workload) -> SameNode {
        let demand = |workload: &Workload| workload.same_node.unwrap_or(self.same_node);
        demand(one).max(demand(other))
    }

    /// Every address that the kernel must hand to the agent, and whether
    /// somebody serves it.
    pub fn destinations(&self) -> Vec<(IpNet, Served)> {
        let networks = self.registry.destinations().into_iter();
        networks
            .map(|network| (network, self.served(network)))
            .collect()
    }

    fn served(&self, network: IpNet) -> Served {
        let is_single = network.prefix_len() == network.max_prefix_len();
        let first = self.registry.by_vip.get(&network.addr());
        let Some(first) = first.filter(|_| is_single) else {
            return Served::BySomebody;
        };
        let shared = self.registry.shared_vips.get(&network.addr());
        let mut services = std::iter::once(first).chain(shared.into_iter().flatten());
        if services.all(|service| self.has_nobody(service)) {
            Served::ByNobody
        } else {
            Served::BySomebody
        }
    }

    /// Where HTTP is declared, the client gets an answer that says so (503, as in Istio).
    fn has_nobody(&self, service: &Service) -> bool {
        let is_http =
            |protocol| matches!(protocol, Protocol::Http | Protocol::Http2 | Protocol::Grpc);
        service.endpoints.is_empty()
            && service.resolution == Resolution::Static
            && !service.ports.iter().any(|port| is_http(port.protocol))
            && !self.routes.may_divert(&service.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::parse;
    use crate::source::directory;

    fn compile(text: &str) -> Result<Snapshot, Vec<Finding>> {
        let resources = parse([("a.yaml", text)]).unwrap();
        Snapshot::compile(7, &resources, &Options::default())
    }

    #[test]
    fn warnings_of_all_stages_are_kept() {
        let snapshot = compile(
            "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n\
             --- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}], selector: {app: a}}}\n\
             --- {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: istio-system}, \
                  spec: {selector: {matchLabels: {app: a}}}}\n",
        )
        .unwrap();
        assert_eq!(snapshot.generation, 7);
        let fields: Vec<_> = snapshot.warnings.iter().map(|w| w.field.as_str()).collect();
        assert_eq!(fields, ["kind", "spec.selector", "spec.selector"]);
    }

    #[test]
    fn one_error_refuses_the_whole() {
        let findings = compile(
            "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: a}, spec: {address: 10.0.0.1}}\n\
             --- {apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: b}, spec: {address: 10.0.0.1}}\n",
        )
        .unwrap_err();
        assert_eq!(findings[0].severity, Severity::Error);
        assert_eq!(findings[0].object, "WorkloadEntry default/b");
    }

    #[test]
    fn only_services_that_nobody_serves_and_no_route_diverts_are_marked() {
        let service = |name: &str, host: u8, port: &str, extra: &str| {
            format!(
                "--- {{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: 10.96.0.{host}, \
                 ports: [{port}], selector: {{app: {name}}}}}}}\n{extra}"
            )
        };
        let text = [
            service("dead", 1, "{port: 5432, name: tcp}", ""),
            service("http", 2, "{port: 80, name: http}", ""),
            service("diverted", 3, "{port: 5432, name: tcp}",
                "--- {apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: d}, spec: {hosts: [diverted], \
                 tcp: [{route: [{destination: {host: alive}}]}]}}\n"),
            service("alive", 4, "{port: 5432, name: tcp}",
                "--- {apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: w}, spec: {address: 10.0.0.1, \
                 labels: {app: alive}}}\n"),
        ]
        .concat();
        let nobody: Vec<_> = compile(&text)
            .unwrap()
            .destinations()
            .into_iter()
            .filter(|(_, served)| *served == Served::ByNobody)
            .map(|(network, _)| network.to_string())
            .collect();
        assert_eq!(nobody, ["10.96.0.1/32"]);
    }

    /// The example that people start with must be without a finding.
    #[test]
    fn the_example_compiles() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/bookinfo/mesh");
        let resources = directory::load(dir.as_ref()).unwrap();
        let snapshot = Snapshot::compile(1, &resources, &Options::default()).unwrap();
        assert_eq!(snapshot.warnings, []);
        let services = &snapshot.registry.services;
        assert!(services.iter().any(|service| service.name == "reviews"));
        assert!(services.iter().all(|service| !service.endpoints.is_empty()));
    }
}
