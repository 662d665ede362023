//! Resources and services for tests.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::{Compiler, OutboundPolicy, Routes, Settings, Sources};
use crate::registry::{Endpoint, Location, Protocol, Registry, Resolution, Service, ServicePort};
use crate::resource::destination_rule::{self, DestinationRuleSpec};
use crate::resource::sidecar::SidecarSpec;
use crate::resource::virtual_service::{self, VirtualServiceSpec};
use crate::resource::{Finding, Meta, Origin, Resource, Severity};

/// A resource `namespace/name` with this spec.
pub(crate) fn resource<S: DeserializeOwned>(
    kind: &'static str,
    name: &str,
    spec: &str,
) -> Resource<S> {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    Resource {
        meta: Arc::new(Meta {
            kind,
            name: name.into(),
            namespace: namespace.into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            origin: Origin {
                file: "test.yaml".into(),
                document: 1,
            },
        }),
        spec: serde_saphyr::from_str(spec).unwrap_or_else(|error| panic!("{spec}\n{error}")),
    }
}

/// A service `name.namespace` with ports (80 is HTTP on 8080 unless said) and endpoints with a version label.
pub(crate) fn service(
    name: &str,
    ports: &[(u16, Protocol)],
    endpoints: &[(SocketAddr, &str)],
) -> Arc<Service> {
    let (name, namespace) = name.split_once('.').expect("name.namespace");
    let endpoint = |(address, version): &(SocketAddr, &str)| {
        Arc::new(Endpoint {
            address: Some(address.ip()),
            host: None,
            ports: ports
                .iter()
                .map(|(port, _)| (*port, address.port()))
                .collect(),
            labels: Arc::new([("version".to_owned(), (*version).to_owned())].into()),
            locality: String::new(),
            weight: 1,
            unhealthy: None,
            workload: None,
        })
    };
    Arc::new(Service {
        host: format!("{name}.{namespace}.svc.cluster.local"),
        name: name.into(),
        namespace: namespace.into(),
        vips: Vec::new(),
        headless: false,
        ports: ports
            .iter()
            .map(|(number, protocol)| ServicePort {
                name: String::new(),
                number: *number,
                protocol: *protocol,
            })
            .collect(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        location: Location::MeshInternal,
        resolution: Resolution::Static,
        subject_alt_names: Vec::new(),
        distribution: Default::default(),
        external_ips: Vec::new(),
        session_affinity: None,
        visibility: Default::default(),
        origin: String::new(),
    })
}

/// A registry of these services.
pub(crate) fn registry(services: Vec<Arc<Service>>) -> Registry {
    Registry {
        cluster_domain: "cluster.local".into(),
        by_host: services
            .iter()
            .map(|service| (service.host.clone(), Arc::clone(service)))
            .collect(),
        by_vip: HashMap::new(),
        services,
        ..Registry::default()
    }
}

/// A mesh as it is where nobody says anything.
pub(crate) const SETTINGS: Settings<'_> = Settings {
    cluster_domain: "cluster.local",
    root_namespace: "istio-system",
    outbound: OutboundPolicy::AllowAny,
};

/// Compiles Sidecars that have no errors.
pub(crate) fn routes_of_sidecars(sidecars: Vec<Resource<SidecarSpec>>) -> Routes {
    let sidecars: Vec<_> = sidecars.into_iter().map(Arc::new).collect();
    let sources = Sources {
        sidecars: &sidecars,
        ..Sources::default()
    };
    let compiled = Compiler::default().compile(&sources, &Registry::default(), &SETTINGS);
    compiled.0
}

/// Compiles resources, written as (`namespace/name`, spec), that have no errors.
pub(crate) fn routes(
    registry: &Registry,
    virtual_services: &[(&str, &str)],
    destination_rules: &[(&str, &str)],
) -> (Routes, Vec<Finding>) {
    let virtual_services: Vec<Arc<Resource<VirtualServiceSpec>>> = virtual_services
        .iter()
        .map(|(name, spec)| Arc::new(resource("VirtualService", name, spec)))
        .collect();
    let destination_rules: Vec<Arc<Resource<DestinationRuleSpec>>> = destination_rules
        .iter()
        .map(|(name, spec)| Arc::new(resource("DestinationRule", name, spec)))
        .collect();
    let findings = virtual_services
        .iter()
        .flat_map(|resource| virtual_service::validate(resource))
        .chain(
            destination_rules
                .iter()
                .flat_map(|resource| destination_rule::validate(resource)),
        );
    for finding in findings {
        assert_eq!(finding.severity, Severity::Warning, "{finding}");
    }
    let sources = Sources {
        virtual_services: &virtual_services,
        destination_rules: &destination_rules,
        sidecars: &[],
        secrets: &[],
    };
    let (routes, findings, _) = Compiler::default().compile(&sources, registry, &SETTINGS);
    (routes, findings)
}
