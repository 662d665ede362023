//! Connections that go past the agent are under the same policy, and in the
//! same account, as those that it carries.

use std::time::{Duration, Instant};

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, wait_until,
    workload_entries,
};

use crate::held::{HELD, Held};

/// How long a connection may outlive the policy that forbids it.
const END: Duration = Duration::from_secs(1);
const LIVE: Duration = Duration::from_secs(5);

struct Direct {
    agent: Agent,
    friend: Workload,
    stranger: Workload,
    server: Workload,
    serving: Process,
    lab: Lab,
}

impl Direct {
    fn start(short_circuit: &str) -> Self {
        let lab = Lab::new();
        let client = |name| {
            lab.workload(Node::A, name, &[("app", name)])
                .annotated("undermesh.io/direct", "true")
                .annotated("undermesh.io/short-circuit", short_circuit)
        };
        let (friend, stranger) = (client("friend"), client("stranger"));
        let server = lab
            .workload(Node::A, "server", &[("app", "server")])
            .annotated("undermesh.io/short-circuit", short_circuit);
        let serving = server.serve(7000, "python3", &[HELD, "serve", "7000"]);
        let all = [&friend, &stranger, &server];
        lab.configure("workloads.yaml", &workload_entries(&all));
        let ports = [ServicePort {
            name: "tcp",
            port: 80,
            target: 7000,
        }];
        lab.configure("server.yaml", &service("server", 40, &ports));
        Self {
            agent: Agent::start(&lab, Node::A),
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
        let before = mesh.generation();
        mesh.lab.configure(
            "deny.yaml",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
             spec: {selector: {matchLabels: {app: server}}, action: DENY, \
             rules: [{from: [{source: {serviceAccounts: [stranger]}}]}]}\n",
        );
        assert!(wait_until(LIVE, || mesh.generation() > before));
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
