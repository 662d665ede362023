//! What an address means to a client: a service that it sees, a workload, or
//! nothing that the mesh knows.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::registry::{Location, Protocol, Service, Workload};
use crate::route::{ClientView, OutboundPolicy};
use crate::snapshot::Snapshot;

/// What a client's connection to an address is for.
#[derive(Debug, PartialEq)]
pub(super) enum Meant {
    /// A port of a service.
    Port(Arc<Service>, Protocol),
    /// A service that has no such port.
    NoSuchPort(Arc<Service>),
    /// No service has the address: one whose name the client says, else this.
    Unknown(Arc<Service>),
}

/// Finds out what `client` means by an address.
pub(super) fn meant(snapshot: &Snapshot, client: &Workload, destination: SocketAddr) -> Meant {
    let (registry, routes) = (&snapshot.registry, &snapshot.routes);
    let view = ClientView::of(client);
    let port = destination.port();
    let sees = |service: &Service| routes.sees(&view, service, port);
    let found = registry.service_for_client(destination, |service| {
        // A service that lacks the port is named as such, not taken for unknown.
        match service.port(port) {
            Some(_) => sees(service),
            None => routes.sees_some_of(&view, service),
        }
    });
    if let Some(service) = found {
        return match service.port(port) {
            Some(own) => Meant::Port(service.clone(), own.protocol),
            None => Meant::NoSuchPort(service.clone()),
        };
    }
    let policy = routes.outbound_policy(&view);
    let serving = registry.by_endpoint.get(&destination.ip());
    let mut serving = serving.into_iter().flatten().filter(|service| {
        sees_endpoint(service, destination) && routes.sees_some_of(&view, service)
    });
    // Whoever may call only services may call the members of those that are called by their
    // members' addresses.
    let is_meant = match policy {
        OutboundPolicy::RegistryOnly => serving.any(|service| service.headless),
        OutboundPolicy::AllowAny => !routes.is_restricted(&view) || serving.next().is_some(),
    };
    let workload = registry.workload_at(destination.ip()).filter(|_| is_meant);
    if is_meant && (workload.is_some() || policy == OutboundPolicy::RegistryOnly) {
        let itself = Service::passthrough(destination, workload.cloned());
        return Meant::Port(Arc::new(itself), Protocol::Tcp);
    }
    let mut nameless = (registry.without_address.iter())
        .filter(|service| service.port(port).is_some() && sees(service))
        .peekable();
    // Whoever has found the address of a service outside of the mesh by other means than our DNS means
    // that service nevertheless, if he says its name.
    let at_endpoint = (registry
        .by_endpoint
        .get(&destination.ip())
        .into_iter()
        .flatten())
    .any(|service| is_called_by_name(service, port) && sees(service));
    let is_named = nameless.peek().is_some() || at_endpoint;
    // Of what is neither HTTP nor TLS nobody says a name: the port alone tells, as in Istio.
    let opaque = |service: &&Arc<Service>| {
        (service.port(port)).is_some_and(|port| port.protocol == Protocol::Tcp)
    };
    if let Some(service) = nameless.find(opaque) {
        return Meant::Port(service.clone(), Protocol::Tcp);
    }
    match policy {
        OutboundPolicy::RegistryOnly => Meant::Unknown(Arc::new(Service::black_hole(port))),
        OutboundPolicy::AllowAny => {
            let itself = Arc::new(Service::passthrough(destination, None));
            if is_named {
                Meant::Unknown(itself)
            } else {
                Meant::Port(itself, Protocol::Tcp)
            }
        }
    }
}

/// Whether a client tells which service it means when it calls this port at an endpoint's address.
fn is_called_by_name(service: &Service, port: u16) -> bool {
    service.location == Location::MeshExternal
        && (service.port(port)).is_some_and(|port| port.protocol != Protocol::Tcp)
}

/// Whether an endpoint of the service listens there.
fn sees_endpoint(service: &Service, destination: SocketAddr) -> bool {
    (service.endpoints.iter())
        .filter(|endpoint| endpoint.address == Some(destination.ip()))
        .any(|endpoint| {
            endpoint
                .ports
                .values()
                .any(|port| *port == destination.port())
        })
}

/// The service that a TLS client asks for by name, on this port.
pub(super) fn named(
    snapshot: &Snapshot,
    client: &Workload,
    name: &str,
    port: u16,
) -> Option<Arc<Service>> {
    let view = ClientView::of(client);
    let service = (snapshot.registry).resolve_host(name, view.namespace)?;
    let is_for = service.port(port).is_some() && snapshot.routes.sees(&view, service, port);
    is_for.then(|| service.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::parse;
    use crate::snapshot::Options;

    const MESH: &str = r"
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: client}, spec: {address: 10.0.0.1, labels: {app: client}}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: web, namespace: shop}, spec: {address: 10.0.0.2, labels: {app: web}}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, name: http, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: members, namespace: shop}, spec: {clusterIP: None, selector: {app: web}, ports: [{port: 9000, name: tcp}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: wild}, spec: {hosts: ['*.example.com'], ports: [{number: 443, name: tls, protocol: TLS}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: db}, spec: {hosts: [db.example.org], ports: [{number: 5432, name: tcp, protocol: TCP}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: hidden, namespace: shop}, spec: {hosts: [hidden.example.org], addresses: [192.0.2.7], exportTo: ['.'], ports: [{number: 80, name: http, protocol: HTTP}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: api}, spec: {hosts: [api.example.net], resolution: STATIC, endpoints: [{address: 198.51.100.1}], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 9000, name: tcp, protocol: TCP}]}}
";

    fn said(extra: &str, outbound: OutboundPolicy, destination: &str) -> String {
        let text = format!("{MESH}---\n{extra}");
        let resources = parse([("a.yaml", text.as_str())]).expect("no errors");
        let options = Options {
            outbound_traffic_policy: outbound,
            ..Options::default()
        };
        let snapshot = Snapshot::compile(1, &resources, &options).expect("no errors");
        let client = &snapshot.registry.workloads[0];
        match meant(&snapshot, client, destination.parse().expect("an address")) {
            Meant::Port(service, protocol) => format!("{} {protocol:?}", service.host),
            Meant::NoSuchPort(service) => format!("{} has no such port", service.host),
            Meant::Unknown(service) => format!("by name, else {}", service.host),
        }
    }

    #[test]
    fn where_everything_may_be_called_unknown_addresses_stand_for_themselves() {
        for (destination, expected) in [
            ("10.96.0.1:80", "web.shop.svc.cluster.local Http"),
            (
                "10.96.0.1:81",
                "web.shop.svc.cluster.local has no such port",
            ),
            ("10.0.0.2:8080", "10.0.0.2 Tcp"),
            ("203.0.113.1:80", "203.0.113.1 Tcp"),
            ("203.0.113.1:443", "by name, else 203.0.113.1"),
            ("203.0.113.1:5432", "db.example.org Tcp"),
            // Exported to its own namespace alone.
            ("192.0.2.7:80", "192.0.2.7 Tcp"),
            // Where an endpoint is, by the service's port.
            ("198.51.100.1:80", "by name, else 198.51.100.1"),
            ("198.51.100.1:8080", "198.51.100.1 Tcp"),
            ("198.51.100.1:9000", "198.51.100.1 Tcp"),
        ] {
            assert_eq!(
                said("", OutboundPolicy::AllowAny, destination),
                expected,
                "{destination}"
            );
        }
    }

    #[test]
    fn where_only_services_may_be_called_everything_else_is_a_black_hole() {
        for (destination, expected) in [
            ("10.96.0.1:80", "web.shop.svc.cluster.local Http"),
            // A member of a headless service, and a workload that nothing but a ClusterIP leads to.
            ("10.0.0.2:9000", "10.0.0.2 Tcp"),
            ("10.0.0.2:8080", "by name, else BlackHoleCluster"),
            ("203.0.113.1:80", "by name, else BlackHoleCluster"),
            ("203.0.113.1:443", "by name, else BlackHoleCluster"),
            ("203.0.113.1:5432", "db.example.org Tcp"),
            ("192.0.2.7:80", "by name, else BlackHoleCluster"),
        ] {
            assert_eq!(
                said("", OutboundPolicy::RegistryOnly, destination),
                expected,
                "{destination}"
            );
        }
    }

    fn sidecar(spec: &str) -> String {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {{name: s}}, spec: {spec}}}"
        )
    }

    #[test]
    fn a_sidecar_hides_services_without_forbidding_their_addresses() {
        let own = sidecar("{egress: [{hosts: ['./*']}]}");
        for (destination, expected) in [
            ("10.96.0.1:80", "10.96.0.1 Tcp"),
            ("10.0.0.2:8080", "10.0.0.2 Tcp"),
            ("203.0.113.1:5432", "db.example.org Tcp"),
        ] {
            assert_eq!(
                said(&own, OutboundPolicy::AllowAny, destination),
                expected,
                "{destination}"
            );
        }
        let listed = sidecar("{egress: [{hosts: ['shop/web.shop.svc.cluster.local']}]}");
        for (destination, expected) in [
            ("10.96.0.1:80", "web.shop.svc.cluster.local Http"),
            ("203.0.113.1:5432", "203.0.113.1 Tcp"),
        ] {
            assert_eq!(
                said(&listed, OutboundPolicy::AllowAny, destination),
                expected,
                "{destination}"
            );
        }
    }

    #[test]
    fn a_sidecars_listener_is_for_its_port() {
        let sidecar = sidecar(
            "{egress: [{port: {number: 80}, hosts: ['./*']}, {hosts: ['*/*']}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}",
        );
        for (destination, expected) in [
            ("10.96.0.1:80", "by name, else BlackHoleCluster"),
            ("203.0.113.1:5432", "db.example.org Tcp"),
        ] {
            assert_eq!(
                said(&sidecar, OutboundPolicy::AllowAny, destination),
                expected,
                "{destination}"
            );
        }
    }

    #[test]
    fn a_sidecar_allows_what_the_mesh_forbids() {
        let sidecar = sidecar("{outboundTrafficPolicy: {mode: ALLOW_ANY}}");
        assert_eq!(
            said(&sidecar, OutboundPolicy::RegistryOnly, "203.0.113.1:80"),
            "203.0.113.1 Tcp"
        );
    }

    #[test]
    fn the_root_namespaces_sidecar_is_for_those_without_their_own() {
        let root = "{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: s, namespace: istio-system}, \
                    spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}}";
        let own = format!("{root}\n---\n{}", sidecar("{}"));
        let black_hole = "by name, else BlackHoleCluster";
        for (extra, expected) in [(root, black_hole), (&own, "203.0.113.1 Tcp")] {
            assert_eq!(
                said(extra, OutboundPolicy::AllowAny, "203.0.113.1:80"),
                expected,
                "{extra}"
            );
        }
    }
}
