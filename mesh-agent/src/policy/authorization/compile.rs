//! From resources to policies.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::pattern::{self, PathPattern, Pattern};
use super::rule::{Clause, Clauses, Policy, Rule, Scope, Test};
use super::{Authorization, Options, Protocols};
use crate::memo::{Memo, Same, are_same};
use crate::registry::{Protocol, Registry, Service, WorkloadName};
use crate::resource::authorization_policy::{
    Action, Attribute, AuthorizationPolicySpec, Pair, TargetRef, is_dry_run, policy_name,
};
use crate::resource::{self, Finding, Meta, Resource};

/// The trust domain by which policies mean the mesh's own, whatever it is called.
const LOCAL_TRUST_DOMAIN: &str = "cluster.local";

/// Compiles policies, and remembers what it has made of which.
#[derive(Debug, Default)]
pub struct Compiler {
    rules: Memo<Same<Resource<AuthorizationPolicySpec>>, Arc<[Rule]>>,
    protocols: Option<Declared>,
}

/// What ports of workloads speak, and the services that say so.
#[derive(Debug)]
struct Declared {
    services: Vec<Arc<Service>>,
    ingress: Protocols,
    protocols: Arc<Protocols>,
}

impl Compiler {
    /// Compiles the policies, always with the same options; those in the root namespace
    /// apply to the whole mesh. `ingress` is what ports of workloads speak whatever services
    /// declare. What has no effect is told, and how many had to be compiled.
    pub fn compile(
        &mut self,
        resources: &[Arc<Resource<AuthorizationPolicySpec>>],
        registry: &Registry,
        ingress: Protocols,
        options: &Options,
    ) -> (Authorization, Vec<Finding>, usize) {
        let mut findings = Vec::new();
        let mut compiled = Authorization {
            path_normalization: options.path_normalization,
            sources: resources.to_vec(),
            ..Authorization::default()
        };
        for resource in resources {
            let Resource { meta, spec } = &**resource;
            let Some(scope) = scope(meta, spec, registry, &mut findings) else {
                continue;
            };
            let policy = Policy {
                name: policy_name(meta),
                action: spec.action,
                dry_run: is_dry_run(meta) == Some(true)
                    && matches!(spec.action, Action::Allow | Action::Deny),
                scope,
                rules: self.rules.get(Same::new(resource), || {
                    let rules = spec.rules.iter();
                    rules
                        .map(|rule| compile_rule(rule, spec.action, meta, options))
                        .collect()
                }),
            };
            if meta.namespace == options.root_namespace {
                compiled.mesh.push(policy);
            } else {
                let namespace = compiled.by_namespace.entry(meta.namespace.clone());
                namespace.or_default().push(policy);
            }
        }
        if resources.is_empty() && ingress.is_empty() {
            self.protocols = None;
        } else {
            compiled.protocols = self.protocols(registry, ingress);
        }
        (compiled, findings, self.rules.end())
    }

    fn protocols(&mut self, registry: &Registry, ingress: Protocols) -> Arc<Protocols> {
        let services = &registry.services;
        match &self.protocols {
            Some(declared)
                if are_same(&declared.services, services) && declared.ingress == ingress =>
            {
                Arc::clone(&declared.protocols)
            }
            _ => {
                let protocols = Arc::new(protocols(registry, ingress.clone()));
                self.protocols = Some(Declared {
                    services: services.clone(),
                    ingress,
                    protocols: Arc::clone(&protocols),
                });
                protocols
            }
        }
    }
}

fn scope(
    meta: &Meta,
    spec: &AuthorizationPolicySpec,
    registry: &Registry,
    findings: &mut Vec<Finding>,
) -> Option<Scope> {
    if spec.targets().next().is_none() {
        return Some(match spec.match_labels() {
            Some(labels) => Scope::Labels(labels.clone()),
            None => Scope::All,
        });
    }
    let mut names = BTreeSet::new();
    for (index, target) in spec.targets().enumerate() {
        if target.kind.starts_with("Gateway") {
            continue;
        }
        let before = names.len();
        names.extend(behind(target, &meta.namespace, registry));
        if names.len() == before {
            let field = format!("spec.targetRefs[{index}]");
            let reason = format!(
                "no workload of the mesh is behind {} {}",
                target.kind, target.name
            );
            findings.push(Finding::warning(meta, field, reason));
        }
    }
    Some(Scope::Workloads(names))
}

/// The workloads behind a service.
fn behind<'a>(
    target: &'a TargetRef,
    namespace: &'a str,
    registry: &'a Registry,
) -> impl Iterator<Item = WorkloadName> + 'a {
    let kubernetes = format!(
        "{}.{namespace}.svc.{}",
        target.name, registry.cluster_domain
    );
    let wants_kubernetes = target.kind == "Service";
    registry
        .services
        .iter()
        .filter(move |service| {
            service.name == target.name
                && service.namespace == namespace
                && (service.host == kubernetes) == wants_kubernetes
        })
        .flat_map(|service| &service.endpoints)
        .filter_map(|endpoint| endpoint.workload.as_ref())
        .map(|workload| workload.name.clone())
}

fn compile_rule(
    rule: &resource::authorization_policy::Rule,
    action: Action,
    meta: &Meta,
    options: &Options,
) -> Rule {
    let builder = Builder {
        action,
        meta,
        options,
    };
    let mut uses_http = false;
    let mut of_fields = |pairs: &[Pair<'_>]| {
        let clauses = pairs.iter().filter_map(|(field, any, none)| {
            Attribute::of_field(field).map(|attribute| (attribute, *any, *none))
        });
        builder.clauses(clauses, &mut uses_http)
    };
    let from = rule
        .from
        .iter()
        .flatten()
        .filter_map(|from| from.source.as_ref())
        .map(|source| of_fields(&source.pairs()))
        .collect();
    let to = rule
        .to
        .iter()
        .flatten()
        .filter_map(|to| to.operation.as_ref())
        .map(|operation| of_fields(&operation.pairs()))
        .collect();
    let conditions = rule.when.iter().filter_map(|condition| {
        let attribute = Attribute::of_key(&condition.key).ok()?;
        Some((attribute, &*condition.values, &*condition.not_values))
    });
    let when = builder.clauses(conditions, &mut uses_http);
    Rule {
        from,
        to,
        when,
        uses_http,
    }
}

struct Builder<'a> {
    action: Action,
    meta: &'a Meta,
    options: &'a Options,
}

impl Builder<'_> {
    fn clauses<'v>(
        &self,
        fields: impl Iterator<Item = (Attribute, &'v [String], &'v [String])>,
        uses_http: &mut bool,
    ) -> Clauses {
        let mut clauses = Vec::new();
        let mut never = false;
        for (attribute, any, none) in fields {
            if any.is_empty() && none.is_empty() {
                continue;
            }
            *uses_http |= attribute.is_http();
            if attribute.not_applied().is_some() {
                // Nobody is allowed by what cannot be told; who is denied by it is denied.
                never |= self.action == Action::Allow;
                continue;
            }
            let tests = |values: &[String]| -> Vec<Option<Test>> {
                let values = values
                    .iter()
                    .flat_map(|value| self.expand(&attribute, value));
                values.map(|value| self.test(&attribute, &value)).collect()
            };
            let (any, none) = (tests(any), tests(none));
            // Validation leaves no value that is none; should one be, nobody passes by it.
            if any.iter().chain(&none).any(Option::is_none) {
                never |= self.action == Action::Allow;
                continue;
            }
            clauses.push(Clause {
                is_http: attribute.is_http(),
                any: any.into_iter().flatten().collect(),
                none: none.into_iter().flatten().collect(),
            });
        }
        if never {
            Clauses::Never
        } else {
            Clauses::All(clauses)
        }
    }

    /// A value with the trust domains that it stands for.
    fn expand(&self, attribute: &Attribute, value: &str) -> Vec<String> {
        let own = || {
            let aliases = self.options.trust_domain_aliases.iter();
            std::iter::once(&self.options.trust_domain).chain(aliases)
        };
        let is_own = |domain: &str| {
            domain == LOCAL_TRUST_DOMAIN || own().any(|own| matches_domain(domain, own))
        };
        match attribute {
            Attribute::Principal => {
                // Only a whole principal has a trust domain that could be another.
                let Some((domain, rest)) = value
                    .split_once('/')
                    .filter(|(domain, rest)| rest.split('/').count() == 4 && is_own(domain))
                else {
                    return vec![value.to_owned()];
                };
                own()
                    .map(|own| {
                        if matches_domain(domain, own) {
                            value.to_owned()
                        } else {
                            format!("{own}/{rest}")
                        }
                    })
                    .collect()
            }
            Attribute::TrustDomain if is_own(value) => own().cloned().collect(),
            _ => vec![value.to_owned()],
        }
    }

    fn test(&self, attribute: &Attribute, value: &str) -> Option<Test> {
        Some(match attribute {
            Attribute::Principal => Test::Principal(Pattern::new(value)),
            Attribute::Namespace => Test::Namespace(pattern::namespace(value)?),
            Attribute::ServiceAccount => {
                let (namespace, account) = value
                    .split_once('/')
                    .unwrap_or((&self.meta.namespace, value));
                Test::ServiceAccount {
                    namespace: namespace.to_owned(),
                    account: account.to_owned(),
                }
            }
            Attribute::TrustDomain => Test::TrustDomain(Pattern::new(value)),
            Attribute::SourceIp => Test::SourceIp(pattern::network(value)?),
            Attribute::RemoteIp => Test::RemoteIp(pattern::network(value)?),
            Attribute::DestinationIp => Test::DestinationIp(pattern::network(value)?),
            Attribute::DestinationPort => Test::DestinationPort(value.parse().ok()?),
            Attribute::Host => Test::Host(Pattern::ignoring_case(value)),
            Attribute::Method => Test::Method(Pattern::new(value)),
            Attribute::Path => Test::Path(PathPattern::new(value)?),
            Attribute::Header(name) => Test::Header(name.clone(), Pattern::of_header(value)),
            Attribute::Sni | Attribute::Jwt | Attribute::EnvoyFilter => return None,
        })
    }
}

/// Whether the trust domain of a policy, which may begin with `*`, is this one.
fn matches_domain(domain: &str, own: &str) -> bool {
    match domain.strip_prefix('*') {
        Some(end) => own.ends_with(end),
        None => domain == own,
    }
}

/// What the ports of workloads speak: as `ingress` says, else as the first service that has
/// them declares.
fn protocols(registry: &Registry, ingress: Protocols) -> Protocols {
    let mut protocols = ingress;
    for service in &registry.services {
        for port in service
            .ports
            .iter()
            .filter(|port| port.protocol != Protocol::Udp)
        {
            for endpoint in &service.endpoints {
                if let (Some(workload), Some(number)) =
                    (&endpoint.workload, endpoint.ports.get(&port.number))
                {
                    protocols
                        .entry((workload.name.clone(), *number))
                        .or_insert(port.protocol);
                }
            }
        }
    }
    protocols
}
