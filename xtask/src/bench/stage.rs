//! The stage of a scenario: a pair of namespaces for each variant, side by
//! side, and the agents.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use mesh_tests::{Agent, Lab, Node, ServicePort, service, workload_entries};

use super::envoy;
use super::figures::Figures;
use super::pair::{BULK_PORT, HTTP_PORT, HTTP_SERVICE_PORT, Pair};
use super::scenario::{Mesh, Scenario, Variant};
use crate::shell::step;

/// A variant that is ready to be measured.
pub struct Standing {
    pub variant: &'static Variant,
    pub pair: Pair,
}

// Fields are dropped in this order: agents first, the lab last.
pub struct Stage {
    /// Of node a, and of node b where there are two.
    pub agents: Vec<Agent>,
    pub standing: Vec<Standing>,
    pub scenario: &'static Scenario,
    pub lab: Lab,
}

impl Stage {
    /// Builds it, and returns when every variant answers.
    pub fn build(
        scenario: &'static Scenario,
        variants: &[&'static Variant],
        figures: &mut Figures,
    ) -> Result<Self> {
        let lab = Lab::create()?;
        let mut standing = Vec::new();
        for (variant, host) in variants.iter().zip(1..) {
            let pair = pair(&lab, scenario, variant, host)
                .with_context(|| format!("variant {}", variant.name))?;
            standing.push(Standing { variant, pair });
        }
        configure(&lab, scenario, &standing);
        let mut stage = Self {
            agents: agents(&lab, scenario, variants)?,
            standing,
            scenario,
            lab,
        };
        let pids: Vec<_> = stage.agents.iter().map(Agent::id).collect();
        let mut ready = Vec::new();
        for mut standing in std::mem::take(&mut stage.standing) {
            let name = standing.variant.name;
            standing
                .pair
                .warm_up()
                .with_context(|| format!("variant {name}"))?;
            if let Mesh::Undermesh(setting) = &standing.variant.mesh {
                standing.pair.proxies.clone_from(&pids);
                let verdict = stage.verdict(&standing.pair);
                if verdict != setting.verdict {
                    figures.note(format!(
                        "{}: {name} is left out: the verdict is {verdict}, not {}",
                        scenario.name, setting.verdict
                    ));
                    continue;
                }
            }
            ready.push(standing);
        }
        stage.standing = ready;
        let names: Vec<_> = stage
            .standing
            .iter()
            .map(|standing| standing.variant.name)
            .collect();
        step(format!("ready: {}", names.join(", ")));
        Ok(stage)
    }

    /// What the kernel did with the client's last connection to the server.
    fn verdict(&self, pair: &Pair) -> String {
        let flows = self.agents[0].meshctl_json(&["flows", "--workload", &pair.client.name]);
        flows
            .as_array()
            .into_iter()
            .flatten()
            .filter(|flow| flow["destination"] == pair.http.to_string())
            .min_by_key(|flow| flow["age_ms"].as_u64())
            .and_then(|flow| flow["verdict"].as_str())
            .unwrap_or("none")
            .to_owned()
    }
}

fn pair(lab: &Lab, scenario: &Scenario, variant: &Variant, host: u8) -> Result<Pair> {
    let nodes = match variant.mesh {
        // Programs are attached to the control groups of the nodes alone.
        Mesh::None | Mesh::Envoy(_) | Mesh::IdleEnvoy => [Node::Outside, Node::Outside],
        Mesh::NotEnrolled | Mesh::Undermesh(_) if scenario.two_nodes => [Node::A, Node::B],
        Mesh::NotEnrolled | Mesh::Undermesh(_) => [Node::A, Node::A],
    };
    let mut pair = Pair::new(lab, variant.name, nodes[0], nodes[1])?;
    let vip = vip(host);
    match &variant.mesh {
        Mesh::None | Mesh::NotEnrolled | Mesh::IdleEnvoy => {}
        Mesh::Undermesh(setting) => {
            for (key, value) in setting.annotations {
                pair.client = pair.client.annotated(key, value);
                pair.server = pair.server.annotated(key, value);
            }
            pair.by_service(vip);
        }
        Mesh::Envoy(kind) => {
            let proxies = envoy::start(lab, *kind, &pair.client, &pair.server, vip)?;
            pair.with_proxies(proxies);
            pair.by_service(vip);
        }
    }
    Ok(pair)
}

/// As `mesh_tests::service` gives them.
fn vip(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, host)
}

fn configure(lab: &Lab, scenario: &Scenario, standing: &[Standing]) {
    let (mut workloads, mut services, mut routes) = (Vec::new(), String::new(), String::new());
    for (standing, host) in standing.iter().zip(1..) {
        let Mesh::Undermesh(_) = standing.variant.mesh else {
            continue;
        };
        let pair = &standing.pair;
        workloads.extend([&pair.client, &pair.server]);
        services += &service(
            &pair.server.name,
            host,
            &[
                ServicePort {
                    name: if scenario.http { "http" } else { "tcp-web" },
                    port: HTTP_SERVICE_PORT,
                    target: HTTP_PORT,
                },
                ServicePort {
                    name: "tcp-bulk",
                    port: BULK_PORT,
                    target: BULK_PORT,
                },
            ],
        );
        if scenario.http {
            routes += &virtual_service(&pair.server.name);
        }
    }
    lab.configure("workloads.yaml", &workload_entries(&workloads));
    lab.configure("services.yaml", &services);
    if !routes.is_empty() {
        lab.configure("routes.yaml", &routes);
    }
}

/// Two routes, as Envoy's configuration has them: one by header, one for the rest.
fn virtual_service(host: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {host}}}\n\
         spec:\n  hosts: [{host}]\n  http:\n    \
         - match: [{{headers: {{end-user: {{exact: jason}}}}}}]\n      \
           route: [{{destination: {{host: {host}}}}}]\n    \
         - route: [{{destination: {{host: {host}}}}}]\n"
    )
}

/// None where no variant has to do with them.
fn agents(lab: &Lab, scenario: &Scenario, variants: &[&Variant]) -> Result<Vec<Agent>> {
    let wanted = variants
        .iter()
        .any(|variant| matches!(variant.mesh, Mesh::NotEnrolled | Mesh::Undermesh(_)));
    let nodes: &[Node] = match (wanted, scenario.two_nodes) {
        (false, _) => &[],
        (true, false) => &[Node::A],
        (true, true) => &[Node::A, Node::B],
    };
    nodes
        .iter()
        .map(|node| Agent::try_start(lab, *node))
        .collect()
}
