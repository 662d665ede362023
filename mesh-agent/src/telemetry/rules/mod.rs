//! Istio's `Telemetry`, compiled: for each workload what is told of its traffic. One resource
//! decides for the mesh, one for each namespace, one for each workload; the narrower
//! scope is put over the wider.

mod logging;
mod metrics;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub use logging::Logging;
pub use metrics::{Change, MetricRule, MetricRules};

use super::Side;
use super::expression::{Expression, ExpressionError};
use crate::registry::{Registry, Workload};
use crate::resource::{Finding, Meta, Resource, TelemetrySpec};

type Telemetry = Arc<Resource<TelemetrySpec>>;

/// What is told of whom.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Where no narrower scope says anything.
    mesh: Option<Arc<Effective>>,
    by_namespace: HashMap<String, Arc<Effective>>,
    /// Those with a selector, by namespace, in file order.
    by_workload: HashMap<String, Vec<Selected>>,
}

type Selected = (BTreeMap<String, String>, Arc<Effective>);

/// What is told of one workload: as a client, and as a server.
#[derive(Clone, Debug, Default)]
pub struct Effective {
    logging: [Logging; 2],
    metrics: [MetricRules; 2],
}

impl Rules {
    /// Compiles the resources; one of `root_namespace` without a selector is the mesh's.
    pub fn compile(
        resources: &[Telemetry],
        registry: &Registry,
        root_namespace: &str,
    ) -> (Self, Vec<Finding>) {
        let mut findings = Vec::new();
        let mut wide: HashMap<&str, &Telemetry> = HashMap::new();
        for resource in resources {
            check(resource, &mut findings);
            let meta = &resource.meta;
            if resource.spec.match_labels().is_some() {
                findings.extend(selection(resource, resources, registry));
                continue;
            }
            let first = *wide.entry(&meta.namespace).or_insert(resource);
            if !Arc::ptr_eq(first, resource) {
                let reason = format!(
                    "is ignored: {} comes first and has the same scope",
                    first.meta.name
                );
                findings.push(Finding::warning(meta, "", reason).with_code("IST0160"));
            }
        }
        let mesh = wide.remove(root_namespace);
        let put_over = |namespace: &str, own: Option<&Telemetry>| {
            let scopes = [mesh, wide.get(namespace).copied(), own];
            Arc::new(Effective::of(scopes.into_iter().flatten()))
        };
        let mut by_workload: HashMap<String, Vec<Selected>> = HashMap::new();
        for resource in resources {
            if let Some(labels) = resource.spec.match_labels() {
                let namespace = &resource.meta.namespace;
                let selected = (labels.clone(), put_over(namespace, Some(resource)));
                (by_workload.entry(namespace.clone()).or_default()).push(selected);
            }
        }
        let by_namespace = (wide.keys())
            .map(|namespace| ((*namespace).to_owned(), put_over(namespace, None)))
            .collect();
        let rules = Self {
            mesh: mesh.map(|_| put_over("", None)),
            by_namespace,
            by_workload,
        };
        (rules, findings)
    }

    /// What is told of a workload; `None` where no resource says anything.
    pub fn of(&self, workload: &Workload) -> Option<&Arc<Effective>> {
        let namespace = &*workload.name.namespace;
        let mut selected = self.by_workload.get(namespace).into_iter().flatten();
        let own = selected.find(|(labels, _)| selects(labels, workload));
        own.map(|(_, effective)| effective)
            .or_else(|| self.by_namespace.get(namespace))
            .or(self.mesh.as_ref())
    }

    /// Which requests and connections of a workload the access log tells of.
    pub fn logging(&self, workload: &Workload, side: Side) -> Logging {
        self.of(workload)
            .map_or(Logging::AsStarted, |of| of.logging[side as usize].clone())
    }

    /// What is changed in the metrics that a workload's side reports.
    pub fn metrics(&self, workload: &Workload, side: Side) -> Option<&MetricRules> {
        self.of(workload).map(|of| &of.metrics[side as usize])
    }
}

impl Effective {
    /// Of resources from the widest scope to the narrowest.
    fn of<'a>(scopes: impl Iterator<Item = &'a Telemetry>) -> Self {
        let specs: Vec<&TelemetrySpec> = scopes.map(|resource| &resource.spec).collect();
        let sides = [Side::Client, Side::Server];
        let logs: Vec<_> = specs.iter().map(|spec| &*spec.access_logging).collect();
        let all_metrics: Vec<_> = specs.iter().flat_map(|spec| &spec.metrics).collect();
        Self {
            logging: sides.map(|side| Logging::of(&logs, side)),
            metrics: sides.map(|side| MetricRules::of(&all_metrics, side)),
        }
    }
}

fn selects(labels: &BTreeMap<String, String>, workload: &Workload) -> bool {
    let mut wanted = labels.iter();
    wanted.all(|(key, value)| workload.labels.get(key) == Some(value))
}

/// Whom a resource with a selector selects, and whom another has selected before.
fn selection(resource: &Telemetry, all: &[Telemetry], registry: &Registry) -> Option<Finding> {
    let meta: &Meta = &resource.meta;
    let of_namespace = |workload: &&Arc<Workload>| *workload.name.namespace == *meta.namespace;
    let selected_by = |resource: &Telemetry, workload: &Workload| {
        resource.meta.namespace == meta.namespace
            && (resource.spec.match_labels()).is_some_and(|labels| selects(labels, workload))
    };
    let workloads = registry.workloads.iter().filter(of_namespace);
    let selected: Vec<_> = workloads
        .filter(|workload| selected_by(resource, workload))
        .collect();
    if selected.is_empty() {
        let reason = format!("selects no workload of namespace {}", meta.namespace);
        return Some(Finding::warning(meta, "spec.selector", reason).with_code("IST0127"));
    }
    let before = all.iter().take_while(|other| !Arc::ptr_eq(other, resource));
    let mut before = before.filter(|other| other.spec.match_labels().is_some());
    let other = before.find(|other| selected.iter().any(|one| selected_by(other, one)))?;
    let reason = format!(
        "selects workloads that {} has selected before, which decides for them",
        other.meta.name
    );
    Some(Finding::warning(meta, "spec.selector", reason).with_code("IST0159"))
}

/// What is wrong with the expressions of a resource.
fn check(resource: &Telemetry, findings: &mut Vec<Finding>) {
    let meta: &Meta = &resource.meta;
    let mut tell = |field: String, error: ExpressionError, then: &str| {
        findings.push(match error {
            ExpressionError::Malformed { .. } => Finding::error(meta, field, error.to_string()),
            ExpressionError::Unknown(_) => {
                Finding::warning(meta, field, format!("not applied, {then}: {error}"))
            }
        });
    };
    for (i, one) in resource.spec.access_logging.iter().enumerate() {
        let Some(filter) = one.filter.as_ref() else {
            continue;
        };
        if let Err(error) = Expression::parse(&filter.expression) {
            let field = format!("spec.accessLogging[{i}].filter.expression");
            tell(field, error, "every line is written");
        }
    }
    for (i, one) in resource.spec.metrics.iter().enumerate() {
        for (j, one) in one.overrides.iter().enumerate() {
            for (tag, change) in &one.tag_overrides {
                if let Err(error) = Change::of(change) {
                    let field =
                        format!("spec.metrics[{i}].overrides[{j}].tagOverrides.{tag}.value");
                    tell(field, error, "the label stays as it is");
                }
            }
        }
    }
}
