//! The same rules and the same requests, for us and for Envoy configured as Istio
//! would: what clients get and what the application sees is compared.

use std::collections::BTreeMap;

use mesh_tests::{
    Agent, Lab, Node, ServicePort, Workload, envoy, eventually, service, workload_entries,
};
use serde_json::Value;

const BACKEND: &str = include_str!("../../data/beside/backend.py");

/// Rules, what Istio makes of them, and requests.
struct Comparison {
    rules: &'static str,
    envoy: &'static str,
    client: &'static str,
}

/// What there is, one by one.
const RULES: Comparison = Comparison {
    rules: include_str!("../../data/beside/rules.yaml"),
    envoy: concat!(
        include_str!("../../data/beside/envoy.py"),
        include_str!("../../data/beside/rules.py"),
        include_str!("../../data/beside/main.py"),
    ),
    client: concat!(
        include_str!("../../data/beside/client.py"),
        include_str!("../../data/beside/requests.py"),
        include_str!("../../data/beside/wire.py"),
    ),
};

/// Much of it at once.
const MIXED: Comparison = Comparison {
    rules: include_str!("../../data/beside/mixed.yaml"),
    envoy: concat!(
        include_str!("../../data/beside/envoy.py"),
        include_str!("../../data/beside/mixed.py"),
        include_str!("../../data/beside/main.py"),
    ),
    client: concat!(
        include_str!("../../data/beside/client.py"),
        include_str!("../../data/beside/mixed_requests.py"),
        include_str!("../../data/beside/wire.py"),
    ),
};

const PYTHON: &str = "/usr/bin/python3";

/// Where we differ, and why.
const ON_PURPOSE: &[(&str, &str)] = &[
    ("another method", "methods are not limited to a list"),
    (
        "method in small letters",
        "methods are not limited to a list",
    ),
    ("fragment", "is left out; Envoy refuses the request"),
    ("response trailers", "pass where the client takes them"),
    ("request trailers", "pass"),
    ("absolute form", "is kept: the server may be a proxy"),
    ("absolute form of another host", "is kept"),
    ("expect", "it is the server that says whether to continue"),
    (
        "two hosts",
        "are refused (RFC 9112, section 3.2); Envoy makes a list of them",
    ),
    ("version 1.2", "is refused"),
    ("version 2.0", "is refused"),
    (
        "length and chunked",
        "chunked counts (RFC 9112, section 6.3), the connection ends",
    ),
    ("same length twice", "is one length (RFC 9110, section 8.6)"),
    ("odd coding", "400, not 501"),
    ("folded", "is refused (RFC 9112, section 5.2)"),
    ("return in value", "is refused (RFC 9110, section 5.5)"),
    (
        "upgrade refused",
        "the server's answer passes with its body",
    ),
];

/// Whether both came to the same. The text of an error is everybody's own where Envoy's
/// says nothing or speaks of its insides.
fn is_same(ours: &Value, theirs: &Value) -> bool {
    if ours == theirs {
        return true;
    }
    let text = theirs["body"].as_str().unwrap_or_default();
    let is_own = matches!(text, "" | "Bad Request" | "Not Implemented")
        || text.starts_with("upstream connect error");
    // An error of gRPC's has its text among the header fields.
    let is_grpc = has(ours, "grpc-status") && has(theirs, "grpc-status");
    let is_error = ours["status"].as_u64() >= Some(400) || is_grpc;
    let has_no_answer = ours.get("asked").is_none() && theirs.get("asked").is_none();
    is_own
        && is_error
        && has_no_answer
        && ours["status"] == theirs["status"]
        && but_for_the_text(ours) == but_for_the_text(theirs)
}

fn has(answer: &Value, name: &str) -> bool {
    let mut fields = answer["headers"].as_array().into_iter().flatten();
    fields.any(|field| field[0] == name)
}

/// Header fields without those that follow from the text of an error.
fn but_for_the_text(answer: &Value) -> Vec<&Value> {
    const OF_TEXT: [&str; 4] = [
        "content-length",
        "content-type",
        "transfer-encoding",
        "grpc-message",
    ];
    let fields = answer["headers"].as_array().into_iter().flatten();
    let others = fields.filter(|field| {
        field[0]
            .as_str()
            .is_none_or(|name| !OF_TEXT.contains(&name))
    });
    others.collect()
}

/// One request and what came of it.
struct Case {
    name: String,
    request: String,
    got: Value,
}

fn ask(client: &Workload, script: &str, address: &str, side: &str, shadow: &str) -> Vec<Case> {
    let script = client.file(&format!("{side}.py"), script);
    let said = client
        .run(PYTHON, &[&script.to_string_lossy(), address, side, shadow])
        .success();
    let cases = said.lines().map(|line| {
        let mut case: Value = serde_json::from_str(line).expect("a line of JSON");
        Case {
            name: case["name"].as_str().unwrap_or_default().to_owned(),
            request: case["request"].as_str().unwrap_or_default().to_owned(),
            got: case["got"].take(),
        }
    });
    cases.collect()
}

#[test]
fn the_same_rules_do_the_same_as_in_envoy() {
    compare(&RULES, ON_PURPOSE);
}

#[test]
fn rules_that_do_much_at_once_do_the_same_as_in_envoy() {
    let query = "a rewrite that brings a query takes the place of the client's";
    compare(&MIXED, &[("GET /call?x=y", query)]);
}

fn compare(comparison: &Comparison, on_purpose: &[(&str, &str)]) {
    let Some(binary) = envoy() else { return };
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let outside = lab.workload(Node::Outside, "outside", &[]);
    let servers = ["web", "shadow"].map(|name| lab.workload(Node::A, name, &[("app", name)]));
    let [web, shadow] = &servers;
    let _backends = servers.each_ref().map(|server| {
        let script = server.file("backend.py", BACKEND);
        server.serve(8080, PYTHON, &[&*script.to_string_lossy(), "8080"])
    });
    lab.configure("workloads.yaml", &workload_entries(&[&client, web, shadow]));
    let port = [ServicePort {
        name: "http",
        port: 80,
        target: 8080,
    }];
    let services = service("web", 40, &port) + &service("shadow", 41, &port);
    lab.configure("services.yaml", &services);
    lab.configure("rules.yaml", comparison.rules);
    let _agent = Agent::start(&lab, Node::A);
    let [web, shadow] = servers
        .each_ref()
        .map(|server| format!("{}:8080", server.v4));
    let script = outside.file("envoy.py", comparison.envoy);
    let script = script.to_string_lossy();
    let configuration = outside
        .run(PYTHON, &[&*script, "127.0.0.1:10000", &web, &shadow])
        .success();
    let _envoy = outside.envoy(&binary, 10000, &configuration);
    for (place, address) in [(&client, "10.96.0.40:80"), (&outside, "127.0.0.1:10000")] {
        eventually(std::time::Duration::from_secs(10), address, || {
            let reply = place.curl(&[&format!("http://{address}/")]);
            if reply.status == 200 {
                Ok(())
            } else {
                Err(format!("{reply:?}"))
            }
        });
    }

    let script = comparison.client;
    let ours = ask(&client, script, "10.96.0.40:80", "ours", "10.96.0.41:80");
    let theirs = ask(&outside, script, "127.0.0.1:10000", "envoy", &shadow);
    assert!(
        ours.len() > 500 && ours.len() == theirs.len(),
        "{}",
        ours.len()
    );
    let mut differences: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours.request, theirs.request, "the same requests");
        let on_purpose = on_purpose.iter().any(|(name, _)| *name == ours.name);
        let same = is_same(&ours.got, &theirs.got);
        assert!(
            !(same && on_purpose),
            "no difference any more: {}",
            ours.name
        );
        if !same && !on_purpose {
            differences
                .entry(ours.name.clone())
                .or_default()
                .push(format!(
                    "{:?}\n  ours:  {}\n  envoy: {}",
                    ours.request, ours.got, theirs.got
                ));
        }
    }
    let count: usize = differences.values().map(Vec::len).sum();
    assert!(
        differences.is_empty(),
        "{count} of {} differ:\n{}",
        ours.len(),
        differences
            .into_values()
            .flatten()
            .collect::<Vec<_>>()
            .join("\n")
    );
}
