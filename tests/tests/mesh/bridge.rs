//! Bytes of a connection that the agent merely copies go past it, from application to
//! application: none is lost, moved or left out of any account, the agent takes over
//! whenever it has to, and whatever ends connections ends these, too.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};

use crate::bpftool::bpftool;
use crate::held::{HELD, Held};
use crate::prometheus::{curl, free_address};
use crate::short_circuit::{pair, pair_with};
use crate::telemetry::counter;

const VIP: &str = "10.96.0.40";
const ECHO_PORT: u16 = 81;
const GREETING_PORT: u16 = 82;
const GREETER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/short_circuit/greeter.py");
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages of a connection before its bridge is there, at most.
const FIRST: u64 = 6;
/// `Counter::HandedOver` and `Counter::Bridged` of mesh-common.
pub const HANDED_OVER: usize = 3;
pub const BRIDGED: usize = 7;

/// A client and a server that echoes on one node.
struct Scene {
    agent: Agent,
    metrics: String,
    client: Workload,
    _servers: [Process; 2],
    lab: Lab,
}

impl Scene {
    fn start() -> Self {
        let lab = Lab::new();
        let workload = |name| {
            lab.workload(Node::A, name, &[("app", name)])
                .annotated("undermesh.io/short-circuit", "on")
        };
        let (client, server) = (workload("client"), workload("server"));
        let servers = [
            server.serve(7001, "python3", &[HELD, "serve", "7001"]),
            server.serve(7002, "python3", &[GREETER, "serve", "7002"]),
        ];
        lab.configure("workloads.yaml", &workload_entries(&[&client, &server]));
        let port = |name, port, target| ServicePort { name, port, target };
        let ports = [
            port("tcp-echo", ECHO_PORT, 7001),
            port("greeting", GREETING_PORT, 7002),
        ];
        lab.configure("server.yaml", &service("server", 40, &ports));
        let metrics = free_address();
        let agent = Agent::start_with(&lab, Node::A, &["--metrics-address", &metrics]);
        Self {
            agent,
            metrics,
            client,
            _servers: servers,
            lab,
        }
    }

    fn hold(&self) -> Held {
        Held::open(&self.client, "v4", VIP, ECHO_PORT)
    }

    fn counter(&self, index: usize) -> u64 {
        counters(&self.lab)[index]
    }

    /// Talks until it is past the agent.
    fn is_bridged(&self, held: &mut Held) {
        let before = self.counter(BRIDGED);
        eventually(PATIENCE, "a message goes past the agent", || {
            held.echoes("over the bridge");
            let bridged = self.counter(BRIDGED) - before;
            (bridged > 0)
                .then_some(())
                .ok_or_else(|| format!("{:?}", counters(&self.lab)))
        });
    }

    /// Both counts of the application's side: bytes from the client, and to it.
    fn counted(&self) -> (u64, u64) {
        let text = curl(&[&format!("http://{}/metrics", self.metrics)]);
        let labels = [
            ("reporter", "destination"),
            ("destination_workload", "server"),
        ];
        let of = |name| counter(&text, name, &labels);
        (
            of("istio_tcp_received_bytes_total"),
            of("istio_tcp_sent_bytes_total"),
        )
    }
}

/// The counters of the kernel, by `Counter` of mesh-common. What is not recorded yet is not in them.
pub fn counters(lab: &Lab) -> Vec<u64> {
    let pin = lab.bpffs(Node::A).join("counters");
    let dump = bpftool(&["map", "dump", "pinned", &pin.to_string_lossy()]);
    let sum = |entry: &serde_json::Value| {
        let values = entry["formatted"]["values"].as_array();
        (values.into_iter().flatten())
            .filter_map(|value| value["value"].as_u64())
            .sum()
    };
    dump.as_array().into_iter().flatten().map(sum).collect()
}

/// Bridges that somebody has.
pub fn taken(lab: &Lab) -> usize {
    let pin = lab.bpffs(Node::A).join("bridges");
    let dump = bpftool(&["map", "dump", "pinned", &pin.to_string_lossy()]);
    let all = dump.as_array().cloned().unwrap_or_default();
    assert!(!all.is_empty());
    (all.iter())
        .filter(|entry| entry["formatted"]["value"]["sender"] != 0)
        .count()
}

#[test]
fn messages_go_past_the_agent_and_no_account_misses_one() {
    let scene = Scene::start();
    let mut held = scene.hold();
    for number in 0..100 {
        held.echoes(&format!("word {number}"));
    }
    // What the agent tells while the connection lasts is a little behind at most.
    let bridged = scene.counter(BRIDGED);
    assert!(bridged >= 2 * (100 - FIRST), "{:?}", counters(&scene.lab));
    assert_eq!(taken(&scene.lab), 2, "one each way");
    // "first", and a hundred words with their ends.
    let bytes = 6 + 10 * 7 + 90 * 8;
    let (received, sent) = scene.counted();
    assert!(
        received > bytes / 2 && sent > bytes / 2,
        "{received} {sent}"
    );
    held.close();
    eventually(PATIENCE, "all is counted", || {
        let flows = scene.agent.meshctl_json(&["flows"]);
        let flows = flows.as_array().cloned().unwrap_or_default();
        let is_right = |flow: &serde_json::Value| {
            flow["state"] != "open"
                && flow["bytes_sent"] == bytes
                && flow["bytes_received"] == bytes
        };
        let both = flows.len() == 2 && flows.iter().all(is_right);
        (both && scene.counted() == (bytes, bytes) && taken(&scene.lab) == 0)
            .then_some(())
            .ok_or_else(|| format!("{:?} {flows:?}", scene.counted()))
    });
}

#[test]
fn a_slow_reader_sends_bytes_back_to_the_agent_and_they_stay_in_order() {
    let pair = pair(false, "on");
    assert_eq!(pair.sees("exchanges"), "all equal\n");
    let counters = pair.counters();
    assert!(counters[BRIDGED] > 100, "{counters:?}");
    // The agent had a share, by the short-circuit and by TCP.
    assert!(counters[HANDED_OVER] > counters[BRIDGED], "{counters:?}");
    assert!(counters[4..6].iter().sum::<u64>() > 0, "{counters:?}");
}

#[test]
fn a_server_that_speaks_first_has_a_bridge() {
    let scene = Scene::start();
    let said = scene
        .client
        .run(
            "python3",
            &[GREETER, "greeted", VIP, &GREETING_PORT.to_string()],
        )
        .success();
    assert_eq!(said, "hello\nequal 100\n");
    assert!(
        scene.counter(BRIDGED) >= 2 * (100 - FIRST),
        "{:?}",
        counters(&scene.lab)
    );
}

#[test]
fn silence_ends_a_connection_and_bytes_that_pass_the_agent_are_none() {
    let pair = pair_with(false, "on", |lab| {
        lab.configure(
            "rule.yaml",
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: server}\n\
             spec: {host: server, trafficPolicy: {connectionPool: {tcp: {idleTimeout: 4s}}}}\n",
        );
        Vec::new()
    });
    // Ten seconds of words, then none until the end.
    assert_eq!(pair.sees("hundred"), "hundred\nended\n");
    assert!(pair.counters()[BRIDGED] >= 2 * (100 - FIRST));
}

#[test]
fn a_policy_that_forbids_the_connection_ends_it() {
    let scene = Scene::start();
    let mut held = scene.hold();
    scene.is_bridged(&mut held);
    scene.lab.configure(
        "deny.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\n\
         spec: {selector: {matchLabels: {app: server}}, action: DENY, \
         rules: [{from: [{source: {namespaces: [default]}}]}]}\n",
    );
    held.is_cut(PATIENCE);
    eventually(PATIENCE, "its bridges are free", || {
        match taken(&scene.lab) {
            0 => Ok(()),
            taken => Err(taken.to_string()),
        }
    });
}

#[test]
fn the_operators_switch_brings_open_connections_back_to_the_agent() {
    let pair = pair(false, "on");
    let mut held = pair.hold();
    let bridged = || pair.counters()[BRIDGED];
    let talk = |held: &mut Held| (0..40).for_each(|n| held.echoes(&format!("{n} words")));
    talk(&mut held);
    assert!(bridged() > 0);
    pair.set_knob(0, 1);
    let (before, handed_over) = (bridged(), pair.handed_over());
    talk(&mut held);
    assert_eq!((bridged(), pair.handed_over()), (before, handed_over));
    pair.set_knob(0, 0);
    talk(&mut held);
    assert!(bridged() > before);
}

#[test]
fn connections_are_bridged_while_their_agent_drains_and_those_of_the_next_as_well() {
    let mut scene = Scene::start();
    let mut old = scene.hold();
    scene.is_bridged(&mut old);
    let _drains = scene.agent.take_over(&[]);
    scene.is_bridged(&mut old);
    let mut new = scene.hold();
    scene.is_bridged(&mut new);
    eventually(PATIENCE, "both ways of both have one", || {
        match taken(&scene.lab) {
            4 => Ok(()),
            taken => Err(taken.to_string()),
        }
    });
    old.close();
    new.echoes("still there");
    eventually(
        PATIENCE,
        "the first one's bridges are free",
        || match taken(&scene.lab) {
            2 => Ok(()),
            taken => Err(taken.to_string()),
        },
    );
}

#[test]
fn a_bridge_ends_with_its_agent_and_leaves_nothing_to_the_next() {
    let mut scene = Scene::start();
    let mut held = scene.hold();
    scene.is_bridged(&mut held);
    scene.agent.kill();
    held.ends(PATIENCE);
    scene.agent.restart();
    assert_eq!(taken(&scene.lab), 0);
    let mut next = scene.hold();
    scene.is_bridged(&mut next);
}
