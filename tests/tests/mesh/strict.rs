//! Plaintext that a mesh still has: an operator sees whose it is, and STRICT ends it,
//! wherever it comes from.

use std::process::Command;
use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, Process, Workload, eventually, outcome, workload_entries};

use crate::held::{HELD, Held};
use crate::node_probes::{PERMISSIVE, STRICT};

const PATIENCE: Duration = Duration::from_secs(5);
const PORT: u16 = 7000;

/// `web` on node a, and a client on another machine that is none of the mesh.
struct Stage {
    agent: Agent,
    _server: Process,
    web: Workload,
    outside: Workload,
    lab: Lab,
}

impl Stage {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(flags: &[&str]) -> Self {
        let lab = Lab::new();
        let web = lab.workload(Node::A, "web", &[("app", "web")]);
        let outside = lab.workload(Node::Outside, "outside", &[]);
        let server = web.serve(PORT, "python3", &[HELD, "serve", &PORT.to_string()]);
        lab.configure("workloads.yaml", &workload_entries(&[&web]));
        Self {
            agent: Agent::start_with(&lab, Node::A, flags),
            _server: server,
            web,
            outside,
            lab,
        }
    }

    /// Whether a client in the clear is listed.
    fn lists(&self, client: &str) -> bool {
        let seen = self.agent.meshctl_json(&["authn", "plaintext"]);
        let mut rows = seen.as_array().expect("rows").iter();
        rows.any(|row| row["client"] == client && row["connections"].as_u64() > Some(0))
    }
}

#[test]
fn an_open_plaintext_connection_is_listed_and_ends_with_strict() {
    let stage = Stage::start();
    let (v4, v6) = (stage.web.v4.to_string(), stage.web.v6.to_string());
    let mut open = [
        Held::open(&stage.outside, "v4", &v4, PORT),
        Held::open(&stage.outside, "v6", &v6, PORT),
    ];
    for client in [stage.outside.v4.to_string(), stage.outside.v6.to_string()] {
        assert!(stage.lists(&client), "{client}");
    }
    stage.lab.configure("peer-authentication.yaml", STRICT);
    for held in &mut open {
        held.ends(PATIENCE);
    }
    // They stay open where nothing forbids them.
    stage.lab.configure("peer-authentication.yaml", PERMISSIVE);
    eventually(PATIENCE, "plaintext is let in again", || {
        let said = stage.outside.run("python3", &ask(&v4));
        match said.stdout.trim() {
            "echo" => Ok(()),
            _ => Err(format!("{said:?}")),
        }
    });
    let mut again = Held::open(&stage.outside, "v4", &v4, PORT);
    stage.lab.configure("peer-authentication.yaml", STRICT);
    again.ends(PATIENCE);
    let refused = stage.outside.run("python3", &ask(&v4)).stdout;
    assert_ne!(refused.trim(), "echo");
}

#[test]
fn a_dry_run_takes_the_root_namespace_of_the_running_agent() {
    let stage = Stage::start_with(&["--root-namespace", "mesh-config"]);
    let said = stage
        .outside
        .run("python3", &ask(&stage.web.v4.to_string()));
    assert_eq!(said.stdout.trim(), "echo", "{said:?}");
    let in_root = STRICT.replace("istio-system", "mesh-config");
    for (policy, flags, code) in [
        (&*in_root, &[][..], 1),
        (STRICT, &[], 0),
        (&in_root, &["--root-namespace", "istio-system"], 0),
        (STRICT, &["--root-namespace", "istio-system"], 1),
    ] {
        let file = stage.outside.file("strict.yaml", policy);
        let arguments = ["analyze", &file.to_string_lossy(), "--dry-run"];
        let said = stage.agent.meshctl(&[&arguments, flags].concat());
        assert_eq!(said.code, code, "{policy} {flags:?}: {said:?}");
    }
    // It has said what happens.
    stage.lab.configure("strict.yaml", STRICT);
    stage.lab.configure("in-root.yaml", &in_root);
    eventually(PATIENCE, "it is refused", || {
        let said = stage
            .outside
            .run("python3", &ask(&stage.web.v4.to_string()));
        match said.stdout.trim() {
            "echo" => Err(format!("{said:?}")),
            _ => Ok(()),
        }
    });
    stage.lab.unconfigure("in-root.yaml");
    eventually(PATIENCE, "another namespace's says nothing", || {
        let said = stage
            .outside
            .run("python3", &ask(&stage.web.v4.to_string()));
        match said.stdout.trim() {
            "echo" => Ok(()),
            _ => Err(format!("{said:?}")),
        }
    });
}

/// One word there and back, by python's `-c`.
fn ask(address: &str) -> [String; 2] {
    let script = format!(
        "import socket\ns = socket.create_connection(({address:?}, {PORT}), 5)\n\
         s.sendall(b'echo')\nprint(s.recv(10).decode())"
    );
    ["-c".to_owned(), script]
}

/// A namespace within a workload's, as of a container that makes one for itself: what it
/// sends is forwarded, and the mesh does not know it.
#[test]
fn a_namespace_within_a_workloads_is_plaintext_at_the_other_end_and_strict_refuses_it() {
    let stage = Stage::start();
    let client = stage.lab.workload(Node::A, "client", &[("app", "client")]);
    let entries = workload_entries(&[&stage.web, &client]);
    stage.lab.configure("workloads.yaml", &entries);
    eventually(PATIENCE, "both are enrolled", || {
        let workloads = stage.agent.meshctl_json(&["workloads"]);
        let all = workloads.as_array().cloned().unwrap_or_default();
        if all.len() == 2 && all.iter().all(|workload| workload["state"] == "enrolled") {
            Ok(())
        } else {
            Err(workloads.to_string())
        }
    });
    let mut nested = client.clone();
    nested.netns = format!("{}-nested", stage.lab.name());
    outcome(Command::new("ip").args(["netns", "add", &nested.netns]))
        .expect("ip starts")
        .success();
    let within = format!(
        "ip link add nested type veth peer name eth0 netns {} && ip address add 10.79.0.1/24 dev nested && \
         ip link set nested up && sysctl -qw net.ipv4.ip_forward=1 && \
         iptables -t nat -A POSTROUTING -s 10.79.0.0/24 -j MASQUERADE",
        nested.netns
    );
    client.run("sh", &["-c", &within]).success();
    let within = "ip address add 10.79.0.2/24 dev eth0 && ip link set eth0 up && ip link set lo up && \
                  ip route add default via 10.79.0.1";
    nested.run("sh", &["-c", within]).success();

    let web = stage.web.v4.to_string();
    let answer = |from: &Workload| from.run("python3", &ask(&web)).stdout.trim().to_owned();
    assert_eq!(answer(&nested), "echo", "PERMISSIVE is the default");
    assert!(stage.lists("client.default"), "in the clear");
    let port = PORT.to_string();
    let check = |flags: &[&str]| {
        let of = ["authz", "check", "web", "--port", &port, "--from", "client"];
        stage.agent.meshctl(&[&of, flags].concat())
    };
    let said = check(&["--plaintext"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(
        said.stdout.contains("from nobody (plaintext) at"),
        "{said:?}"
    );
    stage.lab.configure("peer-authentication.yaml", STRICT);
    eventually(PATIENCE, "it is refused", || match answer(&nested) {
        said if said.is_empty() => Ok(()),
        said => Err(said),
    });
    let said = check(&["--plaintext"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stdout.contains("takes mutual TLS only"), "{said:?}");
    assert_eq!(
        answer(&client),
        "echo",
        "the workload itself is of the mesh"
    );
    assert_eq!(check(&[]).code, 0);
}
