//! The verdicts once more, each by itself: every client with every port of every service.
//! Slow and plain, to compare with.

use super::super::*;

pub(super) struct OneByOne<'a>(pub(super) Verdicts<'a>);

impl<'a> std::ops::Deref for OneByOne<'a> {
    type Target = Verdicts<'a>;

    fn deref(&self) -> &Verdicts<'a> {
        &self.0
    }
}

impl OneByOne<'_> {
    pub(super) fn all(&self) -> Vec<WorkloadVerdict> {
        let mut verdicts = Vec::new();
        for client in self.locals {
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
            node: None,
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
