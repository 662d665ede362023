//! Where policies are in force and requests are made: our agent, and Envoy.

use std::path::Path;
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};
use serde_json::{Value, json};

use super::{DESTINATION, PORT, TCP_PORT, translate};

/// Asks each of the requests of a file by a connection of its own; prints
/// `allow`, `deny` (403, or an end without an answer) or the status.
const CLIENT: &str = r#"
import json, socket, ssl, sys
host, port, file, chain, key = sys.argv[1:]
context = None
if chain != "plain":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if chain != "-": context.load_cert_chain(chain, key)
for request in json.load(open(file)):
    lines = [request["method"] + " " + request["path"] + " HTTP/1.1", "Host: " + request["host"], "Connection: close"]
    lines += [name + ": " + value for name, value in request["headers"]]
    answer = b""
    try:
        connection = socket.create_connection((host, int(port)), 10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context: connection = context.wrap_socket(connection)
        connection.settimeout(10)
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while b"\r\n\r\n" not in answer and (data := connection.recv(65536)): answer += data
        connection.close()
    except ConnectionError: pass
    status = answer.split(b" ")[1].decode() if answer else "403"
    if b"grpc-status: 7" in answer: status = "403"
    print({"200": "allow", "404": "allow", "405": "allow", "403": "deny"}.get(status, status), flush=True)
"#;

/// Connects to each address; prints `allow` where what is said comes back, and `deny` otherwise.
const TCP_CLIENT: &str = r#"
import socket, ssl, sys
port, chain, key = sys.argv[1:4]
context = None
if chain != "plain":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if chain != "-": context.load_cert_chain(chain, key)
for address in sys.argv[4:]:
    answer = b""
    try:
        connection = socket.create_connection((address, int(port)), 10)
        if context: connection = context.wrap_socket(connection)
        connection.settimeout(10)
        connection.sendall(b"hello\n")
        answer = connection.recv(100)
        connection.close()
    except ConnectionError: pass
    print({b"hello\n": "allow", b"": "deny"}.get(answer, repr(answer)), flush=True)
"#;

const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// How Envoy normalises paths, as Istio tells it to.
pub struct Normalization {
    pub flag: &'static str,
    pub merge_slashes: bool,
    pub escaped_slashes: &'static str,
}

pub fn envoy_configuration(
    lab: &Lab,
    place: &Workload,
    sets: &[Vec<Value>],
    how: &Normalization,
) -> String {
    let (chain, key) = lab.certificate("envoy", place);
    let filter = |name: &str| json!({"name": name, "typed_config": {"@type": format!("{HTTP}.rbac.v3.RBAC")}});
    let routes: Vec<Value> = sets
        .iter()
        .enumerate()
        .map(|(number, policies)| {
            let mut of_set = serde_json::Map::new();
            for action in ["DENY", "ALLOW"] {
                if let Some(rbac) = translate::filter(policies, action) {
                    let per_route = json!({"@type": format!("{HTTP}.rbac.v3.RBACPerRoute"), "rbac": rbac});
                    of_set.insert(action.to_owned(), per_route);
                }
            }
            json!({
                "match": {"prefix": "/", "headers": [{"name": "x-set", "string_match": {"exact": number.to_string()}}]},
                "direct_response": {"status": 200},
                "typed_per_filter_config": of_set,
            })
        })
        .collect();
    let configuration = json!({"static_resources": {"listeners": [{
        "name": "web",
        "address": {"socket_address": {"address": place.v4.to_string(), "port_value": PORT}},
        "filter_chains": [{
            "transport_socket": downstream_tls(lab, &chain, &key),
            "filters": [{"name": "http", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "web",
                "normalize_path": true,
                "merge_slashes": how.merge_slashes,
                "path_with_escaped_slashes_action": how.escaped_slashes,
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
                "http_filters": [filter("DENY"), filter("ALLOW"),
                    {"name": "router", "typed_config": {"@type": format!("{HTTP}.router.v3.Router")}}],
            }}],
        }],
    }]}});
    configuration
        .to_string()
        .replace(DESTINATION, &place.v4.to_string())
}

/// What Istio makes of policies for a TCP port: a listener that echoes to whom they let in.
pub fn tcp_listener(lab: &Lab, place: &Workload, address: &str, policies: &[Value]) -> Value {
    const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";
    let (chain, key) = lab.certificate("envoy", place);
    let policies = translate::without_http(policies);
    let mut filters = Vec::new();
    for action in ["DENY", "ALLOW"] {
        if let Some(rbac) = translate::filter(&policies, action) {
            filters.push(json!({"name": action, "typed_config": {
                "@type": format!("{NETWORK}.rbac.v3.RBAC"), "stat_prefix": action, "rules": rbac["rules"],
            }}));
        }
    }
    filters.push(
        json!({"name": "echo", "typed_config": {"@type": format!("{NETWORK}.echo.v3.Echo")}}),
    );
    let listener = json!({
        "name": address,
        "address": {"socket_address": {"address": address, "port_value": TCP_PORT}},
        "filter_chains": [{"transport_socket": downstream_tls(lab, &chain, &key), "filters": filters}],
    });
    let text = listener.to_string().replace(DESTINATION, address);
    serde_json::from_str(&text).expect("JSON")
}

fn downstream_tls(lab: &Lab, chain: &Path, key: &Path) -> Value {
    json!({"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_certificates": [{"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}],
            "validation_context": {"trusted_ca": {"filename": lab.ca().join("root-cert.pem")}},
        },
    }})
}

/// `web` behind our agent, which serves HTTP and TCP, and its clients: `alice` and `bob` on its
/// node and `carol` on another have identities, `nobody` has none.
pub struct World {
    pub agent: Agent,
    other: Agent,
    pub web: Workload,
    pub clients: Vec<Workload>,
    _servers: [Process; 2],
    pub lab: Lab,
}

impl World {
    pub fn start(how: &Normalization) -> Self {
        let lab = Lab::new();
        let web = lab.workload(Node::A, "web", &[("app", "web")]);
        let alice = lab.workload(Node::A, "alice", &[("app", "alice")]);
        let bob = lab
            .workload(Node::A, "bob", &[("app", "bob")])
            .in_namespace("shop");
        let carol = lab
            .workload(Node::B, "carol", &[("app", "carol")])
            .in_namespace("prod");
        let nobody = lab.workload(Node::Outside, "nobody", &[]);
        let tcp_address = format!("[::]:{TCP_PORT}");
        let servers = [
            web.serve(PORT, "bookinfo", &["details"]),
            web.serve(TCP_PORT, "bookinfo", &["echo", "--listen", &tcp_address]),
        ];
        let all = [&web, &alice, &bob, &carol];
        lab.configure("workloads.yaml", &workload_entries(&all));
        let port = |name, port, target| ServicePort { name, port, target };
        let ports = [port("http", 80, PORT), port("tcp", 90, TCP_PORT)];
        lab.configure("web.yaml", &service("web", 40, &ports));
        let agent = |node| Agent::start_with(&lab, node, &["--path-normalization", how.flag]);
        Self {
            agent: agent(Node::A),
            other: agent(Node::B),
            web,
            clients: vec![alice, bob, carol, nobody],
            _servers: servers,
            lab,
        }
    }

    pub fn client(&self, name: &str) -> &Workload {
        let mut clients = self.clients.iter();
        clients.find(|client| client.name == name).expect(name)
    }

    fn generations(&self) -> [u64; 2] {
        [&self.agent, &self.other].map(|agent| {
            let config = agent.meshctl_json(&["config"]);
            assert!(config["refused"].is_null(), "{config}");
            config["generation"].as_u64().expect("a number")
        })
    }

    /// Puts policies in force, and waits until they are.
    pub fn apply(&self, policies: &[Value]) {
        let documents: Vec<Value> = policies
            .iter()
            .enumerate()
            .map(|(number, spec)| {
                json!({
                    "apiVersion": "security.istio.io/v1",
                    "kind": "AuthorizationPolicy",
                    "metadata": {"name": format!("policy-{number}")},
                    "spec": spec,
                })
            })
            .collect();
        self.apply_documents(&documents);
    }

    /// The same of whole documents.
    pub fn apply_documents(&self, documents: &[Value]) {
        let before = self.generations();
        let documents: Vec<String> = documents.iter().map(Value::to_string).collect();
        let text = documents
            .join("\n---\n")
            .replace(DESTINATION, &self.web.v4.to_string());
        self.lab.configure("policies.yaml", &(text + "\n"));
        eventually(
            Duration::from_secs(10),
            "the policies are in force",
            || match self.generations() {
                now if now.iter().zip(before).all(|(now, before)| *now > before) => Ok(()),
                now => Err(format!("{now:?}")),
            },
        );
    }

    /// What becomes of a TCP connection of each client to each of the addresses.
    pub fn tcp_outcomes(
        &self,
        addresses: &[String],
        proof: impl Fn(&Workload) -> [String; 2],
    ) -> Vec<String> {
        let port = TCP_PORT.to_string();
        let of_client = |client: &Workload| {
            let [chain, key] = proof(client);
            let mut words = vec!["-c", TCP_CLIENT, &port, &chain, &key];
            words.extend(addresses.iter().map(String::as_str));
            let said = client.run("/usr/bin/python3", &words).success();
            let lines: Vec<String> = said.lines().map(str::to_owned).collect();
            assert_eq!(lines.len(), addresses.len(), "{said}");
            lines
        };
        self.clients.iter().flat_map(of_client).collect()
    }

    /// What becomes of the requests, in their order.
    pub fn outcomes(
        &self,
        requests: &[Value],
        at: &Workload,
        proof: impl Fn(&Workload) -> [String; 2],
    ) -> Vec<String> {
        let mut outcomes = vec![String::new(); requests.len()];
        for client in &self.clients {
            let own: Vec<usize> = (0..requests.len())
                .filter(|at| requests[*at]["client"] == client.name)
                .collect();
            let list: Vec<&Value> = own.iter().map(|at| &requests[*at]).collect();
            let file = client.file("requests", &json!(list).to_string());
            let (file, [chain, key]) = (file.to_string_lossy(), proof(client));
            let (host, port) = (at.v4.to_string(), PORT.to_string());
            let said = client
                .run(
                    "/usr/bin/python3",
                    &["-c", CLIENT, &host, &port, &file, &chain, &key],
                )
                .success();
            let lines: Vec<&str> = said.lines().collect();
            assert_eq!(lines.len(), own.len(), "{said}");
            for (at, line) in own.into_iter().zip(lines) {
                outcomes[at] = line.to_owned();
            }
        }
        outcomes
    }
}
