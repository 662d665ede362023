//! Resolvers are as different as programs: sockets that are connected to a name
//! server for good, and one socket for several servers.

use std::io::Write;
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use mesh_tests::{Process, Workload, wait_until};

use crate::bookinfo::{Bookinfo, VIP4};
use crate::bpftool::bpftool;
use crate::dns::dnsmasq;
use crate::leaving::pin;

const RESOLVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/resolver.py");
const NAME: &str = "reviews.default.svc.cluster.local";
/// Within which a question is answered, or refused; the resolver itself waits for 3 s.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Within which a program runs.
const STARTED: Duration = Duration::from_secs(10);

/// A program with a socket that is connected to a name server.
struct Resolver {
    process: Process,
    input: ChildStdin,
    asked: usize,
}

impl Resolver {
    fn connect(from: &Workload, server: &str) -> Self {
        let log = from.file(&format!("resolver-{}.log", server.replace(':', "_")), "");
        let mut command = from.command("/usr/bin/python3");
        command.args([RESOLVER, server, NAME]).stdin(Stdio::piped());
        let mut process = Process::spawn(&mut command, log).expect("python starts");
        let input = process.stdin().expect("piped");
        let connected = wait_until(STARTED, || process.log().contains("connected"));
        assert!(connected, "{}", process.log());
        Self {
            process,
            input,
            asked: 0,
        }
    }

    /// What comes of a question.
    fn ask(&mut self) -> String {
        self.input.write_all(b"\n").expect("python reads");
        let start = format!("{} ", self.asked);
        self.asked += 1;
        let answer = || {
            let log = self.process.log();
            let line = log.lines().find_map(|line| line.strip_prefix(&start));
            line.map(str::to_owned)
        };
        assert!(
            wait_until(AT_ONCE, || answer().is_some()),
            "{}",
            self.process.log()
        );
        answer().unwrap_or_default()
    }
}

/// Answers of the mesh, whoever is asked: nobody is at these addresses.
const SERVERS: [&str; 3] = ["192.0.2.53", "::ffff:192.0.2.54", "2001:db8::53"];

#[test]
fn a_connected_resolver_is_refused_while_no_agent_runs_and_answered_by_the_next() {
    let mut mesh = Bookinfo::start();
    let mut resolvers = SERVERS.map(|server| (server, Resolver::connect(&mesh.sleep, server)));
    let mut all_are_answered = |when: &str| {
        for (server, resolver) in &mut resolvers {
            let expected = format!("{VIP4} from {server}");
            assert_eq!(resolver.ask(), expected, "{when}");
        }
    };
    all_are_answered("at first");
    // Under another agent, which has the socket of the first.
    let mut before = mesh.a.take_over(&[]);
    assert!(wait_until(Duration::from_secs(10), || !before.is_running()));
    all_are_answered("after the takeover");
    mesh.a.kill();
    for (server, resolver) in &mut resolvers {
        // At once, and not by silence.
        assert_eq!(resolver.ask(), "ECONNREFUSED", "{server}");
    }
    mesh.a.restart();
    for (server, resolver) in &mut resolvers {
        let expected = format!("{VIP4} from {server}");
        assert_eq!(resolver.ask(), expected, "after the crash");
    }
}

/// Says what arrives at the UDP ports that are named, in either family.
const SQUAT: &str = r#"
import select, socket, sys
sockets = []
for port in sys.argv[1:]:
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.bind(("::", int(port)))
    sockets.append(s)
print("ready", flush=True)
while True:
    for s in select.select(sockets, [], [])[0]:
        print("heard", s.recv(2048), flush=True)
"#;

#[test]
fn nobody_gets_the_questions_of_a_connected_resolver_whose_agent_was_killed() {
    let mut mesh = Bookinfo::start();
    let mut resolvers = SERVERS.map(|server| (server, Resolver::connect(&mesh.sleep, server)));
    for (server, resolver) in &mut resolvers {
        assert_eq!(resolver.ask(), format!("{VIP4} from {server}"));
    }
    let dump = bpftool(&["map", "dump", "pinned", &pin(&mesh.lab, "workloads")]);
    let value = &dump[0]["formatted"]["value"];
    let ports = ["dns4_port", "dns6_port"].map(|port| value[port].to_string());
    mesh.a.kill();
    let mut command = mesh.sleep.command("/usr/bin/python3");
    command.args(["-c", SQUAT]).args(ports);
    let log = mesh.lab.folder().join("squat.log");
    let squat = Process::spawn(&mut command, log).expect("python starts");
    let ready = wait_until(STARTED, || squat.log().contains("ready"));
    assert!(ready, "{}", squat.log());
    for (server, resolver) in &mut resolvers {
        assert_eq!(resolver.ask(), "ECONNREFUSED", "{server}");
    }
    assert!(!squat.log().contains("heard"), "{}", squat.log());
    // With its port back, the next agent answers them.
    drop(squat);
    mesh.a.restart();
    for (server, resolver) in &mut resolvers {
        assert_eq!(resolver.ask(), format!("{VIP4} from {server}"));
    }
}

/// One socket asks two servers, as musl does, and says who has answered what.
const BOTH: &str = r#"
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.settimeout(5)
servers = [(address, 53) for address in sys.argv[1:]]
for number, server in enumerate(servers):
    s.sendto(b"\0" + bytes([number]) + b"\1\0\0\1\0\0\0\0\0\0\4from\4test\0\0\1\0\1", server)
for _ in servers:
    answer, (address, port, *_) = s.recvfrom(2048)
    print(address, port, answer[1], socket.inet_ntoa(answer[-4:]))
"#;

#[test]
fn answers_come_from_the_server_that_was_asked_also_when_one_socket_asks_two() {
    let mesh = Bookinfo::start();
    let outside = mesh.lab.nameserver();
    let second = mesh.lab.workload(mesh_tests::Node::Outside, "second", &[]);
    let serve = |workload: &Workload, says: &str| {
        dnsmasq(workload, &[&format!("--address=/from.test/{says}")])
    };
    let _servers = [serve(&outside, "192.0.2.1"), serve(&second, "192.0.2.2")];
    for prefix in ["", "::ffff:"] {
        let addresses = [&outside, &second].map(|server| format!("{prefix}{}", server.v4));
        let said = mesh
            .sleep
            .run(
                "/usr/bin/python3",
                &["-c", BOTH, &addresses[0], &addresses[1]],
            )
            .success();
        let mut lines: Vec<_> = said.lines().collect();
        lines.sort_by_key(|line| line.contains("192.0.2.2"));
        assert_eq!(
            lines,
            [
                format!("{} 53 0 192.0.2.1", addresses[0]),
                format!("{} 53 1 192.0.2.2", addresses[1]),
            ]
        );
    }
}
