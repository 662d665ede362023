//! From resources to a registry.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use super::draft::{Draft, Pool};
use super::service_entry::Behind;
use super::vip::Allocator;
use super::{Registry, Service, Workload, enrol, kubernetes, service_entry};
use crate::memo::{Memo, Same, are_same};
use crate::resource::{
    Finding, Meta, Resource, ResourceSet, Resources, ServiceEntrySpec, ServiceSpec, Severity,
    WorkloadEntrySpec, WorkloadGroupSpec,
};

/// Compiles registries, and remembers what it has made of which resource.
#[derive(Debug, Default)]
pub struct Compiler {
    workloads: enrol::Compiled,
    services: Memo<ServiceParts, Drafted>,
    service_entries: Memo<EntryParts, Drafted>,
    last: Option<Last>,
}

/// A service, and the workloads that it selects.
type ServiceParts = (Same<Resource<ServiceSpec>>, Vec<Same<Workload>>);
/// An entry, and the workloads at its endpoints.
type EntryParts = (
    Same<Resource<ServiceEntrySpec>>,
    Vec<Option<Same<Workload>>>,
);

/// What one resource has become, and what was to tell of it.
#[derive(Clone, Debug)]
struct Drafted {
    drafts: Arc<[Draft]>,
    findings: Arc<[Finding]>,
}

/// The last registry, and what it was made from.
#[derive(Debug)]
struct Last {
    services: Resources<ServiceSpec>,
    service_entries: Resources<ServiceEntrySpec>,
    workload_entries: Resources<WorkloadEntrySpec>,
    workload_groups: Resources<WorkloadGroupSpec>,
    registry: Arc<Registry>,
    findings: Vec<Finding>,
}

impl Last {
    fn is_of(&self, resources: &ResourceSet) -> bool {
        are_same(&self.services, &resources.services)
            && are_same(&self.service_entries, &resources.service_entries)
            && are_same(&self.workload_entries, &resources.workload_entries)
            && are_same(&self.workload_groups, &resources.workload_groups)
    }
}

/// How much of a configuration the last compilation had to compile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// WorkloadEntries.
    pub workloads: usize,
    /// Services and ServiceEntries.
    pub services: usize,
}

impl Compiler {
    /// Compiles workloads and services, always of the same domains. Services that are as they
    /// were in the last registry are the same values, so that what hangs on them stays. The
    /// registry is only to be used when no finding is an error.
    pub fn compile(
        &mut self,
        resources: &ResourceSet,
        trust_domain: &str,
        cluster_domain: &str,
    ) -> (Arc<Registry>, Vec<Finding>, Made) {
        if let Some(last) = self.last.as_ref().filter(|last| last.is_of(resources)) {
            return (
                last.registry.clone(),
                last.findings.clone(),
                Made::default(),
            );
        }
        let mut findings = Vec::new();
        let registry = self.anew(resources, trust_domain, cluster_domain, &mut findings);
        let registry = Arc::new(match &self.last {
            Some(last) => registry.reusing(&last.registry),
            None => registry,
        });
        if findings
            .iter()
            .all(|finding| finding.severity != Severity::Error)
        {
            self.last = Some(Last {
                services: resources.services.clone(),
                service_entries: resources.service_entries.clone(),
                workload_entries: resources.workload_entries.clone(),
                workload_groups: resources.workload_groups.clone(),
                registry: registry.clone(),
                findings: findings.clone(),
            });
        }
        let made = Made {
            workloads: self.workloads.end(),
            services: self.services.end() + self.service_entries.end(),
        };
        (registry, findings, made)
    }

    fn anew(
        &mut self,
        resources: &ResourceSet,
        trust_domain: &str,
        cluster_domain: &str,
        findings: &mut Vec<Finding>,
    ) -> Registry {
        let trust_domain: Arc<str> = trust_domain.into();
        let workloads = enrol::workloads(
            &resources.workload_entries,
            &resources.workload_groups,
            &trust_domain,
            &mut self.workloads,
            findings,
        );
        let pool = Pool::new(&workloads.candidates, &workloads.by_address);

        let mut drafts = Drafts::default();
        for service in &resources.services {
            let selected = kubernetes::selected(service, &pool);
            let workloads = selected.iter().map(|one| Same::new(&one.workload));
            let parts = (Same::new(service), workloads.collect());
            let drafted = self.services.get(parts, || {
                Drafted::new(|findings| {
                    let draft = kubernetes::draft(service, &selected, cluster_domain, findings);
                    [draft].into()
                })
            });
            drafts.extend(&drafted, findings);
        }
        for entry in &resources.service_entries {
            let behind = Behind::new(entry, &pool);
            let workloads = behind.workloads().into_iter();
            let workloads = workloads.map(|workload| workload.map(Same::new));
            let parts = (Same::new(entry), workloads.collect());
            let drafted = self.service_entries.get(parts, || {
                Drafted::new(|findings| {
                    service_entry::drafts(entry, &behind, &trust_domain, findings).into()
                })
            });
            drafts.extend(&drafted, findings);
        }
        let workload_addresses = workloads.by_address.keys().copied();
        let allocator = Allocator::new(drafts.addresses().chain(workload_addresses));
        allocate(&mut drafts.in_order, allocator, findings);

        let mut registry = Registry {
            cluster_domain: cluster_domain.to_owned(),
            workloads: (workloads.candidates.iter())
                .map(|candidate| candidate.workload.clone())
                .collect(),
            by_address: workloads.by_address,
            probes: workloads.probes,
            ..Registry::default()
        };
        let mut owners = HashMap::new();
        for draft in &drafts.in_order {
            index(&mut registry, draft, &mut owners, findings);
        }
        // The narrowest range first.
        (registry.by_network).sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        registry
    }
}

impl Drafted {
    fn new(make: impl FnOnce(&mut Vec<Finding>) -> Arc<[Draft]>) -> Self {
        let mut findings = Vec::new();
        Self {
            drafts: make(&mut findings),
            findings: findings.into(),
        }
    }
}

/// The services so far, each host once.
#[derive(Default)]
struct Drafts {
    in_order: Vec<Draft>,
    by_host: HashMap<String, Vec<usize>>,
}

impl Drafts {
    /// Adds what one resource has become.
    fn extend(&mut self, drafted: &Drafted, findings: &mut Vec<Finding>) {
        findings.extend_from_slice(&drafted.findings);
        for draft in drafted.drafts.iter() {
            self.insert(draft.clone(), findings);
        }
    }

    /// Adds a service, or adds to the one that has its host already.
    fn insert(&mut self, draft: Draft, findings: &mut Vec<Finding>) {
        let of_host = self.by_host.entry(draft.service.host.clone()).or_default();
        // A Kubernetes service is the only one of its name.
        let same = of_host.iter().copied().find(|&at| {
            let first = &self.in_order[at].meta;
            first.kind == "Service"
                || draft.meta.kind == "Service"
                || first.namespace == draft.meta.namespace
        });
        match same {
            Some(at) => merge(&mut self.in_order[at], draft, findings),
            None => {
                if let Some(&first) = of_host.first() {
                    tell_namesake(&self.in_order[first], &draft, findings);
                }
                of_host.push(self.in_order.len());
                self.in_order.push(draft);
            }
        }
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.in_order
            .iter()
            .flat_map(|draft| draft.service.addresses())
    }
}

/// Two resources with one host: the first one's attributes stay.
fn merge(first: &mut Draft, second: Draft, findings: &mut Vec<Finding>) {
    let Service { host, .. } = &*second.service;
    let owner = format!("{} ({})", object(&first.meta), first.meta.origin);
    let service = Arc::make_mut(&mut first.service);
    if first.meta.kind != second.meta.kind {
        // As in Istio, the entry decorates the Kubernetes service.
        if !second.service.endpoints.is_empty() {
            let reason =
                format!("{host} is the host of {owner}; only subjectAltNames are added to it");
            findings.push(Finding::warning(&second.meta, "spec.hosts", reason));
        }
        let names = second.service.subject_alt_names.iter().cloned();
        service.subject_alt_names.extend(names);
        return;
    }
    for port in &second.service.ports {
        if service
            .port(port.number)
            .is_some_and(|own| own.protocol != port.protocol)
        {
            let reason = format!(
                "port {} of {host} has another protocol in {owner}, which stays in force",
                port.number
            );
            let finding = Finding::warning(&second.meta, "spec.hosts", reason);
            findings.push(finding.with_code("IST0177"));
        }
    }
    let endpoints = second.service.endpoints.iter().cloned();
    service.endpoints.extend(endpoints);
    first.wanted.v6 |= first.wanted.v4 && second.wanted.v6;
}

/// Two namespaces have an entry for one host. Each sees its own; who sees both
/// and has none takes the first.
fn tell_namesake(first: &Draft, second: &Draft, findings: &mut Vec<Finding>) {
    // No namespace has an empty name: only what is for all is for it.
    let is_for_all = |draft: &Draft| draft.service.visibility.includes("");
    if is_for_all(first) && is_for_all(second) {
        let reason = format!(
            "{} is the host of {} ({}) too, which namespaces without an entry of their own follow",
            second.service.host,
            object(&first.meta),
            first.meta.origin
        );
        findings.push(Finding::warning(&second.meta, "spec.hosts", reason));
    }
}

fn object(meta: &Meta) -> String {
    format!("{} {}/{}", meta.kind, meta.namespace, meta.name)
}

/// Gives addresses to the services that want one, in the order of their hosts,
/// so that the order of the files does not matter.
fn allocate(drafts: &mut [Draft], mut allocator: Allocator, findings: &mut Vec<Finding>) {
    let mut by_host: Vec<&mut Draft> = drafts.iter_mut().collect();
    by_host.sort_by(|a, b| a.service.host.cmp(&b.service.host));
    for draft in by_host {
        let host = draft.service.host.as_str();
        let v4 = draft.wanted.v4.then(|| allocator.v4(host));
        let v6 = draft.wanted.v6.then(|| allocator.v6(host));
        for address in [v4, v6].into_iter().flatten() {
            match address {
                Some(address) => Arc::make_mut(&mut draft.service).vips.push(address),
                None => {
                    let reason = "no address is left to be allocated; give some services their own";
                    findings.push(Finding::error(&draft.meta, "spec", reason));
                }
            }
        }
    }
}

/// Puts a finished service into the registry.
fn index<'a>(
    registry: &mut Registry,
    draft: &'a Draft,
    owners: &mut HashMap<IpAddr, &'a Meta>,
    findings: &mut Vec<Finding>,
) {
    let Draft {
        meta,
        service,
        networks,
        ..
    } = draft;
    for vip in service.addresses() {
        let owner = *owners.entry(vip).or_insert(meta);
        match registry.by_vip.entry(vip) {
            Entry::Vacant(vacant) => {
                vacant.insert(service.clone());
            }
            Entry::Occupied(first) => {
                tell_shared(vip, meta, service, owner, first.get(), findings);
                registry
                    .shared_vips
                    .entry(vip)
                    .or_default()
                    .push(service.clone());
            }
        }
    }
    if service.vips.is_empty() && networks.is_empty() && !service.headless {
        registry.without_address.push(service.clone());
    }
    let ranges = networks.iter().map(|net| (*net, service.clone()));
    registry.by_network.extend(ranges);
    for address in service
        .endpoints
        .iter()
        .filter_map(|endpoint| endpoint.address)
    {
        let serves = registry.by_endpoint.entry(address).or_default();
        if !serves.last().is_some_and(|last| Arc::ptr_eq(last, service)) {
            serves.push(service.clone());
        }
    }
    match registry.by_host.entry(service.host.clone()) {
        Entry::Vacant(vacant) => {
            vacant.insert(service.clone());
        }
        Entry::Occupied(_) => registry
            .namesakes
            .entry(service.host.clone())
            .or_default()
            .push(service.clone()),
    }
    registry.services.push(service.clone());
}

/// Two services have one address. Hosts of one entry share theirs, and so may
/// entries with different ports.
fn tell_shared(
    vip: IpAddr,
    meta: &Meta,
    service: &Service,
    owner: &Meta,
    first: &Service,
    findings: &mut Vec<Finding>,
) {
    let owned = format!(
        "{vip} is the address of {} ({}) already",
        object(owner),
        owner.origin
    );
    let shared = service
        .ports
        .iter()
        .find(|port| first.port(port.number).is_some());
    if meta.kind == "Service" && owner.kind == "Service" {
        findings.push(Finding::error(meta, "spec.clusterIP", owned));
    } else if let (Some(port), false) = (shared, meta == owner) {
        let reason = format!(
            "{owned}, to which connections to port {} go unless their Host says otherwise",
            port.number
        );
        findings.push(Finding::warning(meta, "spec.addresses", reason));
    }
}
