//! From resources to a registry.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use super::draft::{Draft, Pool};
use super::vip::Allocator;
use super::{Registry, Service, enrol, kubernetes, service_entry};
use crate::resource::{Finding, Meta, ResourceSet};

/// Compiles workloads and services. The registry is only to be used when no
/// finding is an error.
pub(super) fn compile(
    resources: &ResourceSet,
    trust_domain: &str,
    cluster_domain: &str,
) -> (Registry, Vec<Finding>) {
    let mut findings = Vec::new();
    let trust_domain: Arc<str> = trust_domain.into();
    let workloads = enrol::workloads(
        &resources.workload_entries,
        &resources.workload_groups,
        &trust_domain,
        &mut findings,
    );
    let pool = Pool::new(&workloads.candidates, &workloads.by_address);

    let mut drafts = Drafts::default();
    for service in &resources.services {
        let draft = kubernetes::draft(service, &pool, cluster_domain, &mut findings);
        drafts.insert(draft, &mut findings);
    }
    for entry in &resources.service_entries {
        for draft in service_entry::drafts(entry, &pool, &trust_domain, &mut findings) {
            drafts.insert(draft, &mut findings);
        }
    }
    let workload_addresses = workloads.by_address.keys().copied();
    let allocator = Allocator::new(drafts.addresses().chain(workload_addresses));
    allocate(&mut drafts.in_order, allocator, &mut findings);

    let mut registry = Registry {
        cluster_domain: cluster_domain.to_owned(),
        workloads: (workloads.candidates.iter())
            .map(|candidate| candidate.workload.clone())
            .collect(),
        by_address: workloads.by_address.clone(),
        probes: workloads.probes.clone(),
        ..Registry::default()
    };
    let mut owners = HashMap::new();
    for draft in drafts.in_order {
        index(&mut registry, draft, &mut owners, &mut findings);
    }
    // The narrowest range first.
    (registry.by_network).sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
    (registry, findings)
}

/// The services so far, each host once.
#[derive(Default)]
struct Drafts<'a> {
    in_order: Vec<Draft<'a>>,
    by_host: HashMap<String, Vec<usize>>,
}

impl<'a> Drafts<'a> {
    /// Adds a service, or adds to the one that has its host already.
    fn insert(&mut self, draft: Draft<'a>, findings: &mut Vec<Finding>) {
        let of_host = self.by_host.entry(draft.service.host.clone()).or_default();
        // A Kubernetes service is the only one of its name.
        let same = of_host.iter().copied().find(|&at| {
            let first = self.in_order[at].meta;
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
            .flat_map(|draft| draft.service.vips.iter().copied())
    }
}

/// Two resources with one host: the first one's attributes stay.
fn merge(first: &mut Draft<'_>, second: Draft<'_>, findings: &mut Vec<Finding>) {
    let mut warn = |reason: String| {
        findings.push(Finding::warning(second.meta, "spec.hosts", reason));
    };
    let Service { host, .. } = &second.service;
    let owner = format!("{} ({})", object(first.meta), first.meta.origin);
    if first.meta.kind != second.meta.kind {
        // As in Istio, the entry decorates the Kubernetes service.
        if !second.service.endpoints.is_empty() {
            warn(format!(
                "{host} is the host of {owner}; only subjectAltNames are added to it"
            ));
        }
        first
            .service
            .subject_alt_names
            .extend(second.service.subject_alt_names);
        return;
    }
    for port in &second.service.ports {
        if first
            .service
            .port(port.number)
            .is_some_and(|own| own.protocol != port.protocol)
        {
            warn(format!(
                "port {} of {host} has another protocol in {owner}, which stays in force",
                port.number
            ));
        }
    }
    first.service.endpoints.extend(second.service.endpoints);
    first.wanted.v6 |= first.wanted.v4 && second.wanted.v6;
}

/// Two namespaces have an entry for one host. Each sees its own; who sees both
/// and has none takes the first.
fn tell_namesake(first: &Draft<'_>, second: &Draft<'_>, findings: &mut Vec<Finding>) {
    // No namespace has an empty name: only what is for all is for it.
    let is_for_all = |draft: &Draft<'_>| draft.service.visibility.includes("");
    if is_for_all(first) && is_for_all(second) {
        let reason = format!(
            "{} is the host of {} ({}) too, which namespaces without an entry of their own follow",
            second.service.host,
            object(first.meta),
            first.meta.origin
        );
        findings.push(Finding::warning(second.meta, "spec.hosts", reason));
    }
}

fn object(meta: &Meta) -> String {
    format!("{} {}/{}", meta.kind, meta.namespace, meta.name)
}

/// Gives addresses to the services that want one, in the order of their hosts,
/// so that the order of the files does not matter.
fn allocate(drafts: &mut [Draft<'_>], mut allocator: Allocator, findings: &mut Vec<Finding>) {
    let mut by_host: Vec<&mut Draft<'_>> = drafts.iter_mut().collect();
    by_host.sort_by(|a, b| a.service.host.cmp(&b.service.host));
    for draft in by_host {
        let host = draft.service.host.as_str();
        let v4 = draft.wanted.v4.then(|| allocator.v4(host));
        let v6 = draft.wanted.v6.then(|| allocator.v6(host));
        for address in [v4, v6].into_iter().flatten() {
            match address {
                Some(address) => draft.service.vips.push(address),
                None => {
                    let reason = "no address is left to be allocated; give some services their own";
                    findings.push(Finding::error(draft.meta, "spec", reason));
                }
            }
        }
    }
}

/// Puts a finished service into the registry.
fn index<'a>(
    registry: &mut Registry,
    draft: Draft<'a>,
    owners: &mut HashMap<IpAddr, &'a Meta>,
    findings: &mut Vec<Finding>,
) {
    let Draft {
        meta,
        service,
        networks,
        ..
    } = draft;
    let service = Arc::new(service);
    for &vip in &service.vips {
        let owner = *owners.entry(vip).or_insert(meta);
        match registry.by_vip.entry(vip) {
            Entry::Vacant(vacant) => {
                vacant.insert(service.clone());
            }
            Entry::Occupied(first) => {
                tell_shared(vip, meta, &service, owner, first.get(), findings);
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
    let ranges = networks.into_iter().map(|net| (net, service.clone()));
    registry.by_network.extend(ranges);
    for address in service
        .endpoints
        .iter()
        .filter_map(|endpoint| endpoint.address)
    {
        let serves = registry.by_endpoint.entry(address).or_default();
        if !serves
            .last()
            .is_some_and(|last| Arc::ptr_eq(last, &service))
        {
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
    registry.services.push(service);
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
