//! From resources to what the data path finds.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::resource::{Severity, parse};

/// Compiles objects, each given as `Kind namespace/name {metadata} {spec}` with
/// the inside of the braces in YAML's flow form.
fn compile(objects: &[(&str, &str, &str, &str)]) -> (Arc<Registry>, Vec<Finding>) {
    let documents = objects.iter().map(|(kind, object, metadata, spec)| {
        let version = match *kind {
            "Service" => "v1",
            _ => "networking.istio.io/v1",
        };
        let (namespace, name) = object.split_once('/').unwrap();
        format!(
            "{{apiVersion: {version}, kind: {kind}, \
             metadata: {{name: {name}, namespace: {namespace}, {metadata}}}, spec: {{{spec}}}}}\n"
        )
    });
    let text = documents.collect::<Vec<_>>().join("---\n");
    let set = parse([("a.yaml", text.as_str())]).unwrap();
    let (registry, mut findings) = Registry::compile(&set, "example.org", "cluster.local");
    findings.splice(0..0, set.warnings);
    (registry, findings)
}

/// As `compile`, for objects in which nothing is to be found.
fn clean(objects: &[(&str, &str, &str, &str)]) -> Arc<Registry> {
    let (registry, findings) = compile(objects);
    assert_eq!(findings, []);
    registry
}

fn messages(objects: &[(&str, &str, &str, &str)]) -> Vec<String> {
    let (_, findings) = compile(objects);
    findings.iter().map(Finding::to_string).collect()
}

const V1: (&str, &str, &str, &str) = (
    "WorkloadEntry",
    "shop/reviews-v1",
    "annotations: {undermesh.io/netns: reviews-v1, undermesh.io/node: one, \
     undermesh.io/addresses: 'fd00::1'}",
    "address: 10.0.0.1, labels: {app: reviews, version: v1}, serviceAccount: bookinfo, \
     ports: {http: 9080}, locality: eu/a, weight: 3",
);
const V2: (&str, &str, &str, &str) = (
    "WorkloadEntry",
    "shop/reviews-v2",
    "labels: {version: v2}",
    "address: 10.0.0.2, labels: {app: reviews, version: v1}",
);
const REVIEWS: (&str, &str, &str, &str) = (
    "Service",
    "shop/reviews",
    "",
    "selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 8080}]",
);

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn sockets(service: &Service, port: u16) -> Vec<String> {
    let endpoints = service.endpoints.iter();
    endpoints
        .filter_map(|e| e.socket_address(port))
        .map(|a| a.to_string())
        .collect()
}

#[test]
fn workloads_are_enrolled_by_annotation() {
    let registry = clean(&[V1, V2]);
    let [v1, v2] = registry.workloads.as_slice() else {
        panic!("{registry:?}");
    };
    assert_eq!(v1.name.to_string(), "reviews-v1.shop");
    assert_eq!(
        v1.placement,
        Some(Placement::Netns("reviews-v1".to_owned()))
    );
    assert_eq!(v1.node.as_deref(), Some("one"));
    assert_eq!(v1.tunnel, Tunnel::Hbone);
    assert_eq!(
        v1.identity.to_string(),
        "spiffe://example.org/ns/shop/sa/bookinfo"
    );
    assert_eq!(v1.addresses, [address("10.0.0.1"), address("fd00::1")]);
    assert_eq!(v1.weight, 3);

    assert_eq!(v2.placement, None);
    assert_eq!(v2.tunnel, Tunnel::None);
    assert_eq!(v2.identity.service_account.as_ref(), "default");
    assert_eq!(v2.weight, 1);
    assert_eq!(v2.labels["version"], "v2", "metadata beats spec");
    assert_eq!(registry.workload_at(address("fd00::1")), Some(v1));
}

#[test]
fn a_label_puts_a_remote_workload_into_the_mesh() {
    let sidecar = "security.istio.io/tlsMode: istio";
    let both = format!("{sidecar}, networking.istio.io/tunnel: http");
    for (labels, tunnel) in [
        ("networking.istio.io/tunnel: http", Tunnel::Hbone),
        (sidecar, Tunnel::Sidecar),
        (&both, Tunnel::Hbone),
        ("security.istio.io/tlsMode: disabled", Tunnel::None),
    ] {
        let spec = format!("address: 10.0.0.1, labels: {{{labels}}}");
        let registry = clean(&[("WorkloadEntry", "a/b", "", &spec)]);
        assert_eq!(registry.workloads[0].tunnel, tunnel, "{labels}");
        assert_eq!(registry.workloads[0].placement, None);
    }
}

#[test]
fn annotations_are_checked() {
    let with = |annotations: &str| {
        let metadata = format!("annotations: {{{annotations}}}");
        let found = messages(&[("WorkloadEntry", "a/b", &metadata, "address: 10.0.0.1")]);
        assert_eq!(found.len(), 1, "{annotations}: {found:?}");
        let prefix = "a.yaml, document 1: WorkloadEntry a/b: metadata.annotations";
        found[0].strip_prefix(prefix).expect(&found[0]).to_owned()
    };
    assert_eq!(
        with("undermesh.io/netns: a, undermesh.io/pid: '1'"),
        "[undermesh.io/pid]: only one of undermesh.io/netns, undermesh.io/pid, \
         undermesh.io/container and undermesh.io/cgroup may be given"
    );
    assert_eq!(
        with("undermesh.io/pid: '0'"),
        "[undermesh.io/pid]: \"0\" is not the id of a process"
    );
    assert_eq!(
        with("undermesh.io/netns: run/netns/a"),
        "[undermesh.io/netns]: \"run/netns/a\" is neither the name of a network namespace nor an \
         absolute path"
    );
    assert_eq!(
        with("undermesh.io/container: '../x'"),
        "[undermesh.io/container]: \"../x\" is not the id of a container"
    );
    assert_eq!(
        with("undermesh.io/addresses: '10.0.0.2,x'"),
        "[undermesh.io/addresses]: \"x\" is not the IP address of a workload"
    );
    assert!(with("undermesh.io/netnss: a").contains("is not an annotation that the mesh knows"));
}

#[test]
fn an_address_belongs_to_one_workload_or_one_namespace() {
    let at = |name, annotations| ("WorkloadEntry", name, annotations, "address: 10.0.0.1");
    let registry = clean(&[
        at("a/app", "annotations: {undermesh.io/netns: pod}"),
        at("a/helper", "annotations: {undermesh.io/netns: pod}"),
    ]);
    let found = registry.workload_at(address("10.0.0.1")).unwrap();
    assert_eq!(found.name.to_string(), "app.a");
    assert_eq!(
        messages(&[at("a/app", ""), at("a/other", "")]),
        [
            "a.yaml, document 2: WorkloadEntry a/other: spec.address: 10.0.0.1 is the address of \
          workload app.a already (a.yaml, document 1); several workloads share an address only \
          where they name the same undermesh.io/netns"
        ]
    );
}

#[test]
fn a_service_selects_the_workloads_of_its_namespace() {
    let elsewhere = (
        "WorkloadEntry",
        "other/reviews",
        "",
        "address: 10.0.0.9, labels: {app: reviews}",
    );
    let other_app = (
        "WorkloadEntry",
        "shop/ratings",
        "",
        "address: 10.0.0.8, labels: {app: ratings}",
    );
    let registry = clean(&[REVIEWS, V1, elsewhere, other_app, V2]);
    let service = &registry.services[0];
    assert_eq!(service.host, "reviews.shop.svc.cluster.local");
    assert_eq!(service.ports[0].protocol, Protocol::Http);
    // The port that the workload names beats targetPort; each address is an endpoint.
    assert_eq!(
        sockets(service, 80),
        ["10.0.0.1:9080", "[fd00::1]:9080", "10.0.0.2:8080"]
    );
    assert_eq!(
        service.endpoints[0].workload.as_ref(),
        Some(&registry.workloads[0])
    );
}

#[test]
fn a_service_without_address_gets_one_of_each_family_that_its_endpoints_have() {
    let v4_only = clean(&[REVIEWS, V2]);
    let both = clean(&[REVIEWS, V1]);
    let [v4] = v4_only.services[0].vips.as_slice() else {
        panic!("{v4_only:?}");
    };
    let [same, v6] = both.services[0].vips.as_slice() else {
        panic!("{both:?}");
    };
    assert_eq!(v4, same);
    assert!(v4.to_string().starts_with("240.240.") && v6.to_string().starts_with("2001:2::"));
    assert_eq!(both.service_at(*v6), Some(&both.services[0]));
}

#[test]
fn own_addresses_and_families_are_kept() {
    let vips = |spec: &str| {
        let spec = format!("selector: {{app: reviews}}, ports: [{{port: 80}}], {spec}");
        clean(&[("Service", "shop/reviews", "", &spec), V1]).services[0].clone()
    };
    let given = vips("clusterIP: 10.96.0.7");
    assert_eq!(given.vips, [address("10.96.0.7")]);
    let v6 = vips("ipFamilies: [IPv6]");
    assert!(v6.vips.len() == 1 && v6.vips[0].is_ipv6());
    let headless = vips("clusterIP: None");
    assert!(headless.headless && headless.vips.is_empty());
}

#[test]
fn target_ports_may_be_names_of_the_workloads() {
    let service = (
        "Service",
        "shop/reviews",
        "",
        "clusterIP: None, selector: {app: reviews}, ports: [{name: web, port: 80, targetPort: http}]",
    );
    let (registry, findings) = compile(&[service, V1, V2]);
    assert_eq!(
        sockets(&registry.services[0], 80),
        ["10.0.0.1:9080", "[fd00::1]:9080"]
    );
    assert_eq!(
        findings[0].to_string(),
        "a.yaml, document 1: Service shop/reviews: spec.ports[0].targetPort: workload \
         reviews-v2.shop has no port of the name \"http\" in spec.ports, so it does not serve port 80"
    );
}

#[test]
fn a_number_that_tcp_and_udp_share_is_the_tcp_port() {
    let service = (
        "Service",
        "shop/dns",
        "",
        "selector: {version: v2}, ports: [{name: udp, port: 53, protocol: UDP, targetPort: 5353}, \
         {name: tcp, port: 53, targetPort: 5354}]",
    );
    let registry = clean(&[service, V2]);
    assert_eq!(
        registry.services[0].port(53).unwrap().protocol,
        Protocol::Tcp
    );
    assert_eq!(sockets(&registry.services[0], 53), ["10.0.0.2:5354"]);
}

#[test]
fn services_that_can_serve_nobody_are_told() {
    assert_eq!(
        messages(&[REVIEWS, ("Service", "shop/none", "", "ports: [{port: 80}]")]),
        [
            "a.yaml, document 1: Service shop/reviews: spec.selector: selects no WorkloadEntry of \
             namespace shop",
            "a.yaml, document 2: Service shop/none: spec.selector: without a selector the service \
             has no endpoints; use a ServiceEntry to name them",
        ]
    );
}

#[test]
fn an_external_name_leads_to_a_host() {
    let spec = "type: ExternalName, externalName: Db.Example.com, ports: [{port: 5432}]";
    let registry = clean(&[("Service", "shop/db", "", spec)]);
    let service = &registry.services[0];
    assert_eq!(service.resolution, Resolution::Dns);
    assert_eq!(service.endpoints[0].host.as_deref(), Some("db.example.com"));
    assert_eq!(service.endpoints[0].ports[&5432], 5432);
    assert!(service.vips.is_empty());
}

#[test]
fn a_service_entry_is_a_service_for_each_host() {
    let registry = clean(&[(
        "ServiceEntry",
        "shop/api",
        "",
        "hosts: [api.example.com, WWW.example.com], resolution: DNS, \
         ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]",
    )]);
    let [api, www] = registry.services.as_slice() else {
        panic!("{registry:?}");
    };
    assert_eq!(
        (api.host.as_str(), www.host.as_str()),
        ("api.example.com", "www.example.com")
    );
    assert_eq!(api.location, Location::MeshExternal);
    assert_eq!(api.endpoints[0].host.as_deref(), Some("api.example.com"));
    assert_eq!(www.endpoints[0].ports[&80], 8080);
    assert_ne!(api.vips, www.vips);
    assert!(api.endpoints[0].workload.is_none());
}

#[test]
fn endpoints_of_the_mesh_are_known_workloads() {
    let entry = |location: &str| {
        let spec = format!(
            "hosts: [reviews.internal], resolution: STATIC, location: {location}, \
             ports: [{{number: 80, name: http}}], endpoints: [{{address: 10.0.0.1}}, \
             {{address: 10.0.0.7, labels: {{networking.istio.io/tunnel: http}}, \
               serviceAccount: far, ports: {{http: 81}}}}]"
        );
        clean(&[V1, ("ServiceEntry", "shop/in", "", &spec)]).services[0].clone()
    };
    let inside = entry("MESH_INTERNAL");
    let identity = |n: usize| {
        inside.endpoints[n]
            .workload
            .as_ref()
            .unwrap()
            .identity
            .to_string()
    };
    assert_eq!(identity(0), "spiffe://example.org/ns/shop/sa/bookinfo");
    assert_eq!(identity(1), "spiffe://example.org/ns/shop/sa/far");
    assert_eq!(sockets(&inside, 80), ["10.0.0.1:80", "10.0.0.7:81"]);
    let outside = entry("MESH_EXTERNAL");
    assert!(
        outside
            .endpoints
            .iter()
            .all(|endpoint| endpoint.workload.is_none())
    );
}

#[test]
fn a_service_entry_selects_workloads() {
    let spec = "hosts: [reviews.internal], resolution: STATIC, location: MESH_INTERNAL, \
                ports: [{number: 80, name: http, targetPort: 8080}], \
                workloadSelector: {labels: {app: reviews}}";
    let registry = clean(&[V1, V2, ("ServiceEntry", "shop/in", "", spec)]);
    let service = &registry.services[0];
    assert_eq!(
        sockets(service, 80),
        ["10.0.0.1:9080", "[fd00::1]:9080", "10.0.0.2:8080"]
    );
}

#[test]
fn ranges_of_addresses_are_found_the_narrowest_first() {
    let entry = |name, spec| ("ServiceEntry", name, "", spec);
    let registry = clean(&[
        entry(
            "a/wide",
            "hosts: [wide.example], addresses: [172.16.0.0/12], ports: [{number: 443, name: tls}]",
        ),
        entry(
            "a/narrow",
            "hosts: [narrow.example], addresses: [172.16.5.0/24, 172.16.6.1], ports: [{number: 443, name: tls}]",
        ),
    ]);
    let host = |text: &str| registry.service_at(address(text)).map(|s| s.host.as_str());
    assert_eq!(host("172.16.5.9"), Some("narrow.example"));
    assert_eq!(host("172.16.6.1"), Some("narrow.example"));
    assert_eq!(host("172.16.6.2"), Some("wide.example"));
    assert_eq!(host("172.15.0.1"), None);
    let destinations: Vec<_> = registry
        .destinations()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        destinations,
        ["172.16.0.0/12", "172.16.5.0/24", "172.16.6.1/32"]
    );
}

#[test]
fn services_may_share_an_address_on_different_ports() {
    let entry = |name, spec| ("ServiceEntry", name, "", spec);
    let http = entry(
        "a/x",
        "hosts: [x.example], addresses: [192.0.2.1], ports: [{number: 80, name: http}]",
    );
    let tls = entry(
        "a/y",
        "hosts: [y.example], addresses: [192.0.2.1], ports: [{number: 443, name: tls}]",
    );
    let clash = entry(
        "a/z",
        "hosts: [z.example], addresses: [192.0.2.1], ports: [{number: 80, name: http}]",
    );
    let registry = clean(&[http, tls]);
    let host = |port: u16| {
        let destination = SocketAddr::new(address("192.0.2.1"), port);
        registry
            .service_for(destination)
            .map(|service| service.host.as_str())
    };
    assert_eq!(
        (host(80), host(443)),
        (Some("x.example"), Some("y.example"))
    );
    assert_eq!(host(22), Some("x.example"));
    assert_eq!(
        messages(&[http, clash]),
        [
            "a.yaml, document 2: ServiceEntry a/z: spec.addresses: 192.0.2.1 is the address of \
          ServiceEntry a/x (a.yaml, document 1) already, to which connections to port 80 go unless \
          their Host says otherwise"
        ]
    );
}

#[test]
fn kubernetes_services_never_share_an_address() {
    let service = |name| {
        (
            "Service",
            name,
            "",
            "clusterIP: 10.96.0.1, selector: {version: v2}, ports: [{port: 80}]",
        )
    };
    let (_, findings) = compile(&[V2, service("shop/a"), service("shop/b")]);
    assert_eq!(findings[0].severity, Severity::Error);
    assert_eq!(
        findings[0].to_string(),
        "a.yaml, document 3: Service shop/b: spec.clusterIP: 10.96.0.1 is the address of Service \
         shop/a (a.yaml, document 2) already"
    );
}

#[test]
fn entries_of_one_host_are_merged() {
    let entry = |name, protocol, endpoint| {
        let spec = format!(
            "hosts: [db.internal], resolution: STATIC, ports: [{{number: 80, name: p, \
             protocol: {protocol}}}], endpoints: [{{address: {endpoint}}}]"
        );
        ("ServiceEntry", name, "", spec)
    };
    let texts = [
        entry("a/one", "TCP", "10.1.0.1"),
        entry("a/two", "HTTP", "10.1.0.2"),
        entry("b/three", "TCP", "10.1.0.3"),
    ];
    let objects = texts
        .each_ref()
        .map(|(k, n, m, spec)| (*k, *n, *m, spec.as_str()));
    let (registry, findings) = compile(&objects);
    let [service, other] = registry.services.as_slice() else {
        panic!("{registry:?}");
    };
    assert_eq!(sockets(service, 80), ["10.1.0.1:80", "10.1.0.2:80"]);
    assert_eq!(sockets(other, 80), ["10.1.0.3:80"]);
    for (namespace, seen) in [("a", service), ("b", other), ("c", service)] {
        assert_eq!(
            registry.named("db.internal", namespace),
            Some(seen),
            "{namespace}"
        );
    }
    assert_ne!(service.vips, other.vips);
    assert_eq!(service.ports[0].protocol, Protocol::Tcp);
    let reasons: Vec<_> = findings
        .iter()
        .map(|finding| finding.reason.as_str())
        .collect();
    assert_eq!(
        reasons,
        [
            "port 80 of db.internal has another protocol in ServiceEntry a/one (a.yaml, document \
             1), which stays in force",
            "db.internal is the host of ServiceEntry a/one (a.yaml, document 1) too, which \
             namespaces without an entry of their own follow",
        ]
    );
}

#[test]
fn an_entry_decorates_a_kubernetes_service() {
    let spec = "hosts: [reviews.shop.svc.cluster.local], location: MESH_INTERNAL, \
                resolution: STATIC, ports: [{number: 80, name: http}], \
                subjectAltNames: ['spiffe://example.org/ns/shop/sa/bookinfo']";
    let registry = clean(&[REVIEWS, V1, ("ServiceEntry", "shop/san", "", spec)]);
    let [service] = registry.services.as_slice() else {
        panic!("{registry:?}");
    };
    assert_eq!(service.subject_alt_names.len(), 1);
    assert_eq!(sockets(service, 80).len(), 2);
}

#[test]
fn clients_shorten_names_as_in_kubernetes() {
    let entry = (
        "ServiceEntry",
        "shop/wild",
        "",
        "hosts: ['*.example.com', '*.foo.example.com', exact.foo.example.com, '*.com'], \
         addresses: [192.0.2.1], ports: [{number: 80, name: http}]",
    );
    let service = (
        "Service",
        "shop/reviews",
        "",
        "clusterIP: 10.96.0.7, selector: {app: reviews}, ports: [{port: 80}]",
    );
    let registry = clean(&[service, V1, entry]);
    let host = |host: &str, namespace: &str| {
        registry
            .resolve_host(host, namespace)
            .map(|service| service.host.as_str())
    };
    let reviews = Some("reviews.shop.svc.cluster.local");
    for name in [
        "reviews.shop",
        "reviews.shop.svc",
        "reviews.shop.svc.cluster.local",
        "Reviews.Shop.svc.cluster.local.",
        "10.96.0.7",
        "[::ffff:10.96.0.7]",
    ] {
        assert_eq!(host(name, "other"), reviews, "{name}");
    }
    assert_eq!(host("reviews", "shop"), reviews);
    assert_eq!(host("REVIEWS.", "shop"), reviews);
    assert_eq!(host("reviews", "other"), None);
    for (name, expected) in [
        ("exact.foo.example.com", Some("exact.foo.example.com")),
        ("a.foo.example.com", Some("*.foo.example.com")),
        ("a.b.foo.example.com", Some("*.foo.example.com")),
        ("foo.example.com", Some("*.example.com")),
        ("example.com", Some("*.com")),
        ("com", None),
        ("example.org", None),
        ("", None),
        (".", None),
        ("10.96.0.8", None),
    ] {
        assert_eq!(host(name, "shop"), expected, "{name}");
    }
}

#[test]
fn destinations_are_all_addresses_once() {
    let local = (
        "WorkloadEntry",
        "shop/local",
        "",
        "address: 127.0.0.1, labels: {app: local}",
    );
    let service = (
        "Service",
        "shop/reviews",
        "",
        "clusterIP: 10.96.0.7, selector: {app: reviews}, ports: [{port: 80}]",
    );
    let (registry, _) = compile(&[service, V1, V2, local]);
    let destinations: Vec<_> = registry
        .destinations()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        destinations,
        ["10.0.0.1/32", "10.0.0.2/32", "10.96.0.7/32", "fd00::1/128"]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Agents that read the same resources in another order give out the same addresses.
    #[test]
    fn addresses_do_not_depend_on_the_order_of_files(
        (names, shuffled) in prop::collection::btree_set("[a-z]{1,6}", 1..40)
            .prop_map(|names| names.into_iter().collect::<Vec<_>>())
            .prop_flat_map(|names| (Just(names.clone()), Just(names).prop_shuffle())),
    ) {
        let vips = |names: &[String]| {
            let names: Vec<_> = names.iter().map(|name| format!("a/{name}")).collect();
            let spec = "selector: {app: x}, ports: [{port: 80}], ipFamilies: [IPv4, IPv6]";
            let objects: Vec<_> = names.iter().map(|name| ("Service", name.as_str(), "", spec)).collect();
            let (registry, _) = compile(&objects);
            let services = registry.services.iter();
            services.map(|s| (s.host.clone(), s.vips.clone())).collect::<HashMap<_, _>>()
        };
        let one = vips(&names);
        prop_assert!(one.values().all(|vips| vips.len() == 2));
        prop_assert_eq!(one, vips(&shuffled));
    }
}

#[test]
fn a_workload_has_what_its_group_says_unless_it_says_otherwise() {
    let text = r"
{apiVersion: networking.istio.io/v1, kind: WorkloadGroup, metadata: {name: web}, spec: {metadata: {labels: {app: web, tier: front}, annotations: {undermesh.io/direct: 'true'}}, template: {ports: {http: 8080}, serviceAccount: web, weight: 3, locality: r/z}, probe: {tcpSocket: {port: 8080}}}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: a, annotations: {istio.io/autoRegistrationGroup: web}}, spec: {address: 10.0.0.1}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: b, annotations: {istio.io/autoRegistrationGroup: web}}, spec: {address: 10.0.0.2, labels: {tier: back}, weight: 1, serviceAccount: other}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: c, annotations: {istio.io/autoRegistrationGroup: nobody}}, spec: {address: 10.0.0.3}}
";
    let resources = parse([("a.yaml", text)]).expect("no errors");
    let (registry, findings) = Registry::compile(&resources, "cluster.local", "cluster.local");
    let [a, b, c] = registry.workloads.as_slice() else {
        panic!("{registry:?}");
    };
    assert_eq!((&*a.labels["app"], &*a.labels["tier"]), ("web", "front"));
    assert_eq!((&*b.labels["app"], &*b.labels["tier"]), ("web", "back"));
    assert!(a.direct && b.direct && !c.direct);
    assert_eq!((a.weight, b.weight, c.weight), (3, 1, 1));
    assert_eq!((a.ports["http"], &*a.locality), (8080, "r/z"));
    assert_eq!(&*b.identity.service_account, "other");
    assert_eq!(registry.probes.len(), 2);
    assert_eq!(findings[0].code, Some("IST0101"));
    assert_eq!(findings.len(), 1, "{findings:?}");
}
