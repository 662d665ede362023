//! Connections as odd as applications make them: intercepted without a
//! difference that they could see, or left alone.

use std::time::{Duration, Instant};

use mesh_tests::{
    Agent, Capture, Lab, Node, Process, ServicePort, Workload, contains, eventually, service,
    wait_until, workload_entries,
};

use crate::bookinfo::{Bookinfo, VIP4, VIP6, peer_authentication};

const EDGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/edges.py");
/// Within which a change of the configuration is in force.
const LIVE: Duration = Duration::from_secs(5);

/// What `edges.py` printed.
struct Said(String);

impl Said {
    fn field(&self, name: &str) -> Option<&str> {
        let of = |line| str::strip_prefix(line, name)?.strip_prefix(' ');
        self.0.lines().find_map(of)
    }

    fn ms(&self) -> u64 {
        let text = self.field("ms").unwrap_or_default();
        text.parse().unwrap_or_else(|_| panic!("{}", self.0))
    }
}

fn connect(from: &Workload, arguments: &[&str]) -> Said {
    let all = [&[EDGES], arguments].concat();
    Said(from.run("/usr/bin/python3", &all).success())
}

/// The quickest of three: a busy machine may hold one up, but not all.
fn quickest(from: &Workload, arguments: &[&str]) -> Said {
    let three = [(); 3].map(|()| connect(from, arguments));
    for said in &three {
        assert_eq!(said.field("error"), three[0].field("error"), "{}", said.0);
    }
    three.into_iter().min_by_key(Said::ms).expect("three")
}

/// Through the mesh: the service's address leads nowhere without it.
fn assert_captured(from: &Workload, arguments: &[&str], local: &str) {
    let said = connect(from, arguments);
    assert_eq!(
        said.field("status"),
        Some("200"),
        "{arguments:?}: {}",
        said.0
    );
    let vip = format!("{} {}", arguments[1], arguments[2]);
    // The kernel asks us about the socket of the path, and shows the application the one above it.
    if arguments[0] != "mptcp" {
        assert_eq!(said.field("peer"), Some(&*vip), "{arguments:?}: {}", said.0);
    }
    let own = said.field("local").unwrap_or_default();
    assert!(own.starts_with(local), "{arguments:?}: {}", said.0);
    let seen = said.field("server sees").unwrap_or_default();
    let sees_client = seen.contains(&from.v4.to_string()) || seen.contains(&from.v6.to_string());
    assert!(sees_client, "{arguments:?}: {}", said.0);
}

#[test]
fn every_way_to_connect_is_captured() {
    let mesh = Bookinfo::start();
    let own = mesh.sleep.v4.to_string();
    assert_captured(&mesh.sleep, &["plain", VIP4, "80"], &own);
    assert_captured(&mesh.sleep, &["epoll", VIP4, "80"], &own);
    assert_captured(&mesh.sleep, &["io_uring", VIP4, "80"], &own);
    // What the application has bound stays as it is.
    assert_captured(&mesh.sleep, &["bind", VIP4, "80", &own, "0"], &own);
    let port = format!("{own} 45678");
    assert_captured(&mesh.sleep, &["bind", VIP4, "80", &own, "45678"], &port);
}

/// Not every kernel asks at the connect of an MPTCP socket itself: one that got around the agent would
/// be refused by STRICT, and be seen on the wire.
#[test]
fn no_mptcp_socket_gets_around_the_agent() {
    let mut mesh = Bookinfo::start_with(|lab| {
        lab.configure("strict.yaml", &peer_authentication("STRICT"));
    });
    let capture = Capture::start(&mesh.lab);
    let (v4, v6) = (mesh.v1.v4.to_string(), mesh.v1.v6.to_string());
    let mapped = format!("::ffff:{VIP4}");
    for (address, port) in [
        (VIP4, "80"),
        (&*mapped, "80"),
        (VIP6, "80"),
        (&v4, "9080"),
        (&v6, "9080"),
    ] {
        assert_captured(&mesh.sleep, &["mptcp", address, port], "");
    }
    mesh.a.kill();
    for address in [&v4, &v6] {
        let said = connect(&mesh.sleep, &["mptcp", address, "9080"]);
        assert_eq!(said.field("error"), Some("ECONNREFUSED"), "{}", said.0);
    }
    assert!(!contains(&capture.stop(), b"GET /peer"));
}

#[test]
fn a_socket_that_is_bound_to_a_device_is_captured_or_refused_at_once() {
    let mesh = Bookinfo::start();
    let sleep = &mesh.sleep;
    let own = sleep.v4.to_string();
    assert_captured(sleep, &["device", VIP4, "80", "eth0"], &own);
    // Nothing that is sent to another address arrives at `lo`.
    assert_captured(sleep, &["device", VIP4, "80", "lo"], "127.0.0.1 ");
    let ip = |arguments: &[&str]| sleep.run("ip", arguments).success();
    ip(&[
        "link", "add", "net1", "type", "veth", "peer", "name", "net1-far",
    ]);
    ip(&["address", "add", "10.78.0.1/24", "dev", "net1"]);
    ip(&["link", "set", "net1", "up"]);
    ip(&["link", "set", "net1-far", "up"]);
    let said = quickest(sleep, &["device", VIP4, "80", "net1"]);
    assert_eq!(said.field("error"), Some("ECONNREFUSED"), "{}", said.0);
    assert!(said.ms() < 100, "{}", said.0);
}

/// Answers datagrams with the address that they came from.
const UDP_SERVER: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
while True:
    data, peer = s.recvfrom(2048)
    s.sendto(b"%s %s" % (data, peer[0].encode()), peer)
"#;

const UDP_CLIENT: &str = r#"
import socket, sys
to = (sys.argv[1], int(sys.argv[2]))
s = socket.socket(socket.AF_INET6 if ":" in to[0] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
s.sendto(b"unconnected", to)
answer, sender = s.recvfrom(2048)
print(answer.decode(), *sender[:2])
s.connect(to)
s.send(b"connected")
print(s.recv(2048).decode(), *s.getpeername()[:2])
"#;

#[test]
fn datagrams_pass_untouched_connected_or_not() {
    let mesh = Bookinfo::start();
    let log = mesh.lab.folder().join("udp.log");
    let mut server = mesh.v1.command("/usr/bin/python3");
    server.args(["-c", UDP_SERVER, "5000"]);
    let server = Process::spawn(&mut server, log).expect("python starts");
    assert!(wait_until(LIVE, || server.log().contains("ready")));
    let (own4, own6) = (
        format!("::ffff:{}", mesh.sleep.v4),
        mesh.sleep.v6.to_string(),
    );
    let mapped = format!("::ffff:{}", mesh.v1.v4);
    for (to, own) in [
        (mesh.v1.v4.to_string(), &own4),
        (mapped, &own4),
        (mesh.v1.v6.to_string(), &own6),
    ] {
        let said = mesh
            .sleep
            .run("/usr/bin/python3", &["-c", UDP_CLIENT, &to, "5000"])
            .success();
        let line = |kind: &str| format!("{kind} {own} {to} 5000\n");
        assert_eq!(said, line("unconnected") + &line("connected"));
    }
}

#[test]
fn a_dead_destination_looks_as_it_would_without_the_mesh() {
    let mesh = Bookinfo::start_with(|lab| {
        let tcp = |name: &'static str, host, target| {
            let port = ServicePort {
                name: "tcp-data",
                port: 5432,
                target,
            };
            service(name, host, &[port])
        };
        // Nobody has these labels.
        lab.configure("nobody.yaml", &tcp("nobody", 20, 5432));
        let http = ServicePort {
            name: "http",
            port: 80,
            target: 80,
        };
        lab.configure("nobody-http.yaml", &service("nobody-http", 21, &[http]));
        // Its workload does not listen.
        let closed = tcp("closed", 22, 5432).replace("app: closed", "app: reviews");
        lab.configure("closed.yaml", &closed);
        let silent = tcp("silent", 23, 9081);
        lab.configure("silent.yaml", &silent);
    });
    // A machine outside of the mesh that drops what it gets.
    let silent = mesh
        .lab
        .workload(Node::Outside, "silent", &[("app", "silent")]);
    let drop_all = ["-A", "INPUT", "-p", "tcp", "--dport", "9081", "-j", "DROP"];
    silent.run("iptables", &drop_all).success();
    mesh.lab.configure(
        "silent-entry.yaml",
        &format!(
            "{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: silent}}, \
             spec: {{address: {}, labels: {{app: silent}}}}}}\n",
            silent.v4
        ),
    );
    eventually(LIVE, "the silent machine is known", || {
        let services = mesh.a.meshctl(&["services", "-o", "json"]).success();
        match services.contains(&format!("{}:9081", silent.v4)) {
            true => Ok(()),
            false => Err(services),
        }
    });

    let nobody = quickest(&mesh.sleep, &["plain", "10.96.0.20", "5432"]);
    assert_eq!(nobody.field("error"), Some("ECONNREFUSED"), "{}", nobody.0);
    assert!(nobody.ms() < 100, "at once: {}", nobody.0);
    assert_eq!(
        nobody.field("peer"),
        None,
        "connect(2) itself fails: {}",
        nobody.0
    );
    // Where HTTP is declared, the answer is HTTP, as in Istio.
    let reply = mesh.sleep.curl(&["http://10.96.0.21/"]);
    assert_eq!(reply.status, 503, "{reply:?}");
    let closed = connect(&mesh.sleep, &["plain", "10.96.0.22", "5432"]);
    let error = closed.field("error");
    assert!(
        matches!(error, Some("ECONNRESET" | "ECONNREFUSED" | "EPIPE")),
        "{}",
        closed.0
    );
    assert!(closed.ms() < 5000, "{}", closed.0);
    let silent = connect(&mesh.sleep, &["timeout", "10.96.0.23", "5432", "2"]);
    assert_eq!(silent.field("error"), Some("TimeoutError"), "{}", silent.0);
    assert!(silent.ms() >= 2000, "nobody has cut it off: {}", silent.0);
}

#[test]
fn a_workload_calls_its_own_service() {
    for (direct, verdict) in [("false", "proxy"), ("true", "direct")] {
        let lab = Lab::new();
        let own = lab
            .workload(Node::A, "own", &[("app", "own")])
            .annotated("undermesh.io/direct", direct)
            .annotated("undermesh.io/short-circuit", "on");
        let _server = own.serve(9080, "bookinfo", &["reviews", "--version", "own"]);
        lab.configure("workloads.yaml", &workload_entries(&[&own]));
        let ports = [("http", 80), ("tcp", 81)].map(|(name, port)| ServicePort {
            name,
            port,
            target: 9080,
        });
        lab.configure("own.yaml", &service("own", 30, &ports));
        let agent = Agent::start(&lab, Node::A);
        for url in ["http://own", "http://own:81"] {
            let reply = own.curl(&[&format!("{url}/peer")]);
            assert_eq!(reply.status, 200, "{reply:?}");
            let is_own = [own.v4.to_string(), own.v6.to_string()]
                .iter()
                .any(|address| reply.body.contains(address));
            assert!(is_own, "{reply:?}");
            let ten = own.curl_many(10, &format!("{url}/"), &[]);
            assert!(ten.iter().all(|body| body.contains("own")), "{ten:?}");
        }
        let flows = agent.meshctl_json(&["flows"]);
        let mut flows = flows.as_array().into_iter().flatten();
        let of_tcp = flows.find(|flow| {
            flow["direction"] == "outbound"
                && flow["destination"]
                    .as_str()
                    .is_some_and(|to| to.ends_with(":81"))
        });
        let of_tcp = of_tcp.expect("it has called");
        assert_eq!(of_tcp["verdict"], verdict, "{of_tcp}");
    }
}

#[test]
fn a_headless_service_leads_to_its_workloads_and_is_encrypted() {
    let mesh = Bookinfo::start_with(|lab| {
        lab.configure(
            "headless.yaml",
            "{apiVersion: v1, kind: Service, metadata: {name: headless}, spec: {clusterIP: None, \
             selector: {app: reviews}, ports: [{name: http, port: 9080}]}}\n",
        );
    });
    let capture = Capture::start(&mesh.lab);
    let mut seen = std::collections::BTreeSet::new();
    for own in [&mesh.v1, &mesh.v2] {
        let answer = mesh
            .sleep
            .run("getent", &["ahostsv4", "headless"])
            .success();
        assert!(answer.contains(&own.v4.to_string()), "{answer}");
        let reply = mesh
            .sleep
            .curl(&[&format!("http://{}:9080/secret-headless", own.v4)]);
        assert_eq!(reply.status, 200, "{reply:?}");
        seen.insert(reply.body);
    }
    assert_eq!(seen.len(), 2, "each is itself: {seen:?}");
    assert_eq!(
        mesh.sleep
            .curl(&["http://headless:9080/secret-headless"])
            .status,
        200
    );
    assert!(!contains(&capture.stop(), b"secret-headless"));
}

#[test]
fn containers_of_one_namespace_and_nested_groups_are_one_workload() {
    let mesh = Bookinfo::start();
    for group in [
        "pod/container-1",
        "pod/container-2",
        "pod/container-2/nested/deeper",
    ] {
        let container = mesh.sleep.in_cgroup(group);
        assert_captured(
            &container,
            &["plain", VIP4, "80"],
            &mesh.sleep.v4.to_string(),
        );
    }
    // A second entry for the same namespace says why it waits.
    let mut twin = mesh.sleep.clone();
    twin.name = "twin".to_owned();
    let entries = workload_entries(&[&mesh.sleep, &mesh.v1, &mesh.v2, &twin]);
    mesh.lab.configure("workloads.yaml", &entries);
    eventually(LIVE, "the twin is known", || {
        let said = mesh.a.meshctl(&["workloads", "-o", "json"]).success();
        match said.contains("its network namespace is that of sleep.default") {
            true => Ok(()),
            false => Err(said),
        }
    });
    assert_captured(
        &mesh.sleep,
        &["plain", VIP4, "80"],
        &mesh.sleep.v4.to_string(),
    );
}

/// Connects, says a word, hears it again, and closes, as often as told.
const STORM: &str = r#"
import socket, sys, time
address, port, first, second = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def storm(count):
    for _ in range(count):
        s = socket.create_connection((address, port), 5)
        s.sendall(b"word")
        assert s.recv(4) == b"word"
        s.close()
began = time.monotonic()
storm(first)
time.sleep(1.3)
storm(second)
print("done", first + second, round(time.monotonic() - began, 2))
"#;

#[test]
fn a_storm_of_connections_fits_into_a_hundred_ports() {
    let (mesh, _echoes) = Bookinfo::start_with_echo();
    for workload in [&mesh.sleep, &mesh.v1, &mesh.v2] {
        let set = "echo 50000 50099 > /proc/sys/net/ipv4/ip_local_port_range";
        workload.run("sh", &["-c", set]).success();
    }
    let began = Instant::now();
    let said = mesh
        .sleep
        .run(
            "/usr/bin/python3",
            &["-c", STORM, "10.96.0.40", "7", "60", "70"],
        )
        .success();
    assert!(said.contains("done 130"), "{said}");
    println!("130 connections: {said} ({:?})", began.elapsed());
    // And from outside of the mesh, where it is the agent that connects to the application. The
    // pause comes first: those ports of the server's namespace have just been used by the tunnels' ends.
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let v1 = mesh.v1.v4.to_string();
    for count in ["60", "70"] {
        let said = outside
            .run("/usr/bin/python3", &["-c", STORM, &v1, "7", "0", count])
            .success();
        assert!(said.contains(&format!("done {count}")), "{said}");
    }
}
