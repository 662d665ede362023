//! AuthorizationPolicy: who may reach what, between nodes, on one node, and
//! from outside of the mesh.

use std::time::Duration;

use mesh_tests::{
    Agent, Conversation, Lab, Node, Process, Reply, ServicePort, Workload, eventually, service,
    wait_until, workload_entries,
};

/// How long a change of policy may take until it holds.
const LIVE: Duration = Duration::from_secs(5);

/// `friend` and `stranger` on node a ask `near` on node a and `far` on node b,
/// each of which serves HTTP on port 80 and echoes on port 90; `outside` is not in the mesh.
struct Shop {
    a: Agent,
    b: Agent,
    _servers: Vec<Process>,
    friend: Workload,
    stranger: Workload,
    outside: Workload,
    near: Workload,
    far: Workload,
    lab: Lab,
}

impl Shop {
    fn start() -> Self {
        let lab = Lab::new();
        let workload = |node, name| lab.workload(node, name, &[("app", name)]);
        let (friend, stranger) = (workload(Node::A, "friend"), workload(Node::A, "stranger"));
        let (near, far) = (workload(Node::A, "near"), workload(Node::B, "far"));
        let outside = lab.workload(Node::Outside, "outside", &[]);
        let mut servers = Vec::new();
        for server in [&near, &far] {
            servers.push(server.serve(9080, "bookinfo", &["details"]));
            servers.push(server.serve(9090, "bookinfo", &["echo", "--listen", "[::]:9090"]));
        }
        let all = [&friend, &stranger, &near, &far];
        lab.configure("workloads.yaml", &workload_entries(&all));
        for (name, host) in [("near", 40), ("far", 41)] {
            let port = |name, port, target| ServicePort { name, port, target };
            let ports = [port("http", 80, 9080), port("tcp", 90, 9090)];
            lab.configure(&format!("{name}.yaml"), &service(name, host, &ports));
        }
        let shop = Self {
            a: Agent::start(&lab, Node::A),
            b: Agent::start(&lab, Node::B),
            _servers: servers,
            friend,
            stranger,
            outside,
            near,
            far,
            lab,
        };
        for url in ["http://near/", "http://far/"] {
            shop.until(&shop.friend, &[url], 200);
        }
        shop
    }

    /// Configurations that are in force.
    fn generations(&self) -> [Option<u64>; 2] {
        [&self.a, &self.b].map(|agent| agent.meshctl_json(&["config"])["generation"].as_u64())
    }

    /// Puts a policy for both servers in force, and waits until both nodes say that it is:
    /// what it forbids has ended then.
    fn acknowledged(&self, spec: &str) {
        let before = self.generations();
        self.policy(spec);
        let both = || {
            let now = self.generations();
            now.iter().zip(before).all(|(now, before)| *now > before)
        };
        assert!(wait_until(LIVE, both), "{:?}", self.generations());
    }

    /// Configures a policy for both servers.
    fn policy(&self, spec: &str) {
        let document = |name: &str| {
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: {name}}}\nspec: {{selector: {{matchLabels: {{app: {name}}}}}, {spec}}}\n"
            )
        };
        self.lab
            .configure("policy.yaml", &(document("near") + &document("far")));
    }

    fn until(&self, from: &Workload, arguments: &[&str], status: u16) -> Reply {
        let mut last = None;
        eventually(LIVE, "the policy holds", || {
            let reply = from.curl(arguments);
            let right = reply.status == status;
            let said = format!("{arguments:?}: {reply:?}");
            last = Some(reply);
            if right { Ok(()) } else { Err(said) }
        });
        last.expect("there was a reply")
    }
}

#[test]
fn only_who_is_allowed_passes_on_one_node_and_between_nodes() {
    let shop = Shop::start();
    shop.policy("rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/friend]}}]}]");
    for url in ["http://near/", "http://far/"] {
        let denied = shop.until(&shop.stranger, &[url], 403);
        assert_eq!(denied.body.trim_end(), "RBAC: access denied");
        assert_eq!(shop.friend.curl(&[url]).status, 200);
    }
    for server in [&shop.near, &shop.far] {
        // Without an identity, and without a service that declares HTTP.
        let address = format!("http://{}:9080/", server.v4);
        let reply = shop.outside.curl(&[&address]);
        assert!(
            reply.status == 0 && reply.body.is_empty(),
            "a reset, before or after the first byte: {reply:?}"
        );
        let reply = shop.stranger.curl(&[&address]);
        assert_eq!(reply.status, 0, "{reply:?}");
        assert_eq!(shop.friend.curl(&[&address]).status, 200);
    }
    let report = shop.a.meshctl(&["authz", "report"]).success();
    assert!(
        report.contains("near.default")
            && report.contains("spiffe://cluster.local/ns/default/sa/stranger"),
        "{report}"
    );
}

#[test]
fn requests_are_allowed_and_denied_one_by_one() {
    let shop = Shop::start();
    shop.policy(
        "action: DENY, rules: [{to: [{operation: {paths: [\"/admin*\"], ports: [\"9080\"]}}]}, \
         {to: [{operation: {methods: [DELETE], ports: [\"9080\"]}}], \
          from: [{source: {namespaces: [default]}}]}]",
    );
    let by_address = format!("http://{}:9080", shop.near.v4);
    for (client, base) in [
        (&shop.friend, "http://near"),
        (&shop.friend, "http://far"),
        (&shop.friend, by_address.as_str()),
        (&shop.outside, by_address.as_str()),
    ] {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let ask = |path: &str, status| {
                let url = format!("{base}{path}");
                shop.until(client, &[version, "--path-as-is", &url], status)
            };
            let denied = ask("/admin", 403);
            assert_eq!(denied.body, "RBAC: access denied");
            ask("/x/../admin", 403);
            ask("/%61dmin?x", 403);
            ask("/", 200);
            let seen = ask("/x/.././headers?a=/../b", 200);
            assert!(seen.body.contains("/headers?a=/../b"), "{seen:?}");
        }
        let posted = client.curl(&["--data-binary", "some bytes", &format!("{base}/echo")]);
        assert_eq!((posted.status, posted.body.as_str()), (200, "some bytes"));
        let deleted = client.curl(&["-X", "DELETE", &format!("{base}/")]);
        let expected = if client.name == "outside" { 200 } else { 403 };
        assert_eq!(deleted.status, expected, "{deleted:?}");
    }
    let peer = shop.friend.curl(&["-4", "http://far/peer"]);
    assert!(
        peer.body.contains(&shop.friend.v4.to_string()),
        "the application sees the true client through the filter: {peer:?}"
    );
    // Several requests over one connection, some of them denied.
    let urls = [
        "http://near/",
        "http://near/admin",
        "http://near/",
        "http://near/",
    ];
    let said = shop.friend.run(
        "curl",
        &[
            &["-s", "-w", "%{http_code},%{num_connects}\n"][..],
            &urls.map(|u| u),
        ]
        .concat()
        .into_iter()
        .flat_map(|word| {
            if word.starts_with("http") {
                vec!["-o", "/dev/null", word]
            } else {
                vec![word]
            }
        })
        .collect::<Vec<_>>(),
    );
    assert_eq!(said.stdout, "200,1\n403,0\n200,0\n200,0\n", "{said:?}");
}

#[test]
fn an_attribute_of_http_closes_a_tcp_port() {
    let shop = Shop::start();
    shop.policy("action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]");
    for name in ["near", "far"] {
        shop.until(
            &shop.friend,
            &["-X", "DELETE", &format!("http://{name}/")],
            403,
        );
        let mut connection = Connection::open(&shop.friend, name);
        assert_eq!(connection.say("hello"), None, "{name}: port 90 is TCP");
    }
}

/// Connects, and asks only after a while: later than a server that speaks first would have
/// spoken, as a client far away or one that connects in advance does.
const LATE: &str = r#"
import socket, sys, time
host, port, method = sys.argv[1:]
s = socket.create_connection((host, int(port)), 5)
time.sleep(0.4)
try:
    s.sendall(f"{method} / HTTP/1.1\r\nHost: late\r\nConnection: close\r\n\r\n".encode())
    print(s.recv(100).decode().split(" ")[1])
except (OSError, IndexError):
    print("closed")
"#;

#[test]
fn a_client_that_asks_late_is_judged_by_what_it_asks() {
    let shop = Shop::start();
    let _servers = [&shop.near, &shop.far]
        .map(|at| at.serve(9081, "bookinfo", &["details", "--listen", "[::]:9081"]));
    // Nothing says that the port speaks HTTP.
    let web = [ServicePort {
        name: "web",
        port: 80,
        target: 9081,
    }];
    for (name, host) in [("near", 42), ("far", 43)] {
        let named = service(name, host, &web).replace("name: near", "name: late-near");
        let named = named.replace("name: far", "name: late-far");
        shop.lab.configure(&format!("late-{name}.yaml"), &named);
    }
    shop.acknowledged("rules: [{to: [{operation: {methods: [GET]}}]}]");
    let ask = |from: &Workload, to: &str, port: &str, method: &str| {
        let said = from.run("/usr/bin/python3", &["-c", LATE, to, port, method]);
        said.success().trim().to_owned()
    };
    let (near, far) = (shop.near.v4.to_string(), shop.far.v4.to_string());
    for (from, to, port) in [
        (&shop.friend, "late-near", "80"),
        (&shop.friend, "late-far", "80"),
        (&shop.outside, &*near, "9081"),
        (&shop.outside, &*far, "9081"),
    ] {
        assert_eq!(ask(from, to, port, "GET"), "200", "{} {to}", from.name);
        assert_eq!(ask(from, to, port, "POST"), "403", "{} {to}", from.name);
    }
}

/// An open connection to the echo server of a service.
struct Connection(Conversation);

impl Connection {
    fn open(from: &Workload, name: &str) -> Self {
        let script = format!(
            "import socket, sys\n\
             s = socket.create_connection(('{name}', 90))\n\
             for line in sys.stdin:\n\
             \ttry:\n\
             \t\ts.sendall(line.encode())\n\
             \t\tgot = s.recv(100).decode()\n\
             \t\tprint(got.strip() or 'END', flush=True)\n\
             \texcept OSError as e:\n\
             \t\tprint('ERROR', e, flush=True)\n"
        );
        let mut python = from.command("/usr/bin/python3");
        Self(Conversation::start(python.args(["-c", &script])))
    }

    /// What comes back; `None` where the connection is gone.
    fn say(&mut self, text: &str) -> Option<String> {
        let line = self.0.ask(text);
        (!line.is_empty() && line != "END" && !line.starts_with("ERROR")).then_some(line)
    }
}

#[test]
fn a_change_of_policy_closes_open_connections_that_it_forbids_and_no_other() {
    let shop = Shop::start();
    for name in ["near", "far"] {
        let mut friend = Connection::open(&shop.friend, name);
        let mut stranger = Connection::open(&shop.stranger, name);
        assert_eq!(friend.say("one").as_deref(), Some("one"));
        assert_eq!(stranger.say("one").as_deref(), Some("one"));
        shop.acknowledged(
            "action: DENY, rules: [{from: [{source: {serviceAccounts: [stranger]}}]}]",
        );
        let denied = shop.stranger.curl(&[&format!("http://{name}/")]);
        assert_eq!(denied.status, 403, "{denied:?}");
        assert_eq!(stranger.say("two"), None, "{name}");
        assert_eq!(friend.say("two").as_deref(), Some("two"), "{name}");
        shop.lab.unconfigure("policy.yaml");
        shop.until(&shop.stranger, &[&format!("http://{name}/")], 200);
        assert_eq!(friend.say("three").as_deref(), Some("three"), "{name}");
    }
}

#[test]
fn a_dry_run_denies_nobody_and_says_whom_it_would() {
    let shop = Shop::start();
    shop.lab.configure(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: p, annotations: {istio.io/dry-run: \"true\"}}\n\
         spec: {selector: {matchLabels: {app: near}}, action: DENY, \
         rules: [{from: [{source: {serviceAccounts: [stranger]}}], to: [{operation: {methods: [GET]}}]}]}\n",
    );
    eventually(LIVE, "the report names the stranger", || {
        assert_eq!(shop.stranger.curl(&["http://near/"]).status, 200);
        assert_eq!(shop.friend.curl(&["http://near/"]).status, 200);
        let report = shop.a.meshctl(&["authz", "report"]).success();
        let line = report.lines().find(|line| line.contains("/sa/stranger"));
        match line {
            Some(line) if line.contains("would be denied") && line.contains("default/p") => Ok(()),
            _ => Err(report),
        }
    });
    let report = shop.a.meshctl(&["authz", "report"]).success();
    assert!(!report.contains("/sa/friend"), "{report}");
}

#[test]
fn a_policy_that_is_not_valid_changes_nothing() {
    let shop = Shop::start();
    shop.policy("action: DENY, rules: [{from: [{source: {serviceAccounts: [stranger]}}]}]");
    shop.until(&shop.stranger, &["http://near/"], 403);
    shop.policy("action: DENY, rules: [{from: [{source: {serviceAcounts: [stranger]}}]}]");
    eventually(LIVE, "the error is told", || {
        let said = shop.a.meshctl(&["config"]).stdout;
        let wanted = [
            "policy.yaml",
            "serviceAcounts",
            "AuthorizationPolicy default/near",
        ];
        if wanted.iter().all(|word| said.contains(word)) {
            Ok(())
        } else {
            Err(said)
        }
    });
    assert_eq!(shop.stranger.curl(&["http://near/"]).status, 403);
    assert_eq!(shop.friend.curl(&["http://near/"]).status, 200);
}

#[test]
fn tokens_that_nobody_verifies_allow_nothing_and_all_else_is_in_force() {
    let shop = Shop::start();
    shop.lab.configure(
        "jwt.yaml",
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: jwt}\n\
         spec: {selector: {matchLabels: {app: near}}, jwtRules: [{issuer: a, jwksUri: \"http://nowhere/\"}]}\n",
    );
    let token = ["-H", "Authorization: Bearer e30.e30.e30", "http://near/"];
    // Also with a token: its claims are not known. What needs none is in force.
    shop.policy("rules: [{from: [{source: {requestPrincipals: [\"*\"]}}]}, {to: [{operation: {paths: [/health]}}]}]");
    shop.until(&shop.friend, &token, 403);
    let reply = shop.friend.curl(&["http://near/health"]);
    assert_eq!(reply.status, 200, "{reply:?}");
    // A DENY rule leaves the claim out, and so denies more.
    shop.policy(
        "action: DENY, rules: [{from: [{source: {notRequestPrincipals: [\"*\"]}}], to: [{operation: {methods: [GET]}}]}]",
    );
    shop.until(&shop.friend, &["http://near/health"], 403);
    shop.until(&shop.friend, &token, 403);
    let said = shop.a.meshctl(&["config"]).success();
    assert!(
        said.contains(
            "RequestAuthentication is not applied by this version: tokens are not verified"
        ),
        "{said}"
    );
    assert!(said.contains("claims of JWTs are not applied"), "{said}");
    shop.lab.unconfigure("policy.yaml");
    shop.until(&shop.friend, &token, 200);
}
