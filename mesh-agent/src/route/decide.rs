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
use super::model::{Action, DirectResponse, Fault, Rule, Rules, Target};
use super::plan::{Plan, Unroutable};
use super::redirect::Redirection;
use super::view::{ClientView, RequestView};
use crate::registry::{Registry, Resolution, Service, full_names};
use crate::telemetry::Flag;

/// What happens to a request.
#[derive(Debug)]
pub struct Decision<'r> {
    /// Name of the rule and of its match, `default` where the rule has none; empty where no
    /// rule matches.
    pub route_name: &'r str,
    /// Wait this long first (an injected fault).
    pub delay: Option<Duration>,
    /// And then.
    pub outcome: Outcome<'r>,
    /// Edits of the rule for the answer, for answers of our own too.
    response_edits: Option<Edits<'r>>,
    /// The destination of the rule, where the answer is ours.
    pub meant: Option<&'r Target>,
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
            let outcome = match self.plan_directly(client, service, port, registry) {
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
            let unroutable = Unroutable {
                status: StatusCode::NOT_FOUND,
                flags: Flag::NoRouteFound.into(),
                details: "route_not_found",
                reason: format!("no rule of {} matches the request", rules.origin),
            };
            return Decision {
                route_name: "",
                ..Decision::plain(Outcome::Unroutable(unroutable))
            };
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
                let rules = self.rules_of(&named.host, client);
                (
                    named,
                    rules.or_else(|| self.rules_as_written(&host, client)),
                )
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
                meant: rule.action.target(random),
                response_edits: Some(rule.edits.of(request, block.route_name())),
                ..decision
            };
        }
        // As Envoy's filter, which looks at what is to be forwarded.
        let forwards = matches!(rule.action, Action::Forward(_));
        let cors = rule.cors.as_ref().filter(|_| forwards);
        let cross_origin = cors.and_then(|cors| cors.request(request));
        let cross_origin = match cross_origin {
            Some(CrossOrigin::Preflight(allowed)) => {
                return Decision {
                    outcome: Outcome::Preflight(allowed),
                    meant: rule.action.target(random),
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

    /// Rules of a name such as `reviews.default`. No short name but one without dots becomes a
    /// full one in a rule, so that these are for clients that write the same alone, as in Istio.
    fn rules_as_written<'r>(&'r self, host: &str, client: &ClientView<'_>) -> Option<&'r Rules> {
        let mut rules = self.virtual_hosts.find_exact(host).map(|host| &*host.0);
        rules.find(|rules| {
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
}

impl Decision<'_> {
    fn plain(outcome: Outcome<'_>) -> Decision<'_> {
        Decision {
            route_name: "default",
            delay: None,
            outcome,
            response_edits: None,
            meant: None,
            cross_origin: None,
        }
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
