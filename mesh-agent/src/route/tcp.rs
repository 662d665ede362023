//! Rules for connections that are not HTTP.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use rand::Rng;

use super::edit::RouteEdits;
use super::matching::ClientMatch;
use super::model::{Target, Targets};
use super::plan::Unroutable;
use super::view::ClientView;
use super::{Plan, Routes};
use crate::registry::{Registry, Service};
use crate::resource::value::parse_subnet;
use crate::resource::virtual_service::{RouteDestination, TcpMatch, TcpRoute};

/// Where a connection goes.
pub type TcpDecision<'r> = Result<Plan<'r>, Unroutable>;

/// One rule, compiled.
#[derive(Debug)]
pub(super) struct TcpRule {
    /// Any of them; none means every connection.
    matches: Vec<Connection>,
    targets: Targets<Target>,
}

#[derive(Debug)]
struct Connection {
    client: ClientMatch,
    port: Option<u16>,
    subnets: Vec<IpNet>,
    source: Option<IpNet>,
}

impl TcpRule {
    /// `None` for a rule that is not for clients inside the mesh.
    pub(super) fn compile(route: &TcpRoute, full_name: &dyn Fn(&str) -> String) -> Option<Self> {
        let matches: Vec<_> = route
            .r#match
            .iter()
            .filter_map(Connection::compile)
            .collect();
        if matches.is_empty() && !route.r#match.is_empty() {
            return None;
        }
        Some(Self {
            matches,
            targets: opaque_targets(&route.route, full_name),
        })
    }

    /// Whether it can ever be for this client.
    pub(super) fn is_for(&self, client: &ClientView<'_>) -> bool {
        self.matches.is_empty()
            || self
                .matches
                .iter()
                .any(|block| block.client.matches(client))
    }
}

/// Destinations of connections that are not HTTP.
pub(super) fn opaque_targets(
    route: &[RouteDestination],
    full_name: &dyn Fn(&str) -> String,
) -> Targets<Target> {
    let targets = route.iter().map(|entry| {
        let target = Target::of(&entry.destination, RouteEdits::default(), full_name);
        (u32::try_from(entry.weight).unwrap_or(0), target)
    });
    Targets::new(targets.collect())
}

impl Connection {
    fn compile(block: &TcpMatch) -> Option<Self> {
        if !block.gateways.is_empty() && !block.gateways.iter().any(|gateway| gateway == "mesh") {
            return None;
        }
        Some(Self {
            client: ClientMatch::new(&block.source_labels, block.source_namespace.as_deref()),
            port: block.port.and_then(|port| u16::try_from(port).ok()),
            subnets: block
                .destination_subnets
                .iter()
                .filter_map(|subnet| parse_subnet(subnet))
                .collect(),
            source: (block.source_subnet.as_deref()).and_then(parse_subnet),
        })
    }

    fn matches(&self, client: &ClientView<'_>, source: IpAddr, destination: SocketAddr) -> bool {
        (self.source).is_none_or(|subnet| subnet.contains(&source))
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
    /// Decides where a connection goes that is not HTTP: `service` and
    /// `destination` are those that the application asked for, `source` is its own address.
    pub fn decide_tcp<'r>(
        &'r self,
        client: &ClientView<'_>,
        service: &'r Arc<Service>,
        source: IpAddr,
        destination: SocketAddr,
        registry: &'r Registry,
        random: &mut impl Rng,
    ) -> TcpDecision<'r> {
        let port = destination.port();
        let rule = self.rules_of(&service.host, client).and_then(|rules| {
            rules.tcp.iter().find(|rule| {
                rule.matches.is_empty()
                    || rule
                        .matches
                        .iter()
                        .any(|block| block.matches(client, source, destination))
            })
        });
        match rule.and_then(|rule| rule.targets.pick(random)) {
            Some(target) => self.plan_for(target, client, port, registry),
            None => self.plan_directly(client, service, port, registry),
        }
    }
}
