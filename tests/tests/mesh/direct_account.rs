//! Connections that go past the agent leave the same traces as those that it carries, and so do
//! those that never come about.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, wait_until,
    workload_entries,
};
use serde_json::Value;

use crate::held::Held;
use crate::prometheus::{curl, free_address};
use crate::telemetry::counter;

/// Within which the agent knows what the kernel does.
const SOON: Duration = Duration::from_secs(5);
const VIP: &str = "10.96.0.40";

/// `past` goes straight to `server`, `carried` by the agent.
struct Two {
    agent: Agent,
    past: Workload,
    carried: Workload,
    server: Workload,
    metrics: String,
    _serving: Process,
    lab: Lab,
}

impl Two {
    fn start() -> Self {
        let lab = Lab::new();
        let past = lab
            .workload(Node::A, "past", &[])
            .annotated("undermesh.io/direct", "true");
        let carried = lab.workload(Node::A, "carried", &[]);
        let server = lab.workload(Node::A, "server", &[("app", "server")]);
        let serving = server.serve(7000, "bookinfo", &["echo", "--listen", "[::]:7000"]);
        let all = [&past, &carried, &server];
        lab.configure("workloads.yaml", &workload_entries(&all));
        let port = |port, target| ServicePort {
            name: "tcp",
            port,
            target,
        };
        let closed = service("closed", 41, &[port(80, 7999)]).replace("app: closed", "app: server");
        let services = [service("server", 40, &[port(80, 7000)]), closed];
        lab.configure("services.yaml", &services.concat());
        let metrics = free_address();
        let agent = Agent::start_with(&lab, Node::A, &["--metrics-address", &metrics]);
        Self {
            agent,
            past,
            carried,
            server,
            metrics,
            _serving: serving,
            lab,
        }
    }

    fn metrics(&self) -> String {
        curl(&[&format!("http://{}/metrics", self.metrics)])
    }

    /// What is counted of a client, as if it had no name.
    fn counted(&self, client: &str, is_told: impl Fn(&str) -> bool) -> Vec<String> {
        let of_client = format!("source_workload=\"{client}");
        let metrics = self.metrics();
        let lines = metrics.lines().filter(|line| line.contains(&of_client));
        let mut lines: Vec<_> = lines
            .filter(|line| is_told(line))
            .map(|line| line.replace(client, "CLIENT"))
            .collect();
        lines.sort();
        lines
    }

    fn flow(&self, of: impl Fn(&Value) -> bool) -> Result<Value, String> {
        let flows = self.agent.meshctl_json(&["flows"]);
        let mut all = flows.as_array().into_iter().flatten();
        all.find(|flow| of(flow))
            .cloned()
            .ok_or_else(|| flows.to_string())
    }
}

#[test]
fn a_direct_connection_is_in_the_metrics_as_one_that_the_agent_carries() {
    let mut two = Two::start();
    let server = two.server.v4.to_string();
    // A service, and a workload by its own address, one after the other and at once.
    let open = || {
        [&two.past, &two.carried].map(|client| {
            let to_service = Held::open(client, "v4", VIP, 80);
            let mut to_workload = Held::open(client, "v4", &server, 7000);
            to_workload.echoes("second");
            [to_service, to_workload]
        })
    };
    let held = open();
    eventually(SOON, "both are open in the same way", || {
        // Of those that the agent carries, bytes are told later.
        let told = |line: &str| !line.contains("_bytes_total");
        let (past, carried) = (two.counted("past", told), two.counted("carried", told));
        let opened = past.iter().any(|line| line.contains("_opened_total"));
        let now = past.iter().any(|line| {
            line.starts_with("undermesh_cluster_upstream_cx_active") && line.ends_with(" 1")
        });
        match past == carried && opened && now {
            true => Ok(()),
            false => Err(format!("past: {past:#?}\ncarried: {carried:#?}")),
        }
    });
    let of_past = [("source_workload", "past")];
    for name in [
        "istio_tcp_received_bytes_total",
        "istio_tcp_sent_bytes_total",
    ] {
        // Both sides report 6 and 6 + 7 bytes, while the connections are open.
        let bytes = counter(&two.metrics(), name, &of_past);
        assert_eq!(bytes, 2 * (6 + 13), "{name}");
    }
    held.into_iter().flatten().for_each(Held::close);
    eventually(SOON, "both have ended in the same way", || {
        let (past, carried) = (
            two.counted("past", |_| true),
            two.counted("carried", |_| true),
        );
        let closed = counter(
            &two.metrics(),
            "istio_tcp_connections_closed_total",
            &of_past,
        );
        match past == carried && closed == 4 {
            true => Ok(()),
            false => Err(format!("past: {past:#?}\ncarried: {carried:#?}")),
        }
    });

    // The next agent counts what comes, and what came while there was none, but nothing again.
    let lasts = Held::open(&two.past, "v4", VIP, 80);
    // Until the kernel has been told once more that the agent works.
    std::thread::sleep(Duration::from_millis(2500));
    two.agent.kill();
    Held::open(&two.past, "v4", VIP, 80).close();
    two.agent.restart();
    lasts.close();
    let counts = || {
        let metrics = two.metrics();
        let of_client = [("source_workload", "past"), ("reporter", "source")];
        ["opened", "closed"].map(|what| {
            let name = format!("istio_tcp_connections_{what}_total");
            counter(&metrics, &name, &of_client)
        })
    };
    // One has come, two have ended.
    assert!(wait_until(SOON, || counts() == [1, 2]), "{:?}", counts());
}

/// Connects, and says which error there is; with bytes that nobody acknowledges where it is connected.
const TRY: &str = r#"
import errno, socket, sys
TCP_USER_TIMEOUT = 18
s = socket.socket()
try:
    s.connect((sys.argv[1], int(sys.argv[2])))
    if len(sys.argv) > 3:
        print("open", flush=True)
        sys.stdin.readline()
        s.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 1500)
        s.sendall(b"nobody hears")
        s.recv(1)
    print("connected")
except OSError as error:
    print(errno.errorcode[error.errno])
"#;

#[test]
fn a_record_says_why_there_is_no_connection() {
    let two = Two::start();
    let closed = |reason: &str, destination: &str, verdict: &str| {
        let mut found = Value::Null;
        eventually(SOON, reason, || {
            found = two.flow(|flow| {
                flow["destination"] == destination
                    && flow["reason"] == reason
                    && flow["direction"] == "outbound"
            })?;
            Ok(())
        });
        assert_eq!(found["state"], "closed", "{found}");
        assert_eq!(found["verdict"], verdict, "{found}");
        let identity = "spiffe://cluster.local/ns/default/sa/past";
        assert_eq!(found["source_identity"], identity, "{found}");
        found
    };
    let tries = |address: &str, port: &str| {
        let said = two.past.run("python3", &["-c", TRY, address, port]);
        said.success().trim().to_owned()
    };

    assert_eq!(tries("10.96.0.41", "80"), "ECONNREFUSED");
    closed("refused", "10.96.0.41:80", "direct");

    let drop_all = |port| ["-A", "INPUT", "-p", "tcp", "--dport", port, "-j", "DROP"];
    let outside = two.lab.workload(Node::Outside, "outside", &[]);
    outside.run("iptables", &drop_all("7998")).success();
    let outside = outside.v4.to_string();
    let once = "echo 1 > /proc/sys/net/ipv4/tcp_syn_retries";
    two.past.run("sh", &["-c", once]).success();
    assert_eq!(tries(&outside, "7998"), "ETIMEDOUT");
    let silent = closed("timed out", &format!("{outside}:7998"), "pass");
    let [sent, again] = ["segments_sent", "retransmits"].map(|field| silent[field].as_u64());
    assert!(again > Some(0) && sent == again.map(|n| n + 1), "{silent}");

    // It was open, and then the other end is gone.
    let log = two.past.file("gone.log", "");
    let mut gone = two.past.command("python3");
    gone.args(["-c", TRY, VIP, "80", "and waits"]);
    gone.stdin(std::process::Stdio::piped());
    let mut gone = Process::spawn(&mut gone, log).expect("python starts");
    let go_on = gone.stdin();
    assert!(wait_until(SOON, || gone.log().contains("open")));
    two.server.run("iptables", &drop_all("7000")).success();
    drop(go_on);
    let late = Duration::from_secs(30);
    assert!(
        wait_until(late, || gone.log().contains("ETIMEDOUT")),
        "{}",
        gone.log()
    );
    let gone = closed("timed out", &format!("{VIP}:80"), "direct");
    assert!(gone["retransmits"].as_u64() > Some(0), "{gone}");
    assert!(gone["connect_us"].as_u64() > Some(0), "{gone}");

    two.lab.configure(
        "deny.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\n\
         spec: {selector: {matchLabels: {app: server}}, action: DENY, \
         rules: [{from: [{source: {namespaces: [default]}}]}]}\n",
    );
    eventually(SOON, "the policy refuses", || {
        match tries(VIP, "80").as_str() {
            "ECONNREFUSED" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    let denied = closed("by policy", &format!("{VIP}:80"), "deny");
    assert_eq!(
        denied["service"], "server.default.svc.cluster.local",
        "{denied}"
    );
    assert_eq!(denied["source"], format!("{}:0", two.past.v4), "{denied}");
    for field in ["bytes_sent", "bytes_received", "segments_sent"] {
        assert_eq!(denied[field], 0, "{field}: {denied}");
    }
}

/// Tries over and over, as fast as a processor can.
const STUBBORN: &str = r#"
import socket, sys
while True:
    try:
        socket.create_connection((sys.argv[1], 80)).close()
    except ConnectionRefusedError:
        pass
"#;

#[test]
fn who_is_refused_over_and_over_holds_up_no_change() {
    let two = Two::start();
    two.lab.configure(
        "deny.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\n\
         spec: {selector: {matchLabels: {app: server}}, action: DENY, \
         rules: [{from: [{source: {namespaces: [default]}}]}]}\n",
    );
    let generation = || two.agent.meshctl_json(&["config"])["generation"].as_u64();
    assert!(wait_until(SOON, || generation() == Some(2)));
    let stubborn: Vec<_> = (0..4)
        .map(|number| {
            let log = two.past.file(&format!("stubborn-{number}.log"), "");
            let mut command = two.past.command("python3");
            Process::spawn(command.args(["-c", STUBBORN, VIP]), log).expect("python starts")
        })
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    two.lab.unconfigure("deny.yaml");
    // Once it is in force, they get through and are not refused any more.
    assert!(wait_until(SOON, || generation() == Some(3)));
    // Nor do they fill the log: a hundred lines in ten seconds, of thousands.
    let log = two.agent.log();
    let lines = log.matches(" connection refused ").count();
    assert!((1..=200).contains(&lines), "{lines} lines");
    drop(stubborn);
}

/// Connects so many times, one after the other.
const MANY: &str = r#"
import socket, sys
for _ in range(int(sys.argv[2])):
    with socket.create_connection((sys.argv[1], 80)) as connection:
        connection.sendall(b"word")
        assert connection.recv(4, socket.MSG_WAITALL) == b"word"
"#;

#[test]
fn connections_whose_events_find_the_ring_full_are_all_accounted_for() {
    // Four events each, and the ring has room for some 16,000.
    const CONNECTIONS: u64 = 6_000;
    let two = Two::start();
    let opened = || {
        counter(
            &two.metrics(),
            "istio_tcp_connections_opened_total",
            &[("reporter", "source"), ("source_workload", "past")],
        )
    };
    two.agent.signal(libc::SIGSTOP);
    let ran = two
        .past
        .run("python3", &["-c", MANY, VIP, &CONNECTIONS.to_string()]);
    two.agent.signal(libc::SIGCONT);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let check = two.agent.meshctl(&["check"]).stdout;
    let account = check.lines().find(|line| line.contains("in the account"));
    let is_said = |line: &str| line.contains("events dropped") && !line.contains(" 0 events");
    assert!(account.is_some_and(is_said), "{check}");
    // The account itself is looked through every half minute.
    eventually(
        Duration::from_secs(60),
        "all are counted",
        || match opened() {
            CONNECTIONS => Ok(()),
            other => Err(format!("{other} opened")),
        },
    );
}

#[test]
fn connections_are_counted_once_however_often_somebody_asks() {
    // More ends than are remembered, so that records go while they are asked for.
    const CONNECTIONS: u64 = 6_000;
    let two = Two::start();
    let opened = || {
        counter(
            &two.metrics(),
            "istio_tcp_connections_opened_total",
            &[("reporter", "source"), ("source_workload", "past")],
        )
    };
    let ran = std::thread::scope(|scope| {
        let connecting =
            scope.spawn(|| (two.past).run("python3", &["-c", MANY, VIP, &CONNECTIONS.to_string()]));
        while !connecting.is_finished() {
            assert!(opened() <= CONNECTIONS);
        }
        connecting.join().expect("it ran")
    });
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    eventually(
        Duration::from_secs(60),
        "all are counted",
        || match opened() {
            CONNECTIONS => Ok(()),
            other => Err(format!("{other} opened")),
        },
    );
}
