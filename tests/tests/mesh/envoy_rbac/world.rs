//! Where policies are in force and requests are made: our agent, and Envoy.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};
use serde_json::{Value, json};

use super::{DESTINATION, PORT, translate};

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
        if context: connection = context.wrap_socket(connection)
        connection.settimeout(10)
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while b"\r\n\r\n" not in answer and (data := connection.recv(65536)): answer += data
        connection.close()
    except ConnectionError: pass
    status = answer.split(b" ")[1].decode() if answer else "403"
    print({"200": "allow", "404": "allow", "405": "allow", "403": "deny"}.get(status, status), flush=True)
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
            "transport_socket": {"name": "tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "tls_certificates": [{"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}],
                    "validation_context": {"trusted_ca": {"filename": lab.ca().join("root-cert.pem")}},
                },
            }},
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

/// `web` behind our agent, and its clients: `alice` and `bob` with identities, `nobody` without.
pub struct World {
    agent: Agent,
    pub web: Workload,
    clients: Vec<Workload>,
    _server: Process,
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
        let nobody = lab.workload(Node::Outside, "nobody", &[]);
        let server = web.serve(PORT, "bookinfo", &["details"]);
        lab.configure("workloads.yaml", &workload_entries(&[&web, &alice, &bob]));
        let port = ServicePort {
            name: "http",
            port: 80,
            target: PORT,
        };
        lab.configure("web.yaml", &service("web", 40, &[port]));
        let agent = Agent::start_with(&lab, Node::A, &["--path-normalization", how.flag]);
        Self {
            agent,
            web,
            clients: vec![alice, bob, nobody],
            _server: server,
            lab,
        }
    }

    fn generation(&self) -> u64 {
        let config = self.agent.meshctl_json(&["config"]);
        assert!(config["refused"].is_null(), "{config}");
        config["generation"].as_u64().expect("a number")
    }

    /// Puts policies in force, and waits until they are.
    pub fn apply(&self, policies: &[Value]) {
        let before = self.generation();
        let documents: Vec<String> = policies
            .iter()
            .enumerate()
            .map(|(number, spec)| {
                let policy = json!({
                    "apiVersion": "security.istio.io/v1",
                    "kind": "AuthorizationPolicy",
                    "metadata": {"name": format!("policy-{number}")},
                    "spec": spec,
                });
                policy
                    .to_string()
                    .replace(DESTINATION, &self.web.v4.to_string())
            })
            .collect();
        self.lab
            .configure("policies.yaml", &(documents.join("\n---\n") + "\n"));
        eventually(
            Duration::from_secs(10),
            "the policies are in force",
            || match self.generation() {
                now if now > before => Ok(()),
                now => Err(now.to_string()),
            },
        );
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
