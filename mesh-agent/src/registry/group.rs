//! Workloads with what their WorkloadGroup says.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use crate::resource::workload_group::ProbeSpec;
use crate::resource::{Finding, Resource, WorkloadEntrySpec, WorkloadGroupSpec};

/// Annotation of a WorkloadEntry that names its group (Istio).
const GROUP: &str = "istio.io/autoRegistrationGroup";

/// All groups, with their probes.
pub(super) struct Groups<'a>(HashMap<(&'a str, &'a str), Group<'a>>);

pub(super) type Group<'a> = (&'a Arc<Resource<WorkloadGroupSpec>>, Option<Arc<ProbeSpec>>);

impl<'a> Groups<'a> {
    pub(super) fn new(resources: &'a [Arc<Resource<WorkloadGroupSpec>>]) -> Self {
        let groups = resources.iter().map(|resource| {
            let meta = &resource.meta;
            let probe = resource.spec.probe.clone().map(Arc::new);
            ((&*meta.namespace, &*meta.name), (resource, probe))
        });
        Self(groups.collect())
    }

    /// The group of a workload.
    pub(super) fn of<'e>(
        &'e self,
        entry: &'e Resource<WorkloadEntrySpec>,
    ) -> Option<&'e Group<'e>> {
        let name = entry.meta.annotations.get(GROUP)?;
        self.0.get(&(&*entry.meta.namespace, name))
    }

    /// A workload with all that it has from its group, and how to find out whether it is well.
    pub(super) fn complete<'e>(
        entry: &'e Resource<WorkloadEntrySpec>,
        group: Option<&Group<'_>>,
        findings: &mut Vec<Finding>,
    ) -> (Cow<'e, Resource<WorkloadEntrySpec>>, Option<Arc<ProbeSpec>>) {
        let Some(name) = entry.meta.annotations.get(GROUP) else {
            return (Cow::Borrowed(entry), None);
        };
        let namespace = entry.meta.namespace.as_str();
        let Some((group, probe)) = group else {
            let field = format!("metadata.annotations[{GROUP}]");
            let reason = format!("there is no WorkloadGroup {namespace}/{name}");
            findings.push(Finding::warning(&entry.meta, field, reason).with_code("IST0101"));
            return (Cow::Borrowed(entry), None);
        };
        let mut complete = entry.clone();
        let (template, spec) = (&group.spec.template, &mut complete.spec);
        for (key, value) in &group.spec.metadata.labels {
            spec.labels
                .entry(key.clone())
                .or_insert_with(|| value.clone());
        }
        for (key, value) in &group.spec.metadata.annotations {
            let own = Arc::make_mut(&mut complete.meta)
                .annotations
                .entry(key.clone());
            own.or_insert_with(|| value.clone());
        }
        for (name, port) in &template.ports {
            spec.ports.entry(name.clone()).or_insert(*port);
        }
        if spec.locality.is_empty() {
            spec.locality.clone_from(&template.locality);
        }
        if spec.weight == 0 {
            spec.weight = template.weight;
        }
        if spec.service_account.is_none() {
            spec.service_account.clone_from(&template.service_account);
        }
        (Cow::Owned(complete), probe.clone())
    }
}
