//! Which connections need no agent: the verdicts of a configuration for the
//! workloads of this node, as the kernel caches them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::Algorithm as KernelAlgorithm;

use crate::datapath::{Decision, DirectEndpoint, Tiers, WorkloadVerdict};
use crate::policy::MtlsMode;
use crate::policy::authorization::L4Verdict;
use crate::registry::{
    Endpoint, Location, Protocol, Service, ServicePort, ShortCircuit, Workload, WorkloadName,
};
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

/// A port of a service whose endpoints in service are all on this node.
struct Port<'v> {
    service: &'v Arc<Service>,
    number: u16,
    /// It carries TCP, and each endpoint has policies.
    may_be_refused: bool,
    /// At least one.
    serving: Vec<Serving<'v>>,
    /// What clients connect to that mean it.
    destinations: Vec<SocketAddr>,
}

/// An endpoint of a port.
struct Serving<'v> {
    endpoint: &'v Endpoint,
    /// As the registry has it.
    workload: &'v Workload,
    /// As it is enrolled.
    server: &'v LocalWorkload,
    address: SocketAddr,
}

impl Verdicts<'_> {
    /// All verdicts other than "to the agent", which needs none.
    pub(super) fn all(&self) -> Vec<WorkloadVerdict> {
        let has_policies = !self.snapshot.authorization.is_empty();
        // Without policies there is nothing to refuse.
        let concerned = |client: &&LocalWorkload| client.workload.direct || has_policies;
        let clients: Vec<_> = self.locals.iter().filter(concerned).collect();
        if clients.is_empty() {
            return Vec::new();
        }
        let ports = self.ports();
        let mut verdicts = Vec::new();
        for client in clients {
            for port in &ports {
                self.of_port(client, port, &mut verdicts);
            }
        }
        verdicts
    }

    /// What is the same for all clients. Where one endpoint is not of this node, the agent
    /// has to choose, and another node decides.
    fn ports(&self) -> Vec<Port<'_>> {
        let locals: HashMap<_, _> = (self.locals.iter())
            .map(|local| (&local.workload.name, local))
            .collect();
        let services = self.snapshot.registry.services.iter();
        let internal = services.filter(|service| service.location == Location::MeshInternal);
        let of_service = internal.flat_map(|service| {
            let ports = service.ports.iter();
            let ports = ports.filter(|port| port.protocol != Protocol::Udp);
            ports.filter_map(|port| self.port(service, port, &locals))
        });
        of_service.collect()
    }

    fn port<'v>(
        &'v self,
        service: &'v Arc<Service>,
        port: &ServicePort,
        locals: &HashMap<&WorkloadName, &'v LocalWorkload>,
    ) -> Option<Port<'v>> {
        let number = port.number;
        let serving: Option<Vec<Serving<'v>>> = (service.endpoints.iter())
            .filter(|endpoint| endpoint.ports.contains_key(&number) && endpoint.unhealthy.is_none())
            .map(|endpoint| {
                let workload = endpoint.workload.as_ref()?;
                Some(Serving {
                    endpoint,
                    workload,
                    server: locals.get(&workload.name)?,
                    address: endpoint.socket_address(number)?,
                })
            })
            .collect();
        let serving = serving.filter(|serving| !serving.is_empty())?;
        let has_policies =
            |one: &Serving<'_>| (self.snapshot.authorization).is_asked_of(&one.server.workload);
        Some(Port {
            service,
            number,
            may_be_refused: port.protocol == Protocol::Tcp && serving.iter().all(has_policies),
            destinations: self.destinations(service, number, &serving),
            serving,
        })
    }

    fn of_port(
        &self,
        client: &LocalWorkload,
        port: &Port<'_>,
        verdicts: &mut Vec<WorkloadVerdict>,
    ) {
        let may_be_direct = client.workload.direct && self.ends_connections;
        if !(port.may_be_refused || may_be_direct) {
            return;
        }
        let view = ClientView::of(&client.workload);
        if !(self.snapshot.routes).sees(&view, port.service, port.number) {
            return;
        }
        let mut serving = port.serving.iter();
        if port.may_be_refused && serving.all(|one| self.policy(client, one) == L4Verdict::Deny) {
            verdicts.extend(port.destinations.iter().map(|destination| WorkloadVerdict {
                netns_cookie: client.netns_cookie,
                destination: *destination,
                decision: Decision::Deny,
            }));
        } else if may_be_direct && (port.serving.iter()).all(|one| self.is_attested(client, one)) {
            self.direct(client, &view, port, verdicts);
        }
    }

    /// Whether the kernel's knowledge of both ends is enough.
    fn is_attested(&self, client: &LocalWorkload, one: &Serving<'_>) -> bool {
        self.snapshot.same_node(&client.workload, one.workload) == SameNode::Attest
    }

    fn direct(
        &self,
        client: &LocalWorkload,
        view: &ClientView<'_>,
        port: &Port<'_>,
        verdicts: &mut Vec<WorkloadVerdict>,
    ) {
        let Some(plan) = direct::plan(&self.snapshot.routes, view, port.service, port.number)
        else {
            return;
        };
        // One endpoint that needs the agent, and the agent has to choose.
        let endpoints: Option<Vec<DirectEndpoint>> = (port.serving.iter())
            .map(|one| self.endpoint(client, one))
            .collect();
        let Some(endpoints) = endpoints else { return };
        for &destination in &port.destinations {
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
        serving: &[Serving<'_>],
    ) -> Vec<SocketAddr> {
        let addresses = service.addresses();
        let own = addresses
            .map(|ip| SocketAddr::new(ip, port))
            .filter(|destination| {
                let owner = self.snapshot.registry.service_for(*destination);
                owner.is_some_and(|owner| Arc::ptr_eq(owner, service))
            });
        own.chain(serving.iter().map(|one| one.address)).collect()
    }

    /// What the policies say of the client at this endpoint, whatever it says itself.
    fn policy(&self, client: &LocalWorkload, one: &Serving<'_>) -> L4Verdict {
        let to = one.address;
        let Some(from) = client.workload.address_like(to.ip()) else {
            return L4Verdict::NeedsHttp;
        };
        let identity = Some(&client.workload.identity);
        (self.snapshot.authorization).l4_verdict(identity, from, &one.server.workload, to)
    }

    /// The endpoint, where a connection of the client may go straight to it.
    fn endpoint(&self, client: &LocalWorkload, one: &Serving<'_>) -> Option<DirectEndpoint> {
        let workload = &one.server.workload;
        let (mode, _) = (self.snapshot.peer_authentication).mode(workload, one.address.port());
        // In the clear on purpose: the agent's account says so, the kernel's would not.
        let is_meant_to_be_known = mode != MtlsMode::Disable;
        let port = one.address.port();
        let is_plain = (self.snapshot.routes)
            .inbound(&ClientView::of(workload), port)
            .is_none();
        let may = is_plain && self.policy(client, one) == L4Verdict::Allow;
        (is_meant_to_be_known && may).then(|| DirectEndpoint {
            netns_cookie: one.server.netns_cookie,
            address: one.address,
            identity: workload.identity.to_string(),
            weight: one.endpoint.weight,
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
mod tests;
