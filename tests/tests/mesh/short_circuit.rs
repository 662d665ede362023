//! Bytes that stay on the node take the short-circuit, and nobody can tell but
//! by the clock: every byte arrives once and in order, a slow reader holds its
//! writer back, and ends are ends.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use mesh_tests::{
    Agent, Lab, Node, Outcome, Process, ServicePort, Workload, outcome, service, workload_entries,
};

use crate::held::Held;

const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/short_circuit/client.py");
const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/short_circuit/server.py");
/// What there is to be noticed.
const NOTICED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/short_circuit/noticed.py");
pub const VIP: &str = "10.96.0.40";
/// Where the server gives back what it gets.
const ECHO_PORT: u16 = 82;

/// Two workloads of one node.
pub struct Pair {
    pub agent: Agent,
    pub client: Workload,
    pub serving: Process,
    pub server: Workload,
    pub lab: Lab,
}

/// With `direct`, no agent is on the way; `short_circuit` is the setting of both.
pub fn pair(direct: bool, short_circuit: &str) -> Pair {
    pair_with(direct, short_circuit, |_| Vec::new())
}

/// The agent finds `files` in the place of the machine's.
pub fn pair_with(
    direct: bool,
    short_circuit: &str,
    files: impl FnOnce(&Lab) -> Vec<(PathBuf, &'static str)>,
) -> Pair {
    let lab = Lab::new();
    let client = lab
        .workload(Node::A, "client", &[])
        .annotated("undermesh.io/direct", if direct { "true" } else { "false" })
        .annotated("undermesh.io/short-circuit", short_circuit);
    let server = lab
        .workload(Node::A, "server", &[("app", "server")])
        .annotated("undermesh.io/short-circuit", short_circuit);
    let process = server.serve(7000, "python3", &[SERVER]);
    lab.configure("workloads.yaml", &workload_entries(&[&client, &server]));
    let ports = [
        ("tcp", 80, 7000),
        ("tcp-deferred", 81, 7001),
        ("tcp-echo", ECHO_PORT, 7002),
    ];
    let ports = ports.map(|(name, port, target)| ServicePort { name, port, target });
    lab.configure("server.yaml", &service("server", 40, &ports));
    let agent = Agent::start_with_files(&lab, Node::A, files(&lab), &[]);
    Pair {
        agent,
        client,
        serving: process,
        server,
        lab,
    }
}

impl Pair {
    /// A scenario of the client with what is at this address.
    pub fn run(&self, scenario: &str, address: &str) -> Outcome {
        self.client.run("python3", &[CLIENT, scenario, address])
    }

    /// What the client of a scenario sees of the service.
    pub fn sees(&self, scenario: &str) -> String {
        self.run(scenario, VIP).success()
    }

    /// The counters of the kernel, by [`mesh_common::Counter`].
    pub fn counters(&self) -> Vec<u64> {
        let pin = self.lab.bpffs(Node::A).join("counters");
        let dump = bpftool(&["map", "dump", "pinned", &pin.to_string_lossy()]);
        (dump.as_array().into_iter().flatten())
            .map(|entry| {
                let values = entry["formatted"]["values"].as_array();
                values
                    .into_iter()
                    .flatten()
                    .filter_map(|value| value["value"].as_u64())
                    .sum()
            })
            .collect()
    }

    pub fn handed_over(&self) -> u64 {
        self.counters()[3]
    }

    /// A connection to the server's echo.
    pub fn hold(&self) -> Held {
        Held::open(&self.client, "v4", VIP, ECHO_PORT)
    }

    fn fell_back(&self) -> u64 {
        self.counters()[4..6].iter().sum()
    }

    pub fn set_knob(&self, index: u8, value: u8) {
        let pin = self.lab.bpffs(Node::A).join("knobs");
        let (index, value) = (index.to_string(), value.to_string());
        let update = ["map", "update", "pinned", &pin.to_string_lossy()];
        let key = ["key", &index, "0", "0", "0", "value", &value, "0", "0", "0"];
        outcome(Command::new("bpftool").args(update).args(key))
            .expect("bpftool starts")
            .success();
    }
}

fn bpftool(arguments: &[&str]) -> serde_json::Value {
    let said = outcome(Command::new("bpftool").arg("--json").args(arguments))
        .expect("bpftool starts")
        .success();
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// Both ways through the agent, and past it.
fn everywhere(scenario: &str, expected: &str) {
    for direct in [true, false] {
        let pair = pair(direct, "on");
        assert_eq!(pair.sees(scenario), expected, "direct: {direct}");
        assert!(
            pair.handed_over() > 0,
            "direct: {direct}: {:?}",
            pair.counters()
        );
    }
}

#[test]
fn every_byte_arrives_once_and_in_order_both_ways_at_once() {
    for direct in [true, false] {
        let pair = pair(direct, "on");
        assert_eq!(pair.sees("exchanges"), "all equal\n", "direct: {direct}");
        // Both ways of carrying bytes have had their share.
        assert!(pair.handed_over() > 100, "{:?}", pair.counters());
        assert!(pair.fell_back() > 0, "{:?}", pair.counters());
    }
}

#[test]
fn a_stream_tries_which_way_is_faster_and_arrives_whole() {
    let pair = pair(true, "on");
    assert_eq!(pair.sees("stream"), "whole True\n");
    let counters = pair.counters();
    let by_tcp = counters[8];
    assert!(pair.handed_over() > 0 && by_tcp > 0, "{counters:?}");
}

#[test]
fn what_was_handed_over_does_not_hide_what_came_by_tcp_from_the_agent() {
    let pair = pair(false, "on");
    let log = pair.lab.folder().join("by-both.log");
    let mut command = pair.client.command("python3");
    command.args([CLIENT, "by-both", VIP]);
    command.stdin(std::process::Stdio::piped());
    let mut client = Process::spawn(&mut command, log).expect("python starts");
    let begin = client.stdin();
    let says = |what: &str| {
        let said = || client.log().contains(what);
        let soon = std::time::Duration::from_secs(10);
        assert!(
            mesh_tests::wait_until(soon, said),
            "{what}: {}",
            client.log()
        );
    };
    says("open");
    // Bytes come by both ways while the agent cannot look: it is woken once for all of them.
    pair.agent.signal(libc::SIGSTOP);
    drop(begin);
    says("sent");
    pair.agent.signal(libc::SIGCONT);
    says("server has handed over, by TCP");
    // A second later the server sends the same.
    pair.agent.signal(libc::SIGSTOP);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    pair.agent.signal(libc::SIGCONT);
    says("client has handed over, by TCP");
    assert!(pair.handed_over() >= 2, "{:?}", pair.counters());
}

/// What may wait at a receiver that does not read beside what TCP holds: `MAX_WAITING_BYTES` in mesh-common, and a
/// message beyond it.
const HANDED_OVER_AT_MOST: u64 = (2 << 20) + (1 << 19);
/// No writer gets rid of more on kernels whose TCP takes less by itself (Linux 6.1's may not).
const WHERE_TCP_TAKES_LESS: u64 = 12 << 20;

/// TCP's own buffers on the way grow to other sizes on other kernels and in other moments: how much
/// they take is seen in the same run, with the short-circuit switched off.
#[test]
fn a_reader_that_stops_holds_its_writer_back_and_goes_on_in_time() {
    for direct in [true, false] {
        let pair = pair(direct, "on");
        let stopped = || {
            let said = pair.sees("stopped");
            let (accepted, rest) = said.split_once('\n').expect("lines");
            assert_eq!(
                rest, "waits True\nall read True\nin time True\n",
                "direct: {direct}"
            );
            let accepted = accepted.strip_prefix("accepted ");
            let accepted = accepted.and_then(|bytes| bytes.parse::<u64>().ok());
            accepted.unwrap_or_else(|| panic!("{said}"))
        };
        pair.set_knob(0, 1);
        let by_tcp = (0..3).map(|_| stopped()).max().expect("three times");
        assert_eq!(pair.handed_over(), 0, "{:?}", pair.counters());
        pair.set_knob(0, 0);
        let accepted = stopped();
        assert!(pair.handed_over() > 0, "{:?}", pair.counters());
        let mut most = by_tcp + HANDED_OVER_AT_MOST;
        if by_tcp < WHERE_TCP_TAKES_LESS {
            most = most.min(WHERE_TCP_TAKES_LESS);
        }
        assert!(
            accepted <= most,
            "direct: {direct}: {accepted} bytes, {most} at most, and {by_tcp} by TCP"
        );
    }
}

#[test]
fn one_direction_may_end_before_the_other() {
    everywhere("half-close", "digest True\nanswer True\nend once True\n");
}

#[test]
fn bytes_that_come_before_the_server_accepts_stay_in_order() {
    everywhere("early", "in order True\n");
}

#[test]
fn a_writer_hears_that_its_reader_is_gone() {
    everywhere("unread", "told True\n");
}

/// How much more memory an agent may have needed at its most than before, for a file that passes it.
const MEMORY_FOR_A_FILE_KIB: u64 = 16 << 10;

#[test]
fn a_file_is_sent_whole_and_fills_no_memory() {
    for direct in [true, false] {
        let pair = pair(direct, "on");
        let before = pair.agent.resident_kib();
        pair.agent.forget_peak();
        assert_eq!(
            pair.sees("sendfile"),
            "sent 1073741824\narrived True\n",
            "direct: {direct}"
        );
        assert!(pair.handed_over() > 0, "{:?}", pair.counters());
        let more = pair.agent.peak_kib().saturating_sub(before);
        assert!(more < MEMORY_FOR_A_FILE_KIB, "{more} KiB, direct: {direct}");
    }
}

#[test]
fn who_sends_without_copies_hears_when_the_pages_are_free() {
    for direct in [true, false] {
        let pair = pair(direct, "on");
        assert_eq!(
            pair.sees("zerocopy"),
            "completion True\narrived True\n",
            "direct: {direct}"
        );
        // "count\n" was handed over before; what is to be heard of goes by TCP.
        let flows = pair.agent.meshctl_json(&["flows"]);
        let mut all = flows.as_array().into_iter().flatten();
        let flow = all.find(|flow| flow["direction"] == "outbound");
        let flow = flow.unwrap_or_else(|| panic!("{flows}"));
        let [sent, handed_over] =
            ["bytes_sent", "short_circuit_sent"].map(|field| flow[field].as_u64());
        assert_eq!(sent, Some(100_006), "{flow}");
        assert!(matches!(handed_over, Some(0..=6)), "{flow}");
    }
}

#[test]
fn by_default_an_application_sees_what_it_sees_without_the_mesh() {
    let through = [pair(false, "auto"), pair(true, "auto")];
    let without = {
        let lab = Lab::new();
        let client = lab.workload(Node::A, "client", &[]);
        let server = lab.workload(Node::A, "server", &[]);
        let _process = server.serve(
            80,
            "python3",
            &[
                "-c",
                &format!(
                    "import runpy, socket; listen = socket.socket.bind\n\
             socket.socket.bind = lambda s, a: listen(s, (a[0], {{7000: 80, 7001: 81, 7002: 82}}[a[1]]))\n\
             runpy.run_path({SERVER:?}, run_name='__main__')"
                ),
            ],
        );
        client
            .run("python3", &[CLIENT, "recv-flags", &server.v4.to_string()])
            .success()
    };
    assert!(without.contains("reset ECONNRESET"), "{without}");
    assert!(without.contains("restart b'after the signal'"), "{without}");
    for pair in through {
        assert_eq!(pair.sees("recv-flags"), without);
    }
}

#[test]
fn the_operators_switch_takes_effect_on_open_connections() {
    let pair = pair(true, "on");
    pair.set_knob(0, 1);
    assert_eq!(
        pair.sees("half-close"),
        "digest True\nanswer True\nend once True\n"
    );
    assert_eq!(pair.handed_over(), 0, "{:?}", pair.counters());
    pair.set_knob(0, 0);
    assert_eq!(
        pair.sees("half-close"),
        "digest True\nanswer True\nend once True\n"
    );
    assert!(pair.handed_over() > 0, "{:?}", pair.counters());
}

#[test]
fn a_workload_that_says_off_stays_with_tcp() {
    let pair = pair(true, "off");
    assert_eq!(pair.sees("once"), "echo 1234567890\n");
    assert_eq!(pair.handed_over(), 0, "{:?}", pair.counters());
}

#[test]
fn short_connections_are_spared_the_short_circuit_as_long_as_none_lasts() {
    let pair = pair(true, "on");
    let handed_over_by = |scenario: &str, said: &str| {
        let before = pair.handed_over();
        assert_eq!(pair.sees(scenario), said);
        pair.handed_over() - before
    };
    // A question and an answer each.
    let by_short_ones = || handed_over_by("short", "short 64\n");
    let many_short_ones = || {
        let began = Instant::now();
        assert!(by_short_ones() >= 64);
        let by_thousands = handed_over_by("thousands-of-short", "short 6000\n");
        let tried = by_short_ones();
        // By two messages each: 4,096 in a row, 512 at once, and a hundred a second, as there always are some.
        let most = 2 * (4_096 + 513 + began.elapsed().as_millis() as u64 / 10);
        assert!(
            by_thousands + tried <= most,
            "{by_thousands}, {tried}, {most}"
        );
        assert!(tried > 0);
    };
    // Those that are opened together and kept take part together.
    many_short_ones();
    let handed_over = handed_over_by("sixteen-lasting", "lasting 16\n");
    assert!(handed_over > 16 * 150, "{handed_over}");
    assert!(by_short_ones() >= 64);
    // One that lasts is noticed also where it does not take part, as is nearly every one right after short ones.
    let is_left_out = (0..4).any(|_| {
        many_short_ones();
        handed_over_by("lasting-after-short", "lasting 1\n") < 100
    });
    assert!(is_left_out);
    assert!(by_short_ones() >= 64);
}

#[test]
fn direct_connections_go_on_and_new_ones_come_about_while_no_agent_runs() {
    for short_circuit in ["on", "off"] {
        let mut pair = pair(true, short_circuit);
        let mut held = pair.hold();
        for (how, end) in [
            ("stopped", Agent::stop as fn(&mut Agent)),
            ("killed", Agent::kill),
        ] {
            let before = pair.handed_over();
            end(&mut pair.agent);
            held.echoes(&format!("while-{how}"));
            assert_eq!(pair.sees("once"), "echo 1234567890\n", "{how}");
            let is_spliced = pair.handed_over() > before;
            assert_eq!(is_spliced, short_circuit == "on", "{how}");
            pair.agent.restart();
            held.echoes(&format!("after-{how}"));
            assert_eq!(pair.sees("once"), "echo 1234567890\n", "the next agent");
        }
    }
}

#[test]
fn no_connection_is_decided_by_a_policy_that_is_not_in_force_any_more() {
    let pair = pair(true, "on");
    assert_eq!(pair.sees("once"), "echo 1234567890\n");
    let generation = || pair.agent.meshctl_json(&["config"])["generation"].as_u64();
    let before = generation();
    pair.lab.configure(
        "deny.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\n\
         spec: {selector: {matchLabels: {app: server}}, action: DENY, \
         rules: [{from: [{source: {namespaces: [default]}}]}]}\n",
    );
    let acknowledged =
        mesh_tests::wait_until(std::time::Duration::from_secs(5), || generation() > before);
    assert!(acknowledged);
    let refused = pair.run("once", VIP);
    assert!(
        refused.stderr.contains("ConnectionRefusedError"),
        "{refused:?}"
    );
    pair.lab.unconfigure("deny.yaml");
    let before = generation();
    mesh_tests::wait_until(std::time::Duration::from_secs(5), || generation() > before);
    assert_eq!(pair.sees("once"), "echo 1234567890\n");
}

/// What `meshctl check` has found out at the agent's start, an application finds out by itself: one that is handed
/// bytes, and one whose socket only is in a map of sockets.
#[test]
fn check_says_what_the_short_circuit_may_do_on_this_kernel() {
    let pair = pair(true, "on");
    let said = pair.agent.meshctl(&["check"]).stdout;
    for (receiver, how) in [
        ("the agent", ["map"].as_slice()),
        ("applications", &["mesh", VIP]),
    ] {
        let noticed = pair.client.run("python3", &[&[NOTICED], how].concat());
        let noticed = noticed.success();
        let noticed: Vec<_> = noticed.lines().collect();
        let found = match noticed.as_slice() {
            [] => "on".to_owned(),
            noticed => format!(
                "for workloads that opt in: here an application can notice it: {}",
                noticed.join(", ")
            ),
        };
        let line = format!("√ short-circuit to {receiver}: {found}");
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
    // What the second has noticed is the short-circuit's doing.
    assert!(pair.handed_over() > 0, "{:?}", pair.counters());
}
