//! One agent takes over from another, and nobody notices.

use std::process::Command;
use std::time::Duration;

use mesh_tests::{Node, Process, ServicePort, Workload, eventually, outcome, service, wait_until};
use serde_json::Value;

use crate::bookinfo::{Bookinfo, VIP4};
use crate::held::Held;

/// Within which an agent that drains ends, once its last connection has.
const DRAINED: Duration = Duration::from_secs(10);
/// How long the load runs between the steps.
const A_WHILE: Duration = Duration::from_secs(2);
/// The service that echoes.
const ECHO_PORT: u16 = 7;

/// `reviews` with a second port that is TCP.
fn with_echo() -> (Bookinfo, Vec<Process>) {
    let mesh = Bookinfo::start_with(|lab| {
        lab.configure(
            "reviews.yaml",
            &service(
                "reviews",
                10,
                &[
                    ServicePort {
                        name: "http",
                        port: 80,
                        target: 9080,
                    },
                    ServicePort {
                        name: "tcp-echo",
                        port: ECHO_PORT,
                        target: ECHO_PORT,
                    },
                ],
            ),
        );
    });
    let servers = [&mesh.v1, &mesh.v2]
        .map(|workload| workload.serve(ECHO_PORT, "bookinfo", &["echo", "--listen", "[::]:7"]));
    (mesh, servers.into())
}

struct Load {
    process: Process,
    stop: std::path::PathBuf,
}

impl Load {
    /// Runs `load.py` in `sleep`.
    fn start(mesh: &Bookinfo) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/data/load.py");
        let stop = mesh.lab.folder().join("load.stop");
        let mut command = mesh.sleep.command("/usr/bin/python3");
        command
            .args([script, VIP4, "80", &ECHO_PORT.to_string()])
            .arg(&stop);
        let log = mesh.lab.folder().join("load.log");
        let process = Process::spawn(&mut command, log).expect("python starts");
        assert!(wait_until(DRAINED, || process.log().contains("loading")));
        Self { process, stop }
    }

    /// Ends the load and gives what it has counted.
    fn stop(mut self) -> Value {
        std::fs::write(&self.stop, "").expect("the lab's folder is writable");
        assert!(wait_until(Duration::from_secs(40), || !self
            .process
            .is_running()));
        let log = self.process.log();
        let line = log.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {log}"))
    }
}

/// Ids of the links below a node's pins, by name.
fn links(mesh: &Bookinfo, node: Node) -> Vec<(String, u64)> {
    let folder = mesh.lab.bpffs(node).join("links");
    let mut links: Vec<_> = std::fs::read_dir(&folder)
        .expect("links are pinned")
        .flatten()
        .map(|entry| {
            let said = outcome(
                Command::new("bpftool")
                    .args(["--json", "link", "show", "pinned"])
                    .arg(entry.path()),
            )
            .expect("bpftool starts")
            .success();
            let link: Value = serde_json::from_str(&said).expect("JSON");
            let id = link["id"].as_u64().expect("links have an id");
            (entry.file_name().to_string_lossy().into_owned(), id)
        })
        .collect();
    links.sort();
    links
}

#[test]
fn under_load_no_connection_is_refused_or_reset() {
    let (mut mesh, _servers) = with_echo();
    let before = [Node::A, Node::B].map(|node| links(&mesh, node));
    let load = Load::start(&mesh);
    std::thread::sleep(A_WHILE);
    // The client's agent and the server's, then the client's again.
    let mut drained = Vec::new();
    drained.push(mesh.a.take_over(&[]));
    std::thread::sleep(A_WHILE);
    drained.push(mesh.b.take_over(&[]));
    std::thread::sleep(A_WHILE);
    drained.push(mesh.a.take_over(&[]));
    std::thread::sleep(A_WHILE);
    assert_eq!(
        [Node::A, Node::B].map(|node| links(&mesh, node)),
        before,
        "links keep their ids"
    );
    let said = load.stop();
    println!("{said}");
    assert_eq!(said["failed"], 0, "{said}");
    for kind in ["http_new", "tcp_new", "http_long", "tcp_long", "reopened"] {
        assert!(said[kind].as_u64() > Some(0), "{kind}: {said}");
    }
    // The long connections have ended, and with them those who carried them.
    for (number, mut agent) in drained.into_iter().enumerate() {
        assert!(
            wait_until(DRAINED, || !agent.is_running()),
            "agent {number} drains: {}",
            agent.log()
        );
        assert!(agent.log().contains("drained"), "{}", agent.log());
    }
    assert_eq!(mesh.sleep.curl(&["http://reviews/"]).status, 200);
}

#[test]
fn meshctl_is_answered_all_the_time_and_at_the_end_by_the_new_agent() {
    let mut mesh = Bookinfo::start();
    let first = mesh.a.id();
    let said = mesh.a.meshctl(&["version", "-o", "json"]).success();
    assert!(said.contains(&first.to_string()), "{said}");
    let mut before = mesh.a.take_over(&[]);
    assert!(
        wait_until(DRAINED, || !before.is_running()),
        "{}",
        before.log()
    );
    let said = mesh.a.meshctl(&["version", "-o", "json"]).success();
    assert!(said.contains(&mesh.a.id().to_string()), "{said}");
    assert!(!said.contains(&first.to_string()), "{said}");
    // The sockets go with the last one.
    mesh.a.stop();
    assert!(!mesh.a.socket().exists());
    assert!(!mesh.a.socket().with_extension("sock.takeover").exists());
}

#[test]
fn an_agent_that_cannot_start_leaves_the_other_in_charge() {
    let mut mesh = Bookinfo::start();
    let first = mesh.a.id();
    let fails = |mesh: &mut Bookinfo, more: &[&str], reason: &str| {
        let mut second = mesh.a.second(more).expect("it starts");
        assert!(
            wait_until(DRAINED, || !second.is_running()),
            "{}",
            second.log()
        );
        assert!(second.log().contains(reason), "{more:?}: {}", second.log());
        let said = mesh.a.meshctl(&["version", "-o", "json"]).success();
        assert!(said.contains(&first.to_string()), "{said}");
        assert_eq!(mesh.sleep.curl(&["http://reviews/"]).status, 200);
    };
    fails(
        &mut mesh,
        &["--cgroup", "/no/such/group"],
        "not a cgroup2 directory",
    );
    let elsewhere = mesh.lab.bpffs(Node::B);
    let elsewhere = elsewhere.to_str().expect("text");
    fails(&mut mesh, &["--bpffs", elsewhere], "it runs with --bpffs");
    // Somebody else's socket, but the same programs.
    let socket = mesh.lab.folder().join("other.sock");
    let socket = socket.to_str().expect("text");
    fails(
        &mut mesh,
        &["--admin-socket", socket],
        "already runs with --bpffs",
    );
    mesh.lab.configure("broken.yaml", "kind: [\n");
    fails(&mut mesh, &[], "stays in charge");
    mesh.lab.unconfigure("broken.yaml");

    // It goes on as before: changes of the configuration still arrive.
    let late = mesh.lab.workload(Node::A, "late", &[]);
    let entries = mesh_tests::workload_entries(&[&mesh.sleep, &mesh.v1, &mesh.v2, &late]);
    mesh.lab.configure("workloads.yaml", &entries);
    eventually(DRAINED, "the late workload is enrolled", || {
        match late.curl(&["http://reviews/"]).status {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        }
    });
    // And another one can still take over.
    let mut before = mesh.a.take_over(&[]);
    assert!(
        wait_until(DRAINED, || !before.is_running()),
        "{}",
        before.log()
    );
    assert_eq!(late.curl(&["http://reviews/"]).status, 200);
}

#[test]
fn a_change_of_policy_holds_for_the_connections_of_an_agent_that_drains() {
    let (mut mesh, _servers) = with_echo();
    let hold = |to: &Workload| Held::open(&mesh.sleep, "v4", &to.v4.to_string(), ECHO_PORT);
    let (mut forbidden, mut allowed) = (hold(&mesh.v1), hold(&mesh.v2));
    let mut before = mesh.b.take_over(&[]);
    forbidden.echoes("second");
    mesh.lab.configure(
        "deny.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
         spec: {selector: {matchLabels: {version: v1}}, action: DENY, \
         rules: [{from: [{source: {serviceAccounts: [sleep]}}]}]}\n",
    );
    forbidden.ends(Duration::from_secs(5));
    allowed.echoes("second");
    assert!(
        before.is_running(),
        "it carries the other: {}",
        before.log()
    );
}

#[test]
fn a_drain_has_an_end() {
    let (mut mesh, _servers) = with_echo();
    mesh.a.stop();
    mesh.a.restart();
    mesh.until_reachable();
    // The one that drains is the one that has the time limit.
    let mut first = mesh.a.take_over(&["--drain-timeout", "1s"]);
    assert!(
        wait_until(DRAINED, || !first.is_running()),
        "{}",
        first.log()
    );
    let load = Load::start(&mesh);
    let mut second = mesh.a.take_over(&[]);
    assert!(
        wait_until(DRAINED, || !second.is_running()),
        "{}",
        second.log()
    );
    assert!(
        second.log().contains("--drain-timeout has passed"),
        "{}",
        second.log()
    );
    let said = load.stop();
    // All twenty long ones of TCP; nothing else.
    let failures = said["failures"].as_array().expect("a list");
    assert!(
        failures.iter().all(|failure| failure
            .as_str()
            .is_some_and(|text| text.contains("tcp_long"))),
        "{said}"
    );
    assert_eq!(said["failed"], 20, "{said}");
}
