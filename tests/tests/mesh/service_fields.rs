//! What a Kubernetes Service says of its clients: where they may go, by which addresses, and
//! whether they stay there.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, Process, Workload, eventually, workload_entries};

/// Tells each connection who answers.
const NAMED: &str = r#"
import socket, sys
listener = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
while True:
    connection, _ = listener.accept()
    connection.sendall(sys.argv[1].encode() + b"\n")
    connection.close()
"#;

/// Who answers `count` connections, one after the other.
const ASK: &str = r#"
import socket, sys
for _ in range(int(sys.argv[3])):
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
    print((connection.recv(64) or b"nobody").decode().strip())
"#;

const PYTHON: &str = "/usr/bin/python3";

struct Mesh {
    _agents: [Agent; 2],
    _servers: Vec<Process>,
    clients: [Workload; 2],
    lab: Lab,
}

/// Two clients and three servers on two nodes.
fn start(more: &str) -> Mesh {
    let lab = Lab::new();
    let of = |node, name: &str| lab.workload(node, name, &[("app", &name[..3])]);
    let clients = [of(Node::A, "client-a"), of(Node::B, "client-b")];
    let servers = [
        of(Node::A, "web-1"),
        of(Node::A, "web-2"),
        of(Node::B, "web-3"),
    ];
    let processes = servers.iter().map(|server| {
        let script = server.file("named.py", NAMED);
        server.serve(9000, PYTHON, &[&*script.to_string_lossy(), &server.name])
    });
    let processes = processes.collect();
    let all: Vec<_> = clients.iter().chain(&servers).collect();
    lab.configure("workloads.yaml", &workload_entries(&all));
    service(&lab, more);
    let agents = [Node::A, Node::B].map(|node| Agent::start(&lab, node));
    Mesh {
        _agents: agents,
        _servers: processes,
        clients,
        lab,
    }
}

fn service(lab: &Lab, more: &str) {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.60, selector: {{app: web}}, \
         ports: [{{name: tcp, port: 9000}}]{more}}}\n"
    );
    lab.configure("service.yaml", &text);
}

fn asked(client: &Workload, host: &str, count: u32) -> BTreeSet<String> {
    let script = client.file("ask.py", ASK);
    let said = client.run(
        PYTHON,
        &[&*script.to_string_lossy(), host, "9000", &count.to_string()],
    );
    said.success().lines().map(str::to_owned).collect()
}

#[test]
fn a_client_stays_with_its_endpoint_until_it_is_silent() {
    let mesh = start("");
    let client = &mesh.clients[0];
    assert_eq!(asked(client, "10.96.0.60", 60).len(), 3);
    let timeout =
        ", sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}";
    service(&mesh.lab, timeout);
    let mut stays = None;
    eventually(Duration::from_secs(10), "a session", || {
        let answers = asked(client, "10.96.0.60", 40);
        if answers.len() == 1 {
            stays = answers.into_iter().next();
            Ok(())
        } else {
            Err(format!("{answers:?}"))
        }
    });
    // After a second of silence any endpoint may be chosen.
    eventually(Duration::from_secs(60), "another endpoint", || {
        std::thread::sleep(Duration::from_millis(1100));
        let answers = asked(client, "10.96.0.60", 1);
        let other = answers.into_iter().next();
        if other == stays {
            Err("the same endpoint".to_owned())
        } else {
            Ok(())
        }
    });
}

#[test]
fn traffic_can_stay_on_its_node() {
    let mesh = start(", internalTrafficPolicy: Local");
    let [a, b] = &mesh.clients;
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(asked(a, "10.96.0.60", 40), names(&["web-1", "web-2"]));
    assert_eq!(asked(b, "10.96.0.60", 20), names(&["web-3"]));
}

#[test]
fn an_external_address_leads_to_its_service() {
    let mesh = start(", externalIPs: [192.0.2.60, 'fd77:60::1']");
    let [a, _] = &mesh.clients;
    for address in ["192.0.2.60", "fd77:60::1"] {
        assert_eq!(asked(a, address, 60).len(), 3, "{address}");
    }
}
