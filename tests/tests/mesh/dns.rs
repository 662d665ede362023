//! Names of the mesh are answered, all others are forwarded to where the
//! application asked.

use mesh_tests::{Node, Process, Workload};

use crate::bookinfo::{Bookinfo, V1, V2, VIP4, VIP6};

/// An address of TEST-NET-1 (RFC 5737).
const ELSEWHERE: &str = "192.0.2.7";

/// A name server that knows what its arguments say, and nothing else.
pub fn dnsmasq(on: &Workload, arguments: &[&str]) -> Process {
    let alone = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file=",
    ];
    on.serve(53, "dnsmasq", &[&alone, arguments].concat())
}

#[test]
fn short_names_full_names_and_addresses_all_work() {
    let mesh = Bookinfo::start();
    let vip6 = format!("[{VIP6}]");
    for host in [
        "reviews",
        "reviews.default",
        "reviews.default.svc",
        "reviews.default.svc.cluster.local",
        "reviews.default.svc.cluster.local.",
        "Reviews",
        VIP4,
        &vip6,
    ] {
        let reply = mesh.sleep.curl(&[&format!("http://{host}/")]);
        assert_eq!(reply.status, 200, "{host}: {reply:?}");
        assert!(
            [V1, V2].contains(&reply.body.trim_end()),
            "{host}: {reply:?}"
        );
    }
}

#[test]
fn the_resolver_gets_the_services_addresses_of_both_families() {
    let mesh = Bookinfo::start();
    for (database, address) in [("ahostsv4", VIP4), ("ahostsv6", VIP6)] {
        let said = mesh.sleep.run("getent", &[database, "reviews"]).success();
        assert!(
            said.starts_with(&format!("{address} ")),
            "{database}: {said}"
        );
    }
}

#[test]
fn other_names_are_forwarded_over_udp_and_tcp() {
    let mesh = Bookinfo::start();
    let nameserver = mesh.lab.nameserver();
    let _dnsmasq = dnsmasq(
        &nameserver,
        &[
            "--local=/test/",
            &format!("--address=/elsewhere.test/{ELSEWHERE}"),
            // More than fits a UDP answer without EDNS: clients come back over TCP.
            &format!(
                "--txt-record=long.test,{}",
                vec!["x".repeat(200); 5].join(",")
            ),
        ],
    );
    let server = format!("SERVER: {}#53", nameserver.v4);
    for transport in ["+notcp", "+tcp"] {
        let said = mesh
            .sleep
            .run("dig", &[transport, "+time=3", "elsewhere.test"])
            .success();
        assert!(said.contains(ELSEWHERE), "{transport}: {said}");
        assert!(
            said.contains(&server),
            "{transport}: the answer comes from whom we asked: {said}"
        );
        let said = mesh
            .sleep
            .run("dig", &[transport, "+time=3", "nobody.test"])
            .success();
        assert!(said.contains("status: NXDOMAIN"), "{transport}: {said}");
    }
    let said = mesh
        .sleep
        .run("dig", &["+noedns", "+short", "+time=3", "txt", "long.test"])
        .success();
    assert_eq!(said.matches(&"x".repeat(200)).count(), 5, "{said}");
    let said = mesh
        .sleep
        .run("getent", &["ahostsv4", "elsewhere.test"])
        .success();
    assert!(said.starts_with(ELSEWHERE), "{said}");
}

/// More than a datagram of 1232 bytes holds, which is what resolvers ask for (DNS flag day 2020).
const MANY: u8 = 120;

/// Resolves a name as Go's own resolver does: a connected socket for each question, EDNS with 1232 bytes, both
/// families at once, and TCP to the same server where the answer is cut short.
const GO_LIKE: &str = r#"
import re, socket, struct, sys, threading
name, server = sys.argv[1], re.search(r"(?m)^nameserver (\S+)", open("/etc/resolv.conf").read())[1]
labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
said = {}
def read(s, count):
    data = b""
    while len(data) < count:
        data += s.recv(count - len(data)) or exit("the end")
    return data
def ask(kind):
    question = struct.pack("!6H", kind, 0x0100, 1, 0, 0, 1) + labels + struct.pack("!2H", kind, 1)
    question += b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect((server, 53))
        s.send(question)
        answer, way = s.recv(1232), "udp"
    if answer[2] & 2:
        with socket.create_connection((server, 53), 5) as s:
            s.sendall(struct.pack("!H", len(question)) + question)
            answer, way = read(s, *struct.unpack("!H", read(s, 2))), "tcp"
    number, flags, _, answers = struct.unpack("!4H", answer[:8])
    assert number == kind and flags & 0x820F == 0x8000, (number, hex(flags))
    said[kind] = (way, answers)
threads = [threading.Thread(target=ask, args=(kind,)) for kind in (1, 28)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("A", *said[1], "AAAA", *said[28])
"#;

#[test]
fn answers_too_long_for_a_datagram_come_over_tcp() {
    let addresses: Vec<String> = (1..=MANY).map(|host| format!("192.0.2.{host}")).collect();
    let mesh = Bookinfo::start_with(|lab| {
        // Headless: the name stands for all of its workloads.
        let mut text = "apiVersion: v1\nkind: Service\nmetadata: {name: many}\n\
                        spec: {clusterIP: None, selector: {app: many}, ports: [{name: tcp, port: 7}]}\n"
            .to_owned();
        for (number, address) in addresses.iter().enumerate() {
            text += &format!(
                "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                 metadata: {{name: many-{number}}}\n\
                 spec: {{address: {address}, labels: {{app: many}}}}\n"
            );
        }
        lab.configure("many.yaml", &text);
    });
    let nameserver = mesh.lab.nameserver();
    let records = addresses
        .iter()
        .map(|address| format!("--host-record=many.test,{address}"));
    let arguments: Vec<String> = records.chain(["--local=/test/".to_owned()]).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let _dnsmasq = dnsmasq(&nameserver, &arguments);

    let sleep = &mesh.sleep;
    let server = format!("SERVER: {0}#53({0}) (TCP)", nameserver.v4);
    // The mesh's own, and one that is forwarded.
    for name in ["many.default.svc.cluster.local", "many.test"] {
        let said = sleep
            .run("dig", &["+bufsize=1232", "+time=3", name])
            .success();
        assert!(said.contains("Truncated, retrying in TCP mode"), "{said}");
        assert!(said.contains(&server), "{said}");
        assert!(addresses.iter().all(|one| said.contains(one)), "{said}");

        let said = sleep
            .run("/usr/bin/python3", &["-c", GO_LIKE, name])
            .success();
        assert_eq!(said, format!("A tcp {MANY} AAAA udp 0\n"), "{name}");

        // glibc.
        let said = sleep.run("getent", &["ahostsv4", name]).success();
        assert!(addresses.iter().all(|one| said.contains(one)), "{said}");
    }
}

#[test]
fn names_are_not_captured_outside_of_the_mesh() {
    let mesh = Bookinfo::start();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let reply = outside.curl(&["http://reviews/"]);
    assert_eq!(
        reply.exit, 6,
        "curl's code for a name that is not found; {reply:?}"
    );
}
