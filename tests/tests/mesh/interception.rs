//! Connections are intercepted without iptables, and applications do not notice.

use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, Workload, eventually, workload_entries};

use crate::bookinfo::{Bookinfo, VIP4, VIP6};
use crate::bpftool::bpftool;
use crate::leaving::pin;
use crate::prometheus::{curl, free_address};
use crate::telemetry::counter;

/// Connects as told by its arguments (socket family, address, port) and prints
/// what the application is told: its peer, and the original destination.
const WHO_IS_THERE: &str = r#"
import socket, struct, sys
family, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
s = socket.socket(socket.AF_INET if family == "4" else socket.AF_INET6)
s.settimeout(5)
s.connect((address, port))
print("peer", *s.getpeername()[:2])
print("local", s.getsockname()[0])
SO_ORIGINAL_DST = 80
if family == "4":
    raw = s.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
    print("original", socket.inet_ntop(socket.AF_INET, raw[4:8]), struct.unpack("!H", raw[2:4])[0])
elif not address.startswith("::ffff:"):
    raw = s.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
    print("original", socket.inet_ntop(socket.AF_INET6, raw[8:24]), struct.unpack("!H", raw[2:4])[0])
s.sendall(b"GET /peer HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n")
answer = b""
while chunk := s.recv(65536):
    answer += chunk
print("status", answer.split(b" ")[1].decode())
print("server sees", answer.decode().split("\r\n\r\n", 1)[1].strip())
"#;

/// Binds every port that a mesh could want for itself, without any socket
/// option, over the address family of its argument, and serves a connection on
/// HBONE's from the workload's own address.
const BIND: &str = r#"
import socket, sys
family, any, own = {
    "4": (socket.AF_INET, "0.0.0.0", sys.argv[2]),
    "6": (socket.AF_INET6, "::", sys.argv[3]),
}[sys.argv[1]]
held = []
for port in (53, 15001, 15006, 15008, 15020, 15021, 15053, 15090):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(family, kind)
        s.bind((any, port))
        held.append(s)
        if kind == socket.SOCK_STREAM:
            s.listen()
        if kind == socket.SOCK_STREAM and port == 15008:
            client = socket.create_connection((own, port), timeout=5)
            client.sendall(b"x")
            served, _ = s.accept()
            assert served.recv(1) == b"x"
            held += [client, served]
# Whoever comes second is told so, as always.
try:
    second = socket.socket(family, socket.SOCK_STREAM)
    second.bind((any, 15008))
    second.listen()
    print("two servers on one port")
except OSError as error:
    print("all bound,", error.strerror)
"#;

fn python(workload: &Workload, script: &str, arguments: &[&str]) -> String {
    workload
        .run("/usr/bin/python3", &[&["-c", script], arguments].concat())
        .success()
}

#[test]
fn an_application_sees_the_address_that_it_asked_for() {
    let mesh = Bookinfo::start();
    let sleep = &mesh.sleep;
    let mapped = format!("::ffff:{VIP4}");
    let cases = [
        ("4", VIP4, sleep.v4.to_string(), true),
        ("6", VIP6, sleep.v6.to_string(), true),
        ("6", &mapped, format!("::ffff:{}", sleep.v4), false),
    ];
    for (family, vip, own, has_original) in cases {
        let said = python(sleep, WHO_IS_THERE, &[family, vip, "80"]);
        assert!(said.contains(&format!("peer {vip} 80\n")), "{vip}: {said}");
        assert!(said.contains(&format!("local {own}\n")), "{vip}: {said}");
        assert!(said.contains("status 200\n"), "{vip}: {said}");
        if has_original {
            assert!(
                said.contains(&format!("original {vip} 80\n")),
                "{vip}: {said}"
            );
        }
    }
}

#[test]
fn a_server_sees_the_true_address_of_its_client() {
    let mesh = Bookinfo::start();
    let (sleep, v1) = (&mesh.sleep, &mesh.v1);
    let (own4, own6) = (sleep.v4.to_string(), sleep.v6.to_string());
    let cases = [
        ("4", VIP4.to_owned(), "80", vec![&own4]),
        ("4", v1.v4.to_string(), "9080", vec![&own4]),
        ("6", v1.v6.to_string(), "9080", vec![&own6]),
        // The mesh chooses the endpoint, which may be of the other family.
        ("6", VIP6.to_owned(), "80", vec![&own4, &own6]),
    ];
    for (family, address, port, clients) in cases {
        let said = python(sleep, WHO_IS_THERE, &[family, &address, port]);
        let seen = said
            .lines()
            .find_map(|line| line.strip_prefix("server sees "))
            .unwrap_or(&said);
        // The server listens on [::], where IPv4 clients have mapped addresses.
        assert!(
            clients
                .iter()
                .any(|client| seen.contains(&format!("{client}]:"))),
            "over {address}: {seen} is not {clients:?}"
        );
    }
}

/// Says from where each connection comes, as accept(2) tells it, and gives back a word.
const ACCEPTS: &str = r#"
import socket, sys
listener = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, peer = listener.accept()
    print(f"accepted [{peer[0]}]:{peer[1]}", flush=True)
    connection.sendall(connection.recv(100))
    connection.close()
"#;

/// Says a word, hears it, and prints its own address.
const CALLS: &str = r#"
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
connection.sendall(b"word")
assert connection.recv(100) == b"word"
print("[%s]:%d" % connection.getsockname()[:2])
"#;

#[test]
fn the_agent_accepts_a_connection_from_outside_once_and_the_application_sees_whose_it_is() {
    let lab = Lab::new();
    let server = lab.workload(Node::A, "server", &[("app", "server")]);
    let clients = [(Node::Outside, "outside"), (Node::A, "neighbour")]
        .map(|(node, name)| lab.workload(node, name, &[]));
    lab.configure("workloads.yaml", &workload_entries(&[&server]));
    let serving = server.serve(7000, "/usr/bin/python3", &["-c", ACCEPTS, "7000"]);
    let metrics = free_address();
    let agent = Agent::start_with(&lab, Node::A, &["--metrics-address", &metrics]);
    let level = agent.meshctl(&["kernel-log", "debug"]).success();
    assert_eq!(level, "debug\n");

    let (v4, v6) = (server.v4.to_string(), server.v6.to_string());
    let calls = clients
        .iter()
        .flat_map(|client| [&v4, &v6].map(|address| (client, address)));
    let callers: Vec<String> = calls
        .map(|(client, address)| python(client, CALLS, &[address, "7000"]).trim().to_owned())
        .collect();
    let accepted: Vec<String> = serving
        .log()
        .lines()
        .filter_map(|line| line.strip_prefix("accepted "))
        .map(|peer| peer.replace("::ffff:", ""))
        .collect();
    assert_eq!(accepted, callers);

    // One that the agent makes itself would come back to it, and so on.
    let once = callers.len();
    eventually(Duration::from_secs(5), "all are accounted for", || {
        let metrics = curl(&[&format!("http://{metrics}/metrics")]);
        let by_server = [("reporter", "destination")];
        let opened = counter(&metrics, "istio_tcp_connections_opened_total", &by_server);
        let log = agent.log();
        let steered = log
            .lines()
            .filter(|line| line.contains("to port 7000: to the agent"))
            .count();
        let flows = agent.meshctl_json(&["flows"]);
        let flows = flows.as_array().map_or(0, Vec::len);
        match [opened as usize, steered, flows] == [once; 3] {
            true => Ok(()),
            false => Err(format!(
                "{opened} accepted, {steered} steered, {flows} flows"
            )),
        }
    });
}

#[test]
fn packet_filters_are_the_same_before_during_and_after() {
    let lab = Lab::new();
    let probe = lab.workload(Node::A, "probe", &[]);
    let before = probe.packet_filter();
    drop(lab);

    let mut mesh = Bookinfo::start();
    for workload in [&mesh.sleep, &mesh.v1, &mesh.v2] {
        assert_eq!(
            workload.packet_filter(),
            before,
            "{} while enrolled",
            workload.name
        );
    }
    mesh.a.stop();
    mesh.b.stop();
    for workload in [&mesh.sleep, &mesh.v1, &mesh.v2] {
        assert_eq!(
            workload.packet_filter(),
            before,
            "{} afterwards",
            workload.name
        );
    }
}

#[test]
fn a_port_on_which_nothing_listens_stays_closed() {
    let mesh = Bookinfo::start();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    for url in [
        format!("http://{}:9999/", mesh.v1.v4),
        format!("http://[{}]:9999/", mesh.v1.v6),
    ] {
        let reply = outside.curl(&[&url]);
        assert_eq!(
            reply.exit, 7,
            "curl's code for a refused connection; {reply:?}"
        );
    }
    let open = outside.curl(&[&format!("http://{}:9080/", mesh.v1.v4)]);
    assert_eq!(
        open.status, 200,
        "the application's own port is open: {open:?}"
    );
}

#[test]
fn a_port_closes_with_its_application() {
    let lab = Lab::new();
    let server = lab.workload(Node::A, "server", &[("app", "server")]);
    let outside = lab.workload(Node::Outside, "outside", &[]);
    lab.configure("workloads.yaml", &workload_entries(&[&server]));
    // It listens before the agent comes.
    let mut serving = server.serve(7000, "bookinfo", &["reviews", "--listen", "[::]:7000"]);
    let _agent = Agent::start(&lab, Node::A);
    let url = format!("http://{}:7000/", server.v4);
    let open = outside.curl(&[&url]);
    assert_eq!(open.status, 200, "{open:?}");
    let is_listed = || {
        let dump = bpftool(&["map", "dump", "pinned", &pin(&lab, "listening")]);
        let mut entries = dump.as_array().into_iter().flatten();
        entries.any(|entry| entry["formatted"]["key"]["port"] == 7000)
    };
    assert!(is_listed());
    serving.kill();
    // Nobody has told the kernel programs; the first who is refused does.
    let refused = outside.curl(&[&url]);
    assert_ne!(refused.exit, 0, "{refused:?}");
    eventually(Duration::from_secs(5), "the port is closed", || {
        let is_closed = !is_listed();
        is_closed
            .then_some(())
            .ok_or_else(|| "it is listed".to_owned())
    });
    let reply = outside.curl(&[&url]);
    assert_eq!(
        reply.exit, 7,
        "curl's code for a refused connection; {reply:?}"
    );
}

#[test]
fn loopback_and_a_workloads_own_address_are_untouched() {
    let mesh = Bookinfo::start();
    let _server = mesh
        .sleep
        .serve(7000, "bookinfo", &["reviews", "--listen", "0.0.0.0:7000"]);
    for own in ["127.0.0.1".to_owned(), mesh.sleep.v4.to_string()] {
        let peer = mesh.sleep.curl(&[&format!("http://{own}:7000/peer")]);
        assert!(peer.body.starts_with(&format!("{own}:")), "{peer:?}");
        let headers =
            mesh.sleep
                .curl(&["-H", "User-Agent: x", &format!("http://{own}:7000/headers")]);
        assert_eq!(
            headers.body,
            format!("GET /headers HTTP/1.1\nhost: {own}:7000\naccept: */*\nuser-agent: x\n"),
            "nobody has added anything"
        );
    }
}

#[test]
fn no_port_is_reserved_in_a_workload() {
    let mesh = Bookinfo::start();
    // Tunnels to both are open.
    mesh.sleep.curl_many(20, "http://reviews/", &[]);
    for workload in [&mesh.sleep, &mesh.v1, &mesh.v2] {
        let (own4, own6) = (workload.v4.to_string(), workload.v6.to_string());
        for family in ["4", "6"] {
            assert_eq!(
                python(workload, BIND, &[family, &own4, &own6]),
                "all bound, Address already in use\n",
                "{} over IPv{family}",
                workload.name
            );
        }
    }
}

#[test]
fn a_namespace_that_is_not_enrolled_is_left_alone() {
    let mesh = Bookinfo::start();
    // In the control group of node a, but not in the configuration.
    let stranger = mesh.lab.workload(Node::A, "stranger", &[]);
    let name = stranger.curl(&["http://reviews/"]);
    assert_eq!(name.status, 0, "the mesh's names are not for it: {name:?}");
    let plain = stranger.curl(&[&format!("http://{}:9080/peer", mesh.v1.v4)]);
    assert_eq!(plain.status, 200, "PERMISSIVE is the default: {plain:?}");
    assert!(plain.body.contains(&stranger.v4.to_string()), "{plain:?}");
}
