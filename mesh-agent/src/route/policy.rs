//! DestinationRules, compiled: which one is for a client and a service, its
//! subsets, and the policy of a port.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::Method;

use super::hosts::{HostTable, expand};
use super::upstream_policy::{
    Blocks, Credentials, HttpTunnel, Named, OutlierPolicy, UpstreamPolicy, UpstreamTls,
};
use super::view::ClientView;
use crate::memo::{Memo, Same};
use crate::registry::{Service, Visibility};
use crate::resource::destination_rule::{
    ClientTls, Comparisons, DestinationRuleSpec, OutlierDetection, ProxyProtocolVersion,
    TrafficPolicy,
};
use crate::resource::{Finding, Resource};

/// Policies of one level (a rule, or a subset of it): for its ports, and for all others.
#[derive(Clone, Debug, Default)]
struct Level {
    base: Blocks,
    ports: BTreeMap<u16, Blocks>,
}

impl Level {
    /// A port's settings replace all blocks of their level.
    fn of(policy: &TrafficPolicy, read: &mut Reading<'_>) -> Self {
        let comparisons = read.comparisons;
        let outlier = |block: &Option<OutlierDetection>| {
            let block = block.as_ref();
            block.map(|block| OutlierPolicy::compile(block, &comparisons))
        };
        let settings = policy.port_level_settings.iter().enumerate();
        let ports = settings.filter_map(|(i, settings)| {
            let port = u16::try_from(settings.port?.number).ok()?;
            let below = format!(".portLevelSettings[{i}]");
            let blocks = Blocks {
                load_balancer: settings.load_balancer.clone(),
                connection_pool: settings.connection_pool.clone(),
                outlier: outlier(&settings.outlier_detection),
                tls: read.tls(settings.tls.as_ref(), &below),
                // What a port's settings do not know stays the level's.
                retry_budget: policy.retry_budget.clone(),
                proxy_protocol: proxy_protocol(policy),
                tunnel: tunnel(policy),
            };
            Some((port, blocks))
        });
        let ports = ports.collect();
        Self {
            base: Blocks {
                load_balancer: policy.load_balancer.clone(),
                connection_pool: policy.connection_pool.clone(),
                outlier: outlier(&policy.outlier_detection),
                tls: read.tls(policy.tls.as_ref(), ""),
                retry_budget: policy.retry_budget.clone(),
                proxy_protocol: proxy_protocol(policy),
                tunnel: tunnel(policy),
            },
            ports,
        }
    }

    fn at(&self, port: u16) -> &Blocks {
        self.ports.get(&port).unwrap_or(&self.base)
    }

    /// This level, a subset's, over the level of its rule.
    fn over(&self, rule: &Self) -> Self {
        let ports = self.ports.keys().chain(rule.ports.keys());
        Self {
            base: self.base.clone().over(&rule.base),
            ports: ports
                .map(|&port| {
                    let blocks = match self.ports.get(&port) {
                        Some(own) => own.clone(),
                        None => self.base.clone().over(rule.at(port)),
                    };
                    (port, blocks)
                })
                .collect(),
        }
    }

    fn resolve(&self) -> Policies {
        Policies {
            base: self.base.resolve().into(),
            ports: self
                .ports
                .iter()
                .map(|(port, blocks)| (*port, blocks.resolve().into()))
                .collect(),
        }
    }
}

/// A policy that is being compiled, with what it depends on.
struct Reading<'a> {
    resource: &'a Resource<DestinationRuleSpec>,
    /// Path of the policy.
    field: String,
    comparisons: Comparisons,
    credentials: &'a Credentials<'a>,
    findings: &'a mut Vec<Finding>,
}

impl<'a> Reading<'a> {
    fn new(
        resource: &'a Resource<DestinationRuleSpec>,
        field: String,
        credentials: &'a Credentials<'a>,
        findings: &'a mut Vec<Finding>,
    ) -> Self {
        Self {
            resource,
            field,
            // Validation has told of what is wrong with them.
            comparisons: Comparisons::read(&resource.meta).0,
            credentials,
            findings,
        }
    }

    fn tls(&mut self, tls: Option<&ClientTls>, below: &str) -> Option<UpstreamTls> {
        let tls = tls?;
        let Resource { meta, spec } = self.resource;
        // Whoever writes a rule for others cannot make them use what only it may read.
        let credential = (spec.workload_selector.as_ref())
            .and_then(|_| self.credentials.of(&meta.namespace, tls));
        if let Some(Err(reason)) = &credential {
            self.findings.push(Finding::warning(
                meta,
                format!("{}{below}.tls.credentialName", self.field),
                format!("{reason}; such connections are refused"),
            ));
        }
        Some(UpstreamTls::compile(tls, credential))
    }
}

fn tunnel(policy: &TrafficPolicy) -> Option<Arc<HttpTunnel>> {
    let tunnel = policy.tunnel.as_ref()?;
    let host = &tunnel.target_host;
    let target = match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{}", tunnel.target_port),
        Err(_) => format!("{host}:{}", tunnel.target_port),
    };
    let method = if tunnel.is_post() {
        Method::POST
    } else {
        Method::CONNECT
    };
    Some(Arc::new(HttpTunnel { target, method }))
}

fn proxy_protocol(policy: &TrafficPolicy) -> Option<ProxyProtocolVersion> {
    let block = policy.proxy_protocol.as_ref()?;
    Some(block.version.unwrap_or(ProxyProtocolVersion::V1))
}

#[derive(Clone, Debug, Default)]
struct Policies {
    base: Arc<UpstreamPolicy>,
    ports: BTreeMap<u16, Arc<UpstreamPolicy>>,
}

impl Policies {
    fn at(&self, port: u16) -> &Arc<UpstreamPolicy> {
        self.ports.get(&port).unwrap_or(&self.base)
    }
}

/// A named part of a service's endpoints.
#[derive(Debug)]
pub struct Subset {
    /// Name.
    pub name: String,
    /// Labels that its endpoints have.
    pub labels: BTreeMap<String, String>,
    policies: Policies,
}

impl Subset {
    /// The policy for a port of the service.
    pub fn policy(&self, port: u16) -> &Arc<UpstreamPolicy> {
        self.policies.at(port)
    }
}

/// DestinationRules of one host in one namespace, merged.
#[derive(Debug)]
pub struct DestinationRule {
    /// `name/namespace` of the first, as `meshctl` prints it.
    pub name: String,
    visibility: Visibility,
    selector: BTreeMap<String, String>,
    policies: Policies,
    subsets: Box<[Subset]>,
}

impl DestinationRule {
    /// The policy for a port of the service.
    pub fn policy(&self, port: u16) -> &Arc<UpstreamPolicy> {
        self.policies.at(port)
    }

    /// Its subsets.
    pub fn subsets(&self) -> impl Iterator<Item = &Subset> {
        self.subsets.iter()
    }

    pub(super) fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| subset.name == name)
    }

    fn is_for(&self, client: &ClientView<'_>) -> bool {
        self.visibility.includes(client.namespace)
            && self
                .selector
                .iter()
                .all(|(key, value)| client.labels.get(key) == Some(value))
    }
}

/// All DestinationRules by namespace.
#[derive(Debug, Default)]
pub(super) struct DestinationRules {
    pub(super) namespaces: HashMap<String, HostTable<Arc<DestinationRule>>>,
    root_namespace: String,
}

impl DestinationRules {
    pub(super) fn compile(
        resources: &[Arc<Resource<DestinationRuleSpec>>],
        credentials: &Credentials<'_>,
        cluster_domain: &str,
        root_namespace: &str,
        compiled: &mut Compiled,
        findings: &mut Vec<Finding>,
    ) -> Self {
        let mut rules = Self {
            root_namespace: root_namespace.to_owned(),
            ..Self::default()
        };
        // Rules with a selector come first; the sort keeps the order of files otherwise.
        let mut ordered: Vec<_> = resources.iter().collect();
        ordered.sort_by_key(|resource| resource.spec.workload_selector.is_none());
        // What each entry of a host was made from, to merge further rules into it.
        let mut sources: Vec<Merged<'_>> = Vec::new();
        let mut by_host: HashMap<String, Vec<usize>> = HashMap::new();
        for resource in ordered {
            let host = expand(
                &resource.spec.host,
                &resource.meta.namespace,
                cluster_domain,
            );
            let visibility = visibility(resource);
            let of_host = by_host.entry(host.clone()).or_default();
            let same = of_host.iter().copied().find(|&index| {
                let merged: &Merged<'_> = &sources[index];
                merged.visibility == visibility
                    && merged.first.spec.workload_selector == resource.spec.workload_selector
            });
            match same {
                Some(index) => sources[index].others.push(resource),
                None => {
                    of_host.push(sources.len());
                    sources.push(Merged {
                        host,
                        visibility,
                        first: resource,
                        others: Vec::new(),
                    });
                }
            }
        }
        for merged in sources {
            let made_from = MadeFrom {
                rules: merged.resources().map(Same::new).collect(),
                secrets: merged.secrets(credentials),
            };
            let (rule, found) = compiled.get(made_from, || {
                let mut findings = Vec::new();
                let rule = merged.compile(credentials, &mut findings);
                (Arc::new(rule), findings.into())
            });
            findings.extend_from_slice(&found);
            rules
                .namespaces
                .entry(merged.first.meta.namespace.clone())
                .or_default()
                .entry(&merged.host)
                .push(rule);
        }
        rules
    }

    /// The rule that is for a client and a service: of the client's namespace,
    /// else of the service's, else of the root namespace. Levels are not merged.
    pub(super) fn find<'r>(
        &'r self,
        client: &ClientView<'_>,
        service: &Service,
    ) -> Option<&'r DestinationRule> {
        if self.namespaces.is_empty() {
            return None;
        }
        let level = |namespace: &str, private_only: bool| {
            self.namespaces
                .get(namespace)?
                .find(&service.host)
                .map(Arc::as_ref)
                .find(|rule| rule.is_for(client) && (!private_only || rule.visibility.is_private()))
        };
        level(client.namespace, client.namespace == self.root_namespace)
            .or_else(|| level(&service.namespace, false))
            .or_else(|| level(&self.root_namespace, false))
    }
}

fn visibility(resource: &Resource<DestinationRuleSpec>) -> Visibility {
    if resource.spec.workload_selector.is_some() {
        Visibility::private(&resource.meta)
    } else {
        Visibility::new(&resource.meta, &resource.spec.export_to)
    }
}

/// What has been made of which resources, and what was to tell.
pub(super) type Compiled = Memo<MadeFrom, (Arc<DestinationRule>, Arc<[Finding]>)>;

/// What a rule is made from.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct MadeFrom {
    /// Merged in this order.
    rules: Vec<Same<Resource<DestinationRuleSpec>>>,
    /// What they name, where that has an effect.
    secrets: Vec<Named>,
}

/// Rules of one host and one visibility.
struct Merged<'a> {
    host: String,
    visibility: Visibility,
    first: &'a Arc<Resource<DestinationRuleSpec>>,
    others: Vec<&'a Arc<Resource<DestinationRuleSpec>>>,
}

impl<'a> Merged<'a> {
    fn resources(&self) -> impl Iterator<Item = &'a Arc<Resource<DestinationRuleSpec>>> {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }

    fn secrets(&self, credentials: &Credentials<'_>) -> Vec<Named> {
        let with_effect = (self.resources()).filter(|rule| rule.spec.workload_selector.is_some());
        let named = with_effect.flat_map(|rule| {
            let namespace = &rule.meta.namespace;
            let names = rule.spec.credential_names();
            names.map(|name| credentials.named(namespace, name))
        });
        named.collect()
    }

    fn compile(
        &self,
        credentials: &Credentials<'_>,
        findings: &mut Vec<Finding>,
    ) -> DestinationRule {
        let mut policy = None;
        for resource in self.resources() {
            match (&policy, &resource.spec.traffic_policy) {
                (None, Some(own)) => policy = Some((own, resource)),
                (Some(_), Some(_)) => findings.push(Finding::warning(
                    &resource.meta,
                    "spec.trafficPolicy",
                    format!(
                        "has no effect: an older DestinationRule has the policy of {}",
                        self.host
                    ),
                )),
                (_, None) => {}
            }
        }
        let level = policy.map_or_else(Level::default, |(policy, resource)| {
            let field = "spec.trafficPolicy".to_owned();
            Level::of(
                policy,
                &mut Reading::new(resource, field, credentials, findings),
            )
        });
        let policies = level.resolve();
        let mut subsets: Vec<Subset> = Vec::new();
        for resource in self.resources() {
            for (i, subset) in resource.spec.subsets.iter().enumerate() {
                if subsets.iter().any(|known| known.name == subset.name) {
                    findings.push(Finding::warning(
                        &resource.meta,
                        format!("spec.subsets[{i}].name"),
                        format!(
                            "has no effect: {:?} of {} is defined before",
                            subset.name, self.host
                        ),
                    ));
                    continue;
                }
                subsets.push(Subset {
                    name: subset.name.clone(),
                    labels: subset.labels.clone(),
                    policies: match subset.traffic_policy.as_deref() {
                        Some(own) => {
                            let field = format!("spec.subsets[{i}].trafficPolicy");
                            let read = &mut Reading::new(resource, field, credentials, findings);
                            Level::of(own, read).over(&level).resolve()
                        }
                        None => policies.clone(),
                    },
                });
            }
        }
        let meta = &self.first.meta;
        let selector = self.first.spec.workload_selector.as_ref();
        DestinationRule {
            name: format!("{}/{}", meta.name, meta.namespace),
            visibility: self.visibility.clone(),
            selector: selector
                .map(|selector| selector.match_labels.clone())
                .unwrap_or_default(),
            policies,
            subsets: subsets.into(),
        }
    }
}
