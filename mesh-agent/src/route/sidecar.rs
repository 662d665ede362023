//! Sidecars, compiled: what a client sees of the mesh, and what becomes of
//! its connections to anything else.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::edit::RouteEdits;
use super::ingress::Inbound;
use super::plan::{Plan, Unroutable};
use super::{ClientView, Routes, Target};
use crate::registry::{Registry, Service};
use crate::resource::sidecar::{EgressListener, OutboundMode, SidecarSpec};
use crate::resource::{Finding, Resource};

/// What becomes of connections to what is no service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[clap(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundPolicy {
    /// They go where the application wanted.
    #[default]
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// All Sidecars.
#[derive(Debug, Default)]
pub(super) struct Sidecars {
    /// By namespace: those with a selector first, then one for the rest.
    namespaces: HashMap<String, Vec<Sidecar>>,
    root_namespace: String,
    /// What the mesh does where no Sidecar says.
    outbound: OutboundPolicy,
}

#[derive(Debug)]
pub(super) struct Sidecar {
    selector: BTreeMap<String, String>,
    /// Those for one port; none where everything is seen.
    listeners: Vec<Listener>,
    outbound: Option<OutboundPolicy>,
    /// Where connections to what is no service go, instead of where the application wanted.
    egress_proxy: Option<Target>,
    /// How it is called itself.
    pub(super) inbound: Inbound,
}

#[derive(Debug)]
struct Listener {
    port: Option<u16>,
    included: Imports,
    excluded: Imports,
}

/// Hosts by namespace.
#[derive(Debug, Default)]
struct Imports {
    of_any: Hosts,
    by_namespace: HashMap<String, Hosts>,
}

#[derive(Debug, Default)]
struct Hosts {
    exact: HashSet<String>,
    /// `.example.com`, or empty for all.
    suffixes: Vec<String>,
}

impl Hosts {
    fn add(&mut self, host: &str) {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix('*') {
            Some(suffix) => self.suffixes.push(suffix.to_owned()),
            None => {
                self.exact.insert(host);
            }
        }
    }

    fn has(&self, host: &str) -> bool {
        self.exact.contains(host) || self.suffixes.iter().any(|suffix| host.ends_with(&**suffix))
    }

    /// The same for the host of a rule, which may itself be a wildcard above a host here.
    fn meets(&self, host: &str) -> bool {
        let above = |own: &String| {
            host.strip_prefix('*')
                .is_some_and(|suffix| own.ends_with(suffix))
        };
        self.has(host) || self.exact.iter().any(above) || self.suffixes.iter().any(above)
    }
}

impl Imports {
    fn add(&mut self, namespace: &str, host: &str) {
        let hosts = match namespace {
            "*" => &mut self.of_any,
            named => self.by_namespace.entry(named.to_owned()).or_default(),
        };
        hosts.add(host);
    }

    fn any(&self, namespace: &str, test: impl Fn(&Hosts) -> bool) -> bool {
        test(&self.of_any) || self.by_namespace.get(namespace).is_some_and(test)
    }
}

impl Listener {
    fn compile(listener: &EgressListener, own_namespace: &str) -> Self {
        let mut compiled = Self {
            port: (listener.port.as_ref()).and_then(|port| u16::try_from(port.number).ok()),
            included: Imports::default(),
            excluded: Imports::default(),
        };
        for host in &listener.hosts {
            let Some((namespace, host)) = host.split_once('/') else {
                continue;
            };
            let (imports, namespace) = match namespace.strip_prefix('~') {
                // `~/*`: nothing.
                Some("") => continue,
                Some(excluded) => (&mut compiled.excluded, excluded),
                None => (&mut compiled.included, namespace),
            };
            let namespace = if namespace == "." {
                own_namespace
            } else {
                namespace
            };
            imports.add(namespace, host);
        }
        compiled
    }

    fn imports(&self, namespace: &str, host: &str) -> bool {
        self.included.any(namespace, |hosts| hosts.has(host))
            && !self.excluded.any(namespace, |hosts| hosts.has(host))
    }

    fn imports_rules(&self, namespace: &str, host: &str) -> bool {
        self.included.any(namespace, |hosts| hosts.meets(host))
            && !self.excluded.any(namespace, |hosts| hosts.has(host))
    }
}

impl Sidecar {
    fn compile(resource: &Resource<SidecarSpec>) -> Self {
        let spec = &resource.spec;
        let selector = spec.workload_selector.as_ref();
        Self {
            selector: selector.map_or_else(BTreeMap::new, |selector| selector.labels.clone()),
            listeners: (spec.egress.iter())
                .map(|listener| Listener::compile(listener, &resource.meta.namespace))
                .collect(),
            outbound: spec
                .outbound_traffic_policy
                .as_ref()
                .map(|policy| match policy.mode {
                    OutboundMode::RegistryOnly => OutboundPolicy::RegistryOnly,
                    OutboundMode::AllowAny | OutboundMode::AllowAnyDynamicDns => {
                        OutboundPolicy::AllowAny
                    }
                }),
            egress_proxy: (spec.outbound_traffic_policy.as_ref())
                .and_then(|policy| policy.egress_proxy.as_ref())
                // Validation wants a full name.
                .map(|to| Target::of(to, RouteEdits::default(), &str::to_ascii_lowercase)),
            inbound: Inbound::compile(spec),
        }
    }

    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        (self.selector.iter()).all(|(key, value)| labels.get(key) == Some(value))
    }

    fn imports(&self, service: &Service, port: u16) -> bool {
        if self.listeners.is_empty() {
            return true;
        }
        let of = |port| self.listeners.iter().find(|listener| listener.port == port);
        of(Some(port))
            .or_else(|| of(None))
            .is_some_and(|listener| listener.imports(&service.namespace, &service.host))
    }
}

impl Sidecars {
    pub(super) fn compile(
        resources: &[Arc<Resource<SidecarSpec>>],
        registry: &Registry,
        root_namespace: &str,
        outbound: OutboundPolicy,
        findings: &mut Vec<Finding>,
    ) -> Self {
        let mut namespaces: HashMap<String, Vec<Sidecar>> = HashMap::new();
        for resource in resources {
            namespaces
                .entry(resource.meta.namespace.clone())
                .or_default();
        }
        for (namespace, sidecars) in &mut namespaces {
            let own = || {
                resources
                    .iter()
                    .filter(|one| one.meta.namespace == *namespace)
            };
            let has_selector = |one: &&Arc<Resource<SidecarSpec>>| {
                (one.spec.workload_selector.as_ref())
                    .is_some_and(|selector| !selector.labels.is_empty())
            };
            let compile = |one: &Arc<Resource<SidecarSpec>>| Sidecar::compile(one);
            sidecars.extend(own().filter(has_selector).map(compile));
            sidecars.extend(own().find(|one| !has_selector(one)).map(compile));
        }
        tell(resources, registry, findings);
        Self {
            namespaces,
            root_namespace: root_namespace.to_owned(),
            outbound,
        }
    }

    /// The Sidecar of a client: one that selects it, else its namespace's, else
    /// the root namespace's.
    fn of(&self, client: &ClientView<'_>) -> Option<&Sidecar> {
        if self.namespaces.is_empty() {
            return None;
        }
        let own = self.namespaces.get(client.namespace);
        let own = own.and_then(|all| all.iter().find(|one| one.selects(client.labels)));
        own.or_else(|| {
            let root = self.namespaces.get(&self.root_namespace)?;
            root.iter().find(|one| one.selector.is_empty())
        })
    }
}

/// Tells of Sidecars that are in each other's way, and of what they name in vain.
fn tell(
    resources: &[Arc<Resource<SidecarSpec>>],
    registry: &Registry,
    findings: &mut Vec<Finding>,
) {
    let mut general: HashMap<&str, &Resource<SidecarSpec>> = HashMap::new();
    let mut selected = HashMap::new();
    for resource in resources {
        let namespace = resource.meta.namespace.as_str();
        let outbound = resource.spec.outbound_traffic_policy.as_ref();
        let proxy = outbound.and_then(|policy| policy.egress_proxy.as_ref());
        if let Some(proxy) =
            proxy.filter(|to| registry.service_of_host(&to.host, namespace).is_none())
        {
            let field = "spec.outboundTrafficPolicy.egressProxy.host";
            let reason = format!(
                "no service is named {}; such connections are refused",
                proxy.host
            );
            findings.push(Finding::warning(&resource.meta, field, reason).with_code("IST0101"));
        }
        let selector = (resource.spec.workload_selector.as_ref())
            .filter(|selector| !selector.labels.is_empty());
        let Some(selector) = selector else {
            if let Some(older) = general.get(namespace) {
                let reason = format!(
                    "has no effect: Sidecar {namespace}/{} is for the whole namespace already",
                    older.meta.name
                );
                findings.push(
                    Finding::warning(&resource.meta, "spec.workloadSelector", reason)
                        .with_code("IST0111"),
                );
            } else {
                general.insert(namespace, resource);
            }
            continue;
        };
        let mut workloads = registry.workloads.iter().filter(|workload| {
            *workload.name.namespace == *namespace
                && (selector.labels.iter())
                    .all(|(key, value)| workload.labels.get(key) == Some(value))
        });
        let first = workloads.next();
        if first.is_none() {
            let reason = format!("selects no WorkloadEntry of namespace {namespace}");
            findings.push(
                Finding::warning(&resource.meta, "spec.workloadSelector.labels", reason)
                    .with_code("IST0101"),
            );
        }
        let mut told = false;
        for workload in first.into_iter().chain(workloads) {
            let older = *selected.entry(&workload.name).or_insert(resource);
            if older.meta.name != resource.meta.name && !told {
                told = true;
                let reason = format!(
                    "has no effect for workload {}: Sidecar {namespace}/{} selects it already",
                    workload.name, older.meta.name
                );
                findings.push(
                    Finding::warning(&resource.meta, "spec.workloadSelector.labels", reason)
                        .with_code("IST0110"),
                );
            }
        }
    }
}

impl Routes {
    /// The Sidecar of a workload.
    pub(super) fn sidecar_of(&self, workload: &ClientView<'_>) -> Option<&Sidecar> {
        self.sidecars.of(workload)
    }

    /// Whether a client's connections to a port of a service are for that service:
    /// it is exported to the client's namespace, and the client's Sidecar imports it.
    pub fn sees(&self, client: &ClientView<'_>, service: &Service, port: u16) -> bool {
        service.visibility.includes(client.namespace)
            && (self.sidecars.of(client)).is_none_or(|sidecar| sidecar.imports(service, port))
    }

    /// Whether a client sees any port of a service.
    pub fn sees_some_of(&self, client: &ClientView<'_>, service: &Service) -> bool {
        (service.ports.iter()).any(|port| self.sees(client, service, port.number))
    }

    /// Whether a Sidecar restricts what a client sees.
    pub fn is_restricted(&self, client: &ClientView<'_>) -> bool {
        (self.sidecars.of(client)).is_some_and(|sidecar| !sidecar.listeners.is_empty())
    }

    /// What becomes of a client's connections to what is no service.
    pub fn outbound_policy(&self, client: &ClientView<'_>) -> OutboundPolicy {
        (self.sidecars.of(client))
            .and_then(|sidecar| sidecar.outbound)
            .unwrap_or(self.sidecars.outbound)
    }

    fn egress_proxy(&self, client: &ClientView<'_>) -> Option<&Target> {
        (self.sidecars.of(client)).and_then(|sidecar| sidecar.egress_proxy.as_ref())
    }

    /// The way to the proxy that a client's Sidecar names for what is no service; `None`
    /// where it names none.
    pub(super) fn plan_by_proxy<'r>(
        &'r self,
        client: &ClientView<'_>,
        registry: &'r Registry,
    ) -> Option<Result<Plan<'r>, Unroutable>> {
        let proxy = self.egress_proxy(client)?;
        let plan = self.plan_for(proxy, client, 0, registry);
        Some(plan.and_then(|plan| {
            if self.sees(client, plan.service, plan.port) {
                return Ok(plan);
            }
            // As in Istio.
            Err(Unroutable::no_cluster(format!(
                "egressProxy {} is not among the hosts of the Sidecar's egress",
                proxy.host
            )))
        }))
    }

    /// Whether a client's Sidecar lets it see the rules of a host.
    pub(super) fn sees_rules(&self, client: &ClientView<'_>, namespace: &str, host: &str) -> bool {
        (self.sidecars.of(client)).is_none_or(|sidecar| {
            sidecar.listeners.is_empty()
                || (sidecar.listeners.iter())
                    .any(|listener| listener.imports_rules(namespace, host))
        })
    }

    /// Whether connections of a client to unknown addresses have to be looked at: to
    /// refuse them, or because a name that they say may be that of a service.
    pub fn wants_all(&self, client: &ClientView<'_>, registry: &Registry) -> bool {
        self.outbound_policy(client) == OutboundPolicy::RegistryOnly
            || self.egress_proxy(client).is_some()
            || (registry.without_address.iter())
                .any(|service: &Arc<Service>| self.sees_some_of(client, service))
    }
}
