//! Traffic that leaves the mesh: the application speaks plain HTTP, the wire
//! carries TLS to a server that has proved who it is.

use std::path::Path;
use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, Process, Workload, eventually, workload_entries};

struct Mesh {
    _agent: Agent,
    _server: Process,
    client: Workload,
    partner: Workload,
    lab: Lab,
}

fn openssl(workload: &Workload, arguments: &[&str]) {
    workload.run("openssl", arguments).success();
}

/// A certificate of the authority `ca` for a name, as `<file>.pem` and `<file>.key`.
fn issue(workload: &Workload, file: &str, name: &str) -> [String; 2] {
    let path = |name: &str| {
        let path = workload.file(name, "");
        path.to_string_lossy().into_owned()
    };
    let [ca, ca_key] = ["ca.pem", "ca.key"].map(|name| {
        let folder = workload.file("unused", "");
        let folder = folder.parent().expect("a folder");
        folder
            .join(format!("{}-{name}", workload.name))
            .to_string_lossy()
            .into_owned()
    });
    let [certificate, key] = [path(&format!("{file}.pem")), path(&format!("{file}.key"))];
    let (subject, names) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name}"));
    let mut arguments = vec![
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        &subject,
        "-keyout",
        &key,
        "-out",
        &certificate,
    ];
    if file == "ca" {
        arguments.extend(["-addext", "basicConstraints=critical,CA:TRUE"]);
    } else {
        arguments.extend([
            "-addext",
            &names,
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
        ]);
    }
    openssl(workload, &arguments);
    [certificate, key]
}

/// A server outside of the mesh; one that wants a certificate of its clients where `mutual`.
fn start(mutual: bool) -> (Mesh, [String; 2]) {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[("app", "client")]);
    let partner = lab.workload(Node::Outside, "partner", &[]);
    let [ca, _] = issue(&partner, "ca", "authority");
    let [certificate, key] = issue(&partner, "server", "partner.example.com");
    let own = issue(&partner, "client", "client");
    let mut arguments = vec![
        "s_server",
        "-www",
        "-accept",
        "8443",
        "-cert",
        &certificate,
        "-key",
        &key,
    ];
    if mutual {
        arguments.extend(["-Verify", "1", "-verify_return_error", "-CAfile", &ca]);
    }
    let server = partner.serve(8443, "openssl", &arguments);
    lab.configure("workloads.yaml", &workload_entries(&[&client]));
    lab.configure(
        "partner.yaml",
        &format!(
            r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: partner
spec:
  hosts: [partner.example.com]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8443}}]
  resolution: STATIC
  endpoints: [{{address: {}}}]
",
            partner.v4
        ),
    );
    let agent = Agent::start(&lab, Node::A);
    let mesh = Mesh {
        _agent: agent,
        _server: server,
        client,
        partner,
        lab,
    };
    assert!(Path::new(&ca).is_file());
    (mesh, own)
}

impl Mesh {
    fn rule(&self, tls: &str) {
        let ca = self.partner.file("unused", "");
        let ca = ca.parent().expect("a folder").join("partner-ca.pem");
        self.lab.configure(
            "rule.yaml",
            &format!(
                r"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: partner
spec:
  host: partner.example.com
  trafficPolicy:
    tls: {{caCertificates: {}, {tls}}}
",
                ca.display()
            ),
        );
    }

    fn expect(&self, what: &str, status: u16, part: &str) {
        eventually(Duration::from_secs(15), what, || {
            let reply = self.client.curl(&["http://partner.example.com/"]);
            if reply.status == status && reply.body.contains(part) {
                Ok(())
            } else {
                Err(format!("{reply:?}"))
            }
        });
    }
}

#[test]
fn plain_http_becomes_tls_to_a_server_that_is_who_it_should_be() {
    let (mesh, _) = start(false);
    mesh.rule("mode: SIMPLE");
    mesh.expect("the partner answers over TLS", 200, "Protocol  : TLSv1.3");
    // Another name than the server's is another server.
    mesh.rule("mode: SIMPLE, sni: other.example.com");
    mesh.expect("another name is refused", 503, "TLS to other.example.com");
    mesh.rule("mode: SIMPLE, subjectAltNames: [nobody.example.com]");
    mesh.expect(
        "a server without the name is refused",
        503,
        "invalid peer certificate",
    );
    mesh.rule("mode: SIMPLE, sni: other.example.com, subjectAltNames: [partner.example.com]");
    mesh.expect("the names of the rule count", 200, "Protocol  : TLSv1.3");
}

/// A client that does not ask our DNS, or asked it before it was enrolled, knows the server's address.
#[test]
fn a_service_is_meant_by_its_name_where_its_server_is() {
    let (mesh, _) = start(false);
    mesh.rule("mode: SIMPLE");
    mesh.expect("the partner answers over TLS", 200, "Protocol  : TLSv1.3");
    let at = format!("partner.example.com:80:{}", mesh.partner.v4);
    let reply = (mesh.client).curl(&["--resolve", &at, "http://partner.example.com/"]);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.body.contains("Protocol  : TLSv1.3"), "{reply:?}");
}

/// Answers each request with the line of the PROXY protocol that its connection began with, and
/// what is not HTTP with that line alone.
const TOLD: &str = r#"
import socket, sys, threading

def serve(connection):
    stream = connection.makefile("rwb")
    told = stream.readline().strip()
    while line := stream.readline():
        if line == b"bytes\r\n":
            stream.write(told + b"\r\n")
        elif line == b"\r\n":
            stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(told), told))
        stream.flush()

listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"#;

/// Asks over three connections in turn, twice; says from which ports, and what the answers were.
const ASK_IN_TURN: &str = r#"
import http.client, socket, sys
address = sys.argv[1]
clients = [http.client.HTTPConnection(address, 80, timeout=10) for _ in range(3)]
for client in clients * 2:
    client.request("GET", "/")
    print(client.sock.getsockname()[1], 80, client.getresponse().read().decode())
plain = socket.create_connection((address, 81), timeout=10)
plain.sendall(b"bytes\r\n")
print(plain.getsockname()[1], 81, plain.recv(1000).decode().strip())
"#;

#[test]
fn the_server_is_told_who_is_behind_each_connection() {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[("app", "client")]);
    let server = lab.workload(Node::Outside, "server", &[]);
    let _server = server.serve(7000, "python3", &["-c", TOLD, "7000"]);
    lab.configure("workloads.yaml", &workload_entries(&[&client]));
    lab.configure(
        "server.yaml",
        &format!(
            r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: server}}
spec:
  hosts: [server.example.com]
  addresses: [10.96.0.77]
  ports: [{{number: 80, name: http, targetPort: 7000}}, {{number: 81, name: tcp, targetPort: 7000}}]
  resolution: STATIC
  endpoints: [{{address: {}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: server}}
spec: {{host: server.example.com, trafficPolicy: {{proxyProtocol: {{version: V1}}}}}}
",
            server.v4
        ),
    );
    let _agent = Agent::start(&lab, Node::A);
    let said = client.run("python3", &["-c", ASK_IN_TURN, "10.96.0.77"]);
    let said = said.success();
    let told: Vec<_> = said.lines().collect();
    assert_eq!(told.len(), 7, "{said}");
    for line in told {
        let (ports, header) = line.split_once(" PROXY").expect(line);
        let (own, asked) = ports.split_once(' ').expect(line);
        // Each its own connection, and the address that was asked for.
        let expected = format!(" TCP4 {} 10.96.0.77 {own} {asked}", client.v4);
        assert_eq!(header, expected, "{said}");
    }
}

#[test]
fn the_client_can_show_a_certificate() {
    let (mesh, [certificate, key]) = start(true);
    mesh.rule("mode: SIMPLE");
    mesh.expect("without a certificate there is no answer", 503, "");
    mesh.rule(&format!(
        "mode: MUTUAL, clientCertificate: {certificate}, privateKey: {key}"
    ));
    // This server answers nobody whom its authority does not know.
    mesh.expect("with one there is", 200, "Protocol  : TLSv1.3");
}

#[test]
fn a_certificate_can_stand_in_a_secret() {
    let (mesh, [certificate, key]) = start(true);
    let folder = mesh.partner.file("unused", "");
    let folder = folder.parent().expect("a folder");
    let file = |path: &str| std::fs::read_to_string(path).expect("a file");
    let indented = |text: String| text.replace('\n', "\n    ");
    let secret = |key: &str| {
        let ca = folder.join("partner-ca.pem");
        let [certificate, key, ca] = [&certificate, key, &*ca.to_string_lossy()].map(file);
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: pair}}\ntype: kubernetes.io/tls\nstringData:\n  \
             tls.crt: |\n    {}\n  tls.key: |\n    {}\n  ca.crt: |\n    {}\n",
            indented(certificate),
            indented(key),
            indented(ca),
        )
    };
    mesh.lab.configure(
        "rule.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: partner}\n\
         spec:\n  host: partner.example.com\n  workloadSelector: {matchLabels: {app: client}}\n  \
         trafficPolicy: {tls: {mode: MUTUAL, credentialName: pair}}\n",
    );
    mesh.expect(
        "there is no such Secret yet",
        503,
        "there is no Secret default/pair",
    );
    mesh.lab.configure("secret.yaml", &secret(&key));
    mesh.expect(
        "the server takes the certificate",
        200,
        "Protocol  : TLSv1.3",
    );
    // One that cannot be used harms nobody else, and is said.
    mesh.lab.configure("secret.yaml", &secret(&certificate));
    mesh.expect(
        "no key",
        503,
        "Secret default/pair, tls.key: no private key in PEM",
    );
}

/// A proxy that knows CONNECT and POST, and an echo server behind it. Arguments: their ports.
const PROXY: &str = r#"
import socket, sys, threading
def pipe(a, b):
    while (data := a.recv(4096)):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
def post(c, head):
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    assert fields[b"transfer-encoding"] == b"chunked", head
    host, port = fields[b"host"].decode().rsplit(":", 1)
    s = socket.create_connection((host, int(port)))
    c.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    def answer():
        while (data := s.recv(4096)):
            c.sendall(b"%x\r\n%s\r\n" % (len(data), data))
        c.sendall(b"0\r\n\r\n")
    threading.Thread(target=answer).start()
    asked = c.makefile("rb")
    while (size := int(asked.readline(), 16)):
        s.sendall(b"posted " + asked.read(size))
        asked.readline()
    s.shutdown(socket.SHUT_WR)
def proxy(c):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += c.recv(1)
    if head.startswith(b"POST / "):
        return post(c, head)
    host, port = head.split(b" ")[1].decode().rsplit(":", 1)
    s = socket.create_connection((host, int(port)))
    c.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    threading.Thread(target=pipe, args=(s, c)).start()
    pipe(c, s)
def echo(c):
    while (data := c.recv(4096)):
        c.sendall(b"through the proxy: " + data)
    c.close()
def serve(port, each):
    l = socket.create_server(("0.0.0.0", port))
    while True:
        threading.Thread(target=each, args=(l.accept()[0],)).start()
threading.Thread(target=serve, args=(int(sys.argv[2]), echo)).start()
serve(int(sys.argv[1]), proxy)
"#;

const ASK: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], 5432), timeout=10)
s.sendall(b"hello")
print(s.recv(100).decode(), end="")
s.shutdown(socket.SHUT_WR)
assert s.recv(100) == b""
"#;

#[test]
fn connections_go_through_a_proxys_tunnel() {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let proxy = lab.workload(Node::Outside, "proxy", &[]);
    let _server = proxy.serve(3128, "python3", &["-c", PROXY, "3128", "7000"]);
    lab.configure("workloads.yaml", &workload_entries(&[&client]));
    let v4 = proxy.v4;
    let through = |tunnel: &str| {
        lab.configure(
        "tunnel.yaml",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: db}}\n\
             spec: {{hosts: [db.example.com], resolution: STATIC, endpoints: [{{address: {v4}}}], \
             ports: [{{number: 5432, name: tcp, protocol: TCP, targetPort: 3128}}]}}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: db}}\n\
             spec: {{host: db.example.com, trafficPolicy: {{tunnel: {{targetHost: 127.0.0.1, targetPort: 7000{tunnel}}}}}}}\n"
        ),
    )
    };
    through("");
    let _agent = Agent::start(&lab, Node::A);
    let ask = || client.run("python3", &["-c", ASK, "db.example.com"]);
    let said = ask();
    assert_eq!(
        (said.code, &*said.stdout),
        (0, "through the proxy: hello"),
        "{said:?}"
    );
    through(", protocol: POST");
    eventually(Duration::from_secs(5), "POST is in force", || match ask() {
        said if said.code == 0 && said.stdout == "through the proxy: posted hello" => Ok(()),
        said => Err(format!("{said:?}")),
    });
}
