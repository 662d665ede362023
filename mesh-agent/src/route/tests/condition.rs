//! Which rule a request meets.

use super::*;

/// A rule for `reviews` that sends what matches to v2 and the rest to v1.
fn by_match(block: &str) -> String {
    format!(
        "{{hosts: [reviews], http: [\
         {{match: [{block}], route: [{{destination: {{host: reviews, subset: v2}}}}]}},\
         {{route: [{{destination: {{host: reviews, subset: v1}}}}]}}]}}"
    )
}

fn check(block: &str, cases: &[(&str, bool)]) {
    let mut mesh = Mesh::new(
        &[("default/reviews", &by_match(block))],
        &[("default/reviews", VERSIONS)],
    );
    assert_eq!(mesh.findings, []);
    for (request, matches) in cases {
        let version = if *matches { "v2" } else { "v1" };
        assert_eq!(
            mesh.outcome(&CLIENT, request),
            format!("reviews.default:80 {version}"),
            "{block}: {request}"
        );
    }
}

#[test]
fn a_header_is_compared_whole() {
    check(
        "{headers: {end-user: {exact: jason}}}",
        &[
            ("GET reviews/ end-user:jason", true),
            ("GET reviews/ End-User:jason", true),
            ("GET reviews/ END-USER:jason x:y", true),
            ("GET reviews/", false),
            ("GET reviews/ end-user:Jason", false),
            ("GET reviews/ end-user:jason2", false),
            ("GET reviews/ end-user:jason end-user:jason", false),
            ("GET reviews/ end-user:", false),
        ],
    );
    check(
        "{headers: {End-User: {prefix: ja}}}",
        &[
            ("GET reviews/ end-user:jason", true),
            ("GET reviews/ end-user:xja", false),
        ],
    );
    check(
        "{headers: {end-user: {regex: 'j.*n|x'}}}",
        &[
            ("GET reviews/ end-user:jason", true),
            ("GET reviews/ end-user:jasons", false),
            ("GET reviews/ end-user:xx", false),
        ],
    );
    check(
        "{headers: {end-user: {}}}",
        &[("GET reviews/ end-user:", true), ("GET reviews/", false)],
    );
    check(
        "{headers: {end-user: {regex: '*'}}}",
        &[("GET reviews/ end-user:a", true), ("GET reviews/", false)],
    );
}

#[test]
fn without_headers_takes_a_missing_header_for_an_empty_one() {
    check(
        "{withoutHeaders: {end-user: {exact: jason}}}",
        &[
            ("GET reviews/", true),
            ("GET reviews/ end-user:tom", true),
            ("GET reviews/ end-user:jason", false),
        ],
    );
    check(
        "{withoutHeaders: {end-user: {exact: ''}}}",
        &[("GET reviews/", false), ("GET reviews/ end-user:a", true)],
    );
    check(
        "{withoutHeaders: {end-user: {}}}",
        &[("GET reviews/", true), ("GET reviews/ end-user:a", false)],
    );
    check(
        "{withoutHeaders: {end-user: {regex: '*'}}}",
        &[("GET reviews/", true), ("GET reviews/ end-user:a", false)],
    );
}

#[test]
fn a_path_prefix_is_a_prefix_of_the_text() {
    check(
        "{uri: {prefix: /foo}}",
        &[
            ("GET reviews/foo", true),
            ("GET reviews/foobar", true),
            ("GET reviews/foo?a=b", true),
            ("GET reviews/FOO", false),
            ("GET reviews/?/foo", false),
        ],
    );
    check(
        "{uri: {exact: /foo}}",
        &[("GET reviews/foo?x", true), ("GET reviews/foo/", false)],
    );
    check(
        "{uri: {regex: '/v[0-9]+/.*'}}",
        &[("GET reviews/v12/a?x", true), ("GET reviews/a/v1/", false)],
    );
    check(
        "{uri: {prefix: /Foo}, ignoreUriCase: true}",
        &[("GET reviews/fOObar", true), ("GET reviews/fo", false)],
    );
    check(
        "{uri: {exact: /Foo}, ignoreUriCase: true}",
        &[("GET reviews/foo", true), ("GET reviews/foo1", false)],
    );
}

#[test]
fn the_rest_of_a_request_can_be_matched() {
    check(
        "{method: {exact: POST}}",
        &[("POST reviews/", true), ("GET reviews/", false)],
    );
    check("{scheme: {exact: https}}", &[("GET reviews/", false)]);
    check(
        "{authority: {exact: 'reviews:80'}}",
        &[("GET reviews:80/", true), ("GET reviews/", false)],
    );
    check("{port: 80}", &[("GET reviews/", true)]);
    check("{port: 81}", &[("GET reviews/", false)]);
    check(
        "{queryParams: {user: {exact: a}}}",
        &[
            ("GET reviews/?user=a", true),
            ("GET reviews/?x&user=a&user=b", true),
            ("GET reviews/?user=b&user=a", false),
            ("GET reviews/?user", false),
            ("GET reviews/user=a", false),
        ],
    );
    check(
        "{queryParams: {user: {exact: ''}}}",
        &[
            ("GET reviews/?user", true),
            ("GET reviews/?user=", true),
            ("GET reviews/", false),
        ],
    );
    check(
        "{queryParams: {user: {}}}",
        &[
            ("GET reviews/?a=b&user=c", true),
            ("GET reviews/?a=b", false),
        ],
    );
    check(
        "{queryParams: {user: {regex: '[0-9]+'}}}",
        &[
            ("GET reviews/?user=42", true),
            ("GET reviews/?user=42a", false),
        ],
    );
}

#[test]
fn blocks_are_alternatives_and_fields_are_not() {
    check(
        "{uri: {prefix: /a}, method: {exact: GET}}, {headers: {x: {exact: y}}}",
        &[
            ("GET reviews/a", true),
            ("POST reviews/a", false),
            ("POST reviews/ x:y", true),
        ],
    );
}

#[test]
fn rules_can_be_for_some_clients() {
    let rule = by_match("{sourceLabels: {app: sleep}, sourceNamespace: default}");
    let mut mesh = Mesh::new(
        &[("default/reviews", &rule)],
        &[("default/reviews", VERSIONS)],
    );
    let request = "GET reviews.default/";
    assert_eq!(mesh.outcome(&CLIENT, request), "reviews.default:80 v2");
    let other = Client {
        labels: &[("app", "web")],
        ..CLIENT
    };
    assert_eq!(mesh.outcome(&other, request), "reviews.default:80 v1");
    let other = Client {
        namespace: "other",
        ..CLIENT
    };
    assert_eq!(mesh.outcome(&other, request), "reviews.default:80 v1");
}

#[test]
fn rules_for_other_clients_do_not_exist() {
    let rule = "{hosts: [reviews], http: [{match: [{sourceLabels: {app: web}}], directResponse: {status: 418}}]}";
    let mut mesh = Mesh::new(&[("default/reviews", rule)], &[]);
    assert_eq!(mesh.outcome(&CLIENT, "GET reviews/"), "reviews.default:80");
    let web = Client {
        labels: &[("app", "web")],
        ..CLIENT
    };
    assert_eq!(mesh.outcome(&web, "GET reviews/"), "direct 418");
    let rule = "{hosts: [reviews], gateways: [edge], http: [{directResponse: {status: 418}}]}";
    let mut mesh = Mesh::new(&[("default/reviews", rule)], &[]);
    assert_eq!(mesh.outcome(&CLIENT, "GET reviews/"), "reviews.default:80");
}

#[test]
fn where_no_rule_matches_there_is_no_route() {
    let rule = "{hosts: [reviews], http: [{match: [{uri: {exact: /a}}], route: [{destination: {host: reviews}}]}]}";
    let mut mesh = Mesh::new(&[("default/reviews", rule)], &[]);
    mesh.expect(&[
        ("GET reviews/a", "reviews.default:80"),
        (
            "GET reviews/b",
            "404 NR no rule of VirtualService default/reviews matches the request",
        ),
    ]);
}

#[test]
fn a_host_is_written_in_many_ways() {
    let teapot = "{hosts: [reviews], http: [{directResponse: {status: 418}}]}";
    let mut mesh = Mesh::new(&[("default/reviews", teapot)], &[]);
    for host in [
        "reviews",
        "reviews:80",
        "Reviews.Default",
        "reviews.default.svc",
        "reviews.default.svc:8000",
        "REVIEWS.default.svc.cluster.local",
        // Unknown: the original destination speaks.
        "10.1.2.3",
        "example.com",
        "",
    ] {
        assert_eq!(
            mesh.outcome(&CLIENT, &format!("GET {host}/")),
            "direct 418",
            "{host}"
        );
    }
    mesh.expect(&[
        ("GET ratings/", "ratings.default:80"),
        ("GET reviews.other/", "reviews.other:80"),
    ]);
    let other = Client {
        namespace: "other",
        ..CLIENT
    };
    assert_eq!(mesh.outcome(&other, "GET reviews/"), "reviews.other:80");
    assert_eq!(mesh.outcome(&other, "GET reviews.default/"), "direct 418");
    // A host that lacks the port does not take the connection over.
    let other = Client {
        service: "myapp.default.svc.cluster.local",
        port: 9080,
        ..CLIENT
    };
    assert_eq!(mesh.outcome(&other, "GET reviews/"), "myapp.default:9080");
}

#[test]
fn the_most_specific_host_wins_and_then_the_oldest() {
    let rule = |hosts: &str, status: u16| {
        format!("{{hosts: [{hosts}], http: [{{directResponse: {{status: {status}}}}}]}}")
    };
    let mut mesh = Mesh::new(
        &[
            (
                "default/wide",
                &rule("'*.default.svc.cluster.local', '*.example.com'", 201),
            ),
            ("default/first", &rule("reviews, shop.example.com", 202)),
            (
                "default/second",
                &rule(
                    "reviews.default.svc.cluster.local, '*.www.example.com'",
                    203,
                ),
            ),
        ],
        &[],
    );
    mesh.expect(&[
        ("GET reviews/", "direct 202"),
        ("GET ratings/", "direct 201"),
        ("GET shop.example.com/", "direct 202"),
        ("GET a.www.example.com:8080/", "direct 203"),
        ("GET a.example.com/", "direct 201"),
    ]);
    let findings: Vec<_> = mesh.findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        findings,
        [
            "test.yaml, document 1: VirtualService default/second: spec.hosts[0]: has no effect: \
          reviews.default.svc.cluster.local belongs to the older VirtualService default/first"
        ]
    );
}

#[test]
fn a_rule_is_seen_where_it_is_exported_to() {
    let rule = "{hosts: [reviews], exportTo: ['.'], http: [{directResponse: {status: 418}}]}";
    let mut mesh = Mesh::new(&[("default/reviews", rule)], &[]);
    assert_eq!(mesh.outcome(&CLIENT, "GET reviews.default/"), "direct 418");
    let other = Client {
        namespace: "other",
        ..CLIENT
    };
    assert_eq!(
        mesh.outcome(&other, "GET reviews.default/"),
        "reviews.default:80"
    );
}
