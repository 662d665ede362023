//! One agent takes over from another, and nobody notices.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_tests::{
    Agent, Node, Process, ServicePort, Workload, eventually, outcome, service, wait_until,
};
use serde_json::Value;

use crate::bookinfo::{Bookinfo, VIP4};
use crate::held::Held;
use crate::load::Load;

/// Within which an agent that drains ends, once its last connection has.
const DRAINED: Duration = Duration::from_secs(10);
/// How long connections are made before and after a change.
const A_WHILE: Duration = Duration::from_secs(2);
/// How many new connections the load makes between the steps: within two seconds where the machine is up to it.
const BETWEEN: u64 = 2000;
const LOAD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/load.py");
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

/// New connections to both ports of `reviews`, so many a second, and two hundred long ones, which are open.
fn load(mesh: &Bookinfo, new_per_second: u32) -> Load {
    let (echo, pace) = (ECHO_PORT.to_string(), new_per_second.to_string());
    Load::start(&mesh.sleep, LOAD, &[VIP4, "80", &echo, &pace], "new ")
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

/// Inodes of the sockets that listen in the namespaces of a client and of a server (proc_net_tcp.rst).
fn listeners(mesh: &Bookinfo) -> [BTreeSet<String>; 2] {
    const LISTEN: &str = "0A";
    [&mesh.sleep, &mesh.v1].map(|workload| {
        let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
        let said = workload.run("cat", &tables).success();
        let sockets = said.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            (fields.get(3) == Some(&LISTEN)).then(|| fields[9].to_owned())
        });
        sockets.collect()
    })
}

#[test]
fn under_load_no_connection_is_refused_or_reset() {
    let (mut mesh, _servers) = with_echo();
    let before = [Node::A, Node::B].map(|node| links(&mesh, node));
    let listening = listeners(&mesh);
    assert!(listening.iter().all(|sockets| !sockets.is_empty()));
    let load = load(&mesh, 1000);
    load.makes(BETWEEN);
    // The client's agent and the server's, then the client's again.
    let mut drained = Vec::new();
    drained.push(mesh.a.take_over(&[]));
    load.makes(BETWEEN);
    drained.push(mesh.b.take_over(&[]));
    load.makes(BETWEEN);
    drained.push(mesh.a.take_over(&[]));
    load.makes(BETWEEN);
    assert_eq!(
        [Node::A, Node::B].map(|node| links(&mesh, node)),
        before,
        "links keep their ids"
    );
    assert_eq!(listeners(&mesh), listening, "what listens is handed over");
    let said = load.stop();
    println!("{said}");
    assert_eq!(said["failed"], 0, "{said}");
    assert_eq!(said["long"], 200, "{said}");
    for kind in ["http_new", "tcp_new", "http_long", "tcp_long", "reopened"] {
        assert!(said[kind].as_u64() > Some(100), "{kind}: {said}");
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

/// Forbids `outside` to call `reviews`.
fn deny(mesh: &Bookinfo, outside: &Workload) {
    mesh.lab.configure(
        "deny.yaml",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\n\
             spec: {{selector: {{matchLabels: {{app: reviews}}}}, action: DENY, \
             rules: [{{from: [{{source: {{ipBlocks: [{}]}}}}]}}]}}\n",
            outside.v4
        ),
    );
}

/// The configuration that `meshctl` says to be in force.
fn generation(agent: &Agent) -> u64 {
    let config = agent.meshctl_json(&["config"]);
    config["generation"].as_u64().expect("a number")
}

/// Requests without a pause on connections that stay open.
struct Asking {
    process: Process,
    stop: std::path::PathBuf,
}

impl Asking {
    /// From now on through the agent that is in charge now.
    fn start(name: &str, from: &Workload, to: &Workload) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/data/ask.py");
        let log = from.file(&format!("{name}.log"), "");
        let stop = log.with_extension("stop");
        let mut command = from.command("/usr/bin/python3");
        command
            .args([script, &to.v4.to_string(), "9080", "8"])
            .arg(&stop);
        let process = Process::spawn(&mut command, log).expect("python starts");
        let asks = wait_until(DRAINED, || process.log().contains("asking"));
        assert!(asks, "{}", process.log());
        Self { process, stop }
    }

    /// What came of it.
    fn stop(mut self) -> Value {
        std::fs::write(&self.stop, "").expect("the lab's folder is writable");
        let ends = wait_until(Duration::from_secs(40), || !self.process.is_running());
        let log = self.process.log();
        assert!(ends, "{log}");
        let line = log.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {log}"))
    }
}

#[test]
fn no_request_passes_by_an_old_policy_once_the_new_one_is_acknowledged() {
    let mut mesh = Bookinfo::start();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    // Connections through three agents, two of which drain.
    let mut asking = vec![Asking::start("first", &outside, &mesh.v1)];
    let first = mesh.b.take_over(&[]);
    asking.push(Asking::start("second", &outside, &mesh.v1));
    let second = mesh.b.take_over(&[]);
    asking.push(Asking::start("third", &outside, &mesh.v1));
    let before = generation(&mesh.b);

    first.signal(libc::SIGSTOP);
    deny(&mesh, &outside);
    let url = format!("http://{}:9080/", mesh.v1.v4);
    eventually(DRAINED, "the agent in charge refuses", || {
        match outside.curl(&[&url]).exit {
            0 => Err("it answers".to_owned()),
            _ => Ok(()),
        }
    });
    std::thread::sleep(A_WHILE);
    assert_eq!(
        generation(&mesh.b),
        before,
        "the first one still carries connections under the old policy"
    );
    first.signal(libc::SIGCONT);
    let is_in_force = wait_until(DRAINED, || generation(&mesh.b) > before);
    let acknowledged = SystemTime::now().duration_since(UNIX_EPOCH);
    assert!(is_in_force, "{}", mesh.b.log());
    let acknowledged = acknowledged.expect("after 1970").as_secs_f64();
    std::thread::sleep(Duration::from_millis(500));
    for (agent, asking) in asking.into_iter().enumerate() {
        let said = asking.stop();
        assert!(said["answered"].as_u64() > Some(100), "{said}");
        let last = said["last"].as_f64().expect("a time");
        let late = last - acknowledged;
        assert!(late < 0.0, "agent {agent}, {late} s too late: {said}");
        assert_eq!(said["left"], 0, "agent {agent}: {said}");
    }
    for agent in [&first, &second] {
        let log = agent.log();
        assert!(log.contains("in force for the connections"), "{log}");
    }
}

#[test]
fn an_agent_that_hangs_while_it_drains_does_not_go_on_by_an_old_policy() {
    let (mut mesh, _servers) = with_echo();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let mut held = Held::open(&outside, "v4", &mesh.v1.v4.to_string(), ECHO_PORT);
    let mut first = mesh.b.take_over(&[]);
    let before = generation(&mesh.b);
    first.signal(libc::SIGSTOP);
    deny(&mesh, &outside);
    let is_in_force = wait_until(Duration::from_secs(20), || generation(&mesh.b) > before);
    assert!(is_in_force, "{}", mesh.b.log());
    assert!(!first.is_running());
    assert!(mesh.b.log().contains("it is killed"), "{}", mesh.b.log());
    held.ends(DRAINED);
}

#[test]
fn an_agent_that_starts_after_a_crash_finds_the_one_that_drains() {
    let (mut mesh, _servers) = with_echo();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let hold = |to: &Workload| Held::open(&outside, "v4", &to.v4.to_string(), ECHO_PORT);
    let (mut forbidden, mut allowed) = (hold(&mesh.v1), hold(&mesh.v2));
    let mut first = mesh.b.take_over(&[]);
    mesh.b.kill();
    deny(&mesh, &outside);
    let only_v1 = std::fs::read_to_string(mesh.lab.config().join("deny.yaml"))
        .expect("it was written")
        .replace("app: reviews", "version: v1");
    mesh.lab.configure("deny.yaml", &only_v1);
    // By nobody's word, and for whom nobody else may speak.
    forbidden.echoes("second");
    mesh.b.restart();
    assert!(wait_until(DRAINED, || generation(&mesh.b) > 0));
    let log = first.log();
    assert!(log.contains("in force for the connections"), "{log}");
    forbidden.ends(DRAINED);
    allowed.echoes("second");
    assert!(first.is_running(), "{}", first.log());
}

#[test]
fn an_agent_that_drains_and_cannot_read_a_configuration_cuts_what_it_carries() {
    let (mut mesh, _servers) = with_echo();
    let mut held = Held::open(&mesh.sleep, "v4", &mesh.v1.v4.to_string(), ECHO_PORT);
    let mut first = mesh.b.take_over(&[]);
    held.echoes("second");
    // What a newer version could say in its place.
    let entries = std::fs::read_dir(mesh.lab.folder()).expect("the lab's folder");
    let socket = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains("agent-b.sock.drain."))
        .expect("the first one drains");
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("it is heard");
    let texts = r#"{"files": [["new.yaml", "kind: ["]], "unread": []}"#;
    stream.write_all(texts.as_bytes()).expect("it reads");
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("it is connected");
    held.ends(DRAINED);
    assert!(wait_until(DRAINED, || !first.is_running()));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:?}");
    assert!(first.log().contains("cannot read the configuration"));
    assert!(!socket.exists());
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
    let load = load(&mesh, 20);
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
    // All hundred long ones of TCP; nothing else.
    let failures = said["failures"].as_array().expect("a list");
    assert!(
        failures.iter().all(|failure| failure
            .as_str()
            .is_some_and(|text| text.contains("tcp_long"))),
        "{said}"
    );
    assert_eq!(said["failed"], 100, "{said}");
}
