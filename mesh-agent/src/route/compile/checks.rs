//! What compiles, and yet has no effect: names that nothing defines, and limits
//! that forbid what they bound.

use std::collections::{BTreeMap, HashSet};

use crate::registry::{Registry, Service};
use crate::resource::destination_rule::{Comparisons, DestinationRuleSpec};
use crate::resource::virtual_service::{Destination, VirtualServiceSpec};
use crate::resource::{Finding, Resource};
use crate::route::hosts::expand;
use crate::route::upstream_policy::OutlierPolicy;
use crate::route::{ClientView, Routes, plan};

/// What becomes of what a rule sends nowhere.
const REQUESTS: &str = "such requests are answered with 503 (NC)";
const COPIES: &str = "nothing is mirrored";
const CONNECTIONS: &str = "such connections are refused";
/// Of requests to a subset that is defined, and selects nothing.
const NO_ENDPOINT: &str = "such requests are answered with 503 (UH)";

/// A subset selects nothing.
const NOT_SELECTED: &str = "IST0173";

impl Routes {
    /// Warns of destinations to which every request would be refused.
    pub(super) fn check_destinations(
        &self,
        resource: &Resource<VirtualServiceSpec>,
        registry: &Registry,
        findings: &mut Vec<Finding>,
    ) {
        let mut check = |to: &Destination, what: &str, field: &dyn Fn() -> String| {
            if let Some(finding) = self.ambiguous(resource, to, registry, field) {
                findings.push(finding);
            }
            if let Some((part, code, reason)) = self.problem(resource, to, registry) {
                let what = match (code, what) {
                    (NOT_SELECTED, REQUESTS) => NO_ENDPOINT,
                    _ => what,
                };
                let (field, reason) = (format!("{}.{part}", field()), format!("{reason}; {what}"));
                findings.push(Finding::warning(&resource.meta, field, reason).with_code(code));
            }
        };
        let spec = &resource.spec;
        for (i, rule) in spec.http.iter().enumerate() {
            for (j, entry) in rule.route.iter().enumerate() {
                let field = || format!("spec.http[{i}].route[{j}].destination");
                check(&entry.destination, REQUESTS, &field);
            }
            if let Some(mirror) = &rule.mirror {
                check(mirror, COPIES, &|| format!("spec.http[{i}].mirror"));
            }
            for (j, mirror) in rule.mirrors.iter().enumerate() {
                let field = || format!("spec.http[{i}].mirrors[{j}].destination");
                check(&mirror.destination, COPIES, &field);
            }
        }
        for (i, rule) in spec.tcp.iter().enumerate() {
            for (j, entry) in rule.route.iter().enumerate() {
                let field = || format!("spec.tcp[{i}].route[{j}].destination");
                check(&entry.destination, CONNECTIONS, &field);
            }
        }
        for (i, rule) in spec.tls.iter().enumerate() {
            for (j, entry) in rule.route.iter().enumerate() {
                let field = || format!("spec.tls[{i}].route[{j}].destination");
                check(&entry.destination, CONNECTIONS, &field);
            }
        }
    }

    /// Tells of a destination that names none of the service's ports.
    fn ambiguous(
        &self,
        resource: &Resource<VirtualServiceSpec>,
        to: &Destination,
        registry: &Registry,
        field: &dyn Fn() -> String,
    ) -> Option<Finding> {
        let namespace = resource.meta.namespace.as_str();
        let host = expand(&to.host, namespace, &self.cluster_domain);
        let service = registry.service_of_host(&host, namespace)?;
        if to.port.is_some() || service.ports.len() < 2 {
            return None;
        }
        let reason =
            format!("is left out, and {host} has several: the one that clients ask for is meant");
        let field = format!("{}.port", field());
        Some(Finding::warning(&resource.meta, field, reason).with_code("IST0112"))
    }

    fn problem(
        &self,
        resource: &Resource<VirtualServiceSpec>,
        to: &Destination,
        registry: &Registry,
    ) -> Option<(&'static str, &'static str, String)> {
        let namespace = resource.meta.namespace.as_str();
        let host = expand(&to.host, namespace, &self.cluster_domain);
        let Some(service) = registry.service_of_host(&host, namespace) else {
            return Some(("host", "IST0101", format!("no service is named {host}")));
        };
        if let Some(port) = to.port
            && !service
                .ports
                .iter()
                .any(|own| u32::from(own.number) == port.number)
        {
            return Some((
                "port.number",
                "IST0101",
                format!("{host} has no port {}", port.number),
            ));
        }
        let name = to.subset.as_deref()?;
        let client = ClientView {
            node: None,
            namespace,
            labels: &Default::default(),
        };
        let rule = self.destination_rules.find(&client, service);
        let Some(subset) = rule.and_then(|rule| rule.subset(name)) else {
            let reason = plan::undefined_subset(name, &host);
            return Some(("subset", "IST0101", reason));
        };
        selects_nothing(service, &subset.labels).then(|| {
            (
                "subset",
                NOT_SELECTED,
                format!("subset {name:?} of {host} selects no endpoint"),
            )
        })
    }
}

/// Warns where a DestinationRule is for no service, or has no effect on its service.
pub(super) fn check_rule(
    resource: &Resource<DestinationRuleSpec>,
    registry: &Registry,
    cluster_domain: &str,
    findings: &mut Vec<Finding>,
) {
    let meta = &resource.meta;
    let host = expand(&resource.spec.host, &meta.namespace, cluster_domain);
    match registry.service_of_host(&host, &meta.namespace) {
        Some(service) => {
            check_subsets(resource, service, findings);
            check_ports(resource, service, findings);
            check_ejection(resource, service, findings);
        }
        None if !host.starts_with('*') => {
            let reason = format!("has no effect: no service is named {host}");
            findings.push(Finding::warning(meta, "spec.host", reason).with_code("IST0174"));
        }
        None => {}
    }
}

/// Whether none of the endpoints that there are has these labels.
fn selects_nothing(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let mut endpoints = service.endpoints.iter();
    !service.endpoints.is_empty() && !endpoints.any(|endpoint| endpoint.has(labels))
}

/// Warns of subsets to which every request would be refused, whether or not a rule names them.
fn check_subsets(
    resource: &Resource<DestinationRuleSpec>,
    service: &Service,
    findings: &mut Vec<Finding>,
) {
    for (i, subset) in resource.spec.subsets.iter().enumerate() {
        if selects_nothing(service, &subset.labels) {
            let host = &service.host;
            let reason = format!(
                "{:?} selects no endpoint of {host}; {NO_ENDPOINT}",
                subset.name
            );
            let field = format!("spec.subsets[{i}].labels");
            let finding = Finding::warning(&resource.meta, field, reason);
            findings.push(finding.with_code(NOT_SELECTED));
        }
    }
}

/// Warns of settings for ports that the service lacks.
fn check_ports(
    resource: &Resource<DestinationRuleSpec>,
    service: &Service,
    findings: &mut Vec<Finding>,
) {
    let spec = &resource.spec;
    let of_rule = (spec.traffic_policy.iter()).map(|own| ("spec".to_owned(), own));
    let of_subsets = spec.subsets.iter().enumerate().filter_map(|(i, subset)| {
        let policy = subset.traffic_policy.as_deref()?;
        Some((format!("spec.subsets[{i}]"), policy))
    });
    for (field, policy) in of_rule.chain(of_subsets) {
        for (i, settings) in policy.port_level_settings.iter().enumerate() {
            let Some(port) = settings.port else { continue };
            let mut own = service.ports.iter();
            if own.any(|own| u32::from(own.number) == port.number) {
                continue;
            }
            findings.push(Finding::warning(
                &resource.meta,
                format!("{field}.trafficPolicy.portLevelSettings[{i}].port.number"),
                format!(
                    "has no effect: {} has no port {}",
                    service.host, port.number
                ),
            ));
        }
    }
}

/// Warns where the service has too few endpoints for `maxEjectionPercent` to let
/// one be taken out of service: outlier detection then does nothing.
fn check_ejection(
    resource: &Resource<DestinationRuleSpec>,
    service: &Service,
    findings: &mut Vec<Finding>,
) {
    let spec = &resource.spec;
    let of_rule = spec
        .traffic_policy
        .iter()
        .map(|policy| ("spec.trafficPolicy".to_owned(), policy, None));
    let of_subsets = spec.subsets.iter().enumerate().filter_map(|(i, subset)| {
        let policy = subset.traffic_policy.as_deref()?;
        let field = format!("spec.subsets[{i}].trafficPolicy");
        Some((field, policy, Some(&subset.labels)))
    });
    for (field, policy, labels) in of_rule.chain(of_subsets) {
        let endpoints = service
            .endpoints
            .iter()
            .filter(|endpoint| labels.is_none_or(|labels| endpoint.has(labels)));
        // The addresses of one workload are one endpoint.
        let mut workloads = HashSet::new();
        let mut count = 0;
        for endpoint in endpoints {
            let workload = endpoint.workload.as_ref();
            let is_new = workload.is_none_or(|workload| workloads.insert(&workload.name));
            count += usize::from(is_new);
        }
        let of_ports = policy.port_level_settings.iter().enumerate();
        let blocks = of_ports
            .map(|(i, port)| {
                let field = format!("{field}.portLevelSettings[{i}]");
                (field, &port.outlier_detection)
            })
            .chain([(field.clone(), &policy.outlier_detection)]);
        for (field, block) in blocks {
            let Some(block) = block else { continue };
            let percent =
                OutlierPolicy::compile(block, &Comparisons::default()).max_ejection_percent;
            if count == 0 || count * percent as usize >= 100 {
                continue;
            }
            let default = match block.max_ejection_percent {
                Some(1..) => "",
                _ => " (the default)",
            };
            findings.push(Finding::warning(
                &resource.meta,
                format!("{field}.outlierDetection.maxEjectionPercent"),
                format!(
                    "{percent} %{default} of {count} endpoint{} is less than one: none is ever taken out of service",
                    if count == 1 { "" } else { "s" }
                ),
            ));
        }
    }
}
