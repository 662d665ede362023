//! A client that resumes its TLS session: the handshake is shorter, what it may do is the same.

use std::time::Duration;

use mesh_tests::{Agent, Conversation, Lab, Node, Workload, eventually, workload_entries};

use crate::trust::revocation_list;

const PATIENCE: Duration = Duration::from_secs(10);

/// For each word that comes, asks for a tunnel by the session of the connection before, and prints
/// whether it was resumed and the first byte of the answer's header block: 88 is status 200
/// (RFC 7541, appendix A), 48 another one.
const CLIENT: &str = r#"
import socket, ssl, struct, sys
host, chain, key, authority = sys.argv[1:]
frame = lambda kind, flags, stream, data: struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + data
text = lambda value: bytes([len(value)]) + value.encode()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.load_cert_chain(chain, key)
context.set_alpn_protocols(["h2"])
def status(connection):
    data = b""
    while True:
        while len(data) < 9 or len(data) < 9 + int.from_bytes(data[:3], "big"):
            more = connection.recv(65536)
            if not more: return "closed"
            data += more
        length = int.from_bytes(data[:3], "big")
        kind, payload, data = data[3], data[9:9 + length], data[9 + length:]
        if kind == 1:
            while payload[0] & 0xe0 == 0x20: payload = payload[1:]
            return "%02x" % payload[0]
session = None
for _ in sys.stdin:
    try:
        connection = context.wrap_socket(socket.create_connection((host, 15008), 10), session=session)
        block = b"\x02" + text("CONNECT") + b"\x01" + text(authority)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block))
        answer = status(connection)
        print("resumed" if connection.session_reused else "new", answer, flush=True)
        session = connection.session
        connection.close()
    except (ConnectionError, ssl.SSLError) as error:
        print("refused", getattr(error, "reason", None) or type(error).__name__, flush=True)
"#;

struct Client(Conversation);

impl Client {
    fn start(from: &Workload, arguments: &[&str]) -> Self {
        let mut python = from.command("/usr/bin/python3");
        Self(Conversation::start(
            python.args(["-c", CLIENT]).args(arguments),
        ))
    }

    fn ask(&mut self) -> String {
        self.0.ask("again")
    }

    /// Asks until it is answered so.
    fn until(&mut self, wanted: &str, why: &str) {
        eventually(PATIENCE, why, || match self.ask() {
            said if said.starts_with(wanted) => Ok(()),
            said => {
                std::thread::sleep(Duration::from_millis(100));
                Err(said)
            }
        });
    }
}

fn policy(action: &str, source: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: web}}\n\
         spec: {{action: {action}, rules: [{{from: [{{source: {{{source}}}}}]}}]}}\n"
    )
}

#[test]
fn a_resumed_session_passes_only_where_policies_and_revocation_lists_of_now_let_it() {
    let lab = Lab::new();
    let web = lab.workload(Node::A, "web", &[("app", "web")]);
    let outside = lab.workload(Node::Outside, "outside", &[]);
    let _server = web.serve(9080, "bookinfo", &["details"]);
    lab.configure("workloads.yaml", &workload_entries(&[&web]));
    let _agent = Agent::start(&lab, Node::A);
    let (chain, key) = lab.certificate("client", &outside);
    let host = web.v4.to_string();
    let mut client = Client::start(
        &outside,
        &[
            &host,
            &chain.to_string_lossy(),
            &key.to_string_lossy(),
            &format!("{host}:9080"),
        ],
    );
    assert_eq!(client.ask(), "new 88");
    assert_eq!(client.ask(), "resumed 88");

    let client_name = "cluster.local/ns/default/sa/client";
    let denied = policy("DENY", &format!("principals: [{client_name}]"));
    lab.configure("policy.yaml", &denied);
    client.until("resumed 48", "it is denied");
    assert_eq!(client.ask(), "resumed 48");
    lab.unconfigure("policy.yaml");
    client.until("resumed 88", "it is denied no more");
    lab.configure(
        "policy.yaml",
        &policy("ALLOW", "principals: ['*/sa/sleep']"),
    );
    client.until("resumed 48", "others are allowed");
    // Who it is, it has proven in the session before.
    let known = policy("DENY", "notPrincipals: ['*']");
    let strict = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
        metadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n";
    lab.configure("policy.yaml", &(known + strict));
    client.until("resumed 88", "STRICT, and nobody without a name");

    let script = format!("openssl x509 -in {} -noout -serial", chain.display());
    let serial = outside.run("sh", &["-c", &script]).success();
    let serial = serial.trim().trim_start_matches("serial=");
    let list = revocation_list(&lab, &outside, &[serial]);
    std::fs::write(lab.ca().join("crl.pem"), list).expect("written");
    client.until("refused", "it is revoked");
    assert!(client.ask().starts_with("refused"), "also the next time");
}
