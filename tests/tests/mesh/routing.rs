//! Requests go where the guide's VirtualService sends them, byte for byte as printed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use mesh_tests::{Node, ServicePort, eventually, service, workload_entries};

use crate::bookinfo::{Bookinfo, V1, V2};

const VIRTUAL_SERVICE: &str = include_str!("../../data/guide/virtual-service.yaml");

/// Requests per case and protocol.
const REQUESTS: u32 = 1000;

fn start() -> Bookinfo {
    Bookinfo::start_with(|lab| lab.configure("virtual-service.yaml", VIRTUAL_SERVICE))
}

#[test]
fn the_guides_first_command_prints_the_first_version() {
    let mesh = start();
    let said = mesh
        .sleep
        .run("sh", &["-c", "curl -s http://reviews/ | head -2"])
        .success();
    assert_eq!(said, format!("{V1}\n"));
}

#[test]
fn only_jason_gets_the_second_version() {
    let mesh = start();
    let cases: &[(&[&str], &str)] = &[
        (&[], V1),
        (&["end-user: jason"], V2),
        (&["end-user: Jason"], V1),
        (&["end-user: jason2"], V1),
        (&["end-user: x jason"], V1),
        (&["end-user: jason", "end-user: jason"], V1),
    ];
    for (headers, expected) in cases {
        let arguments: Vec<_> = headers.iter().flat_map(|header| ["-H", header]).collect();
        for answers in [
            mesh.sleep
                .curl_many(REQUESTS, "http://reviews/", &arguments),
            mesh.sleep.nghttp_many(REQUESTS, "http://reviews/", headers),
        ] {
            let other = answers.iter().find(|answer| answer != expected);
            assert_eq!(other, None, "{headers:?} is to get {expected}");
            assert_eq!(answers.len(), REQUESTS as usize, "{headers:?}");
        }
    }
    // What only HTTP/1.1 can say: another case of the name, and an empty value.
    for (header, expected) in [("END-USER: jason", V2), ("end-user;", V1)] {
        let reply = mesh.sleep.curl(&["-H", header, "http://reviews/"]);
        assert_eq!(reply.body.trim_end(), expected, "{header}: {reply:?}");
    }
}

/// An HTTP/2 client that sends header values as they are: one request after
/// the other over one connection. Arguments: how many, then `name: value` of each header.
const RAW_HTTP2: &str = r#"
import socket, sys
def literal(name, value):  # RFC 7541, section 6.2.2, without Huffman
    return bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
block = b"".join(literal(*field) for field in [
    (":method", "GET"), (":scheme", "http"), (":authority", "reviews"), (":path", "/"),
    *(header.split(": ", 1) for header in sys.argv[2:])])
s = socket.create_connection(("reviews", 80), timeout=10)
s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
reader = s.makefile("rb")
for number in range(int(sys.argv[1])):
    stream = 2 * number + 1
    s.sendall(frame(1, 5, stream, block))
    body, ended = b"", False
    while not ended:
        head = reader.read(9)
        kind, flags, of = head[3], head[4], int.from_bytes(head[5:], "big")
        payload = reader.read(int.from_bytes(head[:3], "big"))
        if kind == 4 and not flags & 1:
            s.sendall(frame(4, 1, 0))
        if kind == 6 and not flags & 1:
            s.sendall(frame(6, 1, 0, payload))
        if kind == 0 and payload:  # what was read may be sent again: connection's window
            s.sendall(frame(8, 0, 0, len(payload).to_bytes(4, "big")))
        assert kind not in (3, 7), (kind, payload)
        if of == stream:
            body += payload if kind == 0 else b""
            ended = kind in (0, 1) and flags & 1
    print(body.decode().strip())
"#;

#[test]
fn a_value_with_a_blank_in_front_is_another_value() {
    let mesh = start();
    let count = REQUESTS.to_string();
    for (header, expected) in [("end-user: jason", V2), ("end-user:  jason", V1)] {
        let said = mesh
            .sleep
            .run("/usr/bin/python3", &["-c", RAW_HTTP2, &count, header])
            .success();
        let answers: Vec<_> = said.lines().collect();
        assert_eq!(answers.len(), REQUESTS as usize, "{header:?}");
        let other = answers.iter().find(|answer| **answer != expected);
        assert_eq!(other, None, "{header:?} is to get {expected}");
    }
    // In HTTP/1.1 blanks around a value are none of its own (RFC 9110, section 5.5).
    let reply = mesh
        .sleep
        .curl(&["-H", "end-user:  jason", "http://reviews/"]);
    assert_eq!(reply.body.trim_end(), V2, "{reply:?}");
}

/// Answers every call with its version.
const GRPC_SERVER: &str = r#"
import grpc, sys
from concurrent import futures

class Reviews(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: sys.argv[1].encode())

server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
server.add_generic_rpc_handlers((Reviews(),))
server.add_insecure_port("[::]:50051")
server.start()
server.wait_for_termination()
"#;

/// Calls with this metadata, and prints how often each version answered.
const GRPC_CLIENT: &str = r#"
import collections, grpc, sys
get = grpc.insecure_channel("reviews:50051").unary_unary("/test.Reviews/Get")
metadata = tuple(tuple(field.split(": ", 1)) for field in sys.argv[2:])
counts = collections.Counter(get(b"", metadata=metadata, timeout=10).decode() for _ in range(int(sys.argv[1])))
print(*(f"{version} {count}" for version, count in sorted(counts.items())), sep="\n")
"#;

#[test]
fn calls_of_grpc_are_routed_by_the_same_rule() {
    let mesh = Bookinfo::start_with(|lab| {
        lab.configure("virtual-service.yaml", VIRTUAL_SERVICE);
        let port = |name, port, target| ServicePort { name, port, target };
        let ports = [port("http", 80, 9080), port("grpc", 50051, 50051)];
        lab.configure("reviews.yaml", &service("reviews", 10, &ports));
    });
    let _servers = [(&mesh.v1, "v1"), (&mesh.v2, "v2")].map(|(workload, version)| {
        workload.serve(50051, "/usr/bin/python3", &["-c", GRPC_SERVER, version])
    });
    let count = REQUESTS.to_string();
    let cases: &[(&[&str], &str)] = &[
        (&[], "v1"),
        (&["end-user: jason"], "v2"),
        (&["end-user: Jason"], "v1"),
        (&["end-user: jason2"], "v1"),
        (&["end-user:  jason"], "v1"),
        (&["end-user: jason", "end-user: jason"], "v1"),
    ];
    for (metadata, version) in cases {
        let arguments = [&["-c", GRPC_CLIENT, &count], *metadata].concat();
        let said = mesh.sleep.run("/usr/bin/python3", &arguments).success();
        assert_eq!(said, format!("{version} {REQUESTS}\n"), "{metadata:?}");
    }
}

#[test]
fn clients_of_another_namespace_are_routed_by_the_longer_name() {
    let mesh = start();
    let shopper = mesh
        .lab
        .workload(Node::A, "shopper", &[("app", "shopper")])
        .in_namespace("shop");
    mesh.lab
        .configure("shop.yaml", &workload_entries(&[&shopper]));
    eventually(
        Duration::from_secs(5),
        "the workload is enrolled",
        || match shopper.curl(&["http://reviews.default/"]).status {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        },
    );
    for (header, expected) in [("x: y", V1), ("end-user: jason", V2)] {
        let answers = shopper.curl_many(REQUESTS, "http://reviews.default/", &["-H", header]);
        assert_eq!(answers.len(), REQUESTS as usize);
        let other = answers.iter().find(|answer| *answer != expected);
        assert_eq!(other, None, "{header} is to get {expected}");
    }
}

#[test]
fn every_way_to_write_the_host_is_routed() {
    let mesh = start();
    for host in [
        "reviews",
        "reviews.default",
        "reviews.default.svc.cluster.local",
        "reviews:80",
    ] {
        let reply = mesh
            .sleep
            .curl(&["-H", "end-user: jason", &format!("http://{host}/")]);
        assert_eq!(reply.body.trim_end(), V2, "{host}: {reply:?}");
    }
}

/// The value of a header field that the application saw.
fn seen<'r>(reply: &'r str, name: &str) -> Option<&'r str> {
    let mut lines = reply.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn a_request_has_a_name_of_its_own() {
    let mesh = start();
    let url = "http://reviews/headers";
    let name = |headers: &[&str]| {
        let reply = mesh.sleep.curl(&[&[url], headers].concat());
        let name = seen(&reply.body, "x-request-id");
        name.unwrap_or_else(|| panic!("{reply:?}")).to_owned()
    };
    let [one, other] = [name(&[]), name(&[])];
    assert_ne!(one, other);
    let lengths: Vec<_> = one.split('-').map(str::len).collect();
    assert_eq!(lengths, [8, 4, 4, 4, 12], "{one}");
    assert_eq!(name(&["-H", "x-request-id: mine"]), "mine");
}

#[test]
fn the_guides_samples_are_as_printed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/guide");
    // Lengths of the printed files, in bytes: nobody has mended them to make a test pass.
    for (file, length) in [
        ("virtual-service.yaml", 621),
        ("peer-authentication.yaml", 365),
        ("canary-rollout.yaml", 332),
    ] {
        assert_eq!(
            fs::metadata(folder.join(file)).expect(file).len(),
            length,
            "{file}"
        );
    }
}
