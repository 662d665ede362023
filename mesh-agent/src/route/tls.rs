//! Rules for TLS that is passed through, by the name that the client asks for.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rand::Rng;

use super::Routes;
use super::matching::ClientMatch;
use super::model::{Target, Targets};
use super::tcp::{TcpDecision, opaque_targets};
use super::view::ClientView;
use crate::registry::{Registry, Service};
use crate::resource::value::parse_subnet;
use crate::resource::virtual_service::{TlsMatch, TlsRoute};

/// One rule, compiled.
#[derive(Debug)]
pub(super) struct TlsRule {
    matches: Vec<Hello>,
    targets: Targets<Target>,
}

/// What a ClientHello has to say.
#[derive(Debug)]
struct Hello {
    client: ClientMatch,
    /// Names, and suffixes with a leading dot.
    names: Vec<String>,
    port: Option<u16>,
    subnets: Vec<IpNet>,
}

impl TlsRule {
    /// `None` for a rule that is not for clients inside the mesh.
    pub(super) fn compile(route: &TlsRoute, full_name: &dyn Fn(&str) -> String) -> Option<Self> {
        let matches: Vec<_> = route.r#match.iter().filter_map(Hello::compile).collect();
        (!matches.is_empty()).then(|| Self {
            matches,
            targets: opaque_targets(&route.route, full_name),
        })
    }

    /// Whether it can ever be for this client.
    pub(super) fn is_for(&self, client: &ClientView<'_>) -> bool {
        self.matches
            .iter()
            .any(|block| block.client.matches(client))
    }
}

impl Hello {
    fn compile(block: &TlsMatch) -> Option<Self> {
        if !block.gateways.is_empty() && !block.gateways.iter().any(|gateway| gateway == "mesh") {
            return None;
        }
        let subnets = block.destination_subnets.iter();
        Some(Self {
            client: ClientMatch::new(&block.source_labels, block.source_namespace.as_deref()),
            names: block
                .sni_hosts
                .iter()
                .map(|host| host.strip_prefix('*').unwrap_or(host).to_ascii_lowercase())
                .collect(),
            port: block.port.and_then(|port| u16::try_from(port).ok()),
            subnets: subnets.filter_map(|subnet| parse_subnet(subnet)).collect(),
        })
    }

    fn matches(&self, client: &ClientView<'_>, destination: SocketAddr, name: &str) -> bool {
        let is_name = |own: &String| match own.strip_prefix('.') {
            Some(_) => name.len() > own.len() && name.ends_with(own.as_str()),
            None => own == name || own.is_empty(),
        };
        self.names.iter().any(is_name)
            && self.port.is_none_or(|port| port == destination.port())
            && (self.subnets.is_empty()
                || self
                    .subnets
                    .iter()
                    .any(|subnet| subnet.contains(&destination.ip())))
            && self.client.matches(client)
    }
}

impl Routes {
    /// Whether a client's TLS connections to a service are routed by the name that they ask for.
    pub fn wants_server_name(&self, client: &ClientView<'_>, service: &Service) -> bool {
        self.rules_of(&service.host, client)
            .is_some_and(|rules| rules.tls.iter().any(|rule| rule.is_for(client)))
    }

    /// Decides where a TLS connection goes that asks for `name`; where no rule
    /// is for it, straight to the service.
    pub fn decide_tls<'r>(
        &'r self,
        client: &ClientView<'_>,
        service: &'r Arc<Service>,
        destination: SocketAddr,
        name: &str,
        registry: &'r Registry,
        random: &mut impl Rng,
    ) -> TcpDecision<'r> {
        let name = name.to_ascii_lowercase();
        let rules = self.rules_of(&service.host, client);
        let rule = rules.and_then(|rules| {
            rules.tls.iter().find(|rule| {
                rule.matches
                    .iter()
                    .any(|block| block.matches(client, destination, &name))
            })
        });
        let port = destination.port();
        let plan = match rule.and_then(|rule| rule.targets.pick(random)) {
            Some(target) => self.plan_for(target, client, port, registry),
            None => self.plan_directly(client, service, port, registry),
        };
        plan.map(|mut plan| {
            plan.ask_for(&name);
            plan
        })
    }
}
