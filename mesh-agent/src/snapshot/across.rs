//! What resources of several kinds come to together, and nobody wants: selectors that select
//! nobody, and clients that speak otherwise than their servers.

use std::collections::BTreeMap;

use crate::policy::{MtlsMode, PeerAuthentications};
use crate::registry::{Registry, Service};
use crate::resource::destination_rule::{ClientTls, DestinationRuleSpec, TlsMode};
use crate::resource::{Finding, Meta, Resource, ResourceSet};
use crate::route::expand;

/// Tells of it.
pub(super) fn check(
    resources: &ResourceSet,
    registry: &Registry,
    modes: &PeerAuthentications,
    root_namespace: &str,
    cluster_domain: &str,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for resource in &resources.peer_authentications {
        // In the root namespace such a policy is ignored, which is told elsewhere.
        let labels = resource.spec.match_labels();
        let labels = labels.filter(|_| resource.meta.namespace != root_namespace);
        selects_nobody(
            &resource.meta,
            labels,
            registry,
            root_namespace,
            &mut findings,
        );
    }
    for resource in &resources.authorization_policies {
        let labels = resource.spec.match_labels();
        selects_nobody(
            &resource.meta,
            labels,
            registry,
            root_namespace,
            &mut findings,
        );
    }
    for resource in &resources.destination_rules {
        let namespace = &resource.meta.namespace;
        let host = expand(&resource.spec.host, namespace, cluster_domain);
        if let Some(service) = registry.service_of_host(&host, namespace) {
            conflicts(resource, service, modes, &mut findings);
        }
    }
    findings
}

fn selects_nobody(
    meta: &Meta,
    labels: Option<&BTreeMap<String, String>>,
    registry: &Registry,
    root_namespace: &str,
    findings: &mut Vec<Finding>,
) {
    let Some(labels) = labels else { return };
    let everywhere = meta.namespace == root_namespace;
    let is_selected = registry.workloads.iter().any(|workload| {
        (everywhere || *workload.name.namespace == *meta.namespace)
            && (labels.iter()).all(|(key, value)| workload.labels.get(key) == Some(value))
    });
    if !is_selected {
        let reason = if everywhere {
            "selects no WorkloadEntry".to_owned()
        } else {
            format!("selects no WorkloadEntry of namespace {}", meta.namespace)
        };
        findings.push(Finding::warning(meta, "spec.selector", reason).with_code("IST0127"));
    }
}

/// Where a rule says how clients speak to a service, and a PeerAuthentication refuses that.
fn conflicts(
    resource: &Resource<DestinationRuleSpec>,
    service: &Service,
    modes: &PeerAuthentications,
    findings: &mut Vec<Finding>,
) {
    let Some(policy) = &resource.spec.traffic_policy else {
        return;
    };
    let of_ports = policy.port_level_settings.iter().enumerate();
    let of_port = |number: u16| {
        let mut settings = of_ports.clone();
        settings.find(|(_, one)| {
            one.port
                .is_some_and(|port| port.number == u32::from(number))
        })
    };
    let mut told = Vec::new();
    for port in &service.ports {
        let (field, tls) = match of_port(port.number) {
            Some((i, settings)) => (
                format!("spec.trafficPolicy.portLevelSettings[{i}].tls.mode"),
                &settings.tls,
            ),
            None => ("spec.trafficPolicy.tls.mode".to_owned(), &policy.tls),
        };
        let Some(tls) = tls else { continue };
        let refusing = service.endpoints.iter().find_map(|endpoint| {
            let workload = (endpoint.workload.as_ref()).filter(|one| one.is_meshed())?;
            let (mode, by) = modes.mode(workload, *endpoint.ports.get(&port.number)?);
            refuses(mode, tls).then_some((mode, by))
        });
        let Some((mode, by)) = refusing else { continue };
        if told.contains(&field) {
            continue;
        }
        let mode = match mode {
            MtlsMode::Strict => "STRICT",
            MtlsMode::Permissive => "PERMISSIVE",
            MtlsMode::Disable => "DISABLE",
        };
        let reason = format!(
            "port {} of {} takes no such connections: PeerAuthentication {} says {mode}",
            port.number,
            service.host,
            by.unwrap_or_default()
        );
        findings.push(Finding::warning(&resource.meta, field.clone(), reason).with_code("IST0113"));
        told.push(field);
    }
}

fn refuses(mode: MtlsMode, tls: &ClientTls) -> bool {
    matches!(
        (mode, tls.mode),
        (MtlsMode::Strict, TlsMode::Disable) | (MtlsMode::Disable, TlsMode::IstioMutual)
    )
}
