//! The access log beside Envoy's: the same requests under the same rules end in the same
//! answers, and in lines that say the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, Workload, envoy, eventually, workload_entries};
use serde_json::Value;

use crate::prometheus::{curl, free_address};

const MESH: &str = include_str!("../../data/access_log/mesh.yaml");
const ENVOY: &str = include_str!("../../data/access_log/envoy.py");
const CLIENT: &str = include_str!("../../data/access_log/client.py");
const BACKEND: &str = include_str!("../../data/beside/backend.py");
const PYTHON: &str = "/usr/bin/python3";

/// Lines that Envoy writes: one for each of the client's requests and connections, and what another
/// Envoy lets in of them.
const LINES: usize = 41;
/// Fields that both fill with the same.
const SAME: [&str; 14] = [
    "route_name",
    "method",
    "path",
    "protocol",
    "response_code",
    "response_flags",
    "response_code_details",
    "connection_termination_details",
    "bytes_received",
    "x_forwarded_for",
    "user_agent",
    "request_id",
    "authority",
    "upstream_cluster",
];
/// Fields that are there or not, whatever they say.
const THERE: [&str; 6] = [
    "start_time",
    "duration",
    "upstream_service_time",
    "upstream_host",
    "requested_server_name",
    "upstream_transport_failure_reason",
];

/// Where we differ, and why: case, field.
const ON_PURPOSE: &[(&str, &str)] = &[
    // Whose side of a switched connection ends first is nobody's failure.
    ("switched", "response_flags"),
    ("switched", "response_code_details"),
];

/// What clients got, by case.
fn ask(client: &Workload, addresses: [&str; 4]) -> BTreeMap<String, Value> {
    let script = client.file("access_log.py", CLIENT);
    let script = script.to_string_lossy();
    let arguments: Vec<&str> = [&*script].into_iter().chain(addresses).collect();
    let said = client.run(PYTHON, &arguments).success();
    let got = said.lines().map(|line| {
        let mut case: Value = serde_json::from_str(line).expect("a line of JSON");
        let name = case["case"].as_str().expect("a name").to_owned();
        (name, case["got"].take())
    });
    got.collect()
}

/// Lines by case; connections by the end of the address that was asked for.
fn lines(file: &Path) -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    // The last may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        let is_inbound = line["upstream_cluster"]
            .as_str()
            .is_some_and(|cluster| cluster.starts_with("inbound"));
        let address = line["downstream_local_address"].as_str()?;
        let port = address.rsplit(':').next()?.to_owned();
        let case = line["user_agent"].as_str().unwrap_or(&port).to_owned();
        let case = if is_inbound {
            format!("{case} inbound")
        } else {
            case
        };
        (case != "ready").then_some((case, line))
    });
    lines.collect()
}

/// The lines, as soon as none is missing.
fn all_lines(
    file: &Path,
    missing: impl Fn(&BTreeMap<String, Value>) -> Option<String>,
) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    eventually(Duration::from_secs(20), "a line for each request", || {
        found = lines(file);
        missing(&found).map_or(Ok(()), Err)
    });
    found
}

fn is_same(field: &str, ours: &Value, theirs: &Value) -> bool {
    if THERE.contains(&field) {
        return ours.is_null() == theirs.is_null();
    }
    ours == theirs
}

/// Requests by status and flags, as the log has them.
fn ended(file: &Path) -> BTreeMap<(u64, String), u64> {
    let text = std::fs::read_to_string(file).expect("a log");
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let cluster = line["upstream_cluster"].as_str().unwrap_or_default();
        if line["method"].is_string() && !cluster.starts_with("inbound") {
            let code = line["response_code"].as_u64().expect("a number");
            let flags = line["response_flags"].as_str().expect("text").to_owned();
            *counts.entry((code, flags)).or_default() += 1;
        }
    }
    counts
}

/// The same as the metrics have them, of whichever services.
fn counted(metrics: &str) -> BTreeMap<(u64, String), u64> {
    let mut counts = BTreeMap::new();
    for line in metrics.lines() {
        let Some(line) = line.strip_prefix("istio_requests_total{") else {
            continue;
        };
        let label = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=\"")).expect(name);
            rest.split('"').next().expect("an end").to_owned()
        };
        if label("reporter") != "source" {
            continue;
        }
        assert_eq!(label("source_workload"), "client");
        let code = label("response_code").parse().expect("a number");
        let value = line.rsplit(' ').next().expect("a value");
        let value: u64 = value.parse().expect("a number");
        *counts.entry((code, label("response_flags"))).or_default() += value;
    }
    counts
}

#[test]
fn lines_say_what_envoys_say() {
    let Some(binary) = envoy() else { return };
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let outside = lab.workload(Node::Outside, "outside", &[]);
    let servers = ["web", "guarded"].map(|name| lab.workload(Node::A, name, &[("app", name)]));
    let [web, guarded] = &servers;
    let _backends = servers.each_ref().map(|server| {
        let script = server.file("backend.py", BACKEND);
        server.serve(8080, PYTHON, &[&*script.to_string_lossy(), "8080"])
    });
    lab.configure(
        "workloads.yaml",
        &workload_entries(&[&client, web, guarded]),
    );
    lab.configure("mesh.yaml", MESH);
    let [our_file, their_file] =
        ["ours", "theirs"].map(|side| lab.folder().join(format!("{side}.log")));
    let log = our_file.to_string_lossy();
    let metrics = free_address();
    let agent = Agent::start_with(
        &lab,
        Node::A,
        &[
            "--access-log-file",
            &log,
            "--access-log-encoding",
            "JSON",
            "--metrics-address",
            &metrics,
        ],
    );
    let script = outside.file("envoy.py", ENVOY);
    let configuration = outside
        .run(
            PYTHON,
            &[
                &*script.to_string_lossy(),
                &web.v4.to_string(),
                &guarded.v4.to_string(),
                &their_file.to_string_lossy(),
            ],
        )
        .success();
    let _envoy = outside.envoy(&binary, 10000, &configuration);
    for (place, address) in [(&client, "10.96.0.40:80"), (&outside, "127.0.0.1:10000")] {
        eventually(Duration::from_secs(10), address, || {
            let url = format!("http://{address}/plain");
            let reply = place.curl(&["--user-agent", "ready", &url]);
            match reply.status {
                200 => Ok(()),
                _ => Err(format!("{reply:?}")),
            }
        });
    }

    let ours = [
        "10.96.0.40:80",
        "10.96.0.44:9000",
        "10.96.0.44:9001",
        "10.96.0.42:9002",
    ];
    let theirs = [
        "127.0.0.1:10000",
        "127.0.0.1:9000",
        "127.0.0.1:9001",
        "127.0.0.1:9002",
    ];
    let (our_answers, their_answers) = std::thread::scope(|scope| {
        let ours = scope.spawn(|| ask(&client, ours));
        let their_answers = ask(&outside, theirs);
        (ours.join().expect("answers"), their_answers)
    });
    let theirs = all_lines(&their_file, |found| {
        (found.len() < LINES).then(|| format!("{} lines: {:?}", found.len(), found.keys()))
    });
    // We have more of them, so that their number would not tell whether all of these have come.
    let ours = all_lines(&our_file, |found| {
        let absent = theirs.keys().find(|case| !found.contains_key(*case));
        absent.map(|case| format!("none of {case} in {:?}", found.keys()))
    });
    let mut different = Vec::new();
    for (case, theirs) in &their_answers {
        if our_answers[case] != *theirs {
            different.push(format!("{case}: answer {} not {theirs}", our_answers[case]));
        }
    }
    for (case, theirs) in &theirs {
        let ours = &ours[case];
        for field in SAME.into_iter().chain(THERE) {
            let same = is_same(field, &ours[field], &theirs[field]);
            let on_purpose = ON_PURPOSE.contains(&(case, field));
            assert!(
                !(same && on_purpose),
                "no difference any more: {case} {field}"
            );
            if !same && !on_purpose {
                different.push(format!(
                    "{case}: {field} {} not {}",
                    ours[field], theirs[field]
                ));
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_eq!(
        counted(&curl(&[&format!("http://{metrics}/metrics")])),
        ended(&our_file)
    );
    drop(agent);
}
