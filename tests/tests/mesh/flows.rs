//! The account: every connection has a record that is whole, and right at the
//! moment at which somebody asks.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, wait_until,
    workload_entries,
};
use serde_json::Value;

use crate::held::Held;

/// Within which identities make room for others: two looks at the maps, and time to spare.
const ROOM: Duration = Duration::from_secs(90);
/// Within which a change is in force.
const IN_FORCE: Duration = Duration::from_secs(10);

const STORM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/storm.py");

/// A client on node a, and an echo server on the node `at`.
struct Calls {
    client: Workload,
    server: Workload,
    agents: Vec<Agent>,
    _serving: Process,
    lab: Lab,
}

impl Calls {
    fn start(at: Node, direct: bool) -> Self {
        let lab = Lab::new();
        let client = lab
            .workload(Node::A, "client", &[])
            .annotated("undermesh.io/direct", if direct { "true" } else { "false" });
        let server = lab.workload(at, "server", &[("app", "server")]);
        let serving = server.serve(7000, "bookinfo", &["echo", "--listen", "[::]:7000"]);
        lab.configure("workloads.yaml", &workload_entries(&[&client, &server]));
        let ports = [ServicePort {
            name: "tcp",
            port: 80,
            target: 7000,
        }];
        lab.configure("server.yaml", &service("server", 40, &ports));
        let nodes: &[Node] = if at == Node::A {
            &[Node::A]
        } else {
            &[Node::A, at]
        };
        Self {
            agents: nodes.iter().map(|node| Agent::start(&lab, *node)).collect(),
            client,
            server,
            _serving: serving,
            lab,
        }
    }

    fn flow(&self, agent: usize, direction: &str) -> Value {
        let flows = self.agents[agent].meshctl_json(&["flows"]);
        (flows.as_array().into_iter().flatten())
            .find(|flow| flow["direction"] == direction)
            .unwrap_or_else(|| panic!("no {direction} flow: {flows}"))
            .clone()
    }
}

/// A record of an open connection over which 6 bytes, then `more` have gone there and back.
fn is_whole(flow: &Value, more: u64) {
    assert_eq!(flow["state"], "open", "{flow}");
    for field in ["bytes_sent", "bytes_received"] {
        assert_eq!(flow[field], 6 + more, "{field}: {flow}");
    }
    for field in ["segments_sent", "segments_received", "rtt_us", "min_rtt_us"] {
        assert!(flow[field].as_u64() > Some(0), "{field}: {flow}");
    }
    assert_eq!(flow["retransmits"], 0, "{flow}");
    for (field, name) in [
        ("source_identity", "client"),
        ("destination_identity", "server"),
    ] {
        assert_eq!(
            flow[field],
            format!("spiffe://cluster.local/ns/default/sa/{name}"),
            "{flow}"
        );
    }
}

#[test]
fn the_record_of_an_open_connection_is_whole_however_it_travels() {
    for (at, direct, security) in [
        (Node::A, true, "same_node"),
        (Node::A, false, "same_node"),
        (Node::B, false, "mutual_tls"),
    ] {
        let calls = Calls::start(at, direct);
        let mut held = Held::open(&calls.client, "v4", "10.96.0.40", 80);
        for (word, more) in [("", 0), ("second", 7)] {
            if !word.is_empty() {
                held.echoes(word);
            }
            // Nothing is under way: what counts is what was said.
            let out = calls.flow(0, "outbound");
            is_whole(&out, more);
            assert_eq!(out["security"], security, "{out}");
            assert!(out["connect_us"].as_u64() > Some(0), "{out}");
            assert_eq!(out["destination"], "10.96.0.40:80", "{out}");
            assert!(
                out["endpoint"]
                    .as_str()
                    .is_some_and(|e| e.ends_with(":7000")),
                "{out}"
            );
            let inbound = calls.flow(calls.agents.len() - 1, "inbound");
            is_whole(&inbound, more);
            for flow in [out, inbound] {
                assert_eq!(
                    flow["service"], "server.default.svc.cluster.local",
                    "{flow}"
                );
                assert_eq!(flow["protocol"], "tcp", "{flow}");
            }
        }
    }
}

#[test]
fn a_servers_record_names_all_services_that_lead_there_and_what_was_seen() {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let server = lab.workload(Node::A, "server", &[("app", "server")]);
    let _serving = server.serve(9080, "bookinfo", &["reviews", "--version", "v1"]);
    lab.configure("workloads.yaml", &workload_entries(&[&client, &server]));
    // Nothing says what the port speaks.
    let undeclared = |port| ServicePort {
        name: "web",
        port,
        target: 9080,
    };
    let other_port = ServicePort {
        name: "tcp",
        port: 80,
        target: 9081,
    };
    let first = service("server", 40, &[undeclared(80)]);
    let second = service("server", 41, &[undeclared(8080)]).replace("name: server", "name: again");
    let third = service("server", 42, &[other_port]).replace("name: server", "name: other");
    lab.configure("services.yaml", &[first, second, third].concat());
    // Only requests can tell, so that the server's side looks at them.
    lab.configure(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\n\
         kind: AuthorizationPolicy\n\
         metadata: {name: get, namespace: default}\n\
         spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}\n",
    );
    let agent = Agent::start(&lab, Node::A);
    eventually(IN_FORCE, "the record is whole", || {
        client.curl(&["http://server/"]);
        let flows = agent.meshctl_json(&["flows"]);
        let mut inbound = (flows.as_array().into_iter().flatten())
            .filter(|flow| flow["direction"] == "inbound" && flow["workload"] == "server.default");
        let services = "again.default.svc.cluster.local,server.default.svc.cluster.local";
        match inbound.any(|flow| flow["service"] == services && flow["protocol"] == "http") {
            true => Ok(()),
            false => Err(flows.to_string()),
        }
    });
}

/// Leaves no room in one of node a's maps.
fn fill(lab: &Lab, map: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/data/fill.py");
    let mut fill = std::process::Command::new("python3");
    let said = mesh_tests::outcome(fill.arg(script).arg(lab.bpffs(Node::A).join(map)))
        .expect("python starts")
        .success();
    println!("{said}");
}

#[test]
fn identities_that_nobody_has_any_more_make_room_for_others() {
    let mut calls = Calls::start(Node::A, true);
    let mut held = Held::open(&calls.client, "v4", "10.96.0.40", 80);
    let enrol = |calls: &Calls, name: &str| {
        let new = calls.lab.workload(Node::A, name, &[]);
        let all = workload_entries(&[&calls.client, &calls.server, &new]);
        calls.lab.configure("workloads.yaml", &all);
        eventually(IN_FORCE, "it is enrolled", || {
            let workloads = calls.agents[0].meshctl_json(&["workloads"]);
            let all = workloads.as_array().into_iter().flatten();
            let mut enrolled = all.filter(|workload| workload["state"] == "enrolled");
            match enrolled.any(|workload| workload["name"] == name) {
                true => Ok(()),
                false => Err(workloads.to_string()),
            }
        });
        new
    };
    let identity = |name| format!("spiffe://cluster.local/ns/default/sa/{name}");
    let is_named = |calls: &Calls, direction: &str, name| {
        let flows = calls.agents[0].meshctl_json(&["flows"]);
        let mut flows = flows.as_array().into_iter().flatten();
        flows
            .any(|flow| flow["direction"] == direction && flow["source_identity"] == identity(name))
    };

    // An agent has left them.
    calls.agents[0].stop();
    fill(&calls.lab, "identities");
    calls.agents[0].restart();
    let late = enrol(&calls, "late");
    let of_late = Held::open(&late, "v4", "10.96.0.40", 80);
    assert!(is_named(&calls, "outbound", "late"));
    of_late.close();

    // They have come while the agent runs. Each connection asks for a number again.
    fill(&calls.lab, "identities");
    let later = enrol(&calls, "later");
    eventually(ROOM, "there is room for one more", || {
        Held::open(&later, "v4", "10.96.0.40", 80).close();
        match is_named(&calls, "inbound", "later") {
            true => Ok(()),
            false => Err("its connections have no identity".to_owned()),
        }
    });

    // And the workload itself, which got no number when it came.
    eventually(ROOM, "it has a name", || {
        Held::open(&later, "v4", "10.96.0.40", 80).close();
        match is_named(&calls, "outbound", "later") {
            true => Ok(()),
            false => Err("its own records have no identity".to_owned()),
        }
    });

    // Whoever was there all the time has the same name.
    held.echoes("second");
    assert!(is_named(&calls, "outbound", "client"));
    assert!(is_named(&calls, "inbound", "client"));
}

#[test]
fn connections_that_find_the_account_full_work_and_are_counted() {
    let calls = Calls::start(Node::A, false);
    let dropped = || {
        let check = calls.agents[0].meshctl(&["check"]).stdout;
        let line = check.lines().find(|line| line.contains("in the account"));
        line.unwrap_or_default().to_owned()
    };
    assert!(dropped().contains("√"), "{}", dropped());
    fill(&calls.lab, "flows");
    let mut held = Held::open(&calls.client, "v4", "10.96.0.40", 80);
    held.echoes("second");
    let line = dropped();
    assert!(
        line.contains("flows have no record: the map flows was full"),
        "{line}"
    );
}

#[test]
fn what_is_known_of_a_connection_that_lasts_outlives_any_number_of_others() {
    let calls = Calls::start(Node::A, false);
    let mut held = Held::open(&calls.client, "v4", "10.96.0.40", 80);
    is_whole(&calls.flow(0, "outbound"), 0);
    // Others come, all at once and with nothing else of them.
    fill(&calls.lab, "flow_paths");
    held.echoes("second");
    let flow = calls.flow(0, "outbound");
    is_whole(&flow, 7);
    let endpoint = format!("{}:7000", calls.server.v4);
    assert_eq!(flow["endpoint"], endpoint, "{flow}");
    held.close();
    // They are gone, and there is room for those that are there.
    eventually(ROOM, "a new connection has its endpoint", || {
        let held = Held::open(&calls.client, "v4", "10.96.0.40", 80);
        let flows = calls.agents[0].meshctl_json(&["flows"]);
        held.close();
        let mut open = (flows.as_array().into_iter().flatten())
            .filter(|flow| flow["direction"] == "outbound" && flow["state"] == "open");
        match open.any(|flow| flow["endpoint"] == endpoint) {
            true => Ok(()),
            false => Err(flows.to_string()),
        }
    });
}

#[test]
fn eight_thousand_connections_in_twelve_seconds_are_all_accounted_for() {
    storm(8_000, Duration::from_secs(12));
}

#[test]
#[ignore = "takes a minute"]
fn forty_thousand_connections_in_a_minute_are_all_accounted_for() {
    storm(40_000, Duration::from_secs(60));
}

/// Connects a socket for the second time, after nobody has answered the first, and holds it open.
const AGAIN: &str = r#"
import socket, sys
s = socket.socket()
try:
    s.connect(("127.0.0.1", 9))
except ConnectionRefusedError:
    s.connect((sys.argv[1], int(sys.argv[2])))
    s.sendall(b"word")
    print(s.recv(4).decode(), flush=True)
    s.recv(1)
"#;

/// None fails, no record and no event of them is lost, and as many records as may be are kept.
fn storm(connections: usize, time: Duration) {
    let calls = Calls::start(Node::A, false);
    let mut again = calls.client.command("python3");
    again.args(["-c", AGAIN, "10.96.0.40", "80"]);
    let log = calls.client.file("again.log", "");
    let again = Process::spawn(&mut again, log).expect("python starts");
    assert!(
        wait_until(IN_FORCE, || again.log() == "word\n"),
        "{}",
        again.log()
    );
    let mut storm = calls.client.command("python3");
    let (count, seconds) = (connections.to_string(), time.as_secs().to_string());
    storm.args([STORM, "10.96.0.40", "80", &count, &seconds]);
    let log = calls.client.file("storm.log", "");
    let mut storm = Process::spawn(&mut storm, log).expect("python starts");
    let patience = time + Duration::from_secs(90);
    assert!(wait_until(patience, || !storm.is_running()));
    let said = storm.log();
    println!("{said}");
    assert!(said.starts_with("0 failed"), "{said}");
    let check = calls.agents[0].meshctl(&["check"]).stdout;
    let account = check
        .lines()
        .find(|line| line.contains("every flow is in the account"));
    println!("{account:?}");
    assert!(
        account.is_some_and(|line| line.contains("√") && line.contains(" 0 events dropped")),
        "{check}"
    );
    let flows = calls.agents[0].meshctl_json(&["flows"]);
    let flows = flows.as_array().expect("flows");
    println!("{} records are kept", flows.len());
    // The record of its first attempt was one of the oldest; the socket has another now.
    let is_open = |flow: &&Value| flow["state"] == "open" && flow["direction"] == "outbound";
    let open: Vec<_> = flows.iter().filter(is_open).collect();
    assert_eq!(open.len(), 1, "{open:?}");
    assert_eq!(open[0]["bytes_sent"], 4, "{open:?}");
    // The account is bounded: those that ended long ago make room.
    let kept = connections.min(8_000)..20_000;
    assert!(kept.contains(&flows.len()), "{}", flows.len());
}
