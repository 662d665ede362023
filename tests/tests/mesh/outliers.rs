//! Endpoints that are worse than the others of their service are taken out, by
//! success rate and by latency, before anybody has set a bound for either.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, ServicePort, eventually, service, workload_entries};

const ENDPOINTS: usize = 6;
/// The one that answers 500 to everything.
const FAILS: &str = "backend-1.default";
/// The one that takes 100 ms.
const SLOW: &str = "backend-4.default";

const RULE: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: backend
  annotations:
    undermesh.io/success-rate-ejection: "on"
    undermesh.io/latency-ejection: "minimum-hosts=5, factor=4"
spec:
  host: backend
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection:
      consecutive5xxErrors: 0
      interval: 4s
      baseEjectionTime: 60s
      maxEjectionPercent: 50
"#;

/// Why which workloads are out of service.
fn out(agent: &Agent) -> BTreeMap<String, String> {
    let clusters = agent.meshctl_json(&["endpoints", "backend"]);
    let clusters = clusters.as_array().expect("a list").iter();
    clusters
        .flat_map(|cluster| cluster["endpoints"].as_array().expect("a list"))
        .filter_map(|endpoint| {
            let reason = endpoint["ejected"]["reason"].as_str()?;
            let workload = endpoint["workload"].as_str().expect("a workload");
            Some((workload.to_owned(), reason.to_owned()))
        })
        .collect()
}

/// The median latency that a reason tells of, in milliseconds.
fn latency_ms(reason: &str) -> f64 {
    let text = reason.strip_prefix("median latency ");
    let number = text.and_then(|text| text.split(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("{reason}"))
}

const TIMEOUTS: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: backend
  annotations:
    undermesh.io/latency-ejection: "minimum-hosts=5, request-volume=10"
spec:
  host: backend
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 0, interval: 4s, baseEjectionTime: 60s, maxEjectionPercent: 50}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: backend}
spec:
  hosts: [backend]
  http: [{timeout: 0.2s, retries: {attempts: 0}, route: [{destination: {host: backend}}]}]
"#;

#[test]
fn an_endpoint_whose_answers_never_come_is_slow() {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let backends: Vec<_> = (0..ENDPOINTS)
        .map(|number| lab.workload(Node::A, &format!("backend-{number}"), &[("app", "backend")]))
        .collect();
    let _servers: Vec<_> = backends
        .iter()
        .map(|backend| {
            let mut arguments = vec!["backend", "--version", &backend.name];
            arguments.extend(["--listen", "[::]:8080"]);
            if format!("{}.default", backend.name) == SLOW {
                arguments.extend(["--delay", "60000"]);
            }
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
    lab.configure("service.yaml", &service("backend", 40, &[port]));
    lab.configure("rules.yaml", TIMEOUTS);
    let agent = Agent::start(&lab, Node::A);
    eventually(Duration::from_secs(60), "it is out", || {
        let urls = "http://10.96.0.40/?[1-240]";
        let arguments = ["--silent", "--parallel", "--parallel-max", "12", urls];
        client.run("curl", &arguments);
        let out = out(&agent);
        let is_out = out.len() == 1 && out.contains_key(SLOW);
        is_out.then_some(()).ok_or_else(|| format!("{out:?}"))
    });
    let reason = &out(&agent)[SLOW];
    // No less than the timeout, and not much more, however busy the machine is.
    assert!((200.0..1000.0).contains(&latency_ms(reason)), "{reason}");
}

#[test]
fn the_slow_and_the_failing_of_six_endpoints_are_taken_out() {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let backends: Vec<_> = (0..ENDPOINTS)
        .map(|number| lab.workload(Node::A, &format!("backend-{number}"), &[("app", "backend")]))
        .collect();
    let _servers: Vec<_> = backends
        .iter()
        .map(|backend| {
            let mut arguments = vec!["backend", "--version", &backend.name];
            arguments.extend(["--listen", "[::]:8080"]);
            match format!("{}.default", backend.name).as_str() {
                FAILS => arguments.push("--fail"),
                SLOW => arguments.extend(["--delay", "100"]),
                _ => {}
            }
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
    lab.configure("service.yaml", &service("backend", 40, &[port]));
    lab.configure("rule.yaml", RULE);
    let agent = Agent::start(&lab, Node::A);

    let ask = |requests: usize| {
        let urls = format!("http://10.96.0.40/?[1-{requests}]");
        let arguments = ["--silent", "--parallel", "--parallel-max", "30"];
        let arguments = [&arguments[..], &["--write-out", "%{http_code}\n", &urls]].concat();
        client.run("curl", &arguments).stdout
    };
    eventually(Duration::from_secs(60), "both are out", || {
        ask(600);
        let out = out(&agent);
        let is_both = out.contains_key(FAILS) && out.contains_key(SLOW);
        is_both.then_some(()).ok_or_else(|| format!("{out:?}"))
    });
    let out = out(&agent);
    assert_eq!(out.len(), 2, "{out:?}");
    let failing = &out[FAILS];
    assert!(
        failing.starts_with("success rate 0.0 % against a mean of 8"),
        "{failing}"
    );
    let slow = &out[SLOW];
    assert!(
        (100.0..1000.0).contains(&latency_ms(slow)) && slow.ends_with(" ms of the others"),
        "{slow}"
    );

    // Whoever asks now meets neither.
    let answers = ask(60);
    assert_eq!(answers.matches("version=").count(), 60, "{answers}");
    for name in ["backend-1", "backend-4"] {
        assert!(!answers.contains(&format!("version={name} ")), "{answers}");
    }
    // The table, the metrics and the log say so.
    let table = agent.meshctl(&["endpoints"]).success();
    assert!(table.contains(failing) && table.contains(slow), "{table}");
    let metrics = agent.meshctl(&["endpoints", "--metrics"]).success();
    let is_out = |line: &&str| {
        line.starts_with("undermesh_cluster_endpoint_ejected{") && line.ends_with(" 1")
    };
    assert!(metrics.lines().filter(is_out).count() >= 2, "{metrics}");
    // Who sweeps says so within a second.
    eventually(Duration::from_secs(10), "the log has both", || {
        let log = agent.log();
        let says = |reason: &String| log.contains(&format!("cause={reason}"));
        let has_both = says(failing) && says(slow);
        has_both.then_some(()).ok_or_else(|| log.clone())
    });
}
