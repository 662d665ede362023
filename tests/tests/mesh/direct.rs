//! Connections that go past the agent are under the same policy, and in the
//! same account, as those that it carries.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, outcome, service, wait_until,
    workload_entries,
};

use crate::held::{HELD, Held};

/// Of the service.
pub const VIP: &str = "10.96.0.40";
/// How long a connection may outlive the policy that forbids it.
const END: Duration = Duration::from_secs(1);
const LIVE: Duration = Duration::from_secs(5);

/// `friend` and `stranger` go straight to `server`, by the service at [`VIP`].
pub struct Direct {
    pub agent: Agent,
    pub friend: Workload,
    pub stranger: Workload,
    pub server: Workload,
    serving: Process,
    lab: Lab,
}

impl Direct {
    fn start(short_circuit: &str) -> Self {
        Self::start_with(short_circuit, "python3", &[HELD, "serve", "7000"], &[])
    }

    /// With this program as the server, on port 7000, and more arguments for the agent.
    pub fn start_with(
        short_circuit: &str,
        program: &str,
        arguments: &[&str],
        more: &[&str],
    ) -> Self {
        let lab = Lab::new();
        let workload = |name| {
            lab.workload(Node::A, name, &[("app", name)])
                .annotated("undermesh.io/short-circuit", short_circuit)
        };
        let [friend, stranger] = ["friend", "stranger"]
            .map(|name| workload(name).annotated("undermesh.io/direct", "true"));
        let server = workload("server");
        let serving = server.serve(7000, program, arguments);
        let all = [&friend, &stranger, &server];
        lab.configure("workloads.yaml", &workload_entries(&all));
        let port = ServicePort {
            name: "tcp",
            port: 80,
            target: 7000,
        };
        lab.configure("server.yaml", &service("server", 40, &[port]));
        Self {
            agent: Agent::start_with(&lab, Node::A, more),
            friend,
            stranger,
            server,
            serving,
            lab,
        }
    }

    /// A connection of each address family, and one with IPv4 in an IPv6 socket.
    fn connections(&self, from: &Workload) -> Vec<Held> {
        let (v4, v6) = (self.server.v4.to_string(), self.server.v6.to_string());
        [("v4", &v4), ("mapped", &v4), ("v6", &v6)]
            .map(|(kind, address)| Held::open(from, kind, address, 7000))
            .into()
    }

    fn generation(&self) -> Option<u64> {
        self.agent.meshctl_json(&["config"])["generation"].as_u64()
    }

    /// Changes a file, and waits until that is in force.
    fn change(&self, file: &str, text: &str) {
        let before = self.generation();
        self.lab.configure(file, text);
        assert!(wait_until(LIVE, || self.generation() > before));
    }

    /// A policy that lets `stranger` go nowhere comes into force.
    pub fn forbid_stranger(&self) {
        self.change(
            "deny.yaml",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
             spec: {selector: {matchLabels: {app: server}}, action: DENY, \
             rules: [{from: [{source: {serviceAccounts: [stranger]}}]}]}\n",
        );
    }

    /// All entries of a map, as the kernel has them.
    fn entries(&self, map: &str) -> BTreeSet<String> {
        let pin = self.lab.bpffs(Node::A).join(map);
        let pin = pin.to_string_lossy();
        let dump = ["--json", "map", "dump", "pinned", &*pin];
        let said = outcome(Command::new("bpftool").args(dump)).expect("bpftool starts");
        let entries: Vec<serde_json::Value> =
            serde_json::from_str(&said.success()).expect("a list of entries");
        entries.iter().map(ToString::to_string).collect()
    }
}

#[test]
fn a_change_of_policy_ends_open_direct_connections_that_it_forbids_and_no_other() {
    for short_circuit in ["off", "on"] {
        let mesh = Direct::start(short_circuit);
        let mut forbidden = mesh.connections(&mesh.stranger);
        let mut allowed = mesh.connections(&mesh.friend);
        let flows = mesh.agent.meshctl_json(&["flows"]);
        for flow in flows.as_array().expect("flows") {
            assert_eq!(flow["verdict"], "direct", "{flow}");
        }
        mesh.forbid_stranger();
        let acknowledged = Instant::now();
        let left = || END.saturating_sub(acknowledged.elapsed());
        for held in &mut forbidden {
            held.is_cut(left());
        }
        // The servers' ends, three of them.
        let ended = || {
            let log = mesh.serving.log();
            let lines = log.lines().filter(|line| line.starts_with("ended"));
            lines.map(ToOwned::to_owned).collect::<Vec<_>>()
        };
        assert!(wait_until(left(), || ended().len() == 3), "{:?}", ended());
        let stranger = [mesh.stranger.v4.to_string(), mesh.stranger.v6.to_string()];
        for line in ended() {
            assert!(
                stranger.iter().any(|address| line.contains(address)) && line.contains(" ECONN"),
                "{line}"
            );
        }
        for held in &mut allowed {
            held.echoes("second");
        }
        eventually(
            LIVE,
            "both ends of three connections say why they ended",
            || {
                let flows = mesh.agent.meshctl_json(&["flows"]);
                let by_policy = (flows.as_array().into_iter().flatten())
                    .filter(|flow| flow["state"] == "closed" && flow["reason"] == "by policy")
                    .count();
                if by_policy == 6 {
                    Ok(())
                } else {
                    Err(flows.to_string())
                }
            },
        );
    }
}

#[test]
fn a_change_writes_only_what_differs_into_the_kernel() {
    let mesh = Direct::start("off");
    let maps = ["verdicts", "endpoints", "generation", "destinations"];
    let all = || maps.map(|map| mesh.entries(map));
    let before = all();
    // Two clients, a service and an endpoint, of both families.
    assert_eq!(before[0].len(), 8, "{:?}", before[0]);

    let port = ServicePort {
        name: "http",
        port: 80,
        target: 7001,
    };
    let routes = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: other}\n\
                  spec: {hosts: [other], http: [{route: [{destination: {host: server}}]}]}\n";
    let other = service("other", 41, &[port]);
    mesh.change("other.yaml", &format!("{other}{routes}"));
    let after = all();
    assert_eq!(after[..3], before[..3]);
    // Each entry has the generation that has written it.
    let new: Vec<_> = after[3].difference(&before[3]).collect();
    assert_eq!(
        (new.len(), after[3].len()),
        (2, before[3].len() + 2),
        "{new:?}"
    );

    // What the kernel does not know how to do goes to the agent, and comes back.
    let rule = |spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: server}}\n\
             spec: {{host: server, {spec}}}\n"
        )
    };
    mesh.change("rule.yaml", &rule("trafficPolicy: {outlierDetection: {}}"));
    assert_eq!(mesh.entries("verdicts"), BTreeSet::new());
    assert_eq!(mesh.entries("endpoints"), BTreeSet::new());
    mesh.change(
        "rule.yaml",
        &rule("trafficPolicy: {loadBalancer: {simple: RANDOM}}"),
    );
    assert_eq!(mesh.entries("verdicts").len(), 8);
    assert_eq!(mesh.entries("destinations"), after[3]);
    let mut held = mesh.connections(&mesh.friend);
    held.iter_mut().for_each(|held| held.echoes("direct"));
    let flows = mesh.agent.meshctl_json(&["flows"]);
    let flows = flows.as_array().expect("flows");
    assert!(
        flows.iter().all(|flow| flow["verdict"] == "direct"),
        "{flows:?}"
    );
}
