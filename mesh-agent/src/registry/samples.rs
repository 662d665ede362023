//! Registries for the tests of the modules that read one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::identity::Identity;

/// A workload in the mesh.
pub fn workload(name: &str, namespace: &str, addresses: &[&str]) -> Workload {
    Workload {
        name: WorkloadName {
            name: name.into(),
            namespace: namespace.into(),
        },
        labels: Arc::default(),
        identity: Identity {
            trust_domain: "cluster.local".into(),
            namespace: namespace.into(),
            service_account: name.into(),
        },
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ports: BTreeMap::new(),
        node: None,
        placement: Some(Placement::Netns(name.to_owned())),
        when_agent_is_down: None,
        direct: false,
        short_circuit: None,
        same_node: None,
        tunnel: Tunnel::Hbone,
        locality: String::new(),
        weight: 1,
        origin: "samples.yaml, document 1".to_owned(),
    }
}

/// A Kubernetes service with (port, target port) pairs, HTTP by name.
pub fn service(
    name: &str,
    namespace: &str,
    vips: &[&str],
    ports: &[(u16, u16)],
    workloads: &[Arc<Workload>],
) -> Service {
    let endpoints = workloads
        .iter()
        .flat_map(|workload| {
            workload.addresses.iter().map(|&address| {
                Arc::new(Endpoint {
                    address: Some(address),
                    host: None,
                    ports: ports.iter().copied().collect(),
                    labels: workload.labels.clone(),
                    locality: workload.locality.clone(),
                    weight: workload.weight,
                    unhealthy: None,
                    workload: Some(workload.clone()),
                })
            })
        })
        .collect();
    Service {
        host: format!("{name}.{namespace}.svc.cluster.local"),
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        vips: vips.iter().map(|text| text.parse().unwrap()).collect(),
        headless: vips.is_empty(),
        ports: ports
            .iter()
            .map(|&(number, _)| ServicePort {
                name: format!("http-{number}"),
                number,
                protocol: Protocol::Http,
            })
            .collect(),
        endpoints,
        location: Location::MeshInternal,
        resolution: Resolution::Static,
        subject_alt_names: Vec::new(),
        distribution: Default::default(),
        external_ips: Vec::new(),
        session_affinity: None,
        visibility: Default::default(),
        origin: "samples.yaml, document 1".to_owned(),
    }
}

/// A service outside of the mesh, reached by DNS.
pub fn external(host: &str, vips: &[&str]) -> Service {
    Service {
        host: host.to_owned(),
        headless: false,
        location: Location::MeshExternal,
        resolution: Resolution::Dns,
        ..service("external", "default", vips, &[(443, 443)], &[])
    }
}

/// A registry of these, indexed.
pub fn registry(workloads: Vec<Arc<Workload>>, services: Vec<Service>) -> Registry {
    let services: Vec<Arc<Service>> = services.into_iter().map(Arc::new).collect();
    Registry {
        cluster_domain: "cluster.local".to_owned(),
        by_host: services
            .iter()
            .map(|service| (service.host.clone(), service.clone()))
            .collect(),
        by_vip: services
            .iter()
            .flat_map(|service| service.vips.iter().map(|&vip| (vip, service.clone())))
            .collect(),
        by_address: workloads
            .iter()
            .flat_map(|workload| {
                workload
                    .addresses
                    .iter()
                    .map(|&address| (address, workload.clone()))
            })
            .collect(),
        workloads,
        services,
        ..Registry::default()
    }
}

/// `sleep`, `reviews` (two workloads, both families), headless `db`, and names outside of the mesh.
pub fn bookinfo() -> Registry {
    let workloads: Vec<Arc<Workload>> = [
        workload("sleep", "default", &["10.0.0.1"]),
        workload("reviews-v1", "default", &["10.0.0.2"]),
        workload("reviews-v2", "default", &["10.0.0.3"]),
        workload("db-0", "data", &["10.0.0.4", "fd00::4"]),
        workload("db-1", "data", &["10.0.0.5", "fd00::5"]),
    ]
    .into_iter()
    .map(Arc::new)
    .collect();
    let services = vec![
        service(
            "reviews",
            "default",
            &["10.96.0.1", "fd00:96::1"],
            &[(80, 8080)],
            &workloads[1..3],
        ),
        service("ratings", "other", &["10.96.0.2"], &[(9080, 9080)], &[]),
        service("db", "data", &[], &[(5432, 5432)], &workloads[3..]),
        external("api.example.com", &["240.240.0.1"]),
        external("*.wild.example.com", &["240.240.0.2"]),
        external("plain.example.org", &[]),
    ];
    registry(workloads, services)
}
