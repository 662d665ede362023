//! A connection that the agent refuses is in the account as one that the kernel refuses: with the
//! verdict deny, at both ends as far as they are of the node, and an event that says so.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};
use serde_json::Value;

use crate::bookinfo::peer_authentication;
use crate::bpftool::bpftool;
use crate::held::{HELD, Held};

/// Within which the account has what has happened, and a change is in force.
const SOON: Duration = Duration::from_secs(10);
const VIP: &str = "10.96.0.50";
const CLUSTER: &str = "spiffe://cluster.local/ns/default/sa/";
/// `VerdictKind::Deny` in the map `flows`.
const DENY: u64 = 3;

/// Connects and says a word: what comes of it.
const TALK: &str = r#"
import errno, socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
    s.sendall(b"word")
    print("heard" if s.recv(4) else "end")
except OSError as error:
    print(errno.errorcode[error.errno])
"#;

/// `web` and `near` on node a, `far` on node b, `outside` in no mesh.
struct Mesh {
    a: Agent,
    b: Agent,
    _servers: [Process; 2],
    near: Workload,
    far: Workload,
    outside: Workload,
    web: Workload,
    lab: Lab,
}

impl Mesh {
    fn start() -> Self {
        let lab = Lab::new();
        let web = lab.workload(Node::A, "web", &[("app", "web")]);
        let near = lab.workload(Node::A, "near", &[("app", "near")]);
        let far = lab.workload(Node::B, "far", &[("app", "far")]);
        let outside = lab.workload(Node::Outside, "outside", &[]);
        let servers = [
            web.serve(7000, "python3", &[HELD, "serve", "7000"]),
            web.serve(9080, "bookinfo", &["reviews", "--version", "v1"]),
        ];
        lab.configure("workloads.yaml", &workload_entries(&[&web, &near, &far]));
        let ports = [("tcp", 70, 7000), ("any", 71, 7000), ("http", 80, 9080)];
        let ports = ports.map(|(name, port, target)| ServicePort { name, port, target });
        lab.configure("service.yaml", &service("web", 50, &ports));
        Self {
            a: Agent::start(&lab, Node::A),
            b: Agent::start(&lab, Node::B),
            _servers: servers,
            near,
            far,
            outside,
            web,
            lab,
        }
    }

    /// Puts a file in force on both nodes.
    fn change(&self, file: &str, text: &str) {
        let generations = || {
            [&self.a, &self.b].map(|agent| agent.meshctl_json(&["config"])["generation"].as_u64())
        };
        let before = generations();
        self.lab.configure(file, text);
        eventually(SOON, file, || {
            let now = generations();
            match now[0] > before[0] && now[1] > before[1] {
                true => Ok(()),
                false => Err(format!("{now:?}")),
            }
        });
    }

    /// A policy of `web` with one rule.
    fn policy(&self, action: &str, rule: &str) {
        self.change(
            "policy.yaml",
            &format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\n\
                 spec: {{selector: {{matchLabels: {{app: web}}}}, action: {action}, rules: [{{{rule}}}]}}\n"
            ),
        );
    }

    /// The record of a refused connection that `of` picks: the kernel's own, which `meshctl` shows.
    fn is_denied(&self, node: Node, of: &dyn Fn(&Value) -> bool, reason: &str) {
        let agent = match node {
            Node::B => &self.b,
            _ => &self.a,
        };
        let pin = self.lab.bpffs(node).join("flows");
        let what = format!("a refused connection on node {}", node.name());
        let mut found = Value::Null;
        eventually(SOON, &what, || {
            let flows = agent.meshctl_json(&["flows"]);
            let mut all = flows.as_array().into_iter().flatten();
            let flow = all.find(|flow| of(flow) && flow["state"] == "closed");
            found = flow.cloned().ok_or_else(|| flows.to_string())?;
            Ok(())
        });
        assert_eq!(found["verdict"], "deny", "{found}");
        assert_eq!(found["reason"], reason, "{found}");
        let dump = bpftool(&["map", "dump", "pinned", &pin.to_string_lossy()]);
        let mut entries = dump.as_array().into_iter().flatten();
        let entry = entries.find(|entry| entry["formatted"]["key"] == found["id"]);
        let entry = &entry.expect("a record of the kernel")["formatted"]["value"];
        assert_eq!(entry["verdict"], DENY, "{entry}");
    }
}

/// The client's end of connections of a service account to a port.
fn outbound(account: &str, port: u16) -> impl Fn(&Value) -> bool {
    let destination = format!("{VIP}:{port}");
    let source = format!("{CLUSTER}{account}");
    move |flow| {
        flow["direction"] == "outbound"
            && flow["destination"] == destination
            && flow["source_identity"] == source
    }
}

/// The server's end.
fn inbound(account: Option<&str>, web: &Workload, port: u16) -> impl Fn(&Value) -> bool {
    let destination = format!("{}:{port}", web.v4);
    let source = account.map(|account| format!("{CLUSTER}{account}"));
    move |flow| {
        flow["direction"] == "inbound"
            && flow["destination"] == destination
            && flow["source_identity"].as_str() == source.as_deref()
    }
}

fn talk(from: &Workload, address: &str, port: &str) -> String {
    let said = from.run("python3", &["-c", TALK, address, port]);
    said.success().trim().to_owned()
}

/// Events that say so, as the agent has taken them, and the count that people see.
fn told(agent: &Agent) -> (usize, String) {
    let log = agent.log();
    let events = log.matches(" connection refused ").count();
    let check = agent.meshctl(&["check"]).stdout;
    let line = check.lines().find(|line| line.contains("in the account"));
    let denied = line.and_then(|line| Some(line.split(", ").last()?.to_owned()));
    (events, denied.unwrap_or_default())
}

fn are_told(agent: &Agent, events: usize, denied: &str) {
    eventually(SOON, "events of refused connections", || {
        let now = told(agent);
        match now.0 == events && now.1 == denied {
            true => Ok(()),
            false => Err(format!(
                "{now:?}, not {events}, {denied}: {}",
                agent.meshctl(&["flows"]).stdout
            )),
        }
    });
}

#[test]
fn what_a_policy_refuses_has_the_verdict_deny_at_both_ends() {
    let mesh = Mesh::start();
    let web = &mesh.web;
    // On a port that declares nothing only what is said can tell, so that the kernel has no verdict of its own.
    mesh.policy("ALLOW", "to: [{operation: {methods: [GET]}}]");
    assert_eq!(talk(&mesh.near, VIP, "71"), "ECONNRESET");
    mesh.is_denied(Node::A, &outbound("near", 71), "by policy");
    mesh.is_denied(Node::A, &inbound(Some("near"), web, 7000), "by policy");
    // One connection with two ends.
    are_told(&mesh.a, 2, "1 denied");

    mesh.policy("DENY", "from: [{source: {serviceAccounts: [far]}}]");
    assert_eq!(talk(&mesh.far, VIP, "70"), "ECONNRESET");
    mesh.is_denied(Node::B, &outbound("far", 70), "by policy");
    mesh.is_denied(Node::A, &inbound(Some("far"), web, 7000), "by policy");
    are_told(&mesh.b, 1, "1 denied");
    are_told(&mesh.a, 3, "2 denied");

    // On a port of HTTP the client gets an answer, but not the application's.
    assert_eq!(mesh.far.curl(&[&format!("http://{VIP}:80/")]).status, 403);
    mesh.is_denied(Node::B, &outbound("far", 80), "by policy");
    mesh.is_denied(Node::A, &inbound(Some("far"), web, 9080), "by policy");
}

#[test]
fn what_requests_are_refused_for_is_in_the_account_of_the_server() {
    let mesh = Mesh::start();
    let web = &mesh.web;
    mesh.policy("DENY", "to: [{operation: {paths: ['/admin']}}]");
    let base = format!("http://{VIP}:80");
    for client in [&mesh.near, &mesh.far] {
        assert_eq!(client.curl(&[&format!("{base}/admin")]).status, 403);
    }
    for account in ["near", "far"] {
        mesh.is_denied(Node::A, &inbound(Some(account), web, 9080), "by policy");
    }
    // What may pass is a flow as ever.
    assert_eq!(mesh.far.curl(&[&base]).status, 200);
    let allowed = outbound("far", 80);
    eventually(SOON, "the flow that was let through", || {
        let flows = mesh.b.meshctl_json(&["flows"]);
        let mut all = flows.as_array().into_iter().flatten();
        match all.any(|flow| allowed(flow) && flow["verdict"] == "proxy") {
            true => Ok(()),
            false => Err(flows.to_string()),
        }
    });
}

#[test]
fn plaintext_that_is_refused_has_the_verdict_deny() {
    let mesh = Mesh::start();
    mesh.change("strict.yaml", &peer_authentication("STRICT"));
    assert_eq!(
        talk(&mesh.outside, &mesh.web.v4.to_string(), "7000"),
        "ECONNRESET"
    );
    mesh.is_denied(Node::A, &inbound(None, &mesh.web, 7000), "by policy");
    are_told(&mesh.a, 1, "1 denied");
}

#[test]
fn what_a_sidecar_keeps_back_or_has_no_room_for_has_the_verdict_deny() {
    let mesh = Mesh::start();
    let web = &mesh.web;
    mesh.change(
        "sidecars.yaml",
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: web}\n\
         spec: {workloadSelector: {labels: {app: web}}, \
         inboundConnectionPool: {tcp: {maxConnections: 1}}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: far}\n\
         spec: {workloadSelector: {labels: {app: far}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}}\n",
    );
    let held = Held::open(&mesh.near, "v4", VIP, 70);
    assert_eq!(talk(&mesh.near, VIP, "70"), "ECONNRESET");
    mesh.is_denied(Node::A, &outbound("near", 70), "refused");
    mesh.is_denied(Node::A, &inbound(Some("near"), web, 7000), "refused");
    are_told(&mesh.a, 2, "1 denied");
    held.close();

    let stranger = mesh.outside.v4.to_string();
    let _server = mesh
        .outside
        .serve(7000, "bookinfo", &["echo", "--listen", "[::]:7000"]);
    assert_eq!(talk(&mesh.far, &stranger, "7000"), "ECONNRESET");
    let destination = format!("{stranger}:7000");
    mesh.is_denied(
        Node::B,
        &|flow| flow["destination"] == destination,
        "by policy",
    );
    let url = format!("http://{stranger}:7001/");
    assert_eq!(mesh.far.curl(&[&url]).status, 502);
    let destination = format!("{stranger}:7001");
    mesh.is_denied(
        Node::B,
        &|flow| flow["destination"] == destination,
        "by policy",
    );
    are_told(&mesh.b, 2, "2 denied");
}
