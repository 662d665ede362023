//! The shapes of rules that Istio's documentation teaches, and what they do.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::compile;
use crate::registry::Service;
use crate::resource::{Finding, parse};
use crate::route::{ClientView, Explanation, Facts, RequestView};
use crate::snapshot::Snapshot;

/// The sample applications, with as many endpoints of each version as there are numbers.
fn applications() -> String {
    let mut text = String::new();
    let mut last = 0;
    for (name, port, protocol, versions) in [
        ("productpage", 9080, "http", &["v1"][..]),
        ("reviews", 9080, "http", &["v1", "v2", "v3"]),
        ("ratings", 9080, "http", &["v1", "v2", "v2-mysql"]),
        ("details", 9080, "http", &["v1", "v2"]),
        ("httpbin", 8000, "http", &["v1", "v2"]),
        ("helloworld", 5000, "http", &["v1", "v2"]),
        ("tcp-echo", 9000, "tcp", &["v1", "v2"]),
    ] {
        text += &format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: {name}}}, \
             ports: [{{name: {protocol}, port: {port}}}]}}}}\n"
        );
        for version in versions {
            last += 1;
            text += &format!(
                "---\n{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: {name}-{version}}}, \
                 spec: {{address: 10.0.0.{last}, labels: {{app: {name}, version: {version}}}}}}}\n"
            );
        }
    }
    text
}

fn rule(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: networking.istio.io/v1, kind: {kind}, metadata: {{name: {name}}}, spec: {spec}}}\n"
    )
}

/// Subsets by version, with a policy for all of them.
fn subsets(host: &str, policy: &str, versions: &[&str]) -> String {
    let subsets: Vec<_> = versions
        .iter()
        .map(|version| format!("{{name: {version}, labels: {{version: {version}}}}}"))
        .collect();
    let subsets = subsets.join(", ");
    rule(
        "DestinationRule",
        host,
        &format!("{{host: {host}, {policy}subsets: [{subsets}]}}"),
    )
}

/// All subsets of the bookshop.
fn destination_rules(policy: &str) -> String {
    [
        subsets("productpage", policy, &["v1"]),
        subsets("reviews", policy, &["v1", "v2", "v3"]),
        subsets("ratings", policy, &["v1", "v2", "v2-mysql", "v2-mysql-vm"]),
        subsets("details", policy, &["v1", "v2"]),
    ]
    .concat()
}

fn mesh(rules: &str) -> Snapshot {
    compile(&format!("{}{rules}", applications())).expect("a valid configuration")
}

fn service<'s>(snapshot: &'s Snapshot, host: &str) -> &'s Arc<Service> {
    let by_host = &snapshot.registry.by_host;
    let full = format!("{host}.default.svc.cluster.local");
    let found = by_host.get(host).or_else(|| by_host.get(&full));
    found.unwrap_or_else(|| panic!("no service {host}"))
}

fn explain(snapshot: &Snapshot, request: &str) -> Explanation {
    let mut words = request.split(' ');
    let method: Method = words
        .next()
        .and_then(|word| word.parse().ok())
        .expect("a method");
    let target = words.next().expect("a target");
    let (authority, _) = target.split_once('/').expect("a path");
    let mut headers = HeaderMap::new();
    for word in words {
        let (name, value) = word.split_once(':').expect("name:value");
        let name: HeaderName = name.parse().expect("a header name");
        headers.append(name, HeaderValue::from_str(value).expect("a header value"));
    }
    let host = authority.split(':').next().expect("a host");
    let service = service(snapshot, host);
    let port = service.ports[0].number;
    let view = RequestView {
        authority,
        method: &method,
        path_and_query: &target[authority.len()..],
        scheme: "http",
        headers: &headers,
        facts: Facts {
            client: ([10, 0, 1, 1], 40_000).into(),
            destination: ([10, 96, 0, 1], port).into(),
            version: http::Version::HTTP_11,
            now: std::time::SystemTime::now,
        },
    };
    let labels = BTreeMap::from([("app".to_owned(), "productpage".to_owned())]);
    let client = ClientView {
        node: None,
        namespace: "default",
        labels: &labels,
    };
    (snapshot.routes).explain(&view, &client, service, port, &snapshot.registry)
}

/// What becomes of a request, with the number of endpoints of each destination.
fn fate(snapshot: &Snapshot, request: &str) -> String {
    let explanation = explain(snapshot, request);
    let mut text = explanation.outcome.replace(", up to 2 retries", "");
    for to in &explanation.destinations {
        let host = to.host.split('.').next().unwrap_or_default();
        let subset = to
            .subset
            .as_deref()
            .map_or(String::new(), |name| format!(" {name}"));
        let mirror = if to.mirror { " copied" } else { "" };
        text += &format!(
            "; {host}{subset} {}%{mirror} ({})",
            to.percent, to.endpoints
        );
    }
    text
}

fn warnings(snapshot: &Snapshot) -> Vec<String> {
    let said = snapshot.warnings.iter();
    said.map(|finding| {
        let code = finding
            .code
            .map_or(String::new(), |code| format!(" [{code}]"));
        format!(
            "{}: {}: {}{code}",
            finding.object, finding.field, finding.reason
        )
    })
    .collect()
}

/// What `istioctl analyze` says of the sample, too: it names a version that the application has only on
/// virtual machines.
const WITHOUT_PODS: &str = "DestinationRule default/ratings: spec.subsets[3].labels: \"v2-mysql-vm\" selects no endpoint of \
     ratings.default.svc.cluster.local; such requests are answered with 503 (UH) [IST0173]";

/// The findings of rules in which nothing else is wrong.
fn of_sample(rules: &str) -> Vec<&'static str> {
    let names_it = rules.contains("v2-mysql-vm");
    names_it.then_some(WITHOUT_PODS).into_iter().collect()
}

/// Asks what becomes of requests under rules that are without any other finding.
fn check(rules: &str, cases: &[(&str, &str)]) {
    let snapshot = mesh(rules);
    assert_eq!(warnings(&snapshot), of_sample(rules), "{rules}");
    for (request, expected) in cases {
        assert_eq!(fate(&snapshot, request), *expected, "{request}\n{rules}");
    }
}

/// A VirtualService for `reviews` or another.
fn routes(host: &str, http: &str) -> String {
    rule(
        "VirtualService",
        host,
        &format!("{{hosts: [{host}], http: {http}}}"),
    )
}

fn to(host: &str, subset: &str) -> String {
    format!("{{destination: {{host: {host}, subset: {subset}}}}}")
}

/// `destination-rule-all` with `virtual-service-all-v1`, and with mutual TLS.
#[test]
fn all_requests_go_to_the_first_version() {
    let hosts = ["productpage", "reviews", "ratings", "details"];
    let all_v1: String = hosts
        .map(|host| routes(host, &format!("[{{route: [{}]}}]", to(host, "v1"))))
        .concat();
    for policy in ["", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}, "] {
        let rules = destination_rules(policy) + &all_v1;
        let snapshot = mesh(&rules);
        assert_eq!(warnings(&snapshot), of_sample(&rules));
        for host in hosts {
            let fate = fate(&snapshot, &format!("GET {host}:9080/"));
            assert_eq!(fate, format!("forwarded; {host} v1 100% (1)"));
        }
    }
}

/// `virtual-service-reviews-...` and `virtual-service-ratings-...`.
#[test]
fn the_bookshops_rules() {
    let subsets = destination_rules("");
    let by_user = |user: &str, others: &str, route: &str| {
        format!(
            "[{{match: [{{headers: {{end-user: {{exact: jason}}}}}}], {route}route: [{user}]}}, {{route: [{others}]}}]"
        )
    };
    let [v1, v2, v3] = ["v1", "v2", "v3"].map(|subset| to("reviews", subset));
    let shares = |one: &str, share: u32, other: &str| {
        format!(
            "[{{route: [{{{}, weight: {share}}}, {{{}, weight: {}}}]}}]",
            one.trim_matches(['{', '}']).to_owned() + "}",
            other.trim_matches(['{', '}']).to_owned() + "}",
            100 - share
        )
    };
    let rating = to("ratings", "v1");
    for (host, http, cases) in [
        (
            "reviews",
            by_user(&v2, &v1, ""),
            [
                ("GET reviews/", "forwarded; reviews v1 100% (1)"),
                (
                    "GET reviews/ end-user:jason",
                    "forwarded; reviews v2 100% (1)",
                ),
            ],
        ),
        (
            "reviews",
            by_user(&v2, &v3, ""),
            [
                (
                    "GET reviews/ end-user:json",
                    "forwarded; reviews v3 100% (1)",
                ),
                (
                    "GET reviews/ end-user:jason",
                    "forwarded; reviews v2 100% (1)",
                ),
            ],
        ),
        (
            "reviews",
            shares(&v1, 50, &v3),
            [
                (
                    "GET reviews/",
                    "forwarded; reviews v1 50% (1); reviews v3 50% (1)",
                ),
                (
                    "GET reviews.default.svc.cluster.local:9080/",
                    "forwarded; reviews v1 50% (1); reviews v3 50% (1)",
                ),
            ],
        ),
        (
            "reviews",
            shares(&v1, 90, &v2),
            [
                (
                    "GET reviews/",
                    "forwarded; reviews v1 90% (1); reviews v2 10% (1)",
                ),
                (
                    "POST reviews/x?y=z",
                    "forwarded; reviews v1 90% (1); reviews v2 10% (1)",
                ),
            ],
        ),
        (
            "ratings",
            by_user(
                &rating,
                &rating,
                "fault: {delay: {percentage: {value: 100.0}, fixedDelay: 7s}}, ",
            ),
            [
                ("GET ratings/", "forwarded; ratings v1 100% (1)"),
                (
                    "GET ratings/ end-user:jason",
                    "delayed by 7s (100 %), forwarded; ratings v1 100% (1)",
                ),
            ],
        ),
        (
            "ratings",
            by_user(
                &rating,
                &rating,
                "fault: {abort: {percentage: {value: 100.0}, httpStatus: 500}}, ",
            ),
            [
                ("GET ratings/", "forwarded; ratings v1 100% (1)"),
                (
                    "GET ratings/ end-user:jason",
                    "aborted with 500 (100 %), forwarded; ratings v1 100% (1)",
                ),
            ],
        ),
        // The task on timeouts.
        (
            "reviews",
            format!("[{{route: [{v2}], timeout: 0.5s}}]"),
            [
                (
                    "GET reviews/",
                    "forwarded, timeout 500ms; reviews v2 100% (1)",
                ),
                (
                    "HEAD reviews/",
                    "forwarded, timeout 500ms; reviews v2 100% (1)",
                ),
            ],
        ),
        // The concepts page on retries.
        (
            "ratings",
            format!("[{{route: [{rating}], retries: {{attempts: 3, perTryTimeout: 2s}}}}]"),
            [
                (
                    "GET ratings/",
                    "forwarded, up to 3 retries of 2s each; ratings v1 100% (1)",
                ),
                (
                    "GET ratings/ratings/0",
                    "forwarded, up to 3 retries of 2s each; ratings v1 100% (1)",
                ),
            ],
        ),
    ] {
        check(&(subsets.clone() + &routes(host, &http)), &cases);
    }
}

/// A rule sends requests to a version that the cluster has no pods of.
#[test]
fn a_version_without_pods_is_said_so() {
    let rules = destination_rules("")
        + &routes(
            "ratings",
            &format!("[{{route: [{}]}}]", to("ratings", "v2-mysql-vm")),
        );
    let snapshot = mesh(&rules);
    assert_eq!(
        warnings(&snapshot),
        [
            WITHOUT_PODS,
            "VirtualService default/ratings: spec.http[0].route[0].destination.subset: subset \"v2-mysql-vm\" of \
         ratings.default.svc.cluster.local selects no endpoint; such requests are answered with 503 (UH) [IST0173]"
        ]
    );
}

/// The rules of the bookshop's gateway are another proxy's.
#[test]
fn rules_for_a_gateway_do_not_concern_the_mesh() {
    let gateway = rule(
        "Gateway",
        "bookinfo-gateway",
        "{selector: {istio: ingressgateway}, \
        servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}]}",
    );
    let routes = rule(
        "VirtualService",
        "bookinfo",
        "{hosts: ['*'], gateways: [bookinfo-gateway], http: [\
        {match: [{uri: {exact: /productpage}}, {uri: {prefix: /static}}], \
        route: [{destination: {host: productpage, port: {number: 9080}}}]}]}",
    );
    let snapshot = mesh(&(gateway + &routes));
    assert_eq!(
        fate(&snapshot, "GET productpage/"),
        "forwarded: no VirtualService has rules for it; productpage 100% (1)"
    );
    assert_eq!(
        warnings(&snapshot),
        [
            "Gateway default/bookinfo-gateway: kind: Gateway is not applied by this version",
            "VirtualService default/bookinfo: spec.gateways[0]: not applied by this version: only \"mesh\" is served, not \"bookinfo-gateway\"",
        ]
    );
}

/// The tasks with httpbin: circuit breaking, mirroring.
#[test]
fn httpbins_rules() {
    let breaker = rule(
        "DestinationRule",
        "httpbin",
        "{host: httpbin, trafficPolicy: {\
        connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}, \
        outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 3m, maxEjectionPercent: 100}}}",
    );
    check(
        &breaker,
        &[(
            "GET httpbin:8000/get",
            "forwarded: no VirtualService has rules for it; httpbin 100% (2)",
        )],
    );
    let mirror = subsets("httpbin", "", &["v1", "v2"])
        + &routes(
            "httpbin",
            "[{\
        route: [{destination: {host: httpbin, subset: v1}, weight: 100}], \
        mirror: {host: httpbin, subset: v2}, mirrorPercentage: {value: 100.0}}]",
        );
    check(
        &mirror,
        &[(
            "GET httpbin:8000/headers",
            "forwarded; httpbin v1 100% (1); httpbin v2 100% copied (1)",
        )],
    );
}

/// The reference of VirtualService: rewriting, redirection, CORS, headers, gRPC by its path.
#[test]
fn the_references_rules() {
    let subsets = destination_rules("");
    let rewrite = "[{name: reviews-v2-routes, match: [{uri: {prefix: /wpcatalog}}, {uri: {prefix: /consumercatalog}}], \
        rewrite: {uri: /newcatalog}, route: [{destination: {host: reviews, subset: v2}}]}, \
        {name: reviews-v1-route, route: [{destination: {host: reviews, subset: v1}}]}]";
    check(
        &(subsets.clone() + &routes("reviews", rewrite)),
        &[
            ("GET reviews/wpcatalog/1", "forwarded; reviews v2 100% (1)"),
            (
                "GET reviews/consumercatalog",
                "forwarded; reviews v2 100% (1)",
            ),
            ("GET reviews/", "forwarded; reviews v1 100% (1)"),
        ],
    );
    let redirect = "[{match: [{uri: {exact: /v1/getProductRatings}}], \
        redirect: {uri: /v1/bookRatings, authority: newratings.default.svc.cluster.local}}, \
        {match: [{headers: {end-user: {exact: jason}}, uri: {prefix: /ratings/v2/}, ignoreUriCase: true}], \
        route: [{destination: {host: ratings, subset: v2}}]}, \
        {match: [{uri: {prefix: /ratings.v1.RatingsService}}], corsPolicy: {allowOrigins: [{exact: https://example.com}], \
        allowMethods: [POST, GET], allowCredentials: false, allowHeaders: [X-Foo-Bar], maxAge: 24h}, \
        headers: {request: {set: {test: 'true'}}, response: {remove: [foo]}}, \
        route: [{destination: {host: ratings, subset: v1}}]}]";
    check(
        &(subsets + &routes("ratings", redirect)),
        &[
            (
                "GET ratings/v1/getProductRatings",
                "answered with a redirection",
            ),
            (
                "GET ratings/RATINGS/v2/1 end-user:jason",
                "forwarded; ratings v2 100% (1)",
            ),
            (
                "POST ratings/ratings.v1.RatingsService/Get",
                "forwarded; ratings v1 100% (1)",
            ),
            (
                "GET ratings/ratings/v2/1",
                "answered with 404 (NR): no rule matches",
            ),
        ],
    );
}

/// `helloworld`: shares, and localities that fail over.
#[test]
fn helloworlds_rules() {
    let shares = subsets("helloworld", "", &["v1", "v2"])
        + &routes(
            "helloworld",
            "[{route: [\
        {destination: {host: helloworld, subset: v1}, weight: 90}, {destination: {host: helloworld, subset: v2}, weight: 10}]}]",
        );
    check(
        &shares,
        &[(
            "GET helloworld:5000/hello",
            "forwarded; helloworld v1 90% (1); helloworld v2 10% (1)",
        )],
    );
    let outlier = "outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 1m, maxEjectionPercent: 100}";
    for setting in [
        "failover: [{from: region1, to: region2}]",
        "distribute: [{from: region1/zone1/*, to: {'region1/zone1/*': 70, 'region1/zone2/*': 20, 'region3/zone4/*': 10}}]",
        "failoverPriority: ['topology.istio.io/network', 'topology.kubernetes.io/region']",
    ] {
        let rule = rule(
            "DestinationRule",
            "helloworld",
            &format!(
                "{{host: helloworld.default.svc.cluster.local, trafficPolicy: {{\
            connectionPool: {{http: {{maxRequestsPerConnection: 1}}}}, \
            loadBalancer: {{simple: ROUND_ROBIN, localityLbSetting: {{enabled: true, {setting}}}}}, {outlier}}}}}"
            ),
        );
        check(
            &rule,
            &[(
                "GET helloworld:5000/hello",
                "forwarded: no VirtualService has rules for it; helloworld 100% (2)",
            )],
        );
    }
}

/// `tcp-echo`, for clients in the mesh.
#[test]
fn a_fifth_of_the_connections_goes_to_the_second_version() {
    let rules = subsets("tcp-echo", "", &["v1", "v2"])
        + &rule(
            "VirtualService",
            "tcp-echo",
            "{hosts: [tcp-echo], tcp: [\
        {match: [{port: 9000}], route: [{destination: {host: tcp-echo, port: {number: 9000}, subset: v1}, weight: 80}, \
        {destination: {host: tcp-echo, port: {number: 9000}, subset: v2}, weight: 20}]}]}",
        );
    let snapshot = mesh(&rules);
    assert_eq!(warnings(&snapshot), [""; 0]);
    let service = service(&snapshot, "tcp-echo");
    let labels = BTreeMap::new();
    let client = ClientView {
        node: None,
        namespace: "default",
        labels: &labels,
    };
    let mut second = 0;
    for _ in 0..10_000 {
        let decision = snapshot.routes.decide_tcp(
            &client,
            service,
            [10, 0, 1, 1].into(),
            ([10, 0, 0, 9], 9000).into(),
            &snapshot.registry,
            &mut rand::rng(),
        );
        let plan = decision.expect("a plan");
        second += u32::from(plan.subset.is_some_and(|subset| subset.name == "v2"));
    }
    // 99.99 % of all runs.
    assert!((1840..=2160).contains(&second), "{second}");
}

/// The tasks on egress: access, timeouts, TLS that the mesh originates, wildcards.
#[test]
fn rules_for_what_lies_outside() {
    let httpbin = rule(
        "ServiceEntry",
        "httpbin-ext",
        "{hosts: [httpbin.org], ports: [{number: 80, name: http, protocol: HTTP}], \
        resolution: DNS, location: MESH_EXTERNAL}",
    ) + &routes(
        "httpbin.org",
        "[{timeout: 3s, route: [{destination: {host: httpbin.org}, weight: 100}]}]",
    );
    check(
        &httpbin,
        &[(
            "GET httpbin.org/status/200",
            "forwarded, timeout 3s; httpbin 100% (1)",
        )],
    );
    let cnn = rule(
        "ServiceEntry",
        "edition-cnn-com",
        "{hosts: [edition.cnn.com], ports: [\
        {number: 80, name: http-port, protocol: HTTP, targetPort: 443}, {number: 443, name: https-port, protocol: HTTPS}], resolution: DNS}",
    ) + &rule(
        "DestinationRule",
        "edition-cnn-com",
        "{host: edition.cnn.com, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, \
        portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, sni: edition.cnn.com}}]}}",
    );
    check(
        &cnn,
        &[(
            "GET edition.cnn.com/politics",
            "forwarded: no VirtualService has rules for it; edition 100% (1)",
        )],
    );
    let wildcard = rule(
        "ServiceEntry",
        "wikipedia",
        "{hosts: ['*.wikipedia.org'], location: MESH_EXTERNAL, \
        ports: [{number: 443, name: tls, protocol: TLS}]}",
    );
    check(&wildcard, &[]);
    let mongo = rule(
        "ServiceEntry",
        "external-svc-mongocluster",
        "{hosts: [mymongodb.somedomain], addresses: [192.192.192.192/24], \
        ports: [{number: 27018, name: mongodb, protocol: MONGO}], location: MESH_INTERNAL, resolution: STATIC, \
        endpoints: [{address: 2.2.2.2}, {address: 3.3.3.3}]}",
    ) + &rule(
        "DestinationRule",
        "mtls-mongocluster",
        "{host: mymongodb.somedomain, trafficPolicy: {tls: {mode: MUTUAL, \
        clientCertificate: /etc/certs/myclientcert.pem, privateKey: /etc/certs/client_private_key.pem, \
        caCertificates: /etc/certs/rootcacerts.pem}}}",
    );
    check(&mongo, &[]);
}

/// Through an egress gateway that is not there: what the mesh would do, and that it is said.
#[test]
fn an_egress_gateway_that_is_not_there_is_missed() {
    let rules = rule(
        "ServiceEntry",
        "cnn",
        "{hosts: [edition.cnn.com], ports: [{number: 80, name: http-port, protocol: HTTP}], resolution: DNS}",
    ) + &rule(
        "VirtualService",
        "cnn-through-gateway",
        "{hosts: [edition.cnn.com], gateways: [istio-egressgateway, mesh], http: [\
        {match: [{gateways: [mesh], port: 80}], route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, \
        port: {number: 80}}, weight: 100}]}, \
        {match: [{gateways: [istio-egressgateway], port: 80}], route: [{destination: {host: edition.cnn.com, port: {number: 80}}, weight: 100}]}]}",
    );
    let snapshot = mesh(&rules);
    let said = explain(&snapshot, "GET edition.cnn.com/");
    let problem = said.destinations[0].problem.clone().unwrap_or_default();
    assert!(
        problem.starts_with("503 (NC): no service is named istio-egressgateway"),
        "{said:?}"
    );
    let said = warnings(&snapshot);
    assert!(
        said.iter().any(|said| said.ends_with("[IST0101]")),
        "{said:?}"
    );
}

/// The references of Sidecar, WorkloadGroup and WorkloadEntry: nothing is refused, and
/// what is not applied is said.
#[test]
fn what_else_the_references_show_is_taken() {
    let text = [
        rule("Sidecar", "partial-ip-tables", "{workloadSelector: {labels: {app: productpage}}, ingress: [\
            {bind: 172.16.1.32, port: {number: 80, protocol: HTTP, name: somename}, defaultEndpoint: '127.0.0.1:8080', captureMode: NONE}], \
            egress: [{captureMode: IPTABLES, hosts: ['*/*']}]}"),
        rule("Sidecar", "default", "{egress: [{hosts: ['prod-us1/*', 'prod-apis/*', 'istio-system/*', './*']}]}"),
        rule("WorkloadGroup", "reviews-vm", "{metadata: {labels: {app.kubernetes.io/name: reviews, app.kubernetes.io/version: 1.3.4}}, \
            template: {ports: {grpc: 3550, http: 8080}, serviceAccount: default}, probe: {initialDelaySeconds: 5, timeoutSeconds: 3, \
            periodSeconds: 4, successThreshold: 3, failureThreshold: 3, httpGet: {path: /foo/bar, host: 127.0.0.1, port: 3100, \
            scheme: HTTPS, httpHeaders: [{name: Lit-Header, value: Im-The-Best}]}}}"),
        rule("DestinationRule", "bookinfo-ratings-port", "{host: ratings.prod.svc.cluster.local, trafficPolicy: {portLevelSettings: [\
            {port: {number: 80}, loadBalancer: {simple: LEAST_REQUEST}}, {port: {number: 9080}, loadBalancer: {simple: ROUND_ROBIN}}]}}"),
        rule("DestinationRule", "sticky", "{host: ratings, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 0s}}}}}"),
    ]
    .concat();
    let said: Vec<String> = match parse([("a.yaml", text.as_str())]) {
        Ok(set) => set.warnings.iter().map(field).collect(),
        Err(findings) => panic!("{findings:?}"),
    };
    assert_eq!(
        said,
        ["spec.ingress[0].bind", "spec.ingress[0].captureMode"]
    );
}

fn field(finding: &Finding) -> String {
    finding.field.clone()
}
