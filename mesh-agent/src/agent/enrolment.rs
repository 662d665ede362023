//! Which workloads of the configuration are on this node, and their listeners.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use mesh_common::ListenerKind;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::admin::api::WorkloadState;
use crate::datapath::{self, Datapath, ListenerPorts};
use crate::dns::{DnsServer, Nameservers};
use crate::identity::Certificates;
use crate::netns::{Namespace, NamespaceError, WorkloadSockets};
use crate::proxy::http::Upstreams;
use crate::proxy::inbound::{self, Inbound};
use crate::proxy::outbound::{self, Outbound};
use crate::proxy::upstream::Upstream;
use crate::proxy::{Local, Locals, Node};
use crate::registry::{WhenAgentIsDown, Workload, WorkloadName};

/// Enrols and removes workloads as the configuration and the namespaces change.
pub(super) struct Enrolment {
    node_name: String,
    node: Arc<Node>,
    upstreams: Arc<Upstreams<Upstream>>,
    certificates: Arc<Certificates>,
    when_agent_is_down: WhenAgentIsDown,
    stop: CancellationToken,
    members: Mutex<HashMap<WorkloadName, Member>>,
}

enum Member {
    Enrolled(Enrolled),
    Waiting(String),
    Failed(String),
}

struct Enrolled {
    local: Arc<Local>,
    drain: CancellationToken,
}

impl Enrolment {
    pub(super) fn new(
        node_name: String,
        node: Arc<Node>,
        upstreams: Arc<Upstreams<Upstream>>,
        certificates: Arc<Certificates>,
        when_agent_is_down: WhenAgentIsDown,
        stop: CancellationToken,
    ) -> Self {
        Self {
            node_name,
            node,
            upstreams,
            certificates,
            when_agent_is_down,
            stop,
            members: Mutex::default(),
        }
    }

    /// Makes the enrolled workloads those of the configuration whose
    /// namespaces are here. Connections of workloads that stay are untouched.
    pub(super) fn reconcile(&self) {
        let snapshot = self.node.snapshot.load_full();
        let mut members = self.members.lock();
        let mut changed = false;
        let wanted: HashMap<&WorkloadName, &Arc<Workload>> = snapshot
            .registry
            .workloads
            .iter()
            .filter(|workload| self.is_ours(workload))
            .map(|workload| (&workload.name, workload))
            .collect();
        members.retain(|name, member| {
            let keep = match (wanted.get(name), &*member) {
                (None, _) => false,
                (Some(workload), Member::Enrolled(enrolled)) => {
                    let namespace = enrolled.local.sockets.namespace();
                    let placement = workload.placement.as_ref();
                    **workload == enrolled.local.workload
                        && placement.is_some_and(|placement| namespace.is_at(placement))
                }
                (Some(_), _) => true,
            };
            if !keep && let Member::Enrolled(enrolled) = member {
                tracing::info!(workload = %name, "workload leaves");
                enrolled.drain.cancel();
                self.node
                    .datapath
                    .remove(enrolled.local.sockets.namespace());
                self.upstreams.forget(name);
                self.upstreams.connector().forget(&enrolled.local.workload);
                changed = true;
            }
            keep
        });
        // A namespace has one workload: the first that names it.
        for workload in snapshot
            .registry
            .workloads
            .iter()
            .filter(|workload| self.is_ours(workload))
        {
            if matches!(members.get(&workload.name), Some(Member::Enrolled(_))) {
                continue;
            }
            let member = self.enrol(workload, &members);
            changed |= matches!(member, Member::Enrolled(_));
            members.insert(workload.name.clone(), member);
        }
        if changed {
            let locals = members.values().filter_map(|member| match member {
                Member::Enrolled(enrolled) => Some(enrolled.local.clone()),
                _ => None,
            });
            self.node.locals.store(Arc::new(Locals::new(locals)));
        }
    }

    /// How a workload stands on this node.
    pub(super) fn state(&self, workload: &Workload) -> WorkloadState {
        match self.members.lock().get(&workload.name) {
            Some(Member::Enrolled(_)) => WorkloadState::Enrolled,
            Some(Member::Waiting(reason)) => WorkloadState::Waiting(reason.clone()),
            Some(Member::Failed(reason)) => WorkloadState::Failed(reason.clone()),
            None => WorkloadState::Remote,
        }
    }

    /// The workload of a namespace on this node.
    pub(super) fn by_cookie(&self) -> HashMap<u64, Arc<Local>> {
        let members = self.members.lock();
        members
            .values()
            .filter_map(|member| match member {
                Member::Enrolled(enrolled) => Some((
                    enrolled.local.sockets.namespace().cookie(),
                    enrolled.local.clone(),
                )),
                _ => None,
            })
            .collect()
    }

    fn is_ours(&self, workload: &Workload) -> bool {
        workload.placement.is_some()
            && workload
                .node
                .as_ref()
                .is_none_or(|node| *node == self.node_name)
    }

    fn enrol(&self, workload: &Arc<Workload>, members: &HashMap<WorkloadName, Member>) -> Member {
        let Some(placement) = &workload.placement else {
            return Member::Waiting("no placement".to_owned());
        };
        let namespace = match Namespace::open(placement) {
            Ok(namespace) => namespace,
            Err(error @ NamespaceError::Missing { .. }) => {
                return Member::Waiting(error.to_string());
            }
            Err(error) => return Member::Failed(error.to_string()),
        };
        let other = members.iter().find_map(|(name, member)| match member {
            Member::Enrolled(enrolled)
                if enrolled.local.sockets.namespace().cookie() == namespace.cookie() =>
            {
                Some(name)
            }
            _ => None,
        });
        if let Some(other) = other {
            return Member::Waiting(format!("its network namespace is that of {other}"));
        }
        match self.start(workload.clone(), namespace) {
            Ok(enrolled) => {
                tracing::info!(workload = %workload.name, identity = %workload.identity, "workload is enrolled");
                Member::Enrolled(enrolled)
            }
            Err(error) => {
                let reason = format!("{error:#}");
                let before = members.get(&workload.name);
                if !matches!(before, Some(Member::Failed(same)) if *same == reason) {
                    tracing::error!(workload = %workload.name, reason, "workload cannot be enrolled");
                }
                Member::Failed(reason)
            }
        }
    }

    fn start(&self, workload: Arc<Workload>, namespace: Namespace) -> anyhow::Result<Enrolled> {
        let datapath = &self.node.datapath;
        let sockets = Arc::new(WorkloadSockets::new(namespace, datapath.marks().clone()));
        let local = Arc::new(Local {
            workload,
            sockets: sockets.clone(),
        });
        let drain = self.stop.child_token();
        let dns = {
            let snapshot = self.node.snapshot.clone();
            let registry = move || snapshot.load().registry.clone();
            Arc::new(DnsServer::new(
                local.workload.name.namespace.clone(),
                registry,
                sockets.clone(),
            ))
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
        let mut ports = ListenerPorts::default();
        for loopback in [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ] {
            let listener = match sockets.listen(loopback) {
                Ok(listener) => listener,
                // IPv6 can be off in a namespace.
                Err(_) if loopback.is_ipv6() => continue,
                Err(error) => return Err(error.into()),
            };
            let any: IpAddr = if loopback.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                loopback
            };
            let questions = sockets.listen_udp(any)?;
            let (outbound_port, dns_port) = (
                listener.local_addr()?.port(),
                questions.local_addr()?.port(),
            );
            if loopback.is_ipv4() {
                (ports.outbound4, ports.dns4) = (outbound_port, dns_port);
            } else {
                (ports.outbound6, ports.dns6) = (outbound_port, dns_port);
            }
            datapath.set_listener(sockets.namespace(), ListenerKind::Outbound, &listener)?;
            tokio::spawn(outbound::serve(listener, outbound.clone()));
            let nameservers = Arc::new(Aliases {
                datapath: datapath.clone(),
                netns_cookie: sockets.namespace().cookie(),
            });
            let served = dns.clone().serve_udp(questions, nameservers, drain.clone());
            let name = local.workload.name.clone();
            tokio::spawn(async move {
                if let Err(error) = served.await {
                    tracing::error!(workload = %name, %error, "DNS is not answered");
                }
            });

            let plaintext = sockets.listen(loopback)?;
            datapath.set_listener(sockets.namespace(), ListenerKind::Inbound, &plaintext)?;
            tokio::spawn(inbound::serve_plaintext(plaintext, inbound.clone()));
            let tunnels = sockets.listen(loopback)?;
            datapath.set_listener(sockets.namespace(), ListenerKind::Hbone, &tunnels)?;
            tokio::spawn(inbound::serve_hbone(tunnels, inbound.clone()));
        }
        let enrolled = datapath::Enrolled {
            addresses: local.workload.addresses.clone(),
            ports,
            fails_open: local
                .workload
                .when_agent_is_down
                .unwrap_or(self.when_agent_is_down)
                == WhenAgentIsDown::Pass,
        };
        datapath.enrol(sockets.namespace(), &enrolled)?;
        guard.disarm();
        Ok(Enrolled { local, drain })
    }
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
