//! Where a request goes, and how: the service, its policy, and what changes on the way.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::Routes;
use super::edit::{Edits, Rewritten};
use super::model::{RouteLimits, Target};
use super::policy::Subset;
use super::retry::Retries;
use super::upstream_policy::{UpstreamPolicy, UpstreamTls};
use super::view::ClientView;
use crate::registry::{Registry, Resolution, Service};
use crate::telemetry::{Flag, Flags};

/// Why a request cannot be forwarded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unroutable {
    /// 404, 502 or 503.
    pub status: StatusCode,
    /// Envoy's response flags: `NR`, `NC`, or none.
    pub flags: Flags,
    /// Envoy's word for it.
    pub details: &'static str,
    /// For the client and the log.
    pub reason: String,
}

impl Unroutable {
    pub(super) fn no_cluster(reason: String) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            flags: Flag::NoClusterFound.into(),
            details: "cluster_not_found",
            reason,
        }
    }

    /// As Istio answers for what is not in the registry.
    fn blocked() -> Self {
        Self {
            status: StatusCode::BAD_GATEWAY,
            flags: Flags::default(),
            details: "direct_response",
            reason: "no service has this name or address, and only services may be called (REGISTRY_ONLY, BlackHoleCluster)".to_owned(),
        }
    }
}

pub(super) fn undefined_subset(subset: &str, host: &str) -> String {
    format!("subset {subset:?} of {host}: no DestinationRule defines it")
}

/// Where a request goes and how it changes on the way.
#[derive(Debug)]
pub struct Plan<'r> {
    /// Service.
    pub service: &'r Arc<Service>,
    /// Where the service is whatever the client asks for: the name to resolve.
    pub named: Option<String>,
    /// Part of its endpoints.
    pub subset: Option<&'r Subset>,
    /// Port of the service.
    pub port: u16,
    /// How connections to it are made.
    pub policy: &'r Arc<UpstreamPolicy>,
    /// `name/namespace` of the DestinationRule that the policy is from.
    pub destination_rule: Option<&'r str>,
    /// New path and authority.
    pub rewritten: Rewritten,
    /// Bound for the whole exchange.
    pub timeout: Option<Duration>,
    /// Retries.
    pub retries: &'r Retries,
    /// Bounds of the route.
    pub limits: Option<&'r RouteLimits>,
    /// Where copies go.
    pub mirrors: Vec<Plan<'r>>,
    /// Edits of the destination, then of the rule.
    pub(super) edits: [Option<Edits<'r>>; 2],
}

impl Plan<'_> {
    /// Applies the header edits to a request.
    pub fn edit_request(&self, headers: &mut HeaderMap) {
        for edits in self.edits.iter().flatten() {
            edits.request.apply(headers);
        }
    }

    /// Applies the header edits to a response.
    pub fn edit_response(&self, headers: &mut HeaderMap) {
        for edits in self.edits.iter().flatten() {
            edits.response.apply(headers);
        }
    }
}

static DEFAULT_POLICY: LazyLock<Arc<UpstreamPolicy>> = LazyLock::new(Arc::default);
static DEFAULT_RETRIES: LazyLock<Retries> = LazyLock::new(Retries::default);

impl Routes {
    /// A service without rules.
    pub(super) fn plan_directly<'r>(
        &'r self,
        client: &ClientView<'_>,
        service: &'r Arc<Service>,
        port: u16,
        registry: &'r Registry,
    ) -> Result<Plan<'r>, Unroutable> {
        if service.resolution == Resolution::Nowhere {
            return Err(Unroutable::blocked());
        }
        if service.is_passthrough()
            && let Some(plan) = self.plan_by_proxy(client, registry)
        {
            return plan;
        }
        self.base_plan(client, service, port).never_in_the_clear()
    }

    fn base_plan<'r>(
        &'r self,
        client: &ClientView<'_>,
        service: &'r Arc<Service>,
        port: u16,
    ) -> Plan<'r> {
        let rule = self.destination_rules.find(client, service);
        Plan {
            service,
            named: None,
            subset: None,
            port,
            policy: rule.map_or(&DEFAULT_POLICY, |rule| rule.policy(port)),
            destination_rule: rule.map(|rule| rule.name.as_str()),
            rewritten: Rewritten::default(),
            timeout: None,
            limits: None,
            retries: &DEFAULT_RETRIES,
            mirrors: Vec::new(),
            edits: [None, None],
        }
    }

    /// The destination of a rule.
    pub(super) fn plan_for<'r>(
        &'r self,
        target: &'r Target,
        client: &ClientView<'_>,
        client_port: u16,
        registry: &'r Registry,
    ) -> Result<Plan<'r>, Unroutable> {
        let host = target.host.as_str();
        let Some(service) = registry.service_of_host(host, client.namespace) else {
            return Err(Unroutable::no_cluster(format!(
                "no service is named {host}"
            )));
        };
        let port = match (target.port, service.ports.as_slice()) {
            (Some(port), _) => port,
            (None, [only]) => only.number,
            (None, _) => client_port,
        };
        if service.port(port).is_none() {
            return Err(Unroutable::no_cluster(format!("{host} has no port {port}")));
        }
        let mut plan = self.base_plan(client, service, port);
        if service.resolution == Resolution::DynamicDns && !host.starts_with('*') {
            plan.named = Some(host.to_owned());
        }
        let Some(name) = target.subset.as_deref() else {
            return plan.never_in_the_clear();
        };
        let subset = self
            .destination_rules
            .find(client, service)
            .and_then(|rule| rule.subset(name))
            .ok_or_else(|| Unroutable::no_cluster(undefined_subset(name, host)))?;
        Plan {
            policy: subset.policy(port),
            subset: Some(subset),
            ..plan
        }
        .never_in_the_clear()
    }
}

impl Plan<'_> {
    /// The name that the client says, where the service is what it leads to and no rule
    /// names another.
    pub(super) fn ask_for(&mut self, name: &str) {
        if self.service.resolution == Resolution::DynamicDns && self.named.is_none() {
            self.named = Some(name.to_owned());
        }
    }

    /// Where TLS is asked for that cannot be made, nothing is sent.
    fn never_in_the_clear(self) -> Result<Self, Unroutable> {
        if let UpstreamTls::Impossible(reason) = &self.policy.tls {
            return Err(Unroutable::no_cluster(format!(
                "{}: DestinationRule {}: {reason}",
                self.service.host,
                self.destination_rule.unwrap_or_default()
            )));
        }
        Ok(self)
    }
}
