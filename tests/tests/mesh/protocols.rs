//! Unmodified clients and servers of several protocols.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};

use crate::bookinfo::Bookinfo;

/// A client on node a and one server, named `server`, on node b.
struct Pair {
    _agents: [Agent; 2],
    client: Workload,
    server: Workload,
    lab: Lab,
}

fn pair(ports: &[ServicePort<'_>]) -> Pair {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let server = lab.workload(Node::B, "server", &[("app", "server")]);
    lab.configure("workloads.yaml", &workload_entries(&[&client, &server]));
    lab.configure("server.yaml", &service("server", 30, ports));
    let agents = [Agent::start(&lab, Node::A), Agent::start(&lab, Node::B)];
    Pair {
        _agents: agents,
        client,
        server,
        lab,
    }
}

impl Pair {
    /// Runs a client until it succeeds: the agents may have just begun.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut said = String::new();
        eventually(Duration::from_secs(10), program, || {
            let outcome = self.client.run(program, arguments);
            let code = outcome.code;
            said = outcome.stdout.clone();
            if code == 0 {
                Ok(())
            } else {
                Err(format!("{outcome:?}"))
            }
        });
        said
    }

    fn python(&self, script: &str) -> String {
        self.run("/usr/bin/python3", &["-c", script])
    }
}

#[test]
fn http2_with_prior_knowledge_works_with_curl_and_nghttp() {
    let mesh = Bookinfo::start();
    let said = mesh
        .sleep
        .curl(&["--http2-prior-knowledge", "http://reviews/headers"]);
    assert_eq!(said.status, 200, "{said:?}");
    assert!(said.body.starts_with("GET "), "{said:?}");
    let said = mesh
        .sleep
        .run("nghttp", &["--no-dep", "http://reviews/"])
        .success();
    assert!(said.contains("\"reviews\""), "{said}");
}

/// Tells of what will be needed before it answers.
const HINTS: &str = r#"
import socket, socketserver
class Answer(socketserver.StreamRequestHandler):
    def handle(self):
        while line := self.rfile.readline():
            if line != b"\r\n":
                continue
            self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nanswer")
class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
Server(("", 8080), Answer).serve_forever()
"#;

#[test]
fn early_hints_reach_clients_of_http1() {
    let port = |name, port| ServicePort {
        name,
        port,
        target: 8080,
    };
    let mesh = pair(&[port("http", 80)]);
    let _server = mesh.server.serve(8080, "/usr/bin/python3", &["-c", HINTS]);
    let expect = |what: &str| {
        let curl = ["--silent", "--include", "http://server/", "http://server/"];
        let said = mesh.run("curl", &curl);
        let hints =
            "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n";
        assert_eq!(said.matches(hints).count(), 2, "{what}: {said}");
        assert_eq!(said.matches("\r\n\r\nanswer").count(), 2, "{what}: {said}");
    };
    expect("through both agents");
    // Now the server's agent looks at requests as well.
    mesh.lab.configure(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  \
         action: DENY\n  rules: [{to: [{operation: {paths: [/no]}}]}]\n",
    );
    eventually(Duration::from_secs(10), "the policy", || {
        match mesh.client.curl(&["http://server/no"]).status {
            403 => Ok(()),
            other => Err(other.to_string()),
        }
    });
    expect("through a filter");
    // HTTP/2 to the client has no place for them here.
    let reply = mesh
        .client
        .curl(&["--http2-prior-knowledge", "http://server/"]);
    assert_eq!((reply.status, reply.body.as_str()), (200, "answer"));
}

#[test]
fn nginx_serves_large_and_small_files_over_http1() {
    let pair = pair(&[ServicePort {
        name: "http",
        port: 80,
        target: 8080,
    }]);
    let folder = pair
        .server
        .file("nginx.conf", "")
        .parent()
        .expect("a file has a folder")
        .to_owned();
    let large = pair
        .server
        .file("large.bin", &"0123456789abcdef".repeat(1 << 20));
    let large = large
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let folder = folder.to_string_lossy().into_owned();
    let configuration = pair.server.file(
        "nginx.conf",
        &format!(
            "daemon off; pid {folder}/nginx.pid; error_log stderr; user root; worker_processes 1;\n\
             events {{}}\n\
             http {{\n  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n  \
               fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n  \
               server {{ listen 8080; listen [::]:8080; root {folder};\n    \
                 location /small {{ return 200 \"small\\n\"; }} }} }}\n"
        ),
    );
    let _nginx = pair
        .server
        .serve(8080, "nginx", &["-c", &configuration.to_string_lossy()]);

    assert_eq!(
        pair.run("curl", &["-sSf", "http://server/small"]),
        "small\n"
    );
    let sizes = pair.run(
        "sh",
        &[
            "-c",
            &format!("for i in 1 2 3; do curl -sSf http://server/{large} | md5sum; done"),
        ],
    );
    let expected = pair.run("md5sum", &[&format!("{folder}/{large}")]);
    let expected = expected
        .split_whitespace()
        .next()
        .expect("md5sum prints a sum");
    assert_eq!(sizes.matches(expected).count(), 3, "{sizes}");
    let missing = pair.client.curl(&["http://server/missing"]);
    assert_eq!(missing.status, 404, "{missing:?}");
}

/// Unary and streaming calls without generated code: bytes in, bytes out.
const GRPC_SERVER: &str = r#"
import grpc
from concurrent import futures

class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/test.Echo/Say":
            return grpc.unary_unary_rpc_method_handler(self.say)
        if details.method == "/test.Echo/Chat":
            return grpc.stream_stream_rpc_method_handler(self.chat)
        return None
    def say(self, request, context):
        if request == b"fail":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wish")
        context.set_trailing_metadata((("seen", dict(context.invocation_metadata())["end-user"]),))
        return request
    def chat(self, requests, context):
        for request in requests:
            yield request

server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
server.add_generic_rpc_handlers((Echo(),))
server.add_insecure_port("[::]:50051")
server.start()
server.wait_for_termination()
"#;

const GRPC_CLIENT: &str = r#"
import grpc
channel = grpc.insecure_channel("server:50051")
say = channel.unary_unary("/test.Echo/Say")
for i in range(100):
    answer, call = say.with_call(b"hello %d" % i, metadata=(("end-user", "jason"),), timeout=5)
    assert answer == b"hello %d" % i, answer
    assert dict(call.trailing_metadata())["seen"] == "jason"
try:
    say(b"fail", timeout=5)
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "as you wish", error
chat = channel.stream_stream("/test.Echo/Chat")
import queue
lines = queue.Queue()
answers = chat(iter(lines.get, None), timeout=5)
for word in (b"a", b"b" * 100000, b"c"):
    lines.put(word)
    assert next(answers) == word
lines.put(None)
assert list(answers) == []
print("all answered")
"#;

#[test]
fn grpc_calls_streams_errors_and_trailers_pass() {
    for name in ["grpc", "http2", "anything"] {
        let pair = pair(&[ServicePort {
            name,
            port: 50051,
            target: 50051,
        }]);
        let _server = pair
            .server
            .serve(50051, "/usr/bin/python3", &["-c", GRPC_SERVER]);
        assert_eq!(
            pair.python(GRPC_CLIENT),
            "all answered\n",
            "port named {name}"
        );
    }
}

#[test]
fn redis_works() {
    let pair = pair(&[ServicePort {
        name: "tcp-redis",
        port: 6379,
        target: 6379,
    }]);
    let folder = pair
        .server
        .file("redis", "")
        .parent()
        .expect("a file has a folder")
        .to_owned();
    let _redis: Process = pair.server.serve(
        6379,
        "redis-server",
        &[
            "--port",
            "6379",
            "--bind",
            "0.0.0.0",
            "::",
            "--protected-mode",
            "no",
            "--save",
            "",
            "--dir",
            &folder.to_string_lossy(),
        ],
    );
    assert_eq!(
        pair.run("redis-cli", &["-h", "server", "set", "book", "tempest"]),
        "OK\n"
    );
    assert_eq!(
        pair.run("redis-cli", &["-h", "server", "get", "book"]),
        "tempest\n"
    );
    let said = pair.run("redis-cli", &["-h", "server", "debug", "sleep", "0"]);
    assert!(!said.is_empty());
}

/// Waits for the greeting before it says anything, then sends, closes its half
/// and reads to the end.
const TALK: &str = r#"
import socket, sys
s = socket.create_connection(("server", PORT), timeout=8)
greeting = s.recv(100)
assert greeting == b"220 bookinfo ready\r\n", greeting
s.sendall(b"HELO\r\n")
s.shutdown(socket.SHUT_WR)
rest = b""
while chunk := s.recv(65536):
    rest += chunk
assert rest == b"HELO\r\n", rest
print("greeted")
"#;

#[test]
fn a_server_may_speak_first() {
    let pair = pair(&[
        ServicePort {
            name: "tcp-greeter",
            port: 2525,
            target: 2525,
        },
        ServicePort {
            name: "anything",
            port: 2526,
            target: 2525,
        },
    ]);
    let _greeter = pair
        .server
        .serve(2525, "bookinfo", &["greeter", "--listen", "[::]:2525"]);
    for port in ["2525", "2526"] {
        assert_eq!(
            pair.python(&TALK.replace("PORT", port)),
            "greeted\n",
            "port {port}"
        );
    }
}

/// Sends 64 MB while it reads them back, then compares.
const BULK: &str = r#"
import hashlib, os, socket, threading
s = socket.create_connection(("server", 7), timeout=30)
block = os.urandom(1 << 20)
def send():
    for _ in range(64):
        s.sendall(block)
    s.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
sent, got, size = hashlib.sha256(), hashlib.sha256(), 0
for _ in range(64):
    sent.update(block)
while chunk := s.recv(1 << 16):
    got.update(chunk)
    size += len(chunk)
assert size == 64 << 20, size
assert got.digest() == sent.digest()
print("the same")
"#;

#[test]
fn no_byte_is_lost_or_moved_in_bulk_and_half_close_is_kept() {
    let pair = pair(&[ServicePort {
        name: "tcp-echo",
        port: 7,
        target: 7,
    }]);
    let _echo = pair
        .server
        .serve(7, "bookinfo", &["echo", "--listen", "[::]:7"]);
    assert_eq!(pair.python(BULK), "the same\n");
}
