//! Probes of the node itself, which come in the clear, under policies that nobody else in the clear passes.

use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, Process, Workload, eventually, workload_entries};

use crate::hosts::unit_entry;

const PATIENCE: Duration = Duration::from_secs(5);
/// Where the node forwards connections of others to the workload.
const NODE_PORT: &str = "30080";

/// Mutual TLS only, everywhere.
pub const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
    metadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n";
pub const PERMISSIVE: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
    metadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: PERMISSIVE}}\n";
/// One identity alone may talk to anything.
const ALLOW_SLEEP: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
    metadata: {name: sleep-only, namespace: istio-system}\n\
    spec: {rules: [{from: [{source: {serviceAccounts: [default/sleep]}}]}]}\n";

/// `web` on node a, whose own namespace is that of `host`; `outside` is another machine.
struct Stage {
    agent: Agent,
    _server: Process,
    host: Workload,
    web: Workload,
    outside: Workload,
    lab: Lab,
}

impl Stage {
    fn start(more: &[&str]) -> Self {
        let lab = Lab::new();
        let host = lab.workload(Node::A, "host", &[]);
        let web = lab.workload(Node::A, "web", &[("app", "web")]);
        let outside = lab.workload(Node::Outside, "outside", &[]);
        let server = web.serve(9080, "bookinfo", &["details"]);
        let unit = host.in_cgroup("system.slice/client.service");
        let entries = [workload_entries(&[&web]), unit_entry(&unit, "client")];
        lab.configure("workloads.yaml", &entries.concat());
        let agent = Agent::start_in(&lab, Node::A, Some(&host), more).expect("an agent");
        Self {
            agent,
            _server: server,
            host,
            web,
            outside,
            lab,
        }
    }

    /// The node forwards a port to the workload, as for a NodePort: what comes that
    /// way has the node's own address.
    fn forward(&self) {
        let rules = format!(
            "sysctl -qw net.ipv4.ip_forward=1 && \
             iptables -t nat -A PREROUTING -p tcp --dport {NODE_PORT} -j DNAT --to-destination {}:9080 && \
             iptables -t nat -A POSTROUTING -d {} -j MASQUERADE",
            self.web.v4, self.web.v4
        );
        self.host.run("sh", &["-c", &rules]).success();
    }

    fn urls(&self) -> [String; 2] {
        [
            format!("http://{}:9080/peer", self.web.v4),
            format!("http://[{}]:9080/peer", self.web.v6),
        ]
    }

    fn probes_pass(&self) {
        for url in self.urls() {
            let reply = self.host.curl(&[&url]);
            assert_eq!(reply.status, 200, "{reply:?}");
            let own = [self.host.v4.to_string(), self.host.v6.to_string()];
            let seen = own.iter().any(|own| reply.body.contains(own));
            assert!(seen, "the application sees the node: {reply:?}");
        }
    }

    /// Whether each of those in the clear who are not the node's root gets an answer.
    fn others(&self) -> Vec<(&'static str, u16)> {
        let [v4, v6] = self.urls();
        let node_port = format!("http://{}:{NODE_PORT}/peer", self.host.v4);
        let user = [
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "--max-time",
            "10",
            "-w",
            "%{http_code}",
            &v4,
        ];
        let user = self.host.run("setpriv", &user).stdout;
        let id = "0123456789abcdef".repeat(4);
        let container = (self.host).in_cgroup(&format!("system.slice/docker-{id}.scope"));
        vec![
            ("another machine", self.outside.curl(&[&v4]).status),
            ("another machine, IPv6", self.outside.curl(&[&v6]).status),
            (
                "forwarded by the node",
                self.outside.curl(&[&node_port]).status,
            ),
            ("a user of the node", user.parse().expect("a status")),
            (
                "root of a container on the node's network",
                container.curl(&[&v4]).status,
            ),
        ]
    }

    fn others_are(&self, status: u16, when: &str) {
        eventually(PATIENCE, when, || {
            let others = self.others();
            if others.iter().all(|(_, got)| *got == status) {
                Ok(())
            } else {
                Err(format!("{others:?}"))
            }
        });
    }
}

#[test]
fn probes_of_the_node_reach_a_strict_workload_and_nothing_else_in_plaintext_does() {
    let stage = Stage::start(&[]);
    stage.forward();
    stage.others_are(200, "nothing is forbidden yet");
    let forwarded = stage
        .outside
        .curl(&[&format!("http://{}:{NODE_PORT}/peer", stage.host.v4)]);
    assert!(
        forwarded.body.contains(&stage.host.v4.to_string()),
        "it bears the node's address: {forwarded:?}"
    );
    stage.probes_pass();
    // STRICT would cut off the others, not the probes.
    let seen = stage.agent.meshctl_json(&["authn", "plaintext"]);
    let count = |client: String| -> u64 {
        let rows = seen.as_array().expect("rows").iter();
        rows.filter(|row| row["client"] == client)
            .filter_map(|row| row["connections"].as_u64())
            .sum()
    };
    assert!(count(stage.outside.v4.to_string()) > 0, "{seen}");
    assert_eq!(count(stage.host.v6.to_string()), 0, "only probes: {seen}");

    stage.lab.configure("peer-authentication.yaml", STRICT);
    stage.others_are(0, "STRICT");
    stage.probes_pass();
    // Neither does a policy about identities, which a probe has not.
    stage.lab.configure("authorization.yaml", ALLOW_SLEEP);
    stage.lab.configure("peer-authentication.yaml", PERMISSIVE);
    eventually(PATIENCE, "the policies are in force", || {
        let check = [
            "authz", "check", "web", "--port", "9080", "--from", "10.9.9.9",
        ];
        let said = stage.agent.meshctl(&check);
        if said.code == 1 && said.stdout.contains("none allowed") {
            Ok(())
        } else {
            Err(said.stdout)
        }
    });
    stage.others_are(0, "ALLOW of an identity");
    stage.probes_pass();
}

#[test]
fn a_unit_of_the_node_is_no_probe_whatever_way_the_agent_takes_for_it() {
    let stage = Stage::start(&[]);
    let url = &stage.urls()[0];
    let unit = stage.host.in_cgroup("system.slice/client.service");
    // The agent is root, and connects for it: in the clear, as the rule wants it.
    stage.lab.configure(
        "web.yaml",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: web}}\n\
             spec:\n  hosts: [web.example]\n  addresses: [{0}]\n  location: MESH_EXTERNAL\n  resolution: STATIC\n  \
             ports: [{{number: 9080, name: http}}]\n  endpoints: [{{address: {0}}}]\n\
             ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\n\
             spec: {{host: web.example, trafficPolicy: {{tls: {{mode: DISABLE}}}}}}\n",
            stage.web.v4
        ),
    );
    eventually(PATIENCE, "it is reached", || match unit.curl(&[url]) {
        reply if reply.status == 200 => Ok(()),
        reply => Err(format!("{reply:?}")),
    });
    for (file, text) in [("authorization.yaml", ALLOW_SLEEP), ("strict.yaml", STRICT)] {
        stage.lab.configure(file, text);
        eventually(PATIENCE, file, || match unit.curl(&[url]) {
            reply if reply.status != 200 => Ok(()),
            reply => Err(format!("{reply:?}")),
        });
        stage.probes_pass();
        stage.lab.unconfigure(file);
        eventually(PATIENCE, "it is reached again", || {
            match unit.curl(&[url]).status {
                200 => Ok(()),
                status => Err(status.to_string()),
            }
        });
    }
}

/// Who takes the address and the port of a probe that has ended is not taken for it.
#[test]
fn another_machine_with_the_address_and_port_of_an_earlier_probe_is_refused() {
    const PORT: u16 = 40_007;
    let stage = Stage::start(&[]);
    stage.lab.configure("peer-authentication.yaml", STRICT);
    stage.others_are(0, "STRICT");
    let url = &stage.urls()[0];
    let probe = stage.host.curl(&["--local-port", &PORT.to_string(), url]);
    assert_eq!(probe.status, 200, "{probe:?}");
    // The node leaves the wire, and the other machine gets its address.
    let (node, outside) = (&stage.host, &stage.outside);
    node.run("ip", &["link", "set", "eth0", "down"]).success();
    let address = format!("{}/32", node.v4);
    let take = ["address", "add", &address, "dev", "eth0"];
    outside.run("ip", &take).success();
    stage.web.run("ip", &["neigh", "flush", "all"]).success();
    let mut port = PORT;
    let mut forged = || {
        let own = node.v4.to_string();
        let (from, to) = (["--interface", &own], ["--local-port", &port.to_string()]);
        port += 1;
        outside.curl(&[from, to, [url, "--silent"]].concat())
    };
    let reply = forged();
    assert_eq!(reply.status, 0, "{reply:?}");
    assert_ne!(reply.exit, 28, "refused, not lost: {reply:?}");
    stage.lab.configure("peer-authentication.yaml", PERMISSIVE);
    eventually(PATIENCE, "there is a way for it", || match forged() {
        reply if reply.status == 200 => Ok(()),
        reply => Err(format!("{reply:?}")),
    });
}

#[test]
fn an_operator_can_have_probes_checked_like_any_other() {
    let stage = Stage::start(&["--node-probes", "check"]);
    stage.probes_pass();
    stage.lab.configure("peer-authentication.yaml", STRICT);
    eventually(PATIENCE, "probes are refused", || {
        match stage.host.curl(&[&stage.urls()[0]]) {
            reply if reply.status == 0 => Ok(()),
            reply => Err(format!("{reply:?}")),
        }
    });
}
