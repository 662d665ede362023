//! What the running agent tells about itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use super::Agent;
use crate::admin::api::{
    self, CertificateKind, CertificateView, CheckItem, ConfigView, Direction, EndpointView,
    FindingView, FlowState, FlowView, PortView, RefusedView, Security, ServiceView, TlsCheckError,
    TlsCheckRow, TunnelProtocol, VersionView, WorkloadState, WorkloadView,
};
use crate::admin::authz::{AuthzAnswer, AuthzQuestion, AuthzReport};
use crate::datapath::FlowRecord;
use crate::identity::Identity;
use crate::identity::authority::CaInfo;
use crate::policy::tls_check::{
    DestinationRule, DestinationTls, Observed, TlsCheck, find_workload, tls_check,
};
use crate::proxy::Local;
use crate::proxy::notes::{Path, Transport};
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

    fn flows(&self) -> Vec<FlowView> {
        let snapshot = self.node.snapshot.load();
        let workloads = self.enrolment.by_cookie();
        let records = self.node.datapath.flows();
        let mut flows: Vec<FlowView> = records
            .iter()
            .filter_map(|record| {
                Some(self.flow(record, workloads.get(&record.netns_cookie)?, &snapshot))
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
            namespace: &client,
            labels: &Default::default(),
        };
        let mut rows = tls_check(&of, workload, service, |service, port| {
            rule_of(&snapshot, &view, service, port)
        })?;
        let client = find_workload(&snapshot.registry, workload)?;
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
        let attached = self.node.datapath.attached();
        let folder = self.node.datapath.folder().display();
        vec![CheckItem::ok(
            "agent",
            "kernel programs are attached",
            format!("{} links below {folder}", attached.len()),
        )]
    }

    fn config(&self) -> ConfigView {
        let snapshot = self.node.snapshot.load();
        let refused = self.refused.lock();
        ConfigView {
            source: self.options.config.display().to_string(),
            generation: snapshot.generation,
            resources: self.resources.load(Ordering::Relaxed),
            warnings: snapshot.warnings.iter().map(FindingView::from).collect(),
            refused: refused.as_ref().map(|refused| RefusedView {
                age_s: refused.at.elapsed().as_secs(),
                errors: refused.errors.iter().map(FindingView::from).collect(),
            }),
        }
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
        let authority = self.certificates.authority();
        let locals = self.enrolment.by_cookie();
        let leaves = self
            .certificates
            .certificates()
            .into_iter()
            .map(|leaf| CertificateView {
                workloads: locals
                    .values()
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
                chain: authority.above().to_vec(),
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

    fn flow(&self, record: &FlowRecord, local: &Local, snapshot: &Snapshot) -> FlowView {
        let counters = &record.counters;
        let own = Some(local.workload.identity.to_string());
        let mut view = FlowView {
            id: record.id,
            workload: local.workload.name.to_string(),
            direction: if record.inbound {
                Direction::Inbound
            } else {
                Direction::Outbound
            },
            source: record.local,
            destination: record.remote,
            endpoint: None,
            service: None,
            protocol: "-".to_owned(),
            security: Security::Unknown,
            source_identity: own.clone(),
            destination_identity: None,
            bytes_sent: counters.bytes_sent,
            bytes_received: counters.bytes_received,
            segments_sent: counters.segments_sent.into(),
            segments_received: counters.segments_received.into(),
            rtt_us: counters.rtt_us,
            min_rtt_us: None,
            retransmits: counters.retransmits,
            age_ms: u64::try_from(record.age.as_millis()).unwrap_or(u64::MAX),
            state: if record.closed {
                FlowState::Closed("closed".to_owned())
            } else {
                FlowState::Open
            },
            verdict: "pass".to_owned(),
        };
        if record.inbound {
            (view.source, view.destination) = (record.remote, record.local);
            view.destination_identity = own;
            view.source_identity = None;
            if let Some(arrival) = self.node.notes.of_inbound(record.remote, record.local) {
                view.verdict = "proxy".to_owned();
                view.security = security(arrival.transport);
                view.source_identity = arrival.identity.map(|identity| identity.to_string());
            }
        } else if let Some(note) = self.node.notes.of_outbound(record.id) {
            view.verdict = "proxy".to_owned();
            view.protocol = note.protocol.to_owned();
            let path = note.path.or_else(|| {
                let service = note.service.as_deref()?;
                self.node.notes.path(&local.workload.name, service)
            });
            if let Some(Path {
                endpoint,
                transport,
                identity,
            }) = path
            {
                view.endpoint = Some(endpoint);
                view.security = security(transport);
                view.destination_identity = identity.map(|identity| identity.to_string());
            }
            view.service = note.service;
        }
        if view.service.is_none() {
            view.service = snapshot
                .registry
                .service_for(view.destination)
                .map(|service| service.host.clone());
        }
        view
    }
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
    let tls = |tls| match tls {
        UpstreamTls::Auto => DestinationTls::Auto,
        UpstreamTls::Disable => DestinationTls::Disable,
        UpstreamTls::IstioMutual => DestinationTls::IstioMutual,
        UpstreamTls::NotApplied => DestinationTls::Originate,
    };
    Some(DestinationRule {
        name: rule.name.clone(),
        tls: tls(rule.policy(port).tls),
        subsets: rule
            .subsets()
            .map(|subset| (subset.name.clone(), tls(subset.policy(port).tls)))
            .collect(),
    })
}

fn security(transport: Transport) -> Security {
    match transport {
        Transport::SameNode => Security::SameNode,
        Transport::Hbone => Security::MutualTls,
        Transport::Plain => Security::Plaintext,
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
        vips: service.vips.clone(),
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
        healthy: true,
    })
}
