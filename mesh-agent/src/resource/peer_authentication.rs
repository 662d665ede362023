//! Istio `PeerAuthentication`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::Port;
use super::{Finding, Meta};

/// `PeerAuthentication.spec`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PeerAuthenticationSpec {
    /// The workloads it applies to; all of the namespace where left out.
    pub selector: Option<WorkloadSelector>,
    /// What is accepted on all ports.
    pub mtls: MutualTls,
    /// What is accepted on one port of the workload.
    pub port_level_mtls: Option<BTreeMap<Port, MutualTls>>,
}

/// `matchLabels`, as Istio's security resources have it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkloadSelector {
    /// All of these labels must be there.
    pub match_labels: BTreeMap<String, String>,
}

/// `mtls`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct MutualTls {
    /// The mode.
    pub mode: Mode,
}

/// `mtls.mode`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// As the wider scope has it.
    #[default]
    Unset,
    /// Plaintext only.
    Disable,
    /// Plaintext and mutual TLS.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

impl PeerAuthenticationSpec {
    /// The labels of the selector; empty where it applies to the whole namespace.
    pub fn match_labels(&self) -> Option<&BTreeMap<String, String>> {
        self.selector
            .as_ref()
            .map(|selector| &selector.match_labels)
            .filter(|labels| !labels.is_empty())
    }

    /// What the types of the fields cannot say.
    pub(super) fn check(&self, meta: &Meta, findings: &mut Vec<Finding>) {
        for (key, value) in self.match_labels().into_iter().flatten() {
            if key.contains('*') || value.contains('*') {
                findings.push(Finding::error(
                    meta,
                    format!("spec.selector.matchLabels.{key}"),
                    "\"*\" has no meaning here: labels are compared as they are",
                ));
            }
        }
        let Some(ports) = &self.port_level_mtls else {
            return;
        };
        let reason = if ports.is_empty() {
            "must have at least one port"
        } else if self.match_labels().is_none() {
            "needs spec.selector.matchLabels: ports belong to a workload"
        } else {
            return;
        };
        findings.push(Finding::error(meta, "spec.portLevelMtls", reason));
    }
}
