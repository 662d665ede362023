//! Storms of connections come and go while the configuration changes, and leave nothing
//! behind: no memory, no descriptor, no entry of a map, no socket.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, outcome, service, wait_until,
    workload_entries,
};

use crate::bpftool::bpftool;
use crate::bridge::{BRIDGED, HANDED_OVER, counters, taken};

pub const STORM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/soak.py");
/// Through the agent, past it by a bridge, and through tunnels to the other node.
const TARGETS: [&str; 4] = [
    "http:10.96.0.40:80",
    "tcp:10.96.0.40:81",
    "http:10.96.0.41:80",
    "tcp:10.96.0.41:81",
];
/// The same without an agent on the way.
const DIRECT: &str = "tcp:10.96.0.40:81";
/// Connections of a storm to each target, from each client.
const CONNECTIONS: usize = 80;
/// Changes of the configuration within a storm.
const CHANGES: usize = 4;
/// How long a storm may take.
const STORM_PATIENCE: Duration = Duration::from_secs(60);
/// Nothing has to be given back any more so long after the last connection.
const REST: Duration = Duration::from_secs(6);
/// How long everything may take to be as it was.
const PATIENCE: Duration = Duration::from_secs(30);
/// What an agent may hold more at rest than after its first storm: what is in use lies scattered
/// over the heaps of several threads, and lists keep the room that they once had. That comes
/// within the first hundred storms, and not again.
const SCATTERED_KIB: u64 = 1024;
const SCATTERED_AFTER_MANY_KIB: u64 = 2 * 1024;
/// Maps whose entries go with connections or with the configuration.
const MAPS: [&str; 12] = [
    "spliced_sockets",
    "splice_peers",
    "connecting",
    "workloads",
    "destinations",
    "listeners",
    "listening",
    "verdicts",
    "endpoints",
    "endpoint_load",
    "identities",
    "nameservers",
];
/// Connections that nobody uses are closed within the rest.
const RULE: &str = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: all}
spec:
  host: '*.local'
  trafficPolicy: {portLevelSettings: [{port: {number: 80}, connectionPool: {http: {idleTimeout: 1s}}}]}
";

/// Makes storms when it is told to.
struct Client {
    process: Process,
    orders: ChildStdin,
    storms: usize,
}

impl Client {
    fn start(at: &Workload, targets: &[&str]) -> Self {
        let mut command = at.command("python3");
        command.arg(STORM).arg(CONNECTIONS.to_string());
        command.args(targets).stdin(Stdio::piped());
        let log = at.file("storms.log", "");
        let mut process = Process::spawn(&mut command, log).expect("python starts");
        let orders = process.stdin().expect("piped");
        Self {
            process,
            orders,
            storms: 0,
        }
    }

    fn begin(&mut self) {
        self.orders.write_all(b"\n").expect("python reads");
        self.storms += 1;
    }

    /// Waits for the end of the storm.
    fn end(&self) {
        let log = || self.process.log();
        let ended = wait_until(STORM_PATIENCE, || log().lines().count() == self.storms);
        let log = log();
        assert!(ended, "storm {} does not end: {log}", self.storms);
        let last = log.lines().last().unwrap_or_default();
        assert!(last.starts_with("storm 0 failed"), "{last}");
    }
}

struct Scene {
    agents: [(Node, Agent); 2],
    clients: [Client; 2],
    _servers: Vec<Process>,
    workloads: [Workload; 4],
    changes: u16,
    lab: Lab,
}

/// What connections leave in one moment, by where it was found. Nothing of it may grow.
type Left = BTreeMap<String, usize>;

impl Scene {
    fn start() -> Self {
        let lab = Lab::new();
        let workload = |node, name| {
            lab.workload(node, name, &[("app", name)])
                .annotated("undermesh.io/short-circuit", "on")
        };
        let client = workload(Node::A, "client");
        let straight = workload(Node::A, "straight").annotated("undermesh.io/direct", "true");
        let servers = [workload(Node::A, "near"), workload(Node::B, "far")];
        let mut serving = Vec::new();
        for (server, host) in servers.iter().zip([40, 41]) {
            serving.push(server.serve(9080, "bookinfo", &["details"]));
            serving.push(server.serve(7000, "bookinfo", &["echo", "--listen", "[::]:7000"]));
            let file = format!("{}.yaml", server.name);
            lab.configure(&file, &service(&server.name, host, &ports(0)));
        }
        let [near, far] = servers;
        let workloads = [client, straight, near, far];
        let entries = workload_entries(&workloads.each_ref());
        lab.configure("workloads.yaml", &entries);
        lab.configure("rule.yaml", RULE);
        Self {
            agents: [Node::A, Node::B].map(|node| (node, Agent::start(&lab, node))),
            clients: [
                Client::start(&workloads[0], &TARGETS),
                Client::start(&workloads[1], &[DIRECT]),
            ],
            _servers: serving,
            workloads,
            changes: 0,
            lab,
        }
    }

    /// One storm from everywhere, during which the configuration changes.
    fn storm(&mut self) {
        self.clients.iter_mut().for_each(Client::begin);
        for _ in 0..CHANGES {
            self.change();
        }
        self.clients.iter().for_each(Client::end);
    }

    /// Another port of the server nearby, and with it other verdicts, for all clients.
    fn change(&mut self) {
        self.changes = (self.changes + 1) % 1000;
        let text = service("near", 40, &ports(self.changes));
        let generation = self.generation();
        self.lab.configure("near.yaml", &text);
        assert!(wait_until(PATIENCE, || self.generation() > generation));
    }

    fn generation(&self) -> Option<u64> {
        self.agents[0].1.meshctl_json(&["config"])["generation"].as_u64()
    }

    /// All but memory. The kernel counts a socket until nobody refers to it any more: what is kept
    /// in a socket's storage, and what takes part in the short-circuit, is as long there.
    fn left(&self) -> Left {
        let mut left = Left::new();
        for (node, agent) in &self.agents {
            let mut count = |what: &str, count| {
                left.insert(format!("{what} of node {}", node.name()), count);
            };
            let descriptors = fs::read_dir(format!("/proc/{}/fd", agent.id()));
            count("descriptors", descriptors.expect("it runs").count());
            for map in MAPS {
                count(map, entries(&self.lab, *node, map));
            }
            let flows = agent.meshctl_json(&["flows"]);
            let open = |flow: &&serde_json::Value| flow["state"] != "closed";
            let flows = flows.as_array().into_iter().flatten().filter(open);
            count("open flows", flows.count());
        }
        for workload in &self.workloads {
            let what = format!("sockets of {}", workload.name);
            left.insert(what, sockets(workload));
        }
        left
    }

    /// Memory of each agent that is no copy of a file.
    fn anonymous_kib(&self) -> [u64; 2] {
        let agents = self.agents.each_ref();
        agents.map(|(_, agent)| agent.memory_kib("RssAnon"))
    }

    /// Waits until everything is as it was.
    fn is_as_it_was(&self, left: &Left, anonymous_kib: [u64; 2], scattered_kib: u64) {
        // Memory first, as before.
        eventually(PATIENCE, "the memory is given back", || {
            let now = self.anonymous_kib();
            let is_little = |(now, before)| now <= before + scattered_kib;
            let all = now.into_iter().zip(anonymous_kib).all(is_little);
            all.then_some(())
                .ok_or_else(|| format!("{now:?} KiB, at first {anonymous_kib:?}"))
        });
        println!("back at {:?} KiB", self.anonymous_kib());
        eventually(PATIENCE, "nothing is left", || {
            let now = self.left();
            let more = |(what, count): &(&String, &usize)| **count > left[*what];
            let more: Vec<_> = now.iter().filter(more).collect();
            (more.is_empty())
                .then_some(())
                .ok_or_else(|| format!("{more:?}, at first {left:?}"))
        });
        eventually(PATIENCE, "bridges are free", || match taken(&self.lab) {
            0 => Ok(()),
            taken => Err(taken.to_string()),
        });
    }
}

fn entries(lab: &Lab, node: Node, map: &str) -> usize {
    let pin = lab.bpffs(node).join(map);
    let dump = bpftool(&["map", "dump", "pinned", &pin.to_string_lossy()]);
    dump.as_array().expect("a list").len()
}

/// Of a server; the last one is another one for each number.
fn ports(number: u16) -> [ServicePort<'static>; 3] {
    [
        ("http", 80, 9080),
        ("tcp", 81, 7000),
        ("tcp-more", 1000 + number, 7000),
    ]
    .map(|(name, port, target)| ServicePort { name, port, target })
}

/// Sockets of a workload's namespace, of any kind and state.
fn sockets(workload: &Workload) -> usize {
    let text = workload.run("cat", &["/proc/net/sockstat"]).success();
    let used = text.lines().next().and_then(|line| line.split(' ').nth(2));
    used.and_then(|count| count.parse().ok()).expect(&text)
}

/// What the kernel has to say of itself.
fn complaints() -> Vec<String> {
    let text = outcome(&mut Command::new("dmesg"))
        .expect("dmesg starts")
        .success();
    let of_itself = ["WARNING: ", "BUG: ", "Oops: ", "refcount_t: "];
    // A machine that gets no time of its host is nobody's fault.
    let lockup = |line: &&str| !line.contains("lockup");
    let lines = text
        .lines()
        .filter(|line| of_itself.iter().any(|word| line.contains(word)))
        .filter(lockup);
    lines.map(str::to_owned).collect()
}

/// Storms until `is_enough` of their number, with some changes in each.
fn soak(scattered_kib: u64, is_enough: impl Fn(usize) -> bool) {
    let complained = complaints();
    let mut scene = Scene::start();
    scene.storm();
    std::thread::sleep(REST);
    // Memory first: answers about thousands of flows take much more of it.
    let anonymous_kib = scene.anonymous_kib();
    let left = scene.left();
    assert!(
        left["verdicts of node a"] > 0,
        "some connections are direct"
    );
    println!("after the first storm {anonymous_kib:?} KiB, {left:?}");
    let mut storms = 0;
    while !is_enough(storms) {
        scene.storm();
        storms += 1;
        if storms % 50 == 0 {
            println!(
                "after {storms} more {:?} KiB, not at rest",
                scene.anonymous_kib()
            );
        }
    }
    println!("{storms} more");
    scene.is_as_it_was(&left, anonymous_kib, scattered_kib);
    let carried = counters(&scene.lab);
    assert!(
        carried[HANDED_OVER] > 0 && carried[BRIDGED] > 0,
        "{carried:?}"
    );
    let mut complaints = complaints();
    complaints.retain(|line| !complained.contains(line));
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn storms_of_connections_and_changes_leave_nothing_behind() {
    soak(SCATTERED_KIB, |storms| storms == 6);
}

/// Half a million connections, or as many as fit into `UNDERMESH_SOAK_SECONDS`.
#[test]
#[ignore = "takes an hour"]
fn an_hour_of_storms_and_changes_leaves_nothing_behind() {
    let seconds = std::env::var("UNDERMESH_SOAK_SECONDS").ok();
    let seconds = seconds.map_or(3600, |text| text.parse().expect("a number"));
    let began = Instant::now();
    let is_over = |_| began.elapsed() >= Duration::from_secs(seconds);
    soak(SCATTERED_AFTER_MANY_KIB, is_over);
}
