//! One request, one decision.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use rand::Rng;

use super::Routes;
use super::cors::{Allowed, CrossOrigin};
use super::edit::{Edits, Rewritten};
use super::hosts::host_of;
use super::matching::{Match, Text};
use super::model::{Action, DirectResponse, Fault, RouteLimits, Rule, Rules, Target};
use super::policy::Subset;
use super::redirect::Redirection;
use super::retry::Retries;
use super::upstream_policy::{UpstreamPolicy, UpstreamTls};
use super::view::{ClientView, RequestView};
use crate::registry::{Registry, Resolution, Service, full_names};

/// What happens to a request.
#[derive(Debug)]
pub struct Decision<'r> {
    /// Name of the rule and of its match, `default` where no rule was named.
    pub route_name: &'r str,
    /// Wait this long first (an injected fault).
    pub delay: Option<Duration>,
    /// And then.
    pub outcome: Outcome<'r>,
    /// Edits of the rule for the answer, for answers of our own too.
    response_edits: Option<Edits<'r>>,
    /// The request is another origin's, and allowed.
    cross_origin: Option<Allowed<'r>>,
}

impl Decision<'_> {
    /// Applies the rule's edits to an answer that no upstream gave.
    pub fn edit_own_response(&self, headers: &mut HeaderMap) {
        if let Some(edits) = &self.response_edits {
            edits.response.apply(headers);
        }
    }

    /// Adds to any answer what the client's browser wants to know.
    pub fn share_response(&self, headers: &mut HeaderMap) {
        if let Some(allowed) = &self.cross_origin {
            allowed.response(headers);
        }
    }
}

/// What a decision comes to.
#[derive(Debug)]
pub enum Outcome<'r> {
    /// Send it to an endpoint of a service.
    Forward(Plan<'r>),
    /// Answer with a redirection.
    Redirect(Redirection),
    /// Answer as the rule says.
    Direct(&'r DirectResponse),
    /// Answer a browser's question whether it may send a request.
    Preflight(Option<Allowed<'r>>),
    /// Answer with an injected fault.
    Abort(Abort),
    /// Answer that there is no way.
    Unroutable(Unroutable),
}

/// An injected answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// An HTTP status.
    Http(StatusCode),
    /// A gRPC status.
    Grpc(u16),
}

/// Why a request cannot be forwarded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unroutable {
    /// 404, 502 or 503.
    pub status: StatusCode,
    /// Envoy's response flag: `NR`, `NC`.
    pub flag: &'static str,
    /// For the client and the log.
    pub reason: String,
}

impl Unroutable {
    fn no_cluster(reason: String) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            flag: "NC",
            reason,
        }
    }

    /// As Istio answers for what is not in the registry.
    fn blocked() -> Self {
        Self {
            status: StatusCode::BAD_GATEWAY,
            flag: "-",
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
    edits: [Option<Edits<'r>>; 2],
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

static DEFAULT_POLICY: std::sync::LazyLock<Arc<UpstreamPolicy>> =
    std::sync::LazyLock::new(Arc::default);
static DEFAULT_RETRIES: std::sync::LazyLock<Retries> = std::sync::LazyLock::new(Retries::default);

impl Routes {
    /// Decides about one request of `client`, whose connection was made to
    /// `port` of `service` (the original destination).
    pub fn decide<'r>(
        &'r self,
        request: &RequestView<'_>,
        client: &ClientView<'_>,
        service: &'r Arc<Service>,
        port: u16,
        registry: &'r Registry,
        random: &mut impl Rng,
    ) -> Decision<'r> {
        let mut decision = self.decide_route(request, client, service, port, registry, random);
        if let Outcome::Forward(plan) = &mut decision.outcome {
            plan.ask_for(&host_of(request.authority));
        }
        decision
    }

    fn decide_route<'r>(
        &'r self,
        request: &RequestView<'_>,
        client: &ClientView<'_>,
        service: &'r Arc<Service>,
        port: u16,
        registry: &'r Registry,
        random: &mut impl Rng,
    ) -> Decision<'r> {
        let (service, rules) = self.rules_for(request.authority, client, service, port, registry);
        let Some(rules) = rules.filter(|rules| rules.http_is_for(client)) else {
            let outcome = match self.plan_directly(client, service, port) {
                Ok(plan) => Outcome::Forward(plan),
                Err(unroutable) => Outcome::Unroutable(unroutable),
            };
            let is_blocked = service.resolution == Resolution::Nowhere;
            return Decision {
                // Istio's name of the route.
                route_name: if is_blocked { "block_all" } else { "default" },
                ..Decision::plain(outcome)
            };
        };
        let matched = rules.http.iter().find_map(|rule| {
            let block = rule
                .matches
                .iter()
                .find(|block| block.matches(request, client, port))?;
            Some((rule, block))
        });
        let Some((rule, block)) = matched else {
            return Decision::plain(Outcome::Unroutable(Unroutable {
                status: StatusCode::NOT_FOUND,
                flag: "NR",
                reason: format!("no rule of {} matches the request", rules.origin),
            }));
        };
        self.apply(rule, block, request, client, port, registry, random)
    }

    /// The service that a request is for, and the rules that decide about it.
    pub(super) fn rules_for<'r>(
        &'r self,
        authority: &str,
        client: &ClientView<'_>,
        service: &'r Arc<Service>,
        port: u16,
        registry: &'r Registry,
    ) -> (&'r Arc<Service>, Option<&'r Rules>) {
        let host = host_of(authority);
        match registry.resolve_host(&host, client.namespace) {
            Some(named) if named.port(port).is_some() && self.sees(client, named, port) => {
                (named, self.rules_of(&named.host, client))
            }
            // A service that lacks the port does not take the connection over.
            Some(_) => (service, self.rules_of(&service.host, client)),
            None => {
                let rules = self.rules_of_name(&host, client);
                (
                    service,
                    rules.or_else(|| self.rules_of(&service.host, client)),
                )
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the arguments of decide, and what it has found"
    )]
    fn apply<'r>(
        &'r self,
        rule: &'r Rule,
        block: &'r Match,
        request: &RequestView<'_>,
        client: &ClientView<'_>,
        port: u16,
        registry: &'r Registry,
        random: &mut impl Rng,
    ) -> Decision<'r> {
        let delay = rule
            .fault
            .delay
            .filter(|(share, _)| Fault::hits(*share, random));
        let abort = rule
            .fault
            .abort
            .filter(|(share, _)| Fault::hits(*share, random));
        let decision = Decision {
            route_name: block.route_name(),
            delay: delay.map(|(_, delay)| delay),
            ..Decision::plain(Outcome::Preflight(None))
        };
        if let Some((_, abort)) = abort {
            return Decision {
                outcome: Outcome::Abort(abort),
                response_edits: Some(rule.edits.of(request, block.route_name())),
                ..decision
            };
        }
        let cross_origin = rule.cors.as_ref().and_then(|cors| cors.request(request));
        let cross_origin = match cross_origin {
            Some(CrossOrigin::Preflight(allowed)) => {
                return Decision {
                    outcome: Outcome::Preflight(allowed),
                    ..decision
                };
            }
            Some(CrossOrigin::Actual(allowed)) => Some(allowed),
            None => None,
        };
        let outcome = match &rule.action {
            Action::Redirect(redirect) => {
                Outcome::Redirect(redirect.answer(request, port, block.path.as_ref()))
            }
            Action::Direct(answer) => Outcome::Direct(answer),
            Action::Forward(forward) => {
                let hit = forward
                    .mirrors
                    .iter()
                    .filter(|(share, _)| Fault::hits(*share, random));
                // A mirror that is nowhere is told when the rule is compiled.
                let mirrors = hit
                    .filter_map(|(_, target)| self.plan_for(target, client, port, registry).ok())
                    .collect();
                let plan = match forward.targets.pick(random) {
                    Some(target) => {
                        self.plan_for(target, client, port, registry)
                            .map(|mut plan| {
                                plan.rewritten =
                                    rewritten(rule, forward, target, request, block.path.as_ref());
                                plan.timeout = forward.timeout;
                                plan.limits = forward.limits.as_deref();
                                plan.retries = &forward.retries;
                                plan.mirrors = mirrors;
                                plan.edits = [&target.edits, &rule.edits]
                                    .map(|edits| Some(edits.of(request, block.route_name())));
                                plan
                            })
                    }
                    None => Err(Unroutable::no_cluster(
                        "the rule has no destination".to_owned(),
                    )),
                };
                match plan {
                    Ok(plan) => Outcome::Forward(plan),
                    Err(unroutable) => Outcome::Unroutable(unroutable),
                }
            }
        };
        // Those of a plan are its own.
        let own_edits = (!matches!(outcome, Outcome::Forward(_)))
            .then(|| rule.edits.of(request, block.route_name()));
        Decision {
            outcome,
            response_edits: own_edits,
            cross_origin,
            ..decision
        }
    }

    pub(super) fn rules_of<'r>(&'r self, host: &str, client: &ClientView<'_>) -> Option<&'r Rules> {
        self.virtual_hosts
            .find(host)
            .map(|host| host.0.as_ref())
            .find(|rules| {
                rules.visibility.includes(client.namespace)
                    && self.sees_rules(client, &rules.namespace, host)
            })
    }

    /// Rules of a name that no service has.
    fn rules_of_name<'r>(&'r self, host: &str, client: &ClientView<'_>) -> Option<&'r Rules> {
        if host.is_empty() {
            return None;
        }
        full_names(host, client.namespace, &self.cluster_domain)
            .find_map(|name| self.rules_of(&name, client))
    }

    /// A service without rules.
    pub(super) fn plan_directly<'r>(
        &'r self,
        client: &ClientView<'_>,
        service: &'r Arc<Service>,
        port: u16,
    ) -> Result<Plan<'r>, Unroutable> {
        if service.resolution == Resolution::Nowhere {
            return Err(Unroutable::blocked());
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

impl Decision<'_> {
    fn plain(outcome: Outcome<'_>) -> Decision<'_> {
        Decision {
            route_name: "default",
            delay: None,
            outcome,
            response_edits: None,
            cross_origin: None,
        }
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

    /// Where TLS is asked for that this version cannot give, nothing is sent.
    fn never_in_the_clear(self) -> Result<Self, Unroutable> {
        if self.policy.tls == UpstreamTls::NotApplied {
            return Err(Unroutable::no_cluster(format!(
                "{}: DestinationRule {} asks for TLS by credentialName, which this version does not apply",
                self.service.host,
                self.destination_rule.unwrap_or_default()
            )));
        }
        Ok(self)
    }
}

/// Authority: the rewrite's, else the rule's header edit, else the destination's.
fn rewritten(
    rule: &Rule,
    forward: &super::model::Forward,
    target: &Target,
    request: &RequestView<'_>,
    matched: Option<&Text>,
) -> Rewritten {
    let authority: Option<&HeaderValue> = forward
        .authority
        .as_ref()
        .or(rule.edits.authority.as_ref())
        .or(target.edits.authority.as_ref());
    Rewritten {
        path_and_query: forward
            .path
            .as_ref()
            .map(|path| path.apply(request.path(), request.raw_query(), matched)),
        authority: authority.cloned(),
    }
}
