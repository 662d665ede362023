//! HTTP/2 frame by frame, right and wrong (RFC 9113, RFC 7541): what a client of
//! ours meets is at least as good as what a client of Envoy's does.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, ServicePort, Workload, envoy, eventually, service, workload_entries,
};

const CASES: &str = concat!(
    include_str!("../../data/http2/wire.py"),
    include_str!("../../data/http2/use.py"),
    include_str!("../../data/http2/errors.py"),
    "\nrun()\n",
);

const ENVOY: &str = r#"static_resources:
  listeners:
  - name: http2
    address: {socket_address: {address: 127.0.0.1, port_value: 10000}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http2
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: /}, route: {cluster: web}}]
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: web
    load_assignment:
      cluster_name: web
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: ADDRESS, port_value: 9080}}}}]}]
"#;

/// Where Envoy does better, and why that is harmless.
const LEFT: &[(&str, &str)] = &[(
    "8.1/pseudo-trailers",
    "pseudo fields among trailers are left out instead of refused",
)];

/// Where silence is the wrong answer, it is waited for; that is the time of the whole test.
const PATIENCE_S: u32 = 3;

/// Cases by name, with what was wrong.
type Results = BTreeMap<String, Option<String>>;

/// All cases, or those that are named, with as many seconds for each answer.
fn run(client: &Workload, address: &str, patience_s: u32, names: &[String]) -> Results {
    let script = client.file("http2.py", CASES);
    let (script, patience_s) = (script.to_string_lossy(), patience_s.to_string());
    let arguments = [&*script, address, "web", &patience_s];
    let names = names.iter().map(String::as_str);
    let arguments: Vec<&str> = arguments.into_iter().chain(names).collect();
    let said = client.run("/usr/bin/python3", &arguments).success();
    let results = said.lines().map(|line| {
        let (name, result) = line.split_once(' ').expect("a name");
        (name.to_owned(), (result != "ok").then(|| result.to_owned()))
    });
    results.collect()
}

fn wrong(results: &Results) -> String {
    let lines = results
        .iter()
        .filter_map(|(name, wrong)| Some(format!("{name} {}", wrong.as_ref()?)));
    lines.collect::<Vec<_>>().join("\n")
}

/// Cases in which one of both does better than it should.
fn worse(ours: &Results, theirs: &Results) -> Vec<String> {
    let is_worse = |(name, wrong): &(&String, &Option<String>)| {
        let is_left = LEFT.iter().any(|(left, _)| left == name);
        (wrong.is_some() && theirs[*name].is_none()) != is_left
    };
    let worse = ours.iter().filter(is_worse);
    worse.map(|(name, _)| name.clone()).collect()
}

fn passed(results: &Results) -> usize {
    results.values().filter(|wrong| wrong.is_none()).count()
}

#[test]
fn http2_is_spoken_at_least_as_well_as_by_envoy() {
    let Some(binary) = envoy() else { return };
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let outside = lab.workload(Node::Outside, "outside", &[]);
    let web = lab.workload(Node::A, "web", &[("app", "web")]);
    let _server = web.serve(9080, "bookinfo", &["reviews", "--listen", "[::]:9080"]);
    lab.configure("workloads.yaml", &workload_entries(&[&client, &web]));
    let ports = [("http2", 80), ("http", 81)].map(|(name, port)| ServicePort {
        name,
        port,
        target: 9080,
    });
    lab.configure("services.yaml", &service("web", 40, &ports));
    let _agent = Agent::start(&lab, Node::A);
    let configuration = ENVOY.replace("ADDRESS", &web.v4.to_string());
    let _envoy = outside.envoy(&binary, 10000, &configuration);
    for (place, address) in [(&client, "10.96.0.40:81"), (&outside, "127.0.0.1:10000")] {
        eventually(Duration::from_secs(10), address, || {
            let url = format!("http://{address}/");
            match place.curl(&["--http2-prior-knowledge", &url]).status {
                200 => Ok(()),
                status => Err(format!("status {status}")),
            }
        });
    }
    let envoys = "127.0.0.1:10000";
    let mut theirs = run(&outside, envoys, PATIENCE_S, &[]);
    for address in ["10.96.0.40:80", "10.96.0.40:81"] {
        let mut ours = run(&client, address, PATIENCE_S, &[]);
        assert_eq!(ours.len(), theirs.len());
        // Who is late on a busy machine is given more time: what matters is what is said.
        let late = worse(&ours, &theirs);
        if !late.is_empty() {
            theirs.extend(run(&outside, envoys, 10 * PATIENCE_S, &late));
            ours.extend(run(&client, address, 10 * PATIENCE_S, &late));
        }
        let worse = worse(&ours, &theirs);
        eprintln!(
            "of {} cases {} pass on {address}, {} with Envoy\nours:\n{}\nEnvoy:\n{}",
            ours.len(),
            passed(&ours),
            passed(&theirs),
            wrong(&ours),
            wrong(&theirs)
        );
        assert!(worse.is_empty(), "{worse:#?}");
    }
}
