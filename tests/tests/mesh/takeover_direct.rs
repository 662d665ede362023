//! An agent takes over while connections go past it: they do not notice, and are the next one's to
//! watch and to account for.

use std::time::Duration;

use mesh_tests::{eventually, wait_until};
use serde_json::Value;

use crate::direct::{Direct, VIP};
use crate::held::Held;
use crate::load::Load;
use crate::prometheus::{curl, free_address};
use crate::telemetry::counter;

const LOAD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/direct_load.py");
/// Within which the load has begun, or ended, and a change is in force.
const SOON: Duration = Duration::from_secs(20);
/// How long a connection may outlive the policy that forbids it.
const END: Duration = Duration::from_secs(2);
/// How long the load runs between the steps.
const A_WHILE: Duration = Duration::from_secs(2);

struct Mesh {
    direct: Direct,
    metrics: String,
}

impl Mesh {
    fn start(short_circuit: &str) -> Self {
        let metrics = free_address();
        let echo = ["echo", "--listen", "[::]:7000"];
        let flags = ["--metrics-address", &metrics];
        Self {
            direct: Direct::start_with(short_circuit, "bookinfo", &echo, &flags),
            metrics,
        }
    }

    /// Connections of `friend`, opened and closed, as the agent that is in charge counts them.
    fn counted(&self) -> [u64; 2] {
        let metrics = curl(&[&format!("http://{}/metrics", self.metrics)]);
        let of_friend = [("source_workload", "friend"), ("reporter", "source")];
        ["opened", "closed"].map(|what| {
            let name = format!("istio_tcp_connections_{what}_total");
            counter(&metrics, &name, &of_friend)
        })
    }
}

#[test]
fn under_load_no_direct_connection_notices() {
    for short_circuit in ["off", "on"] {
        let mut mesh = Mesh::start(short_circuit);
        let load = Load::start(&mesh.direct.friend, LOAD, &[VIP, "80"], "loading");
        let mut forbidden = Held::open(&mesh.direct.stranger, "v4", VIP, 80);
        std::thread::sleep(A_WHILE);
        let first = mesh.direct.agent.take_over(&[]);
        std::thread::sleep(A_WHILE);
        let second = mesh.direct.agent.take_over(&[]);

        // Policies that come at once hold for what is open, and for what comes.
        forbidden.echoes("second");
        mesh.direct.forbid_stranger();
        forbidden.is_cut(END);
        let connect = "import socket, sys; socket.create_connection((sys.argv[1], 80), 5)";
        let refused = mesh.direct.stranger.run("python3", &["-c", connect, VIP]);
        assert!(
            refused.stderr.contains("ConnectionRefusedError"),
            "{refused:?}"
        );

        std::thread::sleep(A_WHILE);
        let said = load.stop();
        assert_eq!(said["failed"], Value::Array(Vec::new()), "{said}");
        assert!(said["opened"].as_u64() > Some(100), "{said}");
        records_are_complete(&mesh, &said, short_circuit == "on");
        metrics_are_complete(&mesh, &said);
        // Nothing was left to them.
        for mut agent in [first, second] {
            assert!(wait_until(SOON, || !agent.is_running()), "{}", agent.log());
        }
    }
}

/// Both ends of each stream have a record with all of its bytes, some of which were handed over where
/// that `is_on`.
fn records_are_complete(mesh: &Mesh, said: &Value, is_on: bool) {
    let streams = said["streams"].as_array().expect("a list");
    assert!(!streams.is_empty(), "{said}");
    for stream in streams {
        let (port, bytes) = (&stream[0], &stream[1]);
        let source = format!("{}:{port}", mesh.direct.friend.v4);
        let what = format!("both records of the stream from {source}");
        eventually(SOON, &what, || {
            let flows = mesh.direct.agent.meshctl_json(&["flows"]);
            let all = flows.as_array().into_iter().flatten();
            let ends = all.filter(|flow| {
                flow["source"] == source
                    && flow["verdict"] == "direct"
                    && flow["state"] == "closed"
                    && flow["bytes_sent"] == *bytes
                    && flow["bytes_received"] == *bytes
                    && (flow["short_circuit_sent"].as_u64() > Some(0)) == is_on
            });
            match ends.count() {
                2 => Ok(()),
                _ => Err(format!("{stream}: {flows}")),
            }
        });
    }
}

/// The agent in charge has counted the ends of what others have seen begin, and all that it has
/// seen begin itself.
fn metrics_are_complete(mesh: &Mesh, said: &Value) {
    let streams = said["streams"].as_array().map_or(0, Vec::len) as u64;
    let at_once = said["at_once"].as_u64().expect("a number");
    eventually(SOON, "all is counted", || {
        let [opened, closed] = mesh.counted();
        let inherited = streams..=streams + at_once;
        match opened > 0
            && closed
                .checked_sub(opened)
                .is_some_and(|n| inherited.contains(&n))
        {
            true => Ok(()),
            false => Err(format!("{opened} opened, {closed} closed: {said}")),
        }
    });
}
