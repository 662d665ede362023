mod istio_samples;

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::registry::Distribution;
use crate::resource::{Cache, Severity, parse};
use crate::route::{Pem, UpstreamTls};
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

#[test]
fn services_say_which_endpoints_they_prefer() {
    let annotation = |value: &str| {
        format!(
            "metadata: {{name: a, annotations: {{networking.istio.io/traffic-distribution: {value}}}}}"
        )
    };
    let service = |meta: &str, more: &str| {
        format!("{{apiVersion: v1, kind: Service, {meta}, spec: {{ports: [{{port: 80}}]{more}}}}}")
    };
    let plain = "metadata: {name: a}";
    let entry = "hosts: [a.example.com], ports: [{number: 80, name: http}], resolution: DNS";
    for (text, distribution, warnings) in [
        (service(plain, ""), Distribution::Any, 0),
        (
            service(plain, ", trafficDistribution: PreferClose"),
            Distribution::SameZone,
            0,
        ),
        (
            service(plain, ", trafficDistribution: PreferSameNode"),
            Distribution::SameNode,
            0,
        ),
        (
            service(plain, ", trafficDistribution: Random"),
            Distribution::Any,
            1,
        ),
        (
            service(&annotation("PreferSameZone"), ""),
            Distribution::SameZone,
            0,
        ),
        (
            format!(
                "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, {}, spec: {{{entry}}}}}",
                annotation("preferclose")
            ),
            Distribution::SameZone,
            0,
        ),
    ] {
        let snapshot = compile(&text).expect("a configuration");
        let service = &snapshot.registry.services[0];
        assert_eq!(service.distribution, distribution, "{text}");
        let said = snapshot.warnings.iter();
        let said = said.filter(|one| one.reason.contains("PreferSameZone"));
        assert_eq!(said.count(), warnings, "{text}");
    }
}

#[test]
fn services_have_more_addresses_sessions_and_endpoints_of_the_node() {
    let workload = |name: &str, node: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: {name}, annotations: {{{node}}}}}, \
             spec: {{address: 10.0.0.1, labels: {{app: {name}}}}}}}\n---\n"
        )
    };
    let service = |more: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: a}}, \
             spec: {{clusterIP: 10.96.0.1, selector: {{app: a}}, ports: [{{port: 80}}], {more}}}}}"
        )
    };
    let somewhere = workload("a", "undermesh.io/node: one");
    let text = somewhere.clone()
        + &service(
            "externalIPs: [192.0.2.1], sessionAffinity: ClientIP, internalTrafficPolicy: Local",
        );
    let snapshot = compile(&text).expect("a configuration");
    assert_eq!(snapshot.warnings, []);
    let own = &snapshot.registry.services[0];
    assert_eq!(own.session_affinity, Some(Duration::from_secs(10800)));
    assert_eq!(own.distribution, Distribution::OnlySameNode);
    let external: IpAddr = "192.0.2.1".parse().expect("an address");
    let found = snapshot.registry.service_at(external).expect("a service");
    assert!(Arc::ptr_eq(found, own));
    // The name stands for the service's own address.
    assert_eq!(own.vips.len(), 1);
    let destinations = snapshot.registry.destinations();
    assert!(destinations.contains(&external.into()), "{destinations:?}");

    let seconds =
        "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}";
    let snapshot = compile(&service(seconds)).expect("a configuration");
    assert_eq!(
        snapshot.registry.services[0].session_affinity,
        Some(Duration::from_secs(5))
    );

    let local = service("internalTrafficPolicy: Local");
    let snapshot = compile(&(workload("a", "") + &local)).expect("a configuration");
    let told = snapshot.warnings.iter().map(|one| one.field.as_str());
    assert_eq!(told.collect::<Vec<_>>(), ["spec.internalTrafficPolicy"]);

    for (wrong, field) in [
        ("sessionAffinity: Client", "spec.sessionAffinity"),
        ("internalTrafficPolicy: local", "spec.internalTrafficPolicy"),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
    ] {
        let text = service(wrong);
        let errors = parse([("a.yaml", text.as_str())]).expect_err(wrong);
        assert!(
            errors.iter().any(|error| error.field == field),
            "{errors:?}"
        );
    }
}

/// A rule that asks for TLS with what Secrets hold, and what becomes of connections.
fn tls_of(secrets: &str) -> (UpstreamTls, Vec<String>) {
    let text = format!(
        "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: p}}, spec: {{hosts: [p.example.com], \
         resolution: STATIC, ports: [{{number: 80, name: http}}], endpoints: [{{address: 192.0.2.1}}]}}}}\n\
         --- {{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: p}}, spec: {{host: p.example.com, \
         workloadSelector: {{matchLabels: {{app: web}}}}, trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}, \
         tls: {{mode: MUTUAL, credentialName: pair}}}}]}}}}}}\n{secrets}"
    );
    let snapshot = compile(&text).expect("a configuration");
    let client = crate::route::ClientView {
        node: None,
        namespace: "default",
        labels: &[("app".to_owned(), "web".to_owned())].into(),
    };
    let service = &snapshot.registry.services[0];
    let rule = snapshot.routes.destination_rule(&client, service);
    let warnings = snapshot.warnings.iter().map(Finding::to_string);
    (
        rule.expect("the rule").policy(80).tls.clone(),
        warnings.collect(),
    )
}

#[test]
fn a_credential_is_a_secret_of_the_rules_namespace() {
    let secret = |name: &str, data: &str| {
        format!(
            "--- {{apiVersion: v1, kind: Secret, metadata: {{{name}}}, stringData: {{{data}}}}}\n"
        )
    };
    let whole = secret("name: pair", "tls.crt: a, tls.key: b, ca.crt: c");
    let apart = secret("name: pair", "cert: a, key: b") + &secret("name: pair-cacert", "cacert: c");
    for (text, certificate, authorities) in [
        (&whole, "pair, tls.crt", "pair, ca.crt"),
        (&apart, "pair, cert", "pair-cacert, cacert"),
    ] {
        let (UpstreamTls::Originate(tls), warnings) = tls_of(text) else {
            panic!("{text}");
        };
        let name = |pem: &Pem| match pem {
            Pem::Secret(name, _) => name.to_string(),
            Pem::File(path) => path.clone(),
        };
        let own = tls.certificate.as_ref().map(|(chain, _)| name(chain));
        assert_eq!(own, Some(format!("Secret default/{certificate}")));
        let roots = tls.authorities.as_ref().map(name);
        assert_eq!(roots, Some(format!("Secret default/{authorities}")));
        assert_eq!(warnings, [""; 0], "{text}");
    }
    let field = "spec.trafficPolicy.portLevelSettings[0].tls.credentialName";
    for (text, reason) in [
        (String::new(), "there is no Secret default/pair"),
        (
            secret(
                "name: pair, namespace: other",
                "tls.crt: a, tls.key: b, ca.crt: c",
            ),
            "there is no Secret default/pair",
        ),
        (
            secret("name: pair", "tls.crt: a, tls.key: b"),
            "Secret default/pair has neither ca.crt nor cacert",
        ),
        (
            secret("name: pair", "tls.crt: a, ca.crt: b"),
            "Secret default/pair has neither tls.crt and tls.key nor cert and key",
        ),
    ] {
        let (tls, warnings) = tls_of(&text);
        assert_eq!(tls, UpstreamTls::Impossible(reason.into()), "{text}");
        let expected = format!("{field}: {reason}; such connections are refused");
        assert!(warnings[0].ends_with(&expected), "{warnings:?}");
    }
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

/// Files, and what each may hold in the course of time; nothing where it is not there.
const FILES: [&[&str]; 18] = [
    &[
        "",
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: a}, spec: {address: 10.0.0.1, labels: {app: web, version: v1}}}",
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: a}, spec: {address: 10.0.0.1, labels: {app: web, version: v2}}}",
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: a}, spec: {address: 10.0.0.9, labels: {app: db}, ports: {http: 90}}}",
    ],
    &[
        "",
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: b, annotations: {istio.io/autoRegistrationGroup: g}}, spec: {address: 10.0.0.2, labels: {app: web}}}\n---\n{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: c}, spec: {address: 10.0.0.3, labels: {app: db}}}",
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: b, annotations: {istio.io/autoRegistrationGroup: g}}, spec: {address: 10.0.0.2, labels: {app: web}}}\n---\n{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: c}, spec: {address: 10.0.0.3, labels: {app: web}}}",
    ],
    &[
        "",
        "{apiVersion: networking.istio.io/v1, kind: WorkloadGroup, metadata: {name: g}, spec: {metadata: {labels: {tier: front}}, template: {weight: 3}, probe: {tcpSocket: {port: 80}}}}",
        "{apiVersion: networking.istio.io/v1, kind: WorkloadGroup, metadata: {name: g}, spec: {metadata: {labels: {app: db}}, template: {ports: {http: 81}}}}",
    ],
    &[
        "",
        "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, name: http}]}}",
        "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, name: http, targetPort: http}]}}",
        "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.1, selector: {app: db}, ports: [{port: 81, name: http}]}}",
    ],
    &[
        "",
        "{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {selector: {app: db}, ports: [{port: 5432, name: tcp}]}}",
        // The address of the other one: refused.
        "{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: 10.96.0.1, selector: {app: db}, ports: [{port: 5432, name: tcp}]}}",
    ],
    &[
        "",
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: ext}, spec: {hosts: [api.example.com], resolution: STATIC, location: MESH_INTERNAL, endpoints: [{address: 10.0.0.1}, {address: 192.0.2.1}], ports: [{number: 80, name: http}]}}",
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: ext}, spec: {hosts: [api.example.com, '*.example.com'], resolution: STATIC, workloadSelector: {labels: {app: db}}, ports: [{number: 80, name: http}]}}",
    ],
    &[
        "",
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: more}, spec: {hosts: [api.example.com], resolution: STATIC, endpoints: [{address: 192.0.2.2}], ports: [{number: 80, name: tcp}]}}",
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: more, namespace: other}, spec: {hosts: [api.example.com], addresses: [198.51.100.0/24], resolution: NONE, ports: [{number: 80, name: http}]}}",
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: more}, spec: {hosts: [web.default.svc.cluster.local], resolution: STATIC, subjectAltNames: [web], ports: [{number: 80, name: http}]}}",
    ],
    &[
        "",
        "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: web}, spec: {host: web, trafficPolicy: {outlierDetection: {}}, subsets: [{name: v1, labels: {version: v1}}]}}",
        "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: web}, spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}]}}",
    ],
    &[
        "",
        "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: again}, spec: {host: web, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}, subsets: [{name: v1, labels: {version: v9}}, {name: v3, labels: {tier: front}}]}}",
        "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: again}, spec: {host: web, exportTo: ['.'], subsets: [{name: v3}]}}",
        "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: again}, spec: {host: db, trafficPolicy: {portLevelSettings: [{port: {number: 5432}, connectionPool: {tcp: {maxConnections: 1}}}]}}}",
    ],
    &[
        "",
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: web}, spec: {hosts: [web], http: [{match: [{uri: {prefix: /a}}], delegate: {name: leaf}}, {route: [{destination: {host: web, subset: v1}}], timeout: 3s}]}}",
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: web}, spec: {hosts: [web, db], http: [{delegate: {name: leaf, namespace: other}}, {route: [{destination: {host: web, subset: v2}}], retries: {attempts: 2}}]}}",
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: web}, spec: {hosts: [web], tcp: [{route: [{destination: {host: db}}]}]}}",
    ],
    &[
        "",
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: leaf}, spec: {http: [{match: [{uri: {prefix: /a/b}}], route: [{destination: {host: db}}]}, {match: [{uri: {prefix: /c}}], redirect: {uri: /}}]}}",
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: leaf}, spec: {exportTo: [nowhere], http: [{directResponse: {status: 418}}]}}",
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: leaf, namespace: other}, spec: {http: [{headers: {request: {set: {a: b}}}, route: [{destination: {host: web.default.svc.cluster.local}}]}]}}",
    ],
    &[
        "",
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: younger}, spec: {hosts: [web], http: [{route: [{destination: {host: nowhere}}], mirror: {host: db}}]}}",
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: younger}, spec: {hosts: ['*.example.com'], gateways: [mesh], tls: [{match: [{sniHosts: [a.example.com]}], route: [{destination: {host: api.example.com}}]}]}}",
    ],
    &[
        "",
        "{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: s}, spec: {workloadSelector: {labels: {app: db}}, egress: [{hosts: ['./*']}]}}",
    ],
    &[
        "",
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p}, spec: {action: DENY, targetRefs: [{kind: Service, group: '', name: web}], rules: [{}]}}",
    ],
    &[
        "",
        "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: tls}, spec: {host: db, workloadSelector: {matchLabels: {app: web}}, trafficPolicy: {tls: {mode: MUTUAL, credentialName: pair}}, subsets: [{name: v1, trafficPolicy: {tls: {mode: SIMPLE, credentialName: pair}}}]}}",
        "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: tls}, spec: {host: db, trafficPolicy: {tls: {mode: MUTUAL, credentialName: pair}}}}",
    ],
    &[
        "",
        "{apiVersion: v1, kind: Secret, metadata: {name: pair}, stringData: {tls.crt: a, tls.key: b, ca.crt: c}}",
        "{apiVersion: v1, kind: Secret, metadata: {name: pair}, stringData: {tls.crt: d, tls.key: e}}\n---\n{apiVersion: v1, kind: Secret, metadata: {name: pair-cacert}, stringData: {cacert: f}}",
        "{apiVersion: v1, kind: Secret, metadata: {name: pair, namespace: other}, data: {tls.crt: YQ==}}",
    ],
    &[
        "",
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p}, spec: {mtls: {mode: STRICT}}}\n---\n{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: db}, spec: {selector: {matchLabels: {app: db}}, portLevelMtls: {5432: {mode: DISABLE}}}}",
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p}, spec: {mtls: {mode: STRICT}}}\n---\n{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: again}, spec: {mtls: {mode: DISABLE}}}",
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: istio-system}, spec: {mtls: {mode: PERMISSIVE}}}",
    ],
    &[
        "",
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a}, spec: {selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {methods: [GET], paths: [/a*]}}]}]}}\n---\n{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: b}, spec: {targetRefs: [{kind: Service, name: web, group: ''}], action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}}",
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a}, spec: {selector: {matchLabels: {app: db}}, rules: [{to: [{operation: {ports: ['5432']}}]}]}}\n---\n{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: b}, spec: {targetRefs: [{kind: Service, name: web, group: ''}], action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}}",
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a, namespace: istio-system}, spec: {}}",
    ],
];

/// A configuration after so many changes, each of a file to one of its states.
struct Course {
    states: [usize; FILES.len()],
    cache: Cache,
    compiler: Compiler,
}

impl Course {
    fn new() -> Self {
        Self {
            states: [0; FILES.len()],
            cache: Cache::default(),
            compiler: Compiler::new(Options::default()),
        }
    }

    /// The resources after a change.
    fn change(&mut self, file: usize, state: usize) -> Result<ResourceSet, Vec<Finding>> {
        self.states[file] = state % FILES[file].len();
        let names: Vec<String> = (0..FILES.len()).map(|n| format!("{n:02}.yaml")).collect();
        let texts = names.iter().zip(FILES).zip(self.states);
        let files = texts
            .map(|((name, states), state)| (name.as_str(), states[state]))
            .filter(|(_, text)| !text.is_empty());
        self.cache.parse(files)
    }
}

proptest! {
    #[test]
    fn what_is_compiled_step_by_step_is_what_is_compiled_at_once(
        changes in prop::collection::vec((0..FILES.len(), 0..4usize), 1..40)
    ) {
        let mut course = Course::new();
        for (file, state) in changes {
            let Ok(resources) = course.change(file, state) else {
                continue;
            };
            let step = course.compiler.compile(1, &resources);
            let whole = Snapshot::compile(1, &resources, &Options::default());
            match (step, whole) {
                (Ok(step), Ok(whole)) => {
                    prop_assert_eq!(&step.warnings, &whole.warnings);
                    prop_assert_eq!(&step.registry, &whole.registry);
                    prop_assert_eq!(step.routes.inspect(), whole.routes.inspect());
                    let policies = |snapshot: &Snapshot| {
                        (snapshot.peer_authentication.inspect(), snapshot.authorization.inspect())
                    };
                    prop_assert_eq!(policies(&step), policies(&whole));
                }
                (step, whole) => prop_assert_eq!(step.err(), whole.err()),
            }
        }
    }
}

#[test]
fn a_change_compiles_only_what_it_touches() {
    let mut course = Course::new();
    let mut made = |file, state| {
        let resources = course.change(file, state).expect("valid");
        course.compiler.compile(1, &resources).expect("valid");
        let Made {
            registry,
            routes,
            policies,
        } = course.compiler.made();
        let made = [
            registry.workloads,
            registry.services,
            routes.destination_rules,
            routes.virtual_services,
            policies,
        ];
        (made, course.compiler.compile(1, &resources).expect("valid"))
    };
    for (file, state) in [
        (0, 1),
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
        (5, 1),
        (7, 1),
        (10, 1),
    ] {
        made(file, state);
    }
    let (_, before) = made(9, 1);
    // Two workloads serve `web`: the entries of the others are not looked at again.
    let web = "web.default.svc.cluster.local";
    let (counts, after) = made(9, 3);
    assert_eq!(counts, [0, 0, 0, 1, 0], "a VirtualService");
    assert!(Arc::ptr_eq(&before.registry, &after.registry));
    assert_eq!(made(7, 2).0, [0, 0, 1, 0, 0], "a DestinationRule");
    let (counts, after) = made(4, 0);
    assert_eq!(counts, [0, 0, 0, 0, 0], "a Service that goes");
    assert!(Arc::ptr_eq(
        &before.registry.by_host[web],
        &after.registry.by_host[web]
    ));
    assert_eq!(made(4, 1).0, [0, 1, 0, 0, 0], "a Service that comes");
    assert_eq!(
        made(0, 2).0,
        [1, 2, 0, 0, 0],
        "a workload, and the services that it serves"
    );
    assert_eq!(
        made(1, 2).0,
        [1, 2, 0, 0, 0],
        "one of two in a file, and the services that it leaves and joins"
    );
    assert_eq!(
        made(9, 1).0,
        [0, 0, 0, 1, 0],
        "a VirtualService that delegates"
    );
    assert_eq!(
        made(10, 2).0,
        [0, 0, 0, 1, 0],
        "the one that it delegates to"
    );
    assert_eq!(made(16, 1).0, [0, 0, 0, 0, 2], "two PeerAuthentications");
    assert_eq!(made(16, 2).0, [0, 0, 0, 0, 1], "one of them");
    assert_eq!(made(17, 1).0, [0, 0, 0, 0, 2], "two AuthorizationPolicies");
    assert_eq!(made(17, 2).0, [0, 0, 0, 0, 1], "one of them");
    assert_eq!(made(9, 3).0, [0, 0, 0, 1, 0], "no policy");
}
