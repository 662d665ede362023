//! Where requests go: weights, subsets, ports, DestinationRules.

use super::*;

const CANARY: &str = "{hosts: [myapp], http: [{route: [\
    {destination: {host: myapp, subset: stable, port: {number: 80}}, weight: 90},\
    {destination: {host: myapp, subset: canary, port: {number: 80}}, weight: 10}]}]}";
const SUBSETS: &str = "{host: myapp, subsets: [\
    {name: stable, labels: {version: stable}}, {name: canary, labels: {version: canary}}]}";
const APP: Client<'_> = Client {
    service: "myapp.default.svc.cluster.local",
    ..CLIENT
};

fn canary_share(weights: [u32; 2]) -> f64 {
    let rule = CANARY
        .replace("weight: 90", &format!("weight: {}", weights[0]))
        .replace("weight: 10", &format!("weight: {}", weights[1]));
    let mut mesh = Mesh::new(&[("default/myapp", &rule)], &[("default/myapp", SUBSETS)]);
    let canary = (0..10_000)
        .filter(|_| mesh.outcome(&APP, "GET myapp/") == "myapp.default:80 canary")
        .count();
    canary as f64 / 10_000.0
}

#[test]
fn weights_are_shares_of_their_sum() {
    // 99.9 % of all runs lie within one point.
    assert!((canary_share([90, 10]) - 0.10).abs() < 0.01);
    assert!((canary_share([95, 5]) - 0.05).abs() < 0.01);
    assert!((canary_share([3, 1]) - 0.25).abs() < 0.015);
    assert_eq!(canary_share([1, 0]), 0.0);
    assert_eq!(canary_share([0, 7]), 1.0);
}

#[test]
fn a_subset_that_nothing_defines_is_said_so() {
    let mut mesh = Mesh::new(&[("default/canary-rollout", CANARY)], &[]);
    let outcomes: std::collections::BTreeSet<_> =
        (0..200).map(|_| mesh.outcome(&APP, "GET myapp/")).collect();
    let outcomes: Vec<_> = outcomes.iter().map(String::as_str).collect();
    assert_eq!(
        outcomes,
        [
            "503 NC subset \"canary\" of myapp.default.svc.cluster.local: no DestinationRule defines it",
            "503 NC subset \"stable\" of myapp.default.svc.cluster.local: no DestinationRule defines it",
        ]
    );
    let fields: Vec<_> = mesh
        .findings
        .iter()
        .map(|finding| finding.field.as_str())
        .collect();
    assert_eq!(
        fields,
        [
            "spec.http[0].route[0].destination.subset",
            "spec.http[0].route[1].destination.subset"
        ]
    );
}

#[test]
fn a_destination_that_is_not_there_is_said_so() {
    let to = |destination: &str| {
        format!("{{hosts: [reviews], http: [{{route: [{{destination: {destination}}}]}}]}}")
    };
    for (destination, expected) in [
        (
            "{host: nowhere}",
            "503 NC no service is named nowhere.default.svc.cluster.local",
        ),
        // Names with a dot are taken as they are, as in Istio.
        (
            "{host: reviews.default}",
            "503 NC no service is named reviews.default",
        ),
        (
            "{host: myapp, port: {number: 81}}",
            "503 NC myapp.default.svc.cluster.local has no port 81",
        ),
    ] {
        let mut mesh = Mesh::new(&[("default/reviews", &to(destination))], &[]);
        assert_eq!(mesh.outcome(&CLIENT, "GET reviews/"), expected);
        assert_eq!(mesh.findings.len(), 1, "{:?}", mesh.findings);
    }
    for (destination, expected) in [
        ("{host: ratings}", "ratings.default:80"),
        ("{host: myapp}", "myapp.default:80"),
        ("{host: myapp, port: {number: 9080}}", "myapp.default:9080"),
        (
            "{host: reviews.other.svc.cluster.local}",
            "reviews.other:80",
        ),
    ] {
        let mut mesh = Mesh::new(&[("default/reviews", &to(destination))], &[]);
        assert_eq!(mesh.outcome(&CLIENT, "GET reviews/"), expected);
    }
}

#[test]
fn short_names_belong_to_the_rules_namespace() {
    let rule = "{hosts: [reviews.default.svc.cluster.local], http: [{route: [{destination: {host: reviews}}]}]}";
    let mut mesh = Mesh::new(&[("other/reviews", rule)], &[]);
    assert_eq!(mesh.outcome(&CLIENT, "GET reviews/"), "reviews.other:80");
}

fn algorithm(mesh: &mut Mesh, client: &Client<'_>) -> Algorithm {
    match mesh.decide(client, "GET reviews.default/").outcome {
        Outcome::Forward(plan) => plan.policy.algorithm(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_clients_namespace_then_the_services_then_the_root() {
    let rule = |simple: &str| {
        format!(
            "{{host: reviews.default.svc.cluster.local, trafficPolicy: {{loadBalancer: {{simple: {simple}}}}}}}"
        )
    };
    let (root, own, client) = (rule("RANDOM"), rule("ROUND_ROBIN"), rule("LEAST_REQUEST"));
    let other = Client {
        namespace: "other",
        ..CLIENT
    };
    let mut mesh = Mesh::new(
        &[],
        &[
            ("istio-system/a", &root),
            ("default/b", &own),
            ("other/c", &client),
        ],
    );
    assert_eq!(algorithm(&mut mesh, &CLIENT), Algorithm::RoundRobin);
    assert_eq!(algorithm(&mut mesh, &other), Algorithm::LeastRequest);
    let mut mesh = Mesh::new(&[], &[("istio-system/a", &root)]);
    assert_eq!(algorithm(&mut mesh, &CLIENT), Algorithm::Random);
    let private = own.replace("{host", "{exportTo: ['.'], host");
    let mut mesh = Mesh::new(&[], &[("istio-system/a", &root), ("default/b", &private)]);
    assert_eq!(algorithm(&mut mesh, &CLIENT), Algorithm::RoundRobin);
    assert_eq!(algorithm(&mut mesh, &other), Algorithm::Random);
}

#[test]
fn the_most_specific_rule_is_taken_and_selectors_come_first() {
    let mut mesh = Mesh::new(
        &[],
        &[
            (
                "default/wide",
                "{host: '*.default.svc.cluster.local', trafficPolicy: {loadBalancer: {simple: RANDOM}}}",
            ),
            (
                "default/exact",
                "{host: reviews, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}",
            ),
            (
                "default/web",
                "{host: reviews, workloadSelector: {matchLabels: {app: web}}, trafficPolicy: {loadBalancer: {simple: LEAST_CONN}}}",
            ),
        ],
    );
    assert_eq!(algorithm(&mut mesh, &CLIENT), Algorithm::RoundRobin);
    let web = Client {
        labels: &[("app", "web")],
        ..CLIENT
    };
    assert_eq!(algorithm(&mut mesh, &web), Algorithm::LeastRequest);
}

#[test]
fn a_block_is_replaced_whole_and_a_ports_settings_replace_all() {
    let route = "{hosts: [myapp], http: [\
        {match: [{port: 9080}], route: [{destination: {host: myapp, subset: s, port: {number: 9080}}}]},\
        {match: [{uri: {exact: /top}}], route: [{destination: {host: myapp}}]},\
        {route: [{destination: {host: myapp, subset: s}}]}]}";
    let rule = "{host: myapp, trafficPolicy: {loadBalancer: {simple: RANDOM}, tls: {mode: DISABLE}, \
        connectionPool: {tcp: {connectTimeout: 3s}}, portLevelSettings: [{port: {number: 9080}, loadBalancer: {simple: ROUND_ROBIN}}]}, \
        subsets: [{name: s, labels: {version: stable}, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}]}";
    let mut mesh = Mesh::new(&[("default/myapp", route)], &[("default/myapp", rule)]);
    let top = mesh.plan("GET myapp/top").policy.clone();
    assert_eq!(
        (
            top.algorithm(),
            top.tls.clone(),
            top.connect_timeout.as_secs()
        ),
        (Algorithm::Random, UpstreamTls::Disable, 3)
    );
    let subset = mesh.plan("GET myapp/").policy.clone();
    assert_eq!(
        (
            subset.algorithm(),
            subset.tls.clone(),
            subset.connect_timeout.as_secs()
        ),
        (Algorithm::Random, UpstreamTls::IstioMutual, 3)
    );
    let client = Client { port: 9080, ..APP };
    let Outcome::Forward(plan) = mesh.decide(&client, "GET myapp/").outcome else {
        panic!("not forwarded")
    };
    assert_eq!(
        (
            plan.policy.algorithm(),
            plan.policy.tls.clone(),
            plan.policy.connect_timeout
        ),
        (
            Algorithm::RoundRobin,
            UpstreamTls::IstioMutual,
            UpstreamPolicy::default().connect_timeout
        )
    );
}

#[test]
fn rules_of_one_host_are_merged() {
    let mut mesh = Mesh::new(
        &[(
            "default/reviews",
            "{hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v2}}]}]}",
        )],
        &[
            (
                "default/a",
                "{host: reviews, subsets: [{name: v1, labels: {version: v1}}]}",
            ),
            (
                "default/b",
                "{host: reviews, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1}, {name: v2, labels: {version: v2}}]}",
            ),
        ],
    );
    assert_eq!(mesh.findings.len(), 1, "{:?}", mesh.findings);
    let plan = mesh.plan("GET reviews/");
    assert_eq!(plan.subset.map(|subset| subset.name.as_str()), Some("v2"));
    assert_eq!(plan.policy.algorithm(), Algorithm::Random);
    assert_eq!(plan.destination_rule, Some("a/default"));
}

#[test]
fn nothing_is_sent_in_the_clear_where_tls_is_asked_for() {
    let mut mesh = Mesh::new(
        &[],
        &[(
            "default/reviews",
            "{host: reviews, trafficPolicy: {tls: {mode: MUTUAL, credentialName: secret}}}",
        )],
    );
    assert!(
        mesh.outcome(&CLIENT, "GET reviews/").starts_with(
            "503 NC reviews.default.svc.cluster.local: DestinationRule reviews/default"
        )
    );
}

#[test]
fn connections_are_routed_by_tcp_rules() {
    let rule = "{hosts: [myapp], tcp: [{match: [{port: 80, sourceLabels: {app: sleep}}], route: [{destination: {host: ratings}}]},\
        {match: [{destinationSubnets: [10.9.0.0/16]}], route: [{destination: {host: reviews, subset: gone}}]}, \
        {match: [{sourceSubnet: 10.8.0.0/16}], route: [{destination: {host: ratings}}]}]}";
    let mesh = Mesh::new(&[("default/myapp", rule)], &[]);
    let labels = [("app".to_owned(), "sleep".to_owned())].into();
    let client = ClientView {
        node: None,
        namespace: "default",
        labels: &labels,
    };
    let service = &mesh.registry.by_host["myapp.default.svc.cluster.local"];
    let decide_from = |source: &str, destination: &str| {
        let source = source.parse().expect("an address");
        let mut random = StdRng::seed_from_u64(1);
        let destination = destination.parse().expect("an address");
        let plan = mesh.routes.decide_tcp(
            &client,
            service,
            source,
            destination,
            &mesh.registry,
            &mut random,
        );
        plan.map(|plan| format!("{}:{}", plan.service.name, plan.port))
            .map_err(|error| error.flags.to_string())
    };
    let decide = |destination: &str| decide_from("10.0.0.1", destination);
    assert_eq!(
        decide_from("10.8.1.1", "10.2.0.1:9080"),
        Ok("ratings:80".into())
    );
    assert_eq!(decide("10.1.0.1:80"), Ok("ratings:80".into()));
    assert_eq!(decide("10.1.0.1:9080"), Ok("myapp:9080".into()));
    assert_eq!(decide("10.9.0.1:9080"), Err("NC".to_owned()));
}

#[test]
fn a_name_with_dots_stays_as_it_is_written() {
    let spec = "{hosts: [reviews.default], http: [{route: [{destination: {host: ratings}}]}]}";
    let mut mesh = Mesh::new(&[("default/v", spec)], &[]);
    mesh.expect(&[
        ("GET reviews.default/", "ratings.default:80"),
        ("GET reviews.default:80/", "ratings.default:80"),
        ("GET reviews/", "reviews.default:80"),
        (
            "GET reviews.default.svc.cluster.local/",
            "reviews.default:80",
        ),
    ]);
    // The rules of the full name come first, and those of a wildcard are not for a service's names.
    let full = "{hosts: [reviews], http: [{directResponse: {status: 200}}]}";
    let mut mesh = Mesh::new(&[("default/v", spec), ("default/w", full)], &[]);
    mesh.expect(&[("GET reviews.default/", "direct 200")]);
    let wildcard = spec.replace("reviews.default", "'*.default'");
    let mut mesh = Mesh::new(&[("default/v", &wildcard)], &[]);
    mesh.expect(&[("GET reviews.default/", "reviews.default:80")]);
}
