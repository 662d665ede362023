//! The guide's circuit breaker, byte for byte: all seven numbers act.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};
use serde_json::Value;

const CIRCUIT_BREAKER: &str = include_str!("../../data/guide/circuit-breaker.yaml");

/// `maxConnections`.
const CONNECTIONS: usize = 100;
/// `http1MaxPendingRequests`.
const PENDING: usize = 50;

struct Mesh {
    _agents: [Agent; 1],
    _servers: Vec<Process>,
    client: Workload,
    lab: Lab,
}

/// A client and servers of `backend-service`, some of which answer 500 to everything.
fn start(fails: &[bool]) -> Mesh {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let backends: Vec<_> = (0..fails.len())
        .map(|number| {
            let name = format!("backend-{number}");
            lab.workload(Node::A, &name, &[("app", "backend-service")])
        })
        .collect();
    let servers = backends
        .iter()
        .zip(fails)
        .map(|(backend, fails)| {
            let mut arguments = vec![
                "backend",
                "--version",
                &backend.name,
                "--listen",
                "[::]:8080",
            ];
            arguments.extend(fails.then_some("--fail"));
            backend.serve(8080, "bookinfo", &arguments)
        })
        .collect();
    let mut workloads = vec![&client];
    workloads.extend(&backends);
    lab.configure("workloads.yaml", &workload_entries(&workloads));
    let port = ServicePort {
        name: "http",
        port: 80,
        target: 8080,
    };
    lab.configure("service.yaml", &service("backend-service", 40, &[port]));
    lab.configure("circuit-breaker.yaml", CIRCUIT_BREAKER);
    let agents = [Agent::start(&lab, Node::A)];
    Mesh {
        _agents: agents,
        _servers: servers,
        client,
        lab,
    }
}

impl Mesh {
    fn agent(&self) -> &Agent {
        &self._agents[0]
    }

    /// Statuses and how often each came, of so many requests at a time.
    fn at_once(&self, requests: usize, path: &str) -> BTreeMap<String, usize> {
        let urls = format!("http://10.96.0.40{path}?[1-{requests}]");
        let most = requests.to_string();
        let arguments = [
            "--silent",
            "--parallel",
            "--parallel-immediate",
            "--parallel-max",
            &most,
            "--max-time",
            "60",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code} %header{x-envoy-overloaded}\n",
            &urls,
        ];
        let outcome = self.client.run("curl", &arguments);
        let mut counts = BTreeMap::new();
        for line in outcome.stdout.lines() {
            *counts.entry(line.trim().to_owned()).or_default() += 1;
        }
        counts
    }

    fn get(&self, path: &str) -> String {
        let reply = self
            .client
            .curl(&[&format!("http://backend-service{path}")]);
        format!("{} {}", reply.status, reply.body.trim())
    }

    /// The workloads that are out of service: what `meshctl endpoints` says, `ejected`, once
    /// for the addresses of each.
    fn out(&self) -> Vec<Value> {
        let clusters = self.agent().meshctl_json(&["endpoints", "backend-service"]);
        let clusters = clusters.as_array().expect("a list").iter();
        let endpoints =
            clusters.flat_map(|cluster| cluster["endpoints"].as_array().expect("a list"));
        let out = endpoints.filter(|endpoint| !endpoint["ejected"].is_null());
        let by_workload: BTreeMap<_, _> = out
            .map(|endpoint| {
                (
                    endpoint["workload"].to_string(),
                    endpoint["ejected"].clone(),
                )
            })
            .collect();
        by_workload.into_values().collect()
    }
}

/// `key=value` of a backend's answer.
fn number(answer: &str, key: &str) -> usize {
    let mut words = answer.split(' ');
    let found = words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    found
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("no {key} in {answer:?}"))
}

#[test]
fn a_hundred_connections_fifty_waiting_requests_and_the_rest_is_refused() {
    let mesh = start(&[false]);
    assert!(mesh.get("/").starts_with("200 "));
    // A hundred that are being served, a few at a time: a request waits while its connection is made.
    let (served, waiting) = std::thread::scope(|scope| {
        let served: Vec<_> = (1..=CONNECTIONS / 20)
            .map(|part| {
                let served = scope.spawn(|| mesh.at_once(20, "/delay/8000"));
                eventually(Duration::from_secs(7), "all are being served", || {
                    let clusters = mesh.agent().meshctl_json(&["endpoints"]);
                    let now = |gauge: &str| clusters[0][gauge]["now"].as_u64();
                    (now("requests") == Some(20 * part as u64) && now("pending") == Some(0))
                        .then_some(())
                        .ok_or_else(|| clusters.to_string())
                });
                served
            })
            .collect();
        // Fifty more wait for them, and the rest is refused. Each takes so long that none of the
        // connections serves its tenth request and is replaced: the server may hear of a new one
        // before it has heard that the old one is closed.
        let waiting = mesh.at_once(PENDING + 30, "/delay/1000");
        let served = served
            .into_iter()
            .map(|served| served.join().expect("no panic"));
        (served.collect::<Vec<_>>(), waiting)
    });
    for counts in served {
        assert_eq!(counts, BTreeMap::from([("200".to_owned(), 20)]));
    }
    let expected = [("200".to_owned(), PENDING), ("503 true".to_owned(), 30)];
    assert_eq!(waiting, BTreeMap::from(expected));
    let answer = mesh.get("/");
    assert_eq!(number(&answer, "most"), CONNECTIONS, "{answer}");
    let clusters = mesh.agent().meshctl_json(&["endpoints"]);
    let pending = &clusters[0]["pending"];
    assert_eq!(
        (pending["limit"].as_u64(), pending["refused"].as_u64()),
        (Some(50), Some(30))
    );
    let table = mesh.agent().meshctl(&["endpoints"]).success();
    assert!(table.contains("30 requests were refused"), "{table}");
}

#[test]
fn a_connection_serves_ten_requests() {
    let mesh = start(&[false]);
    for _ in 0..25 {
        let answer = mesh.get("/");
        assert!(number(&answer, "request") <= 10, "{answer}");
    }
    let answer = mesh.get("/");
    assert_eq!(number(&answer, "connections"), 3, "{answer}");
}

#[test]
fn five_errors_in_a_row_take_an_endpoint_out_of_service() {
    let mesh = start(&[true, false]);
    let began = Instant::now();
    let mut failures = 0;
    for _ in 0..60 {
        failures += usize::from(mesh.get("/").starts_with("500 "));
    }
    assert_eq!(failures, 5);
    let out = mesh.out();
    assert_eq!(out.len(), 1, "{out:?}");
    assert_eq!(out[0]["reason"], "5 errors in a row");
    let until = out[0]["until_s"].as_u64().expect("seconds");
    let since = out[0]["since_s"].as_u64().expect("seconds");
    // 60 s, and then until the next sweep, which is every 30 s.
    assert!(
        (59..=90).contains(&(since + until)),
        "{since} s ago, {until} s left"
    );
    assert!(since <= began.elapsed().as_secs());
    let table = mesh.agent().meshctl(&["endpoints"]).success();
    assert!(
        table.contains("5 errors in a row") && table.contains("out for "),
        "{table}"
    );
}

#[test]
fn four_errors_and_a_success_do_not() {
    let mesh = start(&[false, false]);
    let mut in_a_row: BTreeMap<String, usize> = BTreeMap::new();
    // Which endpoint answers is chance: an error is asked for only while no endpoint has had four in a row.
    for _ in 0..200 {
        let full = in_a_row.values().any(|count| *count == 4);
        let answer = mesh.get(if full { "/" } else { "/status/500" });
        let version = answer
            .split(' ')
            .find_map(|word| word.strip_prefix("version="));
        let count = in_a_row
            .entry(version.expect("a version").to_owned())
            .or_default();
        *count = if full { 0 } else { *count + 1 };
    }
    assert_eq!(mesh.out(), [] as [Value; 0]);
}

#[test]
fn at_most_half_of_the_endpoints_are_out() {
    for (endpoints, expected) in [(1, 0), (3, 1), (4, 2)] {
        let mesh = start(&vec![true; endpoints]);
        for _ in 0..20 * endpoints {
            assert!(mesh.get("/").starts_with("500 "));
        }
        assert_eq!(mesh.out().len(), expected, "of {endpoints}");
        if endpoints == 1 {
            let config = mesh.agent().meshctl(&["config"]).success();
            assert!(
                config.contains("none is ever taken out of service"),
                "{config}"
            );
        }
    }
}

/// `interval: 30s` and `baseEjectionTime: 60s` as they are.
#[test]
fn an_endpoint_comes_back_after_a_minute_at_a_sweep() {
    let mesh = start(&[true, false]);
    let began = Instant::now();
    for _ in 0..40 {
        mesh.get("/");
    }
    assert_eq!(mesh.out().len(), 1);
    eventually(Duration::from_secs(95), "it comes back", || {
        let out = mesh.out();
        if out.is_empty() {
            Ok(())
        } else {
            Err(format!("{out:?}"))
        }
    });
    let took = began.elapsed();
    assert!(took > Duration::from_secs(60), "after {took:?}");
    // It is in service again: the next errors are its own.
    let failures = (0..40)
        .filter(|_| mesh.get("/").starts_with("500 "))
        .count();
    assert_eq!(failures, 5);
    let out = mesh.out();
    assert_eq!(out[0]["count"], 2);
    let _ = &mesh.lab;
}

const ROUTES: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: backend
  annotations:
    undermesh.io/route-limits: "slow: max-requests=3"
spec:
  hosts: [backend-service]
  http:
  - name: slow
    match: [{uri: {prefix: /delay/}}]
    route: [{destination: {host: backend-service}}]
  - name: rest
    route: [{destination: {host: backend-service}}]
"#;

#[test]
fn a_route_that_is_full_does_not_concern_the_others() {
    let mesh = start(&[false]);
    mesh.lab.configure("routes.yaml", ROUTES);
    let question = ["routes", "client", "http://backend-service/delay/1"];
    eventually(Duration::from_secs(10), "the rules are in force", || {
        let said = mesh.agent().meshctl(&question).success();
        let told = said.contains("at most 3 requests of the route at a time");
        told.then_some(()).ok_or(said)
    });
    let refused = std::thread::scope(|scope| {
        let served = scope.spawn(|| mesh.at_once(3, "/delay/5000"));
        eventually(Duration::from_secs(4), "three are on their way", || {
            let clusters = mesh.agent().meshctl_json(&["endpoints"]);
            let now = clusters[0]["routes"][0]["requests"]["now"].as_u64();
            (now == Some(3))
                .then_some(())
                .ok_or_else(|| clusters.to_string())
        });
        let refused = mesh.at_once(5, "/delay/1");
        // The same service, by the other route.
        let others = mesh.at_once(20, "/");
        assert_eq!(others, BTreeMap::from([("200".to_owned(), 20)]));
        let served = served.join().expect("no panic");
        assert_eq!(served, BTreeMap::from([("200".to_owned(), 3)]));
        refused
    });
    assert_eq!(refused, BTreeMap::from([("503 true".to_owned(), 5)]));
    let table = mesh.agent().meshctl(&["endpoints"]).success();
    let line = "5 requests of route default/backend/slow were refused";
    assert!(table.contains(line), "{table}");
    // What has ended makes room.
    let again = mesh.at_once(3, "/delay/1");
    assert_eq!(again, BTreeMap::from([("200".to_owned(), 3)]));
}

const BOUNDS: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: backend}
spec: {host: backend-service, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: backend
  annotations:
    undermesh.io/route-limits: "slow: max-pending=2; retried: max-retries=1; fragile: consecutive-errors=3, open-time=3s"
spec:
  hosts: [backend-service]
  http:
  - name: slow
    match: [{uri: {prefix: /delay/}}]
    route: [{destination: {host: backend-service}}]
  - name: retried
    match: [{uri: {prefix: /retried}}]
    retries: {attempts: 5, retryOn: 5xx, backoff: 500ms}
    rewrite: {uri: /status/503}
    route: [{destination: {host: backend-service}}]
  - name: fragile
    match: [{uri: {prefix: /fragile/}}]
    rewrite: {uri: /}
    route: [{destination: {host: backend-service}}]
  - name: rest
    route: [{destination: {host: backend-service}}]
"#;

/// The one endpoint of `backend-service`, under [`BOUNDS`].
fn bounded() -> Mesh {
    let mesh = start(&[false]);
    mesh.lab.unconfigure("circuit-breaker.yaml");
    mesh.lab.configure("bounds.yaml", BOUNDS);
    let question = ["routes", "client", "http://backend-service/fragile/x"];
    eventually(Duration::from_secs(10), "the rules are in force", || {
        let said = mesh.agent().meshctl(&question).success();
        let told = said.contains("nothing for 3s after 3 errors in a row");
        told.then_some(()).ok_or(said)
    });
    mesh
}

#[test]
fn a_route_lets_so_many_requests_wait() {
    let mesh = bounded();
    // A request for which a connection is made waits, too: the only one is there before.
    assert!(mesh.get("/").starts_with("200 "));
    let answers = mesh.at_once(8, "/delay/2500");
    // One is served over the only connection, two wait, the others are refused.
    let expected = BTreeMap::from([("200".to_owned(), 3), ("503 true".to_owned(), 5)]);
    assert_eq!(answers, expected);
    let table = mesh.agent().meshctl(&["endpoints"]).success();
    let line = "5 waiting requests of route default/backend/slow were refused";
    assert!(table.contains(line), "{table}");
    // Another route waits as long as it likes.
    let others = mesh.at_once(20, "/");
    assert_eq!(others, BTreeMap::from([("200".to_owned(), 20)]));
}

#[test]
fn a_route_has_so_many_retries_at_a_time() {
    let mesh = bounded();
    let answers = mesh.at_once(6, "/retried");
    assert_eq!(answers, BTreeMap::from([("503".to_owned(), 6)]));
    let table = mesh.agent().meshctl(&["endpoints"]).success();
    let line = "5 retries of route default/backend/retried were refused";
    assert!(table.contains(line), "{table}");
}

#[test]
fn a_route_that_fails_is_left_alone_for_a_while() {
    let mesh = bounded();
    let statuses = |path: &str, count: usize| -> Vec<String> {
        let answer = |_| mesh.get(path).split(' ').next().map(str::to_owned);
        (0..count).filter_map(answer).collect()
    };
    assert_eq!(statuses("/fragile/status/500", 2), ["500"; 2]);
    assert_eq!(statuses("/fragile/", 1), ["200"]);
    assert_eq!(statuses("/fragile/status/500", 3), ["500"; 3]);
    let opened = Instant::now();
    // The destination would answer, but nobody asks it by this route.
    let refused = mesh.at_once(4, "/fragile/");
    assert_eq!(refused, BTreeMap::from([("503 true".to_owned(), 4)]));
    assert_eq!(statuses("/", 1), ["200"], "another route goes on");
    let table = mesh.agent().meshctl(&["endpoints"]).success();
    let line = "4 requests of route default/backend/fragile were refused after errors in a row";
    assert!(table.contains(line), "{table}");
    eventually(Duration::from_secs(10), "it is tried again", || {
        let answer = mesh.get("/fragile/");
        answer.starts_with("200 ").then_some(()).ok_or(answer)
    });
    assert!(opened.elapsed() >= Duration::from_millis(2800));
    assert_eq!(
        mesh.at_once(4, "/fragile/"),
        BTreeMap::from([("200".to_owned(), 4)])
    );
}
