use http::header::HeaderMap;

use super::*;

const POLICY: &str = "corsPolicy: {allowOrigins: [{exact: 'https://a.example'}, {regex: 'https://.*[.]b[.]example'}], \
    allowMethods: [GET, PUT], allowHeaders: [x-a, x-b], exposeHeaders: [x-c], maxAge: 24h, allowCredentials: true";

fn mesh(policy: &str) -> Mesh {
    let rule = format!(
        "{{hosts: [reviews], http: [{{{policy}}}, route: [{{destination: {{host: reviews}}}}]}}]}}"
    );
    Mesh::new(&[("default/reviews", &rule)], &[])
}

fn lines(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.iter();
    let mut lines: Vec<_> = lines
        .map(|(name, value)| {
            let name = name.as_str().trim_start_matches("access-control-");
            format!("{name}: {}", value.to_str().expect("text"))
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn a_preflight_of_an_allowed_origin_is_answered() {
    let mut mesh = mesh(POLICY);
    let question = "OPTIONS reviews/ origin:https://c.b.example access-control-request-method:PUT";
    let Outcome::Preflight(Some(allowed)) = mesh.decide(&CLIENT, question).outcome else {
        panic!("not answered");
    };
    let mut headers = HeaderMap::new();
    allowed.preflight(&mut headers);
    assert_eq!(
        lines(&headers),
        [
            "allow-credentials: true",
            "allow-headers: x-a,x-b",
            "allow-methods: GET,PUT",
            "allow-origin: https://c.b.example",
            "expose-headers: x-c",
            "max-age: 86400",
        ]
    );
}

#[test]
fn responses_to_an_allowed_origin_say_so() {
    let mut mesh = mesh(POLICY);
    let mut of = |request: &str| {
        let mut headers = HeaderMap::new();
        let decision = mesh.decide(&CLIENT, request);
        assert!(matches!(decision.outcome, Outcome::Forward(_)), "{request}");
        decision.share_response(&mut headers);
        lines(&headers)
    };
    assert_eq!(
        of("GET reviews/ origin:https://a.example"),
        [
            "allow-credentials: true",
            "allow-origin: https://a.example",
            "expose-headers: x-c",
        ]
    );
    // Without the question it is a request like any other.
    assert_eq!(of("OPTIONS reviews/ origin:https://a.example").len(), 3);
    assert_eq!(of("GET reviews/"), [""; 0]);
    assert_eq!(of("GET reviews/ origin:https://evil.example"), [""; 0]);
    assert_eq!(
        of("OPTIONS reviews/ origin:https://evil.example access-control-request-method:PUT"),
        [""; 0]
    );
}

#[test]
fn other_preflights_can_be_kept_away_from_the_server() {
    let mut mesh = mesh(&format!("{POLICY}, unmatchedPreflights: IGNORE"));
    let question = "OPTIONS reviews/ origin:https://evil.example access-control-request-method:PUT";
    let outcome = mesh.decide(&CLIENT, question).outcome;
    assert!(matches!(outcome, Outcome::Preflight(None)), "{outcome:?}");
}

#[test]
fn a_star_allows_every_origin() {
    let mut mesh = mesh("corsPolicy: {allowOrigins: [{exact: '*'}]");
    let decision = mesh.decide(&CLIENT, "GET reviews/ origin:https://x.example");
    let mut headers = HeaderMap::new();
    decision.share_response(&mut headers);
    assert_eq!(lines(&headers), ["allow-origin: https://x.example"]);
}
