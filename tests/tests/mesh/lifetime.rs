//! Agents end, by accident or on purpose: never in the clear, and back in a moment.

use std::time::Duration;

use mesh_tests::{
    Agent, Capture, Lab, Node, Process, contains, eventually, wait_until, workload_entries,
};

use crate::bookinfo::{Bookinfo, VIP4};

/// Within which a restarted agent is to carry traffic again.
const BACK: Duration = Duration::from_secs(5);

#[test]
fn when_the_clients_agent_is_killed_connections_are_refused_and_nothing_passes_in_the_clear() {
    let mut mesh = Bookinfo::start();
    mesh.a.kill();
    let capture = Capture::start(&mesh.lab);
    for url in [
        format!("http://{VIP4}/secret-path"),
        format!("http://{}:9080/secret-path", mesh.v1.v4),
    ] {
        let reply = mesh.sleep.curl(&[&url]);
        assert_eq!(
            reply.exit, 7,
            "curl's code for a refused connection; {reply:?}"
        );
    }
    assert!(!contains(&capture.stop(), b"secret-path"));

    mesh.a.restart();
    eventually(BACK, "traffic flows again", || {
        match mesh.sleep.curl(&["http://reviews/"]).status {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        }
    });
}

#[test]
fn when_the_servers_agent_is_killed_nobody_gets_past_it() {
    let mut mesh = Bookinfo::start();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let url = format!("http://{}:9080/", mesh.v1.v4);
    assert_eq!(
        outside.curl(&[&url]).status,
        200,
        "PERMISSIVE is the default"
    );
    mesh.b.kill();
    let reply = outside.curl(&[&url]);
    assert_eq!(
        reply.exit, 7,
        "closed, although the application listens: {reply:?}"
    );

    mesh.b.restart();
    eventually(BACK, "traffic flows again", || {
        match outside.curl(&[&url]).status {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        }
    });
    eventually(BACK, "the tunnel works again", || {
        match mesh.sleep.curl(&["http://reviews/"]).status {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        }
    });
}

/// Connects, waits for the first answer, and holds the connection.
const HOLD: &str = r#"
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.sendall(b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n")
assert s.recv(100).startswith(b"HTTP/1.1 200")
print("held", flush=True)
time.sleep(60)
"#;

#[test]
fn a_server_takes_its_port_again_while_connections_are_open() {
    let mut mesh = Bookinfo::start();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let (address, log) = (mesh.v1.v4.to_string(), mesh.lab.folder().join("hold.log"));
    let mut hold = outside.command("/usr/bin/python3");
    hold.args(["-c", HOLD, &address, "9080"]);
    let hold = Process::spawn(&mut hold, log).expect("python starts");
    assert!(
        wait_until(BACK, || hold.log().contains("held")),
        "{}",
        hold.log()
    );

    mesh.servers.remove(0).terminate();
    // Fails where the port is not to be had.
    let _again = mesh
        .v1
        .serve(9080, "bookinfo", &["reviews", "--version", "v1"]);
    let reply = outside.curl(&[&format!("http://{address}:9080/")]);
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[test]
fn identities_survive_a_restart() {
    let mut mesh = Bookinfo::start();
    // Only one of the two: each still trusts the other's certificates.
    mesh.b.stop();
    mesh.b.restart();
    mesh.until_reachable();
    mesh.a.stop();
    mesh.a.restart();
    mesh.until_reachable();
}

/// Listens on the ports that are named, and says what it gets.
const THIEF: &str = r#"
import select, socket, sys
listeners = []
for port in sys.argv[1:]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(port)))
    listener.listen()
    listeners.append(listener)
print("listens", flush=True)
while True:
    for listener in select.select(listeners, [], [])[0]:
        connection, _ = listener.accept()
        print("got", connection.recv(100), flush=True)
"#;

#[test]
fn nobody_gets_what_was_meant_for_an_agent_that_is_gone() {
    let mut mesh = Bookinfo::start();
    // The agent's listeners.
    let listening = mesh.sleep.run("ss", &["-Htln4"]).success();
    let ports: Vec<&str> = (listening.lines())
        .filter_map(|line| line.split_whitespace().nth(3)?.strip_prefix("127.0.0.1:"))
        .collect();
    assert!(ports.len() >= 3, "{listening}");
    mesh.a.kill();
    let mut thief = mesh.sleep.command("/usr/bin/python3");
    thief.args(["-c", THIEF]).args(&ports);
    let log = mesh.lab.folder().join("thief.log");
    let mut thief = Process::spawn(&mut thief, log).expect("python starts");
    let listens = wait_until(BACK, || thief.log().contains("listens"));
    assert!(listens && thief.is_running(), "{}", thief.log());
    let reply = mesh.sleep.curl(&[&format!("http://{VIP4}/secret")]);
    assert_eq!(reply.exit, 7, "refused: {reply:?}");
    assert!(!thief.log().contains("got"), "{}", thief.log());
    // The next agent has other ports.
    mesh.a.restart();
    mesh.until_reachable();
    assert!(!thief.log().contains("got"), "{}", thief.log());
}

#[test]
fn an_agent_that_hangs_counts_as_gone_until_it_goes_on() {
    let lab = Lab::new();
    let closed = lab.workload(Node::A, "closed", &[]);
    let open = lab
        .workload(Node::A, "open", &[])
        .annotated("undermesh.io/fail-open", "true");
    let outside = lab.workload(Node::Outside, "outside", &[]);
    let _servers = [&closed, &open, &outside].map(|at| at.serve(9080, "bookinfo", &["details"]));
    let entries = workload_entries(&[&closed, &open]);
    let known = format!(
        "{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: outside}}, \
         spec: {{address: {}}}}}\n",
        outside.v4
    );
    lab.configure("workloads.yaml", &entries);
    lab.configure("outside.yaml", &known);
    let agent = Agent::start_with(&lab, Node::A, &["--hung-after", "2s"]);
    // From inside and from outside; one that fails closed and one that fails open.
    let calls = [
        (&closed, &outside),
        (&outside, &closed),
        (&open, &outside),
        (&outside, &open),
    ];
    let exits = || {
        calls.map(|(from, to)| {
            let url = format!("http://{}:9080/", to.v4);
            from.curl(&["--max-time", "2", &url]).exit
        })
    };
    assert_eq!(exits(), [0; 4]);
    agent.signal(libc::SIGSTOP);
    eventually(BACK * 2, "the kernel knows that it hangs", || {
        match exits() {
            // 7: refused.
            [7, 7, 0, 0] => Ok(()),
            exits => Err(format!("{exits:?}")),
        }
    });
    agent.signal(libc::SIGCONT);
    eventually(BACK, "it goes on", || match exits() {
        [0, 0, 0, 0] => Ok(()),
        exits => Err(format!("{exits:?}")),
    });
}

#[test]
fn check_says_that_an_agent_hangs() {
    let mesh = Bookinfo::start();
    mesh.a.signal(libc::SIGSTOP);
    let said = mesh.a.meshctl(&["check"]);
    mesh.a.signal(libc::SIGCONT);
    assert_ne!(said.code, 0, "{said:?}");
    assert!(said.stdout.contains("it hangs, or is stopped"), "{said:?}");
    mesh.until_reachable();
}
