//! Istio `AuthorizationPolicy`: may this connection, or this request, reach a
//! workload? CUSTOM and DENY come first, then ALLOW; where no ALLOW policy
//! applies, what is not denied is allowed. AUDIT and dry runs only report.

mod compile;
mod pattern;
mod rule;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderMap;

pub use compile::Compiler;
pub use rule::remote_ip;
use rule::{Policy, Truth};

use super::path::PathNormalization;
use crate::identity::Identity;
use crate::registry::{Protocol, Workload, WorkloadName};
use crate::resource::authorization_policy::Action;
use crate::resource::{AuthorizationPolicySpec, Resource};

/// What policies mean that they do not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Namespace whose policies apply to the whole mesh.
    pub root_namespace: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// Further names of it.
    pub trust_domain_aliases: Vec<String>,
    /// The form in which paths are compared and passed on.
    pub path_normalization: PathNormalization,
}

/// What ports of workloads are declared to speak.
pub type Protocols = HashMap<(WorkloadName, u16), Protocol>;

/// All policies, compiled.
#[derive(Clone, Debug, Default)]
pub struct Authorization {
    /// Those of the root namespace, in file order.
    mesh: Vec<Policy>,
    /// The others, in file order.
    by_namespace: HashMap<String, Vec<Policy>>,
    /// What ports of workloads are declared to speak; empty where nobody asks: there is no policy,
    /// and no Sidecar says it.
    protocols: Arc<Protocols>,
    /// The form in which paths are compared and passed on.
    pub path_normalization: PathNormalization,
    /// The generation of the configuration that brought these policies. What was connected
    /// under an earlier one was decided by other policies.
    pub epoch: u64,
    /// What was compiled.
    sources: Vec<Arc<Resource<AuthorizationPolicySpec>>>,
}

/// A connection to a workload.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// Who connects: proven by mutual TLS, or known by the kernel on one node.
    /// `None` in the clear, which no identity matches.
    pub source: Option<&'a Identity>,
    /// The client's address.
    pub source_ip: IpAddr,
    /// The workload's address and port.
    pub destination: SocketAddr,
}

/// What a connection carries.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Not known yet: attributes of HTTP are open.
    Unknown,
    /// Not HTTP.
    Tcp,
    /// This request.
    Http(&'a Request<'a>),
}

/// An HTTP request, its path in the form of [`PathNormalization`].
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Host and port that the request is for.
    pub authority: &'a str,
    /// Method.
    pub method: &'a str,
    /// Path and query.
    pub path_and_query: &'a str,
    /// Header fields.
    pub headers: &'a HeaderMap,
    /// The client's address, see [`remote_ip`].
    pub remote_ip: IpAddr,
}

impl Request<'_> {
    fn path(&self) -> &str {
        let end = self.path_and_query.find(['?', '#']);
        end.map_or(self.path_and_query, |end| &self.path_and_query[..end])
    }
}

/// What becomes of a connection or a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It may not.
    Deny,
    /// It depends on what its HTTP requests say, or they alone tell what is to be reported.
    NeedsHttp,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No policy that could allow or deny applies.
    NoPolicy,
    /// No policy denies, and none that allows applies.
    NotDenied,
    /// This rule of this policy.
    Rule {
        /// What the policy does.
        action: Action,
        /// `<namespace>/<name>`.
        policy: String,
        /// Index of the rule, from 0.
        rule: usize,
    },
    /// There are ALLOW policies, and none of them matches.
    NoneAllowed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPolicy => f.write_str("no policy applies"),
            Self::NotDenied => f.write_str("no policy denies it, and none says who is allowed"),
            Self::NoneAllowed => f.write_str("allow policies exist, but none allowed"),
            Self::Rule {
                action,
                policy,
                rule,
            } => {
                let action = match action {
                    Action::Allow => "allowed",
                    Action::Deny => "explicitly denied",
                    Action::Custom => "denied, as CUSTOM is not applied,",
                    Action::Audit => "audited",
                };
                write!(f, "{action} by {policy}, rule {rule}")
            }
        }
    }
}

impl Reason {
    /// The details of an answer, in the form that Envoy logs: the policy as
    /// `ns[<namespace>]-policy[<name>]-rule[<index>]`.
    pub fn details(&self) -> String {
        match self {
            Self::Rule { policy, rule, .. } => {
                let (namespace, name) = policy.split_once('/').unwrap_or(("", policy));
                format!(
                    "rbac_access_denied_matched_policy[ns[{namespace}]-policy[{name}]-rule[{rule}]]"
                )
            }
            _ => "rbac_access_denied_matched_policy[none]".to_owned(),
        }
    }
}

/// A verdict with its reason and what is to be reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of it.
    pub verdict: Verdict,
    /// What decided; for [`Verdict::NeedsHttp`] what would decide now.
    pub reason: Reason,
    /// It is allowed, but would be denied if dry runs were in force.
    pub would_deny: Option<Reason>,
    /// AUDIT policies that match, as `<namespace>/<name>`, where it is allowed.
    pub audited: Vec<String>,
}

impl Decision {
    /// The same without anything to report.
    pub fn silent(self) -> Self {
        Self {
            would_deny: None,
            audited: Vec::new(),
            ..self
        }
    }
}

/// What the kernel may be told about connections from one workload to a port
/// of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4Verdict {
    /// All of them may pass, whatever they carry, and nobody has to be told.
    Allow,
    /// None may.
    Deny,
    /// The agent has to see each one: a policy asks for attributes of HTTP, or
    /// it only reports (AUDIT, dry run).
    NeedsHttp,
}

/// What one policy says, for people who ask why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// `<namespace>/<name>`.
    pub policy: String,
    /// What the policy does.
    pub action: Action,
    /// It only reports.
    pub dry_run: bool,
    /// The rule that matches, from 0.
    pub rule: Option<usize>,
    /// Whether that depends on what an HTTP request says.
    pub needs_http: bool,
}

impl Authorization {
    /// Whether there is no policy at all: everything is allowed.
    pub fn is_empty(&self) -> bool {
        self.mesh.is_empty() && self.by_namespace.is_empty()
    }

    /// Keeps the epoch of the policies before, if these are the same.
    pub fn succeed(&mut self, before: &Self, generation: u64) {
        self.epoch = if self.sources == before.sources {
            before.epoch
        } else {
            generation
        };
    }

    /// Whether any policy applies to a workload.
    pub fn is_asked_of(&self, workload: &Workload) -> bool {
        self.of(workload).next().is_some()
    }

    /// The policies that apply to a workload: the mesh's, then its namespace's.
    fn of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Policy> + Clone {
        let own = self.by_namespace.get(&*workload.name.namespace);
        self.mesh
            .iter()
            .chain(own.into_iter().flatten())
            .filter(|policy| policy.applies_to(workload))
    }

    /// What a port of a workload is declared to speak; [`Protocol::Auto`]
    /// where nothing is declared, or nobody asks.
    pub fn protocol(&self, workload: &Workload, port: u16) -> Protocol {
        if self.protocols.is_empty() {
            return Protocol::Auto;
        }
        let key = (workload.name.clone(), port);
        self.protocols.get(&key).copied().unwrap_or(Protocol::Auto)
    }

    /// Whether a port of a workload is declared to speak something else than HTTP, so that
    /// nobody looks for requests there.
    pub fn is_opaque(&self, workload: &Workload, port: u16) -> bool {
        matches!(
            self.protocol(workload, port),
            Protocol::Tcp | Protocol::Tls | Protocol::Udp
        )
    }

    /// Whether a connection or a request may reach the workload.
    pub fn decide(
        &self,
        workload: &Workload,
        connection: &Connection<'_>,
        payload: Payload<'_>,
    ) -> Decision {
        let policies = self.of(workload);
        let in_force = policies.clone().filter(|policy| !policy.dry_run);
        let (verdict, reason) = verdict(in_force, connection, payload);
        let mut decision = Decision {
            verdict,
            reason,
            would_deny: None,
            audited: Vec::new(),
        };
        if verdict != Verdict::Allow {
            return decision;
        }
        if policies.clone().any(|policy| policy.dry_run) {
            match self::verdict(policies.clone(), connection, payload) {
                (Verdict::Deny, reason) => decision.would_deny = Some(reason),
                // Only the requests can tell whom to report.
                (Verdict::NeedsHttp, _) => decision.verdict = Verdict::NeedsHttp,
                (Verdict::Allow, _) => {}
            }
        }
        for policy in policies.filter(|policy| policy.action == Action::Audit) {
            match policy.matches(connection, payload).0 {
                Truth::Yes => decision.audited.push(policy.name.clone()),
                Truth::Unknown => decision.verdict = Verdict::NeedsHttp,
                Truth::No => {}
            }
        }
        decision
    }

    /// The verdict on a new connection to a port, by what the port is declared
    /// to speak. [`Verdict::NeedsHttp`] where its bytes have to be looked at.
    pub fn connection(&self, workload: &Workload, connection: &Connection<'_>) -> Decision {
        let port = connection.destination.port();
        if self.is_opaque(workload, port) {
            return self.decide(workload, connection, Payload::Tcp);
        }
        let http = self.decide(workload, connection, Payload::Unknown);
        if self.protocol(workload, port) != Protocol::Auto {
            return http;
        }
        let tcp = self.decide(workload, connection, Payload::Tcp);
        if http.verdict == tcp.verdict {
            return http;
        }
        Decision {
            verdict: Verdict::NeedsHttp,
            ..http
        }
    }

    /// The verdict on an open connection whose bytes nobody has looked at. Where
    /// they would have to be, it may go on if that makes no difference: what
    /// passes as TCP passes as whatever it is.
    pub fn unseen(&self, workload: &Workload, connection: &Connection<'_>) -> Decision {
        let decision = self.connection(workload, connection);
        match decision.verdict {
            Verdict::NeedsHttp => self.decide(workload, connection, Payload::Tcp),
            _ => decision,
        }
    }

    /// Whether all connections from `source` at `source_ip` to `destination`,
    /// an address of `workload`, can be decided without looking at their
    /// bytes, and how. For the kernel's cache of verdicts; it holds for one
    /// configuration.
    pub fn l4_verdict(
        &self,
        source: Option<&Identity>,
        source_ip: IpAddr,
        workload: &Workload,
        destination: SocketAddr,
    ) -> L4Verdict {
        let connection = Connection {
            source,
            source_ip,
            destination,
        };
        let reports = |policy: &Policy| policy.dry_run || policy.action == Action::Audit;
        match self.connection(workload, &connection).verdict {
            Verdict::Deny => L4Verdict::Deny,
            Verdict::NeedsHttp => L4Verdict::NeedsHttp,
            Verdict::Allow if self.of(workload).any(reports) => L4Verdict::NeedsHttp,
            Verdict::Allow => L4Verdict::Allow,
        }
    }

    /// What each policy that applies to the workload says, in the order in
    /// which they are asked.
    pub fn explain(
        &self,
        workload: &Workload,
        connection: &Connection<'_>,
        payload: Payload<'_>,
    ) -> Vec<Opinion> {
        let mut opinions: Vec<Opinion> = self
            .of(workload)
            .map(|policy| {
                let (truth, rule) = policy.matches(connection, payload);
                Opinion {
                    policy: policy.name.clone(),
                    action: policy.action,
                    dry_run: policy.dry_run,
                    rule: (truth != Truth::No).then_some(rule),
                    needs_http: truth == Truth::Unknown,
                }
            })
            .collect();
        opinions.sort_by_key(|opinion| match opinion.action {
            Action::Custom => 0,
            Action::Deny => 1,
            Action::Allow => 2,
            Action::Audit => 3,
        });
        opinions
    }
}

fn verdict<'a>(
    policies: impl Iterator<Item = &'a Policy> + Clone,
    connection: &Connection<'_>,
    payload: Payload<'_>,
) -> (Verdict, Reason) {
    let of = |action: Action| {
        let policies = policies.clone();
        policies.filter(move |policy| policy.action == action)
    };
    let rule = |policy: &Policy, rule| Reason::Rule {
        action: policy.action,
        policy: policy.name.clone(),
        rule,
    };
    let mut depends = None;
    for policy in of(Action::Custom).chain(of(Action::Deny)) {
        match policy.matches(connection, payload) {
            (Truth::Yes, index) => return (Verdict::Deny, rule(policy, index)),
            (Truth::Unknown, index) => depends = depends.or_else(|| Some(rule(policy, index))),
            (Truth::No, _) => {}
        }
    }
    let (mut any, mut allowed, mut may) = (false, None, None);
    for policy in of(Action::Allow) {
        any = true;
        match policy.matches(connection, payload) {
            (Truth::Yes, index) => {
                allowed = Some(rule(policy, index));
                break;
            }
            (Truth::Unknown, index) => may = may.or_else(|| Some(rule(policy, index))),
            (Truth::No, _) => {}
        }
    }
    match (allowed, may, depends) {
        // Whatever the request says, nothing allows it.
        (None, None, _) if any => (Verdict::Deny, Reason::NoneAllowed),
        (_, _, Some(reason)) | (None, Some(reason), None) => (Verdict::NeedsHttp, reason),
        (Some(reason), _, None) => (Verdict::Allow, reason),
        (None, None, None) if policies.clone().next().is_none() => {
            (Verdict::Allow, Reason::NoPolicy)
        }
        (None, None, None) => (Verdict::Allow, Reason::NotDenied),
    }
}
