//! What a Sidecar says of connections to its workload: which application a port stands for, and
//! how many there may be at a time, of all callers together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, service, wait_until, workload_entries,
};
use serde_json::json;

use crate::held::{HELD, Held};

const PATIENCE: Duration = Duration::from_secs(10);
const PYTHON: &str = "/usr/bin/python3";

/// Answers with the client's address, on loopback of both families.
const LOOPBACK: &str = r#"
import http.server, socket, threading
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Server6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
threading.Thread(target=Server6(("::1", 8081), Answer).serve_forever).start()
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Answer).serve_forever()
"#;

const STANDS_FOR: &str = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: web}
spec:
  workloadSelector: {labels: {app: web}}
  ingress:
  - port: {number: 9080, protocol: HTTP, name: http}
    defaultEndpoint: 127.0.0.1:8080
  - port: {number: 9081, protocol: HTTP, name: http-6}
    defaultEndpoint: '[::1]:8081'
";

struct Mesh {
    agents: [Agent; 2],
    _server: Process,
    near: Workload,
    far: Workload,
    outside: Workload,
    web: Workload,
    lab: Lab,
}

/// `web` and a client on node a, one on node b, and one that is none of the mesh.
fn start(port: u16, serve: impl Fn(&Workload) -> Process) -> Mesh {
    let lab = Lab::new();
    let web = lab.workload(Node::A, "web", &[("app", "web")]);
    let near = lab.workload(Node::A, "near", &[]);
    let far = lab.workload(Node::B, "far", &[]);
    let outside = lab.workload(Node::Outside, "outside", &[]);
    let server = serve(&web);
    let near = near.annotated("undermesh.io/direct", "true");
    lab.configure("workloads.yaml", &workload_entries(&[&web, &near, &far]));
    let ports = [80, 81].map(|number| ServicePort {
        name: if number == 80 { "http" } else { "http-6" },
        port: number,
        target: port + (number - 80),
    });
    lab.configure("service.yaml", &service("web", 50, &ports));
    Mesh {
        agents: [Node::A, Node::B].map(|node| Agent::start(&lab, node)),
        _server: server,
        near,
        far,
        outside,
        web,
        lab,
    }
}

fn of_loopback() -> Mesh {
    start(9080, |web| {
        let script = web.file("loopback.py", LOOPBACK);
        web.serve(8080, PYTHON, &[&*script.to_string_lossy()])
    })
}

fn backend() -> Mesh {
    start(8080, |web| {
        let arguments = ["backend", "--version", "web", "--listen", "[::]:8080"];
        web.serve(8080, "bookinfo", &arguments)
    })
}

impl Mesh {
    fn generation(&self) -> Option<u64> {
        self.agents[0].meshctl_json(&["config"])["generation"].as_u64()
    }

    fn in_force(&self, before: Option<u64>) {
        becomes_true(|| self.generation() > before);
    }

    /// The service has this port alone, and does not say what it speaks.
    fn without_protocol(&self, port: u16, target: u16) {
        let before = self.generation();
        let undeclared = ServicePort {
            name: "web",
            port,
            target,
        };
        let text = service("web", 50, &[undeclared]);
        self.lab.configure("service.yaml", &text);
        self.in_force(before);
    }

    fn pool(&self, pool: &str) {
        let before = self.generation();
        self.lab.configure(
            "sidecar.yaml",
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: web}}\nspec:\n  \
                 workloadSelector: {{labels: {{app: web}}}}\n  inboundConnectionPool: {pool}\n"
            ),
        );
        self.in_force(before);
        let agent = &self.agents[0];
        let warnings = agent.meshctl(&["config"]).stdout;
        assert!(!warnings.contains("not applied"), "{warnings}");
    }
}

/// Waits until a change acts.
#[track_caller]
fn becomes_true(condition: impl FnMut() -> bool) {
    assert!(wait_until(PATIENCE, condition), "not within {PATIENCE:?}");
}

/// Status and body of a request without a service's name.
fn plain(client: &Workload, web: &Workload, port: u16) -> (u16, String) {
    let address = if port == 9081 {
        format!("[{}]", web.v6)
    } else {
        web.v4.to_string()
    };
    let reply = client.curl(&[&format!("http://{address}:{port}/")]);
    (reply.status, reply.body)
}

#[test]
fn a_port_stands_for_an_application_on_loopback() {
    let mesh = of_loopback();
    let (near, far, outside, web) = (&mesh.near, &mesh.far, &mesh.outside, &mesh.web);
    assert_eq!(plain(outside, web, 9080).0, 0, "nobody listens there");
    mesh.lab.configure("sidecar.yaml", STANDS_FOR);
    becomes_true(|| plain(outside, web, 9080).0 == 200);
    for client in [near, far, outside] {
        let (v4, v6) = (client.v4.to_string(), client.v6.to_string());
        assert_eq!(plain(client, web, 9080), (200, v4), "{}", client.name);
        assert_eq!(plain(client, web, 9081), (200, v6), "{}", client.name);
    }
    for client in [near, far] {
        let by = |family, url| client.curl(&[family, url]).body;
        assert_eq!(by("--ipv4", "http://web/"), client.v4.to_string());
        let mapped = format!("::ffff:{}", client.v4);
        assert_eq!(by("--ipv4", "http://web:81/"), mapped);
        // A socket of IPv4 cannot have a peer of IPv6.
        assert_eq!(by("--ipv6", "http://web/"), "127.0.0.1");
    }

    // Policies see the port that was asked for.
    mesh.lab.configure(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  \
         action: DENY\n  rules: [{to: [{operation: {ports: ['8080', '9081'], methods: [GET]}}]}]\n",
    );
    becomes_true(|| far.curl(&["http://web:81/"]).status == 403);
    for client in [near, far] {
        assert_eq!(client.curl(&["http://web/"]).status, 200);
        assert_eq!(client.curl(&["http://web:81/"]).status, 403);
    }
    mesh.lab.configure(
        "strict.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec:\n  \
         selector: {matchLabels: {app: web}}\n  portLevelMtls: {9080: {mode: STRICT}}\n",
    );
    becomes_true(|| plain(outside, web, 9080).0 == 0);
    assert_eq!(far.curl(&["http://web/"]).status, 200);

    for file in ["strict.yaml", "policy.yaml", "sidecar.yaml"] {
        mesh.lab.unconfigure(file);
    }
    becomes_true(|| plain(outside, web, 9080).0 == 0 && far.curl(&["http://web/"]).status != 200);
    assert!(outside.curl(&[&format!("http://{}:9080/", web.v4)]).exit == 7);
}

/// Statuses of so many requests at a time, each with how often it came.
fn at_once(client: &Workload, requests: u32, path: &str) -> BTreeMap<String, usize> {
    let url = format!("http://web{path}?[1-{requests}]");
    let outcome = client.run(
        "curl",
        &[
            "--silent",
            "--parallel",
            "--parallel-immediate",
            "--max-time",
            "30",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code} %header{x-envoy-overloaded}\n",
            &url,
        ],
    );
    let mut counts = BTreeMap::new();
    for line in outcome.stdout.lines() {
        *counts.entry(line.trim().to_owned()).or_default() += 1;
    }
    counts
}

/// `key=value` of the backend's answer.
fn number(answer: &str, key: &str) -> usize {
    let mut words = answer.split_whitespace();
    let found = words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    found
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("no {key} in {answer:?}"))
}

fn counts<const N: usize>(of: [(&str, usize); N]) -> BTreeMap<String, usize> {
    of.map(|(line, count)| (line.to_owned(), count)).into()
}

#[test]
fn requests_wait_for_connections_to_the_application_and_the_rest_is_refused() {
    let mesh = backend();
    let (near, far) = (&mesh.near, &mesh.far);
    mesh.pool("{tcp: {maxConnections: 2}, http: {http1MaxPendingRequests: 1}}");
    // Whoever used the connections last gives them up for others.
    for client in [near, far, near, far] {
        assert_eq!(client.curl(&["http://web/"]).status, 200);
    }
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| at_once(near, 2, "/delay/3000"));
        std::thread::sleep(Duration::from_secs(1));
        let began = Instant::now();
        let second = at_once(far, 4, "/delay/100");
        assert!(began.elapsed() > Duration::from_millis(1500), "one waited");
        (first.join().unwrap(), second)
    });
    assert_eq!(first, counts([("200", 2)]));
    assert_eq!(second, counts([("200", 1), ("503 true", 3)]));
    // The agent of the application's node says who is at its bound.
    let bounds = || mesh.agents[0].meshctl_json(&["endpoints", "--inbound"]);
    let port = &bounds()[0];
    assert_eq!(
        (&port["workload"], &port["port"]),
        (&json!("web.default"), &json!(8080))
    );
    assert_eq!(port["connections"]["limit"], json!(2), "{port}");
    assert_eq!(
        port["pending"],
        json!({"now": 0, "limit": 1, "refused": 3}),
        "{port}"
    );
    let said = mesh.agents[0].meshctl(&["endpoints"]).success();
    assert!(
        said.contains(
            "to web.default:8080: 3 requests were refused: http1MaxPendingRequests waited already"
        ),
        "{said}"
    );

    mesh.pool("{http: {http2MaxRequests: 1}}");
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| at_once(near, 1, "/delay/2000"));
        std::thread::sleep(Duration::from_secs(1));
        let second = at_once(far, 2, "/");
        (first.join().unwrap(), second)
    });
    assert_eq!(first, counts([("200", 1)]));
    assert_eq!(second, counts([("503 true", 2)]));
    assert_eq!(
        bounds()[0]["requests"],
        json!({"now": 0, "limit": 1, "refused": 2})
    );
}

#[test]
fn a_connection_to_the_application_serves_as_much_and_rests_as_long_as_it_may() {
    let mesh = backend();
    let client = &mesh.far;
    let requests = |count| {
        let answers = client.curl_many(count, "http://web/", &[]);
        let request = |answer: &String| number(answer, "request");
        answers.iter().map(request).collect::<Vec<_>>()
    };
    mesh.pool("{tcp: {}}");
    assert_eq!(requests(4), [1, 2, 3, 4]);
    mesh.pool("{http: {maxRequestsPerConnection: 2}}");
    let counted = requests(5);
    assert!(counted.iter().all(|number| *number <= 2), "{counted:?}");
    assert!(counted.contains(&2), "{counted:?}");

    mesh.pool("{http: {idleTimeout: 500ms}}");
    let connection = || number(&client.curl(&["http://web/"]).body, "connection");
    let first = connection();
    assert_eq!(connection(), first);
    std::thread::sleep(Duration::from_millis(1500));
    assert_ne!(connection(), first);
}

#[test]
fn bytes_are_bounded_too() {
    let mesh = start(8080, |web| {
        web.serve(8080, "python3", &[HELD, "serve", "8080"])
    });
    mesh.pool("{tcp: {maxConnections: 1}}");
    let v4 = mesh.web.v4.to_string();
    let refused = |client: &Workload| {
        let asked = client.run("timeout", &["5", "python3", "-c", ASK, &v4]);
        asked.stdout.trim() != "hello"
    };
    {
        let mut held = Held::open(&mesh.far, "v4", &v4, 8080);
        for client in [&mesh.near, &mesh.far, &mesh.outside] {
            assert!(refused(client), "{}", client.name);
        }
        held.echoes("still");
        held.close();
    }
    becomes_true(|| !refused(&mesh.near));
    mesh.pool("{tcp: {idleTimeout: 1s}}");
    let began = Instant::now();
    let mut held = Held::open(&mesh.far, "v4", &v4, 8080);
    for word in ["a", "b", "c", "d"] {
        std::thread::sleep(Duration::from_millis(600));
        held.echoes(word);
    }
    held.ends(PATIENCE);
    assert!(began.elapsed() > Duration::from_millis(3300));
}

/// Connects, and asks only after a while, as a client far away does; prints the status.
const LATE: &str = r#"
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 8080), 10)
time.sleep(0.4)
connection.sendall(b"GET " + sys.argv[2].encode() + b" HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
print(connection.recv(100).decode().split(" ")[1])
"#;

#[test]
fn requests_of_a_client_that_asks_late_are_bounded_where_no_protocol_is_declared() {
    let mesh = backend();
    mesh.without_protocol(80, 8080);
    mesh.pool("{http: {http2MaxRequests: 1}}");
    let v4 = mesh.web.v4.to_string();
    for client in [&mesh.near, &mesh.far, &mesh.outside] {
        let late = |path: &str| {
            let said = client.run(PYTHON, &["-c", LATE, &v4, path]);
            said.success().trim().to_owned()
        };
        let statuses = std::thread::scope(|scope| {
            let first = scope.spawn(|| late("/delay/2000"));
            std::thread::sleep(Duration::from_secs(1));
            let second = late("/");
            [first.join().expect("it ran"), second]
        });
        assert_eq!(statuses, ["200", "503"], "{}", client.name);
    }
}

/// Resets a connection that it has taken, before it says a word.
const RESETS: &str = r#"
import socket, struct, time
listener = socket.create_server(("", 8081))
while True:
    connection, _ = listener.accept()
    time.sleep(0.4)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
"#;

/// Prints how a connection ends on which nobody has spoken.
const SILENT: &str = r#"
import socket, sys
connection = socket.create_connection((sys.argv[1], 8081), 10)
try:
    print("end" if connection.recv(1) == b"" else "word")
except ConnectionResetError:
    print("reset")
"#;

#[test]
fn a_reset_before_the_first_word_is_a_reset_where_no_protocol_is_declared() {
    let mesh = backend();
    let _resets = mesh.web.serve(8081, PYTHON, &["-c", RESETS]);
    mesh.without_protocol(81, 8081);
    mesh.pool("{http: {http2MaxRequests: 1}}");
    let v4 = mesh.web.v4.to_string();
    for client in [&mesh.near, &mesh.far, &mesh.outside] {
        let said = client.run(PYTHON, &["-c", SILENT, &v4]).success();
        assert_eq!(said, "reset\n", "{}", client.name);
    }
}

/// Prints what an echo server sends back.
const ASK: &str = r#"
import socket, sys
connection = socket.create_connection((sys.argv[1], 8080), timeout=4)
connection.sendall(b"hello\n")
print((connection.recv(64) or b"nothing").decode())
"#;
