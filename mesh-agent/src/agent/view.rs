//! What the running agent tells about itself.

use crate::admin::metrics::Traffic;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use mesh_common::{
    CloseReason, Counter, FlowState as KernelFlowState, Protocol as Recognised, Transport,
    VerdictKind,
};

use super::Agent;
use super::accepted_flows::{AcceptedFlows, spoken};
use crate::admin::api::{
    self, CertificateKind, CertificateView, CheckItem, ConfigView, Direction, EndpointView,
    FindingView, FlowState, FlowView, KernelLogView, PortView, RefusedView, Security, ServiceView,
    TlsCheckError, TlsCheckRow, TunnelProtocol, VersionView, WorkloadState, WorkloadView,
};
use crate::admin::authz::{AuthzAnswer, AuthzQuestion, AuthzReport};
use crate::datapath::FlowRecord;
use crate::identity::{CaInfo, Identity};
use crate::policy::tls_check::{
    DestinationRule, DestinationTls, Observed, TlsCheck, find_workload, tls_check,
};
use crate::proxy::Local;
use crate::registry::{Endpoint, Placement, Protocol, Registry, Service, Tunnel, Workload};
use crate::route::{ClientView, UpstreamTls};
use crate::snapshot::Snapshot;

impl api::Agent for Agent {
    fn version(&self) -> VersionView {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        VersionView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.options.node.clone(),
            pid: std::process::id(),
            kernel: kernel.trim().to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
        }
    }

    fn workloads(&self) -> Vec<WorkloadView> {
        let snapshot = self.node.snapshot.load();
        snapshot
            .registry
            .workloads
            .iter()
            .map(|workload| self.workload(workload))
            .collect()
    }

    fn services(&self) -> Vec<ServiceView> {
        let snapshot = self.node.snapshot.load();
        snapshot
            .registry
            .services
            .iter()
            .map(|service| service_view(service))
            .collect()
    }

    fn endpoints(&self) -> Vec<api::ClusterView> {
        super::endpoints::views(&self.upstreams.clusters)
    }

    fn inbound(&self) -> Vec<api::InboundView> {
        super::inbound::views(&self.node.locals.load(), &self.node.snapshot.load())
    }

    fn route(&self, question: &api::RouteQuestion) -> Result<api::RouteView, String> {
        super::routes::answer(&self.node.snapshot.load(), question)
    }

    fn flows(&self) -> Vec<FlowView> {
        let snapshot = self.node.snapshot.load();
        let workloads = self.enrolment.by_cookie();
        let mut records = self.node.datapath.flows();
        super::live_flows::refresh(&mut records, &workloads);
        let accepted = AcceptedFlows::of(workloads.values().flatten(), &self.node, &snapshot);
        let mut flows: Vec<FlowView> = records
            .iter()
            .filter_map(|record| {
                let locals = workloads.get(&record.netns_cookie)?;
                // Workloads of the host's own namespace share its cookie.
                let named = locals.iter().find(|local| {
                    record.source_identity == Some(local.workload.identity.to_string())
                });
                Some(self.flow(record, named.or(locals.first())?, &snapshot, &accepted))
            })
            .collect();
        flows.sort_by_key(|flow| (flow.workload.clone(), flow.age_ms, flow.id));
        flows
    }

    fn tls_check(
        &self,
        workload: &str,
        service: Option<&str>,
    ) -> Result<Vec<TlsCheckRow>, TlsCheckError> {
        let snapshot = self.node.snapshot.load();
        let client = client_namespace(&snapshot, workload);
        let of = TlsCheck {
            registry: &snapshot.registry,
            peer_authentication: &snapshot.peer_authentication,
            root_namespace: &self.options.root_namespace,
        };
        let view = ClientView {
            node: None,
            namespace: &client,
            labels: &Default::default(),
        };
        let mut rows = tls_check(&of, workload, service, |service, port| {
            rule_of(&snapshot, &view, service, port)
        })?;
        let client = find_workload(&snapshot.registry, workload)?;
        if self.node.locals.load().named(&client.name).is_none() {
            // Its own node knows.
            return Ok(rows);
        }
        for row in rows.iter_mut().filter(|row| !row.host.contains('|')) {
            let handshakes = self.handshakes(&snapshot.registry, &client.identity, row);
            row.observed = Some(Observed {
                handshakes,
                ..Observed::default()
            });
        }
        Ok(rows)
    }

    fn checks(&self) -> Vec<CheckItem> {
        super::checks::checks(
            &self.node.datapath,
            &self.certificates,
            self.ends_connections,
        )
    }

    fn kernel_log(&self) -> KernelLogView {
        let level = self.node.datapath.kernel_log().to_string();
        KernelLogView { level }
    }

    fn set_kernel_log(&self, level: &str) -> Result<KernelLogView, String> {
        let set = self.node.datapath.set_kernel_log(level.parse()?);
        set.map_err(|error| error.to_string())?;
        Ok(self.kernel_log())
    }

    fn config(&self) -> ConfigView {
        let snapshot = self.node.snapshot.load();
        let refused = self.refused.lock();
        ConfigView {
            source: self.options.config.display().to_string(),
            generation: self.acknowledged.load(Ordering::Relaxed),
            root_namespace: self.options.root_namespace.clone(),
            resources: self.resources.load(Ordering::Relaxed),
            warnings: snapshot.warnings.iter().map(FindingView::from).collect(),
            refused: refused.as_ref().map(|refused| RefusedView {
                age_s: refused.at.elapsed().as_secs(),
                errors: refused.errors.iter().map(FindingView::from).collect(),
            }),
        }
    }

    fn counters(&self) -> api::CountersView {
        let counters = self.node.datapath.counters();
        let of = |counter: Counter| counters[counter as usize];
        let (log_lines, log_lines_dropped) = self.node.telemetry.access_log.counts();
        api::CountersView {
            connections: self.node.connections.len() as u64,
            flows_dropped: of(Counter::FlowsDropped),
            events_dropped: of(Counter::EventsDropped),
            denied: of(Counter::Denied),
            clients_refused: self.node.clients.refused(),
            tunnels_reset: self.node.tunnel_memory.reset(),
            flows_opened: self.flows.opened.load(Ordering::Relaxed),
            flows_closed: self.flows.closed.load(Ordering::Relaxed),
            flows_evicted: self.flows.evicted.load(Ordering::Relaxed),
            log_lines,
            log_lines_dropped,
            configurations_refused: self.refusals.load(Ordering::Relaxed),
        }
    }

    fn traffic(&self) -> Traffic {
        self.refresh_direct();
        let cluster = &self.options.cluster_id;
        super::traffic::traffic(&self.upstreams.clusters, &self.node, cluster)
    }

    fn certificates(&self) -> Vec<CertificateView> {
        let authorities = |kind, all: Vec<CaInfo>| {
            all.into_iter().map(move |ca| CertificateView {
                identity: ca.subject,
                kind,
                serial: ca.serial,
                not_before: ca.not_before,
                not_after: ca.not_after,
                workloads: Vec::new(),
                chain: Vec::new(),
            })
        };
        let roots = self.certificates.roots();
        let intermediates = self.certificates.intermediates();
        let locals = self.enrolment.by_cookie();
        let leaves = self
            .certificates
            .certificates()
            .into_iter()
            .map(|leaf| CertificateView {
                workloads: locals
                    .values()
                    .flatten()
                    .filter(|local| local.workload.identity == leaf.identity)
                    .map(|local| local.workload.name.to_string())
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect(),
                identity: leaf.identity.to_string(),
                kind: CertificateKind::Leaf,
                serial: leaf.serial,
                not_before: leaf.not_before,
                not_after: leaf.not_after,
                chain: leaf.chain,
            });
        authorities(CertificateKind::Root, roots)
            .chain(authorities(CertificateKind::Intermediate, intermediates))
            .chain(leaves)
            .collect()
    }

    fn authz_check(&self, question: &AuthzQuestion) -> Result<AuthzAnswer, String> {
        self.authorization(question)
    }

    fn authz_report(&self) -> Vec<AuthzReport> {
        self.authorization_reports()
    }

    fn plaintext(&self, minutes: u32) -> Vec<api::PlaintextView> {
        super::plaintext::views(&self.node, minutes)
    }

    fn answered(&self) {
        self.has_answered.store(true, Ordering::Relaxed);
    }
}

impl Agent {
    fn workload(&self, workload: &Workload) -> WorkloadView {
        let state = self.enrolment.state(workload);
        let here = state != WorkloadState::Remote;
        let node = match &workload.node {
            Some(node) => node.clone(),
            None if here => self.options.node.clone(),
            None => String::new(),
        };
        WorkloadView {
            name: workload.name.name.to_string(),
            namespace: workload.name.namespace.to_string(),
            node,
            addresses: workload.addresses.clone(),
            placement: workload
                .placement
                .as_ref()
                .filter(|_| here)
                .map(placement)
                .unwrap_or_default(),
            identity: workload.identity.to_string(),
            protocol: match workload.tunnel {
                Tunnel::Hbone => TunnelProtocol::Hbone,
                Tunnel::Sidecar => TunnelProtocol::MutualTls,
                Tunnel::None => TunnelProtocol::Tcp,
            },
            state,
        }
    }

    /// Handshakes of the last minute between a client and the workloads behind a row.
    fn handshakes(&self, registry: &Registry, client: &Identity, row: &TlsCheckRow) -> u64 {
        let Some(service) = registry.by_host.get(&row.host) else {
            return 0;
        };
        let servers: BTreeSet<&Identity> = service
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.ports.contains_key(&row.port))
            .filter_map(|endpoint| Some(&endpoint.workload.as_ref()?.identity))
            .collect();
        (self.node.handshakes).count(client, |server| servers.contains(server))
    }

    fn flow(
        &self,
        record: &FlowRecord,
        local: &Local,
        snapshot: &Snapshot,
        accepted: &AcceptedFlows,
    ) -> FlowView {
        let counters = &record.counters;
        let (source, destination) = if record.inbound {
            (record.remote, record.local)
        } else {
            (record.local, record.remote)
        };
        let refused = (record.path.as_ref()).filter(|path| path.is_refused());
        let client = ClientView::of(&local.workload);
        let port = destination.port();
        let of_client = |service: &Service| snapshot.routes.sees(&client, service, port);
        let asked_for = match record.inbound {
            true => None,
            false => snapshot.registry.service_for_client(destination, of_client),
        };
        let asked_for = asked_for.and_then(|service| Some((service, service.port(port)?)));
        let service = match asked_for {
            Some((service, _)) => Some(service.host.clone()),
            None if record.inbound => accepted.services(record, local),
            // No endpoint was asked.
            None => refused
                .filter(|path| path.endpoint.is_none())
                .map(|_| Service::black_hole(port).host),
        };
        let spoken = match (&record.path, asked_for) {
            (Some(path), _) => path.protocol,
            (None, _) if record.inbound => accepted.protocol(record, local),
            // Nobody looks at what passes by the agent.
            (None, Some((_, port))) if record.verdict == VerdictKind::Direct => {
                spoken(port.protocol).unwrap_or(Recognised::Unknown)
            }
            (None, _) => Recognised::Unknown,
        };
        let way = self.way(record, local, service.as_deref());
        FlowView {
            id: record.id,
            workload: local.workload.name.to_string(),
            direction: if record.inbound {
                Direction::Inbound
            } else {
                Direction::Outbound
            },
            source,
            destination,
            endpoint: way.endpoint,
            service,
            protocol: protocol(spoken).to_owned(),
            security: security(way.transport),
            source_identity: record.source_identity.clone(),
            destination_identity: way.identity,
            bytes_sent: counters.bytes_sent + counters.spliced_sent,
            bytes_received: counters.bytes_received + counters.spliced_received,
            short_circuit_sent: counters.spliced_sent,
            short_circuit_received: counters.spliced_received,
            segments_sent: counters.segments_sent.into(),
            segments_received: counters.segments_received.into(),
            rtt_us: counters.rtt_us,
            min_rtt_us: (counters.min_rtt_us > 0).then_some(counters.min_rtt_us),
            retransmits: counters.retransmits,
            connect_us: (counters.connect_us > 0).then_some(counters.connect_us),
            age_ms: u64::try_from(record.age.as_millis()).unwrap_or(u64::MAX),
            state: flow_state(record),
            verdict: match record.verdict {
                VerdictKind::Pass => "pass",
                // The agent's own verdict, which the kernel has only carried out in part.
                VerdictKind::Proxy if refused.is_some() => "deny",
                VerdictKind::Proxy => "proxy",
                VerdictKind::Direct => "direct",
                VerdictKind::Deny => "deny",
            }
            .to_owned(),
        }
    }

    /// Which way the bytes of a flow go. The kernel's record knows that of a
    /// direct and of an incoming one; of others the agent has noted it, for the
    /// flow or, where requests take several ways, for the service.
    fn way(&self, record: &FlowRecord, local: &Local, service: Option<&str>) -> Way {
        if record.inbound {
            return Way {
                endpoint: None,
                transport: record.transport,
                identity: record.destination_identity.clone(),
            };
        }
        if record.verdict == VerdictKind::Direct {
            return Way {
                endpoint: record.endpoint,
                transport: Transport::SameNode,
                identity: record.destination_identity.clone(),
            };
        }
        let noted = record.path.as_ref().filter(|path| path.endpoint.is_some());
        if let Some(path) = noted {
            return Way {
                endpoint: path.endpoint,
                transport: path.transport,
                identity: path.destination_identity.clone(),
            };
        }
        let of_service = service
            .filter(|_| record.path.is_some())
            .and_then(|service| self.node.notes.path(&local.workload.name, service));
        match of_service {
            Some(path) => Way {
                endpoint: Some(path.endpoint),
                transport: path.transport,
                identity: path.identity.map(|identity| identity.to_string()),
            },
            None => Way {
                endpoint: None,
                transport: Transport::Unknown,
                identity: None,
            },
        }
    }
}

struct Way {
    endpoint: Option<SocketAddr>,
    transport: Transport,
    identity: Option<String>,
}

fn protocol(spoken: Recognised) -> &'static str {
    match spoken {
        Recognised::Tcp => "tcp",
        Recognised::Http1 => "http",
        Recognised::Http2 => "h2",
        Recognised::Dns => "dns",
        Recognised::Unknown => "-",
    }
}

fn flow_state(record: &FlowRecord) -> FlowState {
    if record.state != KernelFlowState::Closed {
        return FlowState::Open;
    }
    let reason = match record.close_reason {
        CloseReason::Local => "by this end",
        CloseReason::Remote => "by the other end",
        CloseReason::Reset => "reset",
        CloseReason::Failed => "not established",
        CloseReason::Refused => "refused",
        CloseReason::TimedOut => "timed out",
        CloseReason::Policy => "by policy",
        CloseReason::Open => "closed",
    };
    FlowState::Closed(reason.to_owned())
}

fn client_namespace(snapshot: &Snapshot, text: &str) -> String {
    let mut names = snapshot
        .registry
        .workloads
        .iter()
        .map(|workload| &workload.name);
    let found = names.find(|name| {
        name.to_string() == text || (*name.name == *text && &*name.namespace == "default")
    });
    found.map_or_else(|| "default".to_owned(), |name| name.namespace.to_string())
}

/// The DestinationRule that a client's connections to a service follow.
fn rule_of(
    snapshot: &Snapshot,
    client: &ClientView<'_>,
    service: &Service,
    port: u16,
) -> Option<DestinationRule> {
    let rule = snapshot.routes.destination_rule(client, service)?;
    let tls = |tls: &UpstreamTls| match tls {
        UpstreamTls::Auto => DestinationTls::Auto,
        UpstreamTls::Disable => DestinationTls::Disable,
        UpstreamTls::IstioMutual => DestinationTls::IstioMutual,
        UpstreamTls::Originate(_) | UpstreamTls::Impossible(_) => DestinationTls::Originate,
    };
    Some(DestinationRule {
        name: rule.name.clone(),
        tls: tls(&rule.policy(port).tls),
        subsets: rule
            .subsets()
            .map(|subset| (subset.name.clone(), tls(&subset.policy(port).tls)))
            .collect(),
    })
}

fn security(transport: Transport) -> Security {
    match transport {
        Transport::SameNode => Security::SameNode,
        Transport::Hbone | Transport::MutualTls => Security::MutualTls,
        Transport::Plain => Security::Plaintext,
        Transport::Unknown | Transport::Blocked | Transport::NoRoom => Security::Unknown,
    }
}

fn placement(placement: &Placement) -> String {
    match placement {
        Placement::Netns(name) => format!("netns/{name}"),
        Placement::Pid(pid) => format!("pid/{pid}"),
        Placement::Container(id) => format!("container/{id}"),
        Placement::Cgroup(path) => format!("cgroup{path}"),
    }
}

fn service_view(service: &Service) -> ServiceView {
    let protocol = |protocol| match protocol {
        Protocol::Auto => "auto",
        Protocol::Http => "http",
        Protocol::Http2 => "http2",
        Protocol::Grpc => "grpc",
        Protocol::Tls => "tls",
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let ports = service.ports.iter().map(|port| PortView {
        number: port.number,
        protocol: protocol(port.protocol).to_owned(),
    });
    let endpoints = service
        .endpoints
        .iter()
        .flat_map(|endpoint| endpoint_views(endpoint));
    ServiceView {
        host: service.host.clone(),
        vips: service.addresses().collect(),
        ports: ports.collect(),
        endpoints: endpoints.collect(),
    }
}

fn endpoint_views(endpoint: &Endpoint) -> impl Iterator<Item = EndpointView> + '_ {
    endpoint.ports.values().map(|port| EndpointView {
        address: match (endpoint.address, &endpoint.host) {
            (Some(ip), _) => SocketAddr::new(ip, *port).to_string(),
            (None, host) => format!("{}:{port}", host.as_deref().unwrap_or("?")),
        },
        workload: endpoint
            .workload
            .as_ref()
            .map(|workload| workload.name.to_string()),
        healthy: endpoint.unhealthy.is_none(),
    })
}
