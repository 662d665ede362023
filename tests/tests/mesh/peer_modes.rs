//! A table of PeerAuthentication: what a port of a workload takes, for clients in the clear, of
//! the same node, of another node, and for an application that speaks TLS itself.

use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, Process, Workload, eventually, workload_entries};

/// Two ports of `web` that serve HTTP, and one that serves HTTP over TLS of its own.
const PORTS: [u16; 3] = [9080, 9081, 9443];

/// Name, documents (`namespace/name spec`), and whether each of the ports takes plaintext.
type Case = (&'static str, &'static [&'static str], [bool; 3]);

const ROOT_STRICT: &str = "istio-system/default {mtls: {mode: STRICT}}";
const OWN: &str = "selector: {matchLabels: {app: web}}";

const TABLE: &[Case] = &[
    ("nothing is permissive", &[], [true; 3]),
    ("the mesh is strict", &[ROOT_STRICT], [false; 3]),
    (
        "the root namespace takes no selector",
        &["istio-system/web {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}"],
        [true; 3],
    ),
    (
        "a namespace widens the mesh",
        &[ROOT_STRICT, "default/ns {mtls: {mode: PERMISSIVE}}"],
        [true; 3],
    ),
    (
        "another namespace does not matter",
        &[ROOT_STRICT, "shop/ns {mtls: {mode: DISABLE}}"],
        [false; 3],
    ),
    (
        "unset inherits from the mesh",
        &[ROOT_STRICT, "default/ns {mtls: {mode: UNSET}}"],
        [false; 3],
    ),
    (
        "nothing said inherits",
        &[ROOT_STRICT, "default/ns {}"],
        [false; 3],
    ),
    (
        "the first of a namespace counts",
        &[
            "default/first {mtls: {mode: STRICT}}",
            "default/second {mtls: {mode: DISABLE}}",
        ],
        [false; 3],
    ),
    (
        "the first of a namespace counts, though it inherits",
        &[
            ROOT_STRICT,
            "default/first {}",
            "default/second {mtls: {mode: PERMISSIVE}}",
        ],
        [false; 3],
    ),
    (
        "the first of the mesh counts",
        &[
            "istio-system/first {mtls: {mode: PERMISSIVE}}",
            "istio-system/second {mtls: {mode: STRICT}}",
        ],
        [true; 3],
    ),
    (
        "a workload narrows its namespace",
        &[
            "default/ns {mtls: {mode: PERMISSIVE}}",
            "default/web {OWN, mtls: {mode: STRICT}}",
        ],
        [false; 3],
    ),
    (
        "a workload's unset inherits from its namespace",
        &[
            ROOT_STRICT,
            "default/ns {mtls: {mode: PERMISSIVE}}",
            "default/web {OWN, mtls: {mode: UNSET}}",
        ],
        [true; 3],
    ),
    (
        "labels of somebody else",
        &[
            ROOT_STRICT,
            "default/db {selector: {matchLabels: {app: db}}, mtls: {mode: PERMISSIVE}}",
        ],
        [false; 3],
    ),
    (
        "the first of a workload counts",
        &[
            "default/first {OWN, mtls: {mode: PERMISSIVE}}",
            "default/second {OWN, mtls: {mode: STRICT}}",
        ],
        [true; 3],
    ),
    (
        "a port is opened",
        &[
            ROOT_STRICT,
            "default/web {OWN, portLevelMtls: {9081: {mode: PERMISSIVE}}}",
        ],
        [false, true, false],
    ),
    (
        "a port is closed",
        &["default/web {OWN, mtls: {mode: PERMISSIVE}, portLevelMtls: {9081: {mode: STRICT}}}"],
        [true, false, true],
    ),
    (
        "a port's unset is the workload's",
        &[
            "default/ns {mtls: {mode: PERMISSIVE}}",
            "default/web {OWN, mtls: {mode: STRICT}, portLevelMtls: {9081: {mode: UNSET}, 9443: {mode: DISABLE}}}",
        ],
        [false, false, true],
    ),
    (
        "a port of a workload that inherits",
        &[
            ROOT_STRICT,
            "default/web {OWN, mtls: {mode: UNSET}, portLevelMtls: {9080: {mode: DISABLE}, 9443: {mode: UNSET}}}",
        ],
        [true, false, false],
    ),
    (
        "disable",
        &[ROOT_STRICT, "default/web {OWN, mtls: {mode: DISABLE}}"],
        [true; 3],
    ),
];

struct Stage {
    agents: [Agent; 2],
    _servers: Vec<Process>,
    web: Workload,
    near: Workload,
    far: Workload,
    outside: Workload,
    own_root: String,
    lab: Lab,
}

impl Stage {
    fn start() -> Self {
        let lab = Lab::new();
        let web = lab.workload(Node::A, "web", &[("app", "web")]);
        let near = lab.workload(Node::A, "near", &[("app", "near")]);
        let far = lab.workload(Node::B, "far", &[("app", "far")]);
        let outside = lab.workload(Node::Outside, "outside", &[]);
        let (with_tls, own_root) = web.serve_tls(9443);
        let mut servers = vec![with_tls];
        for port in &PORTS[..2] {
            let listen = format!("[::]:{port}");
            servers.push(web.serve(*port, "bookinfo", &["details", "--listen", &listen]));
        }
        lab.configure("workloads.yaml", &workload_entries(&[&web, &near, &far]));
        Self {
            agents: [Node::A, Node::B].map(|node| Agent::start(&lab, node)),
            _servers: servers,
            web,
            near,
            far,
            outside,
            own_root,
            lab,
        }
    }

    fn generations(&self) -> [u64; 2] {
        self.agents.each_ref().map(|agent| {
            let config = agent.meshctl_json(&["config"]);
            assert!(config["refused"].is_null(), "{config}");
            config["generation"].as_u64().expect("a number")
        })
    }

    fn apply(&self, documents: &[&str]) {
        let before = self.generations();
        let text: String = documents
            .iter()
            .map(|document| {
                let (object, spec) = document.split_once(' ').expect("an object, its spec");
                let (namespace, name) = object.split_once('/').expect("namespace/name");
                let spec = spec.replace("OWN", OWN);
                format!(
                    "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                     metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
                )
            })
            .collect();
        // A comment tells one configuration from another that says the same.
        let text = format!("# {before:?}\n{text}");
        self.lab.configure("peer-authentication.yaml", &text);
        eventually(Duration::from_secs(10), "it is in force", || {
            match self.generations() {
                now if now.iter().zip(before).all(|(now, before)| *now > before) => Ok(()),
                now => Err(format!("{now:?}")),
            }
        });
    }

    /// Whether a client gets an answer of a port; `None` where it has to wait for it.
    fn passes(&self, from: &Workload, port: u16) -> Option<bool> {
        let scheme = if port == 9443 { "https" } else { "http" };
        let url = format!("{scheme}://{}:{port}/", self.web.v4);
        let reply = from.curl(&["--max-time", "5", "--cacert", &self.own_root, &url]);
        match reply.exit {
            28 => None,
            _ => Some(reply.status == 200),
        }
    }
}

#[test]
fn every_port_takes_what_the_narrowest_and_first_policy_says() {
    let stage = Stage::start();
    let mut differences = String::new();
    for (name, documents, takes_plaintext) in TABLE {
        stage.apply(documents);
        for (port, takes_plaintext) in PORTS.into_iter().zip(takes_plaintext) {
            for (client, expected) in [
                (&stage.outside, *takes_plaintext),
                // What the mesh knows passes in any mode.
                (&stage.near, true),
                (&stage.far, true),
            ] {
                let passes = stage.passes(client, port);
                if passes != Some(expected) {
                    differences += &format!(
                        "{name}: {} to {port}: {passes:?}, not {expected}\n",
                        client.name
                    );
                }
            }
        }
    }
    assert!(differences.is_empty(), "{differences}");
}
