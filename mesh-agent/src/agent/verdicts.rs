//! Which connections need no agent: the verdicts of a configuration for the
//! workloads of this node, as the kernel caches them.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::Algorithm as KernelAlgorithm;

use crate::datapath::{Decision, DirectEndpoint, Tiers, WorkloadVerdict};
use crate::policy::MtlsMode;
use crate::policy::authorization::L4Verdict;
use crate::registry::{Endpoint, Location, Protocol, Service, ShortCircuit, Workload};
use crate::route::{Algorithm, ClientView, direct};
use crate::snapshot::{SameNode, Snapshot};

/// A workload of this node.
pub(super) struct LocalWorkload {
    pub(super) workload: Arc<Workload>,
    pub(super) netns_cookie: u64,
}

/// What the verdicts depend on.
pub(super) struct Verdicts<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) locals: &'a [LocalWorkload],
    pub(super) tiers: &'a Tiers,
    /// Whether the kernel ends connections. Where it does not, a policy to come
    /// could not end those that go past the agent: then none does.
    pub(super) ends_connections: bool,
    /// The short-circuit of workloads that do not say.
    pub(super) short_circuit: ShortCircuit,
}

impl Verdicts<'_> {
    /// All verdicts other than "to the agent", which needs none.
    pub(super) fn all(&self) -> Vec<WorkloadVerdict> {
        let mut verdicts = Vec::new();
        for client in self.locals {
            // Without policies there is nothing to refuse.
            if client.workload.direct || !self.snapshot.authorization.is_empty() {
                self.of_client(client, &mut verdicts);
            }
        }
        verdicts
    }

    fn of_client(&self, client: &LocalWorkload, verdicts: &mut Vec<WorkloadVerdict>) {
        for service in &self.snapshot.registry.services {
            if service.location != Location::MeshInternal {
                continue;
            }
            for port in service
                .ports
                .iter()
                .filter(|port| port.protocol != Protocol::Udp)
            {
                let serving: Vec<&Endpoint> = (service.endpoints.iter())
                    .filter(|endpoint| {
                        endpoint.ports.contains_key(&port.number) && endpoint.unhealthy.is_none()
                    })
                    .map(|endpoint| &**endpoint)
                    .collect();
                let view = ClientView::of(&client.workload);
                if serving.is_empty() || !self.snapshot.routes.sees(&view, service, port.number) {
                    continue;
                }
                if port.protocol == Protocol::Tcp
                    && (serving.iter())
                        .all(|endpoint| self.is_denied(client, endpoint, port.number))
                {
                    for destination in self.destinations(service, port.number, &serving) {
                        verdicts.push(WorkloadVerdict {
                            netns_cookie: client.netns_cookie,
                            destination,
                            decision: Decision::Deny,
                        });
                    }
                } else if client.workload.direct
                    && self.ends_connections
                    && serving
                        .iter()
                        .all(|endpoint| self.is_attested(client, endpoint))
                {
                    self.direct(client, service, port.number, &serving, verdicts);
                }
            }
        }
    }

    /// Whether the kernel's knowledge of both ends is enough.
    fn is_attested(&self, client: &LocalWorkload, endpoint: &Endpoint) -> bool {
        endpoint.workload.as_ref().is_none_or(|server| {
            self.snapshot.same_node(&client.workload, server) == SameNode::Attest
        })
    }

    fn direct(
        &self,
        client: &LocalWorkload,
        service: &Arc<Service>,
        port: u16,
        serving: &[&Endpoint],
        verdicts: &mut Vec<WorkloadVerdict>,
    ) {
        let view = ClientView {
            namespace: &client.workload.name.namespace,
            labels: &client.workload.labels,
        };
        let Some(plan) = direct::plan(&self.snapshot.routes, &view, service, port) else {
            return;
        };
        // One endpoint that needs the agent, and the agent has to choose.
        let endpoints: Option<Vec<DirectEndpoint>> = (serving.iter())
            .map(|endpoint| self.endpoint(client, endpoint, port))
            .collect();
        let Some(endpoints) = endpoints else { return };
        for destination in self.destinations(service, port, serving) {
            // Called by its own address, an endpoint is meant alone, as in a headless service.
            let named = (endpoints.iter()).find(|endpoint| endpoint.address == destination);
            let endpoints = match named {
                Some(endpoint) => vec![endpoint.clone()],
                None => {
                    let same_family = endpoints
                        .iter()
                        .filter(|endpoint| endpoint.address.is_ipv4() == destination.is_ipv4());
                    same_family.cloned().collect()
                }
            };
            if !endpoints.is_empty() {
                verdicts.push(WorkloadVerdict {
                    netns_cookie: client.netns_cookie,
                    destination,
                    decision: Decision::Direct {
                        algorithm: kernel_algorithm(plan.algorithm),
                        endpoints,
                    },
                });
            }
        }
    }

    /// What a client may connect to when it means this port of the service: its
    /// addresses, as far as they are not another service's, and those of its endpoints.
    fn destinations(
        &self,
        service: &Arc<Service>,
        port: u16,
        serving: &[&Endpoint],
    ) -> Vec<SocketAddr> {
        let vips = service.vips.iter().map(|vip| SocketAddr::new(*vip, port));
        let own = vips.filter(|destination| {
            let owner = self.snapshot.registry.service_for(*destination);
            owner.is_some_and(|owner| Arc::ptr_eq(owner, service))
        });
        let endpoints = serving
            .iter()
            .filter_map(|endpoint| endpoint.socket_address(port));
        own.chain(endpoints).collect()
    }

    /// Whether the policies refuse the client at this endpoint of this node,
    /// whatever it says.
    fn is_denied(&self, client: &LocalWorkload, endpoint: &Endpoint, port: u16) -> bool {
        let (Some(server), Some(address)) = (self.server(endpoint), endpoint.socket_address(port))
        else {
            return false;
        };
        self.policy(client, &server.workload, address) == L4Verdict::Deny
    }

    fn policy(&self, client: &LocalWorkload, server: &Workload, to: SocketAddr) -> L4Verdict {
        let Some(from) = client.workload.address_like(to.ip()) else {
            return L4Verdict::NeedsHttp;
        };
        let identity = Some(&client.workload.identity);
        (self.snapshot.authorization).l4_verdict(identity, from, server, to)
    }

    fn server(&self, endpoint: &Endpoint) -> Option<&LocalWorkload> {
        let workload = endpoint.workload.as_ref()?;
        (self.locals.iter()).find(|local| local.workload.name == workload.name)
    }

    /// The endpoint, where a connection of the client may go straight to it.
    fn endpoint(
        &self,
        client: &LocalWorkload,
        endpoint: &Endpoint,
        port: u16,
    ) -> Option<DirectEndpoint> {
        let server = self.server(endpoint)?;
        let workload = &server.workload;
        let address = endpoint.socket_address(port)?;
        let (mode, _) = (self.snapshot.peer_authentication).mode(workload, address.port());
        // In the clear on purpose: the agent's account says so, the kernel's would not.
        let is_meant_to_be_known = mode != MtlsMode::Disable;
        let may = self.policy(client, workload, address) == L4Verdict::Allow;
        (is_meant_to_be_known && may).then(|| DirectEndpoint {
            netns_cookie: server.netns_cookie,
            address,
            identity: workload.identity.to_string(),
            weight: endpoint.weight,
            short_circuit: self.receives(&client.workload) && self.receives(workload),
        })
    }

    fn receives(&self, workload: &Workload) -> bool {
        let setting = workload.short_circuit.unwrap_or(self.short_circuit);
        self.tiers.reaches_application(setting)
    }
}

fn kernel_algorithm(algorithm: Algorithm) -> KernelAlgorithm {
    match algorithm {
        Algorithm::Random => KernelAlgorithm::Random,
        Algorithm::RoundRobin => KernelAlgorithm::RoundRobin,
        Algorithm::LeastRequest => KernelAlgorithm::LeastRequest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::Tier;
    use crate::resource::parse;
    use crate::snapshot::Options;

    const MESH: &str = r#"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: sleep
  annotations: {undermesh.io/netns: sleep, undermesh.io/direct: "true", undermesh.io/short-circuit: "on"}
spec: {address: 10.0.0.1}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: web-1
  annotations: {undermesh.io/netns: web-1, undermesh.io/short-circuit: "on"}
spec: {address: 10.0.0.2, weight: 3, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: web-2
  annotations: {undermesh.io/netns: web-2}
spec: {address: 10.0.0.3, labels: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports: [{name: tcp, port: 80, targetPort: 8080}]
"#;

    fn snapshot(more: &str) -> Snapshot {
        let text = format!("{MESH}{more}");
        let resources = parse([("mesh.yaml", text.as_str())]).expect("valid resources");
        Snapshot::compile(1, &resources, &Options::default()).expect("a valid configuration")
    }

    fn verdicts(snapshot: &Snapshot, here: &[&str]) -> Vec<WorkloadVerdict> {
        verdicts_where(true, snapshot, here)
    }

    fn verdicts_where(
        ends_connections: bool,
        snapshot: &Snapshot,
        here: &[&str],
    ) -> Vec<WorkloadVerdict> {
        let locals: Vec<LocalWorkload> = (snapshot.registry.workloads.iter().enumerate())
            .filter(|(_, workload)| here.contains(&&*workload.name.name))
            .map(|(number, workload)| LocalWorkload {
                workload: workload.clone(),
                netns_cookie: number as u64 + 1,
            })
            .collect();
        let reason = String::new();
        Verdicts {
            snapshot,
            locals: &locals,
            tiers: &Tiers {
                to_agent: Tier::Automatic,
                to_application: Tier::OptIn { reason },
            },
            ends_connections,
            short_circuit: ShortCircuit::Auto,
        }
        .all()
    }

    const ALL: [&str; 3] = ["sleep", "web-1", "web-2"];

    #[test]
    fn a_service_whose_endpoints_are_all_here_is_reached_without_the_agent() {
        let all = verdicts(&snapshot(""), &ALL);
        let destinations: Vec<String> = all
            .iter()
            .map(|verdict| verdict.destination.to_string())
            .collect();
        assert_eq!(
            destinations,
            ["10.96.0.1:80", "10.0.0.2:8080", "10.0.0.3:8080"]
        );
        assert!(all.iter().all(|verdict| verdict.netns_cookie == 1));
        let Decision::Direct {
            algorithm,
            endpoints,
        } = &all[0].decision
        else {
            panic!("{all:?}");
        };
        assert_eq!(*algorithm, KernelAlgorithm::LeastRequest);
        let seen: Vec<_> = (endpoints.iter())
            .map(|e| {
                (
                    e.netns_cookie,
                    e.address.to_string(),
                    e.weight,
                    e.short_circuit,
                )
            })
            .collect();
        // Only one of the two has opted in to the short-circuit.
        assert_eq!(
            seen,
            [
                (2, "10.0.0.2:8080".to_owned(), 3, true),
                (3, "10.0.0.3:8080".to_owned(), 1, false)
            ]
        );
    }

    #[test]
    fn one_endpoint_elsewhere_and_the_agent_chooses() {
        assert_eq!(verdicts(&snapshot(""), &["sleep", "web-1"]), []);
    }

    #[test]
    fn rules_and_policies_that_the_kernel_does_not_know_need_the_agent() {
        for rule in [
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r}\n\
             spec: {hosts: [web], tcp: [{route: [{destination: {host: web}}]}]}\n",
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r}\n\
             spec: {host: web, trafficPolicy: {outlierDetection: {}}}\n",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\n\
             spec: {mtls: {mode: DISABLE}}\n",
        ] {
            let snapshot = snapshot(&format!("---\n{rule}"));
            assert_eq!(verdicts(&snapshot, &ALL), [], "{rule}");
        }
    }

    fn authorization(action: &str, rules: &str) -> String {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\n\
             spec: {{selector: {{matchLabels: {{app: web}}}}, action: {action}, rules: {rules}}}\n"
        )
    }

    #[test]
    fn what_the_policies_refuse_is_refused_by_the_kernel_for_everybody() {
        let deny = authorization("DENY", "[{from: [{source: {namespaces: [default]}}]}]");
        let all = verdicts(&snapshot(&deny), &ALL);
        assert!(
            all.iter().all(|verdict| verdict.decision == Decision::Deny),
            "{all:?}"
        );
        // Three clients, of which two have not opted in to anything; three destinations each.
        assert_eq!(all.len(), 9);
    }

    #[test]
    fn what_only_a_request_can_tell_needs_the_agent() {
        let http = MESH.replace("{name: tcp, port", "{name: http, port");
        let policy = authorization("ALLOW", "[{to: [{operation: {methods: [GET]}}]}]");
        let resources = format!("{http}{policy}");
        let resources = parse([("mesh.yaml", resources.as_str())]).expect("valid resources");
        let snapshot = Snapshot::compile(1, &resources, &Options::default()).expect("valid");
        assert_eq!(verdicts(&snapshot, &ALL), []);
    }

    #[test]
    fn what_the_policies_allow_at_l4_is_still_direct() {
        let allow = authorization("ALLOW", "[{from: [{source: {namespaces: [default]}}]}]");
        let all = verdicts(&snapshot(&allow), &ALL);
        assert_eq!(all.len(), 3);
        assert!(
            all.iter().all(|verdict| verdict.netns_cookie == 1),
            "{all:?}"
        );
    }

    #[test]
    fn where_the_kernel_cannot_end_connections_none_goes_past_the_agent() {
        assert_eq!(verdicts_where(false, &snapshot(""), &ALL), []);
        // What is refused from the beginning has not to be ended.
        let deny = authorization("DENY", "[{from: [{source: {namespaces: [default]}}]}]");
        assert_eq!(verdicts_where(false, &snapshot(&deny), &ALL).len(), 9);
    }

    #[test]
    fn workloads_that_have_not_opted_in_have_no_verdicts() {
        assert_eq!(verdicts(&snapshot(""), &["web-1", "web-2"]), []);
    }
}
