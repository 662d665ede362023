//! Workloads in the host's own namespace, and other programs at the same hooks.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mesh_tests::{
    Agent, Capture, Lab, Node, Process, ServicePort, Workload, cgroup2, contains, eventually,
    outcome, service, workload_entries,
};

use crate::bookinfo::{VIP4, VIP6};
use crate::held::Held;

const FOREIGN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/foreign.py");
/// The port that echoes.
const ECHO: u16 = 7;
/// Within which the mesh is to carry the first request.
const READY: Duration = Duration::from_secs(10);

/// A unit on host a, whose namespace is that of agent a, asks `reviews` on node b.
struct Host {
    a: Agent,
    _b: Agent,
    _servers: [Process; 2],
    /// The host; processes of no unit.
    host: Workload,
    unit: Workload,
    v1: Workload,
    lab: Lab,
}

pub fn unit_entry(unit: &Workload, name: &str) -> String {
    let mount = cgroup2().expect("cgroup2 is mounted");
    let below = unit.cgroup().strip_prefix(mount);
    let below = below.expect("the lab's group is in the hierarchy");
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\n  annotations:\n    \
         undermesh.io/cgroup: /{}\n    undermesh.io/node: a\n    undermesh.io/addresses: \"{}\"\n\
         spec:\n  address: {}\n  serviceAccount: {name}\n",
        below.display(),
        unit.v6,
        unit.v4
    )
}

impl Host {
    fn start(more: &[&str]) -> Self {
        let lab = Lab::new();
        let host = lab.workload(Node::A, "host", &[]);
        let unit = host.in_cgroup("system.slice/client.service");
        let other = host.in_cgroup("system.slice/other.service");
        let v1 = lab.workload(Node::B, "reviews-v1", &[("app", "reviews")]);
        let servers = [
            v1.serve(9080, "bookinfo", &["reviews"]),
            v1.serve(ECHO, "bookinfo", &["echo", "--listen", "[::]:7"]),
        ];
        let entries = [
            workload_entries(&[&v1]),
            unit_entry(&unit, "client"),
            unit_entry(&other, "other"),
        ];
        lab.configure("workloads.yaml", &entries.concat());
        let ports = [("http", 80, 9080), ("tcp-echo", ECHO, ECHO)];
        let ports = ports.map(|(name, port, target)| ServicePort { name, port, target });
        lab.configure("reviews.yaml", &service("reviews", 10, &ports));
        let a = Agent::start_in(&lab, Node::A, Some(&host), more)
            .unwrap_or_else(|error| panic!("{error:#}"));
        let b = Agent::start(&lab, Node::B);
        let all = Self {
            a,
            _b: b,
            _servers: servers,
            host,
            unit,
            v1,
            lab,
        };
        all.until_reachable();
        all
    }

    fn until_reachable(&self) {
        eventually(READY, "the unit reaches reviews", || {
            match self.unit.curl(&["http://reviews/"]) {
                reply if reply.status == 200 => Ok(()),
                reply => Err(format!("{reply:?}")),
            }
        });
    }
}

#[test]
fn open_flows_of_units_bear_their_names_and_are_whole() {
    let all = Host::start(&[]);
    let other = all.host.in_cgroup("system.slice/other.service");
    let _held = [
        Held::open(&all.unit, "v4", VIP4, ECHO),
        Held::open(&other, "v6", VIP6, ECHO),
    ];
    let flows = all.a.meshctl_json(&["flows"]);
    for (name, destination) in [
        ("client", format!("{VIP4}:{ECHO}")),
        ("other", format!("[{VIP6}]:{ECHO}")),
    ] {
        let flow = (flows.as_array().into_iter().flatten())
            .find(|flow| flow["destination"] == destination)
            .unwrap_or_else(|| panic!("no flow to {destination}: {flows}"));
        assert_eq!(flow["workload"], format!("{name}.default"), "{flow}");
        for (field, value) in [
            ("direction", "outbound"),
            ("state", "open"),
            ("verdict", "proxy"),
            ("security", "mutual_tls"),
        ] {
            assert_eq!(flow[field], value, "{field}: {flow}");
        }
        let identity = |account| format!("spiffe://cluster.local/ns/default/sa/{account}");
        assert_eq!(flow["source_identity"], identity(name), "{flow}");
        assert_eq!(flow["destination_identity"], identity("reviews"), "{flow}");
        // "first\n", there and back.
        assert_eq!(flow["bytes_sent"], 6, "{flow}");
        assert_eq!(flow["bytes_received"], 6, "{flow}");
        for field in ["rtt_us", "min_rtt_us", "connect_us", "segments_received"] {
            assert!(flow[field].as_u64() > Some(0), "{field}: {flow}");
        }
    }
}

#[test]
fn a_unit_of_the_host_is_captured_outbound_and_nobody_else_is() {
    let mut all = Host::start(&[]);
    let capture = Capture::start(&all.lab);
    let own4 = all.unit.v4.to_string();
    // By name, by address of both families, and straight to the workload.
    for url in [
        "http://reviews/peer".to_owned(),
        format!("http://{VIP4}/peer?secret-path"),
        format!("http://[{VIP6}]/peer?secret-path"),
        format!("http://{}:9080/peer?secret-path", all.v1.v4),
    ] {
        let reply = all.unit.curl(&[&url]);
        assert_eq!(reply.status, 200, "{url}: {reply:?}");
        let own = [own4.clone(), all.unit.v6.to_string()];
        assert!(
            own.iter().any(|own| reply.body.contains(own)),
            "{url}: {reply:?}"
        );
    }
    // A child group is of the unit; another unit is a workload of its own.
    for group in [
        "system.slice/client.service/worker/1",
        "system.slice/other.service",
    ] {
        let reply = all
            .host
            .in_cgroup(group)
            .curl(&[&format!("http://{VIP4}/")]);
        assert_eq!(reply.status, 200, "{group}: {reply:?}");
    }
    assert!(!contains(&capture.stop(), b"secret-path"), "encrypted");

    // Other processes of the host, in another unit or in none.
    let stranger = all.host.in_cgroup("system.slice/sshd.service");
    for process in [&stranger, &all.host] {
        let vip = process.curl(&["--max-time", "2", &format!("http://{VIP4}/")]);
        assert_eq!(vip.status, 0, "{vip:?}");
        let plain = process.curl(&[&format!("http://{}:9080/headers", all.v1.v4)]);
        assert_eq!(plain.status, 200, "{plain:?}");
    }
    // Nothing that arrives at the host is touched.
    let _listener = all
        .host
        .serve(7000, "bookinfo", &["reviews", "--listen", "[::]:7000"]);
    let outside = all.lab.workload(Node::Outside, "outside", &[]);
    let reply = outside.curl(&[&format!("http://{own4}:7000/peer")]);
    assert!(reply.body.contains(&outside.v4.to_string()), "{reply:?}");
    let said = all.a.meshctl(&["workloads"]).success();
    assert!(said.contains("client") && said.contains("other"), "{said}");

    // Fail closed, for the unit alone.
    all.a.kill();
    let reply = all.unit.curl(&[&format!("http://{}:9080/", all.v1.v4)]);
    assert_eq!(reply.exit, 7, "refused: {reply:?}");
    let plain = stranger.curl(&[&format!("http://{}:9080/", all.v1.v4)]);
    assert_eq!(plain.status, 200, "{plain:?}");
    all.a.restart();
    all.until_reachable();
    // And taken over like any other.
    let mut before = all.a.take_over(&[]);
    assert!(
        mesh_tests::wait_until(READY, || !before.is_running()),
        "{}",
        before.log()
    );
    assert_eq!(all.unit.curl(&["http://reviews/"]).status, 200);

    // The unit leaves the configuration: it is on its own again.
    all.lab
        .configure("workloads.yaml", &workload_entries(&[&all.v1]));
    eventually(READY, "the unit is left alone", || {
        let reply = all
            .unit
            .curl(&["--max-time", "2", &format!("http://{VIP4}/")]);
        match reply.status {
            0 => Ok(()),
            status => Err(format!("status {status}")),
        }
    });
    let plain = all.unit.curl(&[&format!("http://{}:9080/", all.v1.v4)]);
    assert_eq!(plain.status, 200, "{plain:?}");
}

#[test]
fn a_unit_that_fails_open_is_left_alone_while_no_agent_runs() {
    let mut all = Host::start(&["--when-agent-is-down", "pass"]);
    all.a.kill();
    let reply = all.unit.curl(&[&format!("http://{}:9080/peer", all.v1.v4)]);
    assert_eq!(reply.status, 200, "{reply:?}");
    all.a.restart();
    all.until_reachable();
}

/// Attaches somebody else's program, and gives its id.
fn foreign(cgroup: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(FOREIGN).arg(cgroup).args(arguments);
    let said = outcome(&mut command).expect("python starts").success();
    said.trim().to_owned()
}

/// Which address the application has connected to, as it sees it.
const PEER: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], 80), 5)
print(*s.getpeername())
s.sendall(b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n")
print(s.makefile("rb").readline().split()[1].decode())
"#;

fn peer(from: &Workload) -> String {
    let said = from.run("/usr/bin/python3", &["-c", PEER, VIP4]).success();
    assert!(said.contains("200"), "{said}");
    said.lines().next().unwrap_or_default().to_owned()
}

/// `sleep` and `reviews` on one node, without an agent.
fn one_node() -> (Lab, Workload, Workload, Process) {
    let lab = Lab::new();
    let sleep = lab.workload(Node::A, "sleep", &[]);
    let v1 = lab.workload(Node::A, "reviews-v1", &[("app", "reviews")]);
    let server = v1.serve(9080, "bookinfo", &["reviews"]);
    lab.configure("workloads.yaml", &workload_entries(&[&sleep, &v1]));
    let port = ServicePort {
        name: "http",
        port: 80,
        target: 9080,
    };
    lab.configure("reviews.yaml", &service("reviews", 10, &[port]));
    (lab, sleep, v1, server)
}

#[test]
fn our_programs_run_before_or_behind_others_as_configured() {
    let (lab, sleep, v1, _server) = one_node();
    let (to, asked) = (v1.v4.to_string(), format!("{VIP4} 80"));
    let rewritten = format!("{to} 9080");
    // Like a load balancer in the kernel: the service's address becomes a workload's.
    foreign(&lab.cgroup(Node::A), &["2", VIP4, &to, "9080"]);
    assert_eq!(peer(&sleep), rewritten, "it works without us");
    let below = sleep.in_cgroup("below");
    foreign(below.cgroup(), &["2", VIP4, &to, "9080"]);

    let runs = |flags: &[&str], seen: &str| {
        let mut agent = Agent::start_with(&lab, Node::A, flags);
        assert_eq!(peer(&sleep), seen, "{flags:?}");
        assert_eq!(peer(&below), seen, "{flags:?}, from below");
        agent.stop();
    };
    runs(&["--attach", "last"], &rewritten);
    if knows_orders() {
        runs(&[], &asked);
        runs(&["--attach", "first"], &asked);
    } else {
        runs(&[], &rewritten);
        let first = Agent::start_in(&lab, Node::A, None, &["--attach", "first"]);
        let Err(error) = first else {
            panic!("an agent runs in an order that the kernel does not know")
        };
        let error = format!("{error:#}");
        assert!(error.contains("--attach first"), "{error}");
    }
}

/// Whether this kernel can run programs before others: from 6.17 on.
fn knows_orders() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(17))
}

#[test]
fn a_program_that_wants_to_be_alone_is_named_and_left_in_peace() {
    for above in [false, true] {
        let (lab, sleep, v1, _server) = one_node();
        let group = lab.cgroup(Node::A);
        let group = if above {
            group.parent().expect("the lab's own group").to_owned()
        } else {
            group
        };
        let id = foreign(&group, &["0"]);
        let error = match Agent::try_start(&lab, Node::A) {
            Ok(_) => panic!("it started"),
            Err(error) => format!("{error:#}"),
        };
        let lines: Vec<_> = error
            .lines()
            .filter(|line| line.starts_with("mesh-agent:"))
            .collect();
        assert_eq!(lines.len(), 1, "{error}");
        for word in [
            &*format!(
                "program {id} (somebody_else) is attached to {}",
                group.display()
            ),
            "connect4",
            "BPF_F_ALLOW_MULTI",
        ] {
            assert!(lines[0].contains(word), "{word}: {error}");
        }
        let plain = sleep.curl(&[&format!("http://{}:9080/peer", v1.v4)]);
        assert!(plain.body.contains(&sleep.v4.to_string()), "{plain:?}");
    }
}
