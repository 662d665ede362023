//! The agent's sockets in a workload's namespace, and what serves them.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use mesh_common::ListenerKind;

use super::{Enrolled, Enrolment, ingress, takes_all};
use crate::agent::listeners::Listeners;
use crate::agent::takeover::ListenerRole;
use crate::datapath::{self, Datapath, ListenerPorts};
use crate::dns::{DnsServer, Nameservers};
use crate::netns::{BoxFuture, Location, WorkloadSockets};
use crate::proxy::Local;
use crate::proxy::inbound::{self, Inbound};
use crate::proxy::outbound::{self, Outbound};
use crate::registry::{Service, WhenAgentIsDown, Workload};
use crate::route::ClientView;

impl Enrolment {
    /// Opens the sockets, or takes those of the agent before, and tells the kernel.
    pub(super) fn start(
        &self,
        workload: Arc<Workload>,
        location: Location,
    ) -> anyhow::Result<Enrolled> {
        let datapath = &self.node.datapath;
        let place = location.place();
        // In the host's own namespace nothing that arrives is intercepted.
        let hears_others = location.cgroup.is_none();
        let sockets = Arc::new(WorkloadSockets::new(location, datapath.marks().clone()));
        let inherited = self.handed.lock().take(&place);
        let mut listeners = Listeners::new(&sockets, inherited);
        let local = Arc::new(Local {
            callers: self.node.telemetry.callers(&workload.name),
            workload,
            sockets: sockets.clone(),
            closed_ports: Default::default(),
            inbound: Default::default(),
        });
        let drain = self.stop.child_token();
        let dns = {
            let snapshot = self.node.snapshot.clone();
            let registry = move || snapshot.load().registry.clone();
            let server = DnsServer::new(
                local.workload.name.namespace.clone(),
                registry,
                sockets.clone(),
            );
            let (snapshot, workload) = (self.node.snapshot.clone(), local.workload.clone());
            let sees = move |service: &Service| {
                let routes = &snapshot.load().routes;
                routes.sees_some_of(&ClientView::of(&workload), service)
            };
            Arc::new(server.with_visibility(sees))
        };
        let outbound = Arc::new(Outbound {
            dns: dns.clone(),
            node: self.node.clone(),
            local: local.clone(),
            upstreams: self.upstreams.clone(),
            drain: drain.clone(),
        });
        let inbound = Arc::new(Inbound {
            node: self.node.clone(),
            local: local.clone(),
            certificates: self.certificates.clone(),
            drain: drain.clone(),
        });
        // Until all is in place, dropping the guard undoes what was begun.
        let guard = drain.clone().drop_guard();
        let before = datapath.ports(sockets.location());
        let mut ports = ListenerPorts::default();
        let mut waiting: Vec<BoxFuture<'static, ()>> = Vec::new();
        for (family, dns_before) in [(&Family::V4, before.dns4), (&Family::V6, before.dns6)] {
            let listener = match listeners.tcp(family.outbound) {
                Ok(listener) => listener,
                Err(error) if family == &Family::V6 && is_off(&error) => {
                    tracing::info!(
                        workload = %local.workload.name,
                        "IPv6 is off in its network namespace: it is served over IPv4 alone"
                    );
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let questions = listeners.udp(family.dns, dns_before)?;
            let (outbound_port, dns_port) = (
                listener.local_addr()?.port(),
                questions.local_addr()?.port(),
            );
            if family == &Family::V4 {
                (ports.outbound4, ports.dns4) = (outbound_port, dns_port);
            } else {
                (ports.outbound6, ports.dns6) = (outbound_port, dns_port);
            }
            if hears_others {
                let kind = ListenerKind::Outbound;
                datapath.set_listener(sockets.namespace(), kind, &listener)?;
            }
            waiting.push(Box::pin(outbound::serve(listener, outbound.clone())));
            let nameservers = Arc::new(Aliases {
                datapath: datapath.clone(),
                netns_cookie: sockets.namespace().cookie(),
            });
            let served = dns.clone().serve_udp(questions, nameservers, drain.clone());
            let name = local.workload.name.clone();
            let open = self.node.connections.token();
            waiting.push(Box::pin(async move {
                let _open = open;
                if let Err(error) = served.await {
                    tracing::error!(workload = %name, %error, "DNS is not answered");
                }
            }));

            if !hears_others {
                continue;
            }
            let plaintext = listeners.tcp(family.inbound)?;
            datapath.set_listener(sockets.namespace(), ListenerKind::Inbound, &plaintext)?;
            waiting.push(Box::pin(inbound::serve_own_ports(
                plaintext,
                inbound.clone(),
            )));
            let tunnels = listeners.tcp(family.hbone)?;
            datapath.set_listener(sockets.namespace(), ListenerKind::Hbone, &tunnels)?;
            waiting.push(Box::pin(inbound::serve_hbone(tunnels, inbound.clone())));
        }
        let (takes_all, ingress) = {
            let snapshot = self.node.snapshot.load();
            let workload = &local.workload;
            (takes_all(&snapshot, workload), ingress(&snapshot, workload))
        };
        let enrolled = datapath::Enrolled {
            takes_all,
            ingress: ingress.clone(),
            addresses: local.workload.addresses.clone(),
            identity: local.workload.identity.to_string(),
            ports,
            fails_open: local
                .workload
                .when_agent_is_down
                .unwrap_or(self.when_agent_is_down)
                == WhenAgentIsDown::Pass,
            short_circuit: local.workload.short_circuit.unwrap_or(self.short_circuit),
        };
        datapath.enrol(sockets.location(), &enrolled)?;
        let sockets = listeners.into_kept();
        guard.disarm();
        Ok(Enrolled {
            local,
            place,
            takes_all,
            ingress,
            sockets,
            waiting,
            drain,
        })
    }
}

/// Whether the address family is, and not the socket at fault ([`WorkloadSockets::listen`]).
fn is_off(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(code, Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}

/// What an address family's sockets are for.
#[derive(PartialEq, Eq)]
struct Family {
    outbound: ListenerRole,
    inbound: ListenerRole,
    hbone: ListenerRole,
    dns: ListenerRole,
}

impl Family {
    const V4: Self = Self {
        outbound: ListenerRole::Outbound4,
        inbound: ListenerRole::Inbound4,
        hbone: ListenerRole::Hbone4,
        dns: ListenerRole::Dns4,
    };
    const V6: Self = Self {
        outbound: ListenerRole::Outbound6,
        inbound: ListenerRole::Inbound6,
        hbone: ListenerRole::Hbone6,
        dns: ListenerRole::Dns6,
    };
}

/// Name servers behind the aliases that a namespace's questions arrive at.
struct Aliases {
    datapath: Arc<Datapath>,
    netns_cookie: u64,
}

impl Nameservers for Aliases {
    fn original(
        &self,
        alias: IpAddr,
        _client: std::net::SocketAddr,
    ) -> Option<std::net::SocketAddr> {
        match alias {
            IpAddr::V4(alias) => self.datapath.nameserver(self.netns_cookie, alias),
            // True IPv6 servers share ::1; the kernel notes the last one that the namespace asked.
            IpAddr::V6(_) => self
                .datapath
                .nameserver(self.netns_cookie, Ipv4Addr::UNSPECIFIED),
        }
    }
}
