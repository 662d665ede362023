//! What would become of a request, and why: for people.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::model::{Action, Rule, Target};
use super::view::{ClientView, RequestView};
use super::{Abort, Routes};
use crate::registry::{Registry, Service};

/// What would become of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// Service that the request is for.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// `VirtualService namespace/name`, where one has rules for it.
    pub rules_of: Option<String>,
    /// The rules that were looked at, in order; the last one matched, if any did.
    pub rules: Vec<RuleNote>,
    /// What happens, in words.
    pub outcome: String,
    /// Where it may go.
    pub destinations: Vec<DestinationNote>,
}

/// A rule that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleNote {
    /// Field of the resource, `http[0]`.
    pub field: String,
    /// Name, where it has one.
    pub name: String,
    /// Why it did not match; `None` for the one that did.
    pub mismatch: Option<String>,
}

/// A place where a request may go.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationNote {
    /// Host of the service.
    pub host: String,
    /// Subset.
    pub subset: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Share of the requests, in percent.
    pub percent: f64,
    /// `name/namespace` of the DestinationRule that applies.
    pub destination_rule: Option<String>,
    /// Endpoints.
    pub endpoints: usize,
    /// Why it would be refused.
    pub problem: Option<String>,
    /// Requests are only copied there.
    pub mirror: bool,
}

impl Routes {
    /// What would become of a request of `client` to `port` of `service`.
    pub fn explain(
        &self,
        request: &RequestView<'_>,
        client: &ClientView<'_>,
        service: &Arc<Service>,
        port: u16,
        registry: &Registry,
    ) -> Explanation {
        let (service, rules) = self.rules_for(request.authority, client, service, port, registry);
        let mut explanation = Explanation {
            service: service.host.clone(),
            port,
            rules_of: None,
            rules: Vec::new(),
            outcome: String::new(),
            destinations: Vec::new(),
        };
        let Some(rules) = rules.filter(|rules| rules.http_is_for(client)) else {
            explanation.outcome = "forwarded: no VirtualService has rules for it".to_owned();
            let own = Target::whole(&service.host, port);
            let note = self.destination(&own, 100.0, client, port, registry);
            explanation.destinations.push(note);
            return explanation;
        };
        explanation.rules_of = Some(rules.origin.clone());
        for rule in &rules.http {
            let mismatches: Vec<_> = rule
                .matches
                .iter()
                .map(|block| block.mismatch(request, client, port))
                .collect();
            let matched = mismatches.iter().any(Option::is_none);
            explanation.rules.push(RuleNote {
                field: rule.field.clone(),
                name: rule
                    .matches
                    .first()
                    .map(|block| block.name.clone())
                    .unwrap_or_default(),
                mismatch: (!matched).then(|| {
                    mismatches
                        .into_iter()
                        .flatten()
                        .collect::<Vec<_>>()
                        .join("; or ")
                }),
            });
            if matched {
                self.tell(rule, &mut explanation, client, port, registry);
                return explanation;
            }
        }
        explanation.outcome = "answered with 404 (NR): no rule matches".to_owned();
        explanation
    }

    fn tell(
        &self,
        rule: &Rule,
        explanation: &mut Explanation,
        client: &ClientView<'_>,
        port: u16,
        registry: &Registry,
    ) {
        let share = |millionths: u32| f64::from(millionths) / 10_000.0;
        let mut words = Vec::new();
        if let Some((millionths, delay)) = rule.fault.delay {
            words.push(format!("delayed by {delay:?} ({} %)", share(millionths)));
        }
        if let Some((millionths, abort)) = rule.fault.abort {
            let status = match abort {
                Abort::Http(status) => status.as_u16().to_string(),
                Abort::Grpc(code) => format!("gRPC status {code}"),
            };
            words.push(format!("aborted with {status} ({} %)", share(millionths)));
        }
        match &rule.action {
            Action::Redirect(_) => words.push("answered with a redirection".to_owned()),
            Action::Direct(answer) => {
                words.push(format!("answered with {}", answer.status.as_u16()));
            }
            Action::Forward(forward) => {
                words.push("forwarded".to_owned());
                if let Some(timeout) = forward.timeout {
                    words.push(format!("timeout {timeout:?}"));
                }
                let tries = forward.retries.attempts;
                let per_try = forward.retries.per_try_timeout;
                let per_try = per_try.map_or(String::new(), |bound: Duration| {
                    format!(" of {bound:?} each")
                });
                words.push(format!("up to {tries} retries{per_try}"));
                let bounds = forward.limits.as_ref().map(|limits| limits.bounds);
                let bounds = bounds.unwrap_or_default();
                for (bound, what) in [
                    (bounds.max_requests, "requests"),
                    (bounds.max_pending, "waiting requests"),
                    (bounds.max_retries, "retries"),
                ] {
                    if let Some(bound) = bound {
                        words.push(format!("at most {bound} {what} of the route at a time"));
                    }
                }
                if let Some(breaker) = bounds.breaker {
                    words.push(format!(
                        "nothing for {:?} after {} errors in a row",
                        breaker.open_time, breaker.errors
                    ));
                }
                for (percent, target) in forward.targets.shares() {
                    let note = self.destination(target, percent, client, port, registry);
                    explanation.destinations.push(note);
                }
                for (millionths, target) in &forward.mirrors {
                    let percent = share(*millionths);
                    let note = self.destination(target, percent, client, port, registry);
                    explanation.destinations.push(DestinationNote {
                        mirror: true,
                        ..note
                    });
                }
            }
        }
        explanation.outcome = words.join(", ");
    }

    fn destination(
        &self,
        target: &Target,
        percent: f64,
        client: &ClientView<'_>,
        port: u16,
        registry: &Registry,
    ) -> DestinationNote {
        let mut note = DestinationNote {
            host: target.host.clone(),
            subset: target.subset.clone(),
            port: target.port,
            percent,
            destination_rule: None,
            endpoints: 0,
            problem: None,
            mirror: false,
        };
        match self.plan_for(target, client, port, registry) {
            Err(unroutable) => {
                note.problem = Some(format!(
                    "{} ({}): {}",
                    unroutable.status.as_u16(),
                    unroutable.flags,
                    unroutable.reason
                ));
            }
            Ok(plan) => {
                note.port = Some(plan.port);
                note.destination_rule = plan.destination_rule.map(str::to_owned);
                let mut workloads = HashSet::new();
                let endpoints = plan.service.endpoints.iter();
                note.endpoints = endpoints
                    .filter(|endpoint| {
                        endpoint.ports.contains_key(&plan.port)
                            && endpoint.unhealthy.is_none()
                            && plan.service.is_open_to(endpoint, client.node)
                            && (plan.subset).is_none_or(|subset| endpoint.has(&subset.labels))
                    })
                    // The addresses of one workload are one endpoint.
                    .filter(|endpoint| {
                        let workload = endpoint.workload.as_ref();
                        workload.is_none_or(|workload| workloads.insert(&workload.name))
                    })
                    .count();
                if note.endpoints == 0 {
                    note.problem = Some("503 (UH): it has no endpoint in service".to_owned());
                }
            }
        }
        note
    }
}
