//! What tunnels hold that nobody takes, and what is told of it.

use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, ServicePort, eventually, service, workload_entries};

use crate::hostile::{ENDLESS, Stage};

const PYTHON: &str = "/usr/bin/python3";

/// Asks for what has no end on a hundred connections, and reads nothing until one of them is reset.
const DEAF: &str = r#"
import select, socket
kept = []
for _ in range(100):
    one = socket.socket(); one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.settimeout(10); one.connect(("server", 9090)); kept.append(one)
poll = select.poll()
for one in kept: poll.register(one, 0)
ended = poll.poll(20000)
print("reset" if any(event & select.POLLERR for _, event in ended) else ended, flush=True)
"#;

#[test]
fn the_access_log_says_which_connections_ended_for_want_of_memory() {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let server = lab.workload(Node::B, "server", &[("app", "server")]);
    lab.configure("workloads.yaml", &workload_entries(&[&client, &server]));
    let port = ServicePort {
        name: "tcp",
        port: 9090,
        target: 9090,
    };
    lab.configure("server.yaml", &service("server", 30, &[port]));
    // The kernel would keep more for a client that reads nothing than a tunnel brings.
    let small =
        "echo 4096 16384 65536 | tee /proc/sys/net/ipv4/tcp_wmem /proc/sys/net/ipv4/tcp_rmem";
    client.run("sh", &["-c", small]).success();
    let _endless = server.serve(9090, PYTHON, &["-c", ENDLESS]);
    let log = lab.folder().join("access.log");
    let flags = [
        "--max-tunnel-memory",
        "4",
        "--access-log-file",
        &log.to_string_lossy(),
    ];
    let format = [
        "--access-log-format",
        "%RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS%\n",
    ];
    let _near = Agent::start_with(&lab, Node::A, &[&flags[..], &format].concat());
    let _far = Agent::start(&lab, Node::B);
    eventually(Duration::from_secs(10), "a connection is reset", || {
        let said = client.run(PYTHON, &["-c", DEAF]);
        match said.stdout.trim() {
            "reset" => Ok(()),
            _ => Err(format!("{said:?}")),
        }
    });
    eventually(Duration::from_secs(10), "the log tells of it", || {
        let told = std::fs::read_to_string(&log).unwrap_or_default();
        if told.lines().any(|line| line == "OM max_tunnel_memory") {
            Ok(())
        } else {
            Err(told)
        }
    });
}

/// Requests may only be made with this method: so the agent looks at them.
const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: posts}\n\
                      spec: {rules: [{to: [{operation: {methods: [POST]}}]}]}\n";

/// Lets everybody connect, and reads nothing.
const SILENT: &str = r#"
import socket
listener = socket.create_server(("", 9090), backlog=1000)
kept = []
while True: kept.append(listener.accept()[0])
"#;

#[test]
fn requests_that_an_application_does_not_read_fill_no_memory() {
    const MAX_MIB: u64 = 32;
    let mut stage = Stage::start();
    stage.agent.stop();
    stage.lab.configure("policy.yaml", POLICY);
    let max = MAX_MIB.to_string();
    let flags = ["--max-tunnel-memory", &max];
    stage.agent = Agent::start_with(&stage.lab, Node::A, &flags);
    let small =
        "echo 4096 16384 65536 | tee /proc/sys/net/ipv4/tcp_wmem /proc/sys/net/ipv4/tcp_rmem";
    stage.web.run("sh", &["-c", small]).success();
    let _silent = stage.web.serve(9090, PYTHON, &["-c", SILENT]);
    let (chain, key) = stage.lab.certificate("client", &stage.outside);
    let own = (chain.display().to_string(), key.display().to_string());
    assert_eq!(stage.peer_of(9090, "good", &own), "88");
    let before = stage.agent.resident_kib();
    stage.agent.forget_peak();
    let said = stage.peer_of(9090, "posts", &own);
    let sent: u64 = said.parse().expect(&said);
    let grown = stage.agent.peak_kib().saturating_sub(before);
    // All that two hundred windows take was sent: 32 MiB, and 64 KiB for each.
    assert!((16..48).contains(&(sent >> 20)), "{sent} bytes");
    assert!(grown < 128 * 1024, "{grown} KiB more than {before} KiB");
}
