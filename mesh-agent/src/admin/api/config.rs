//! The configuration in force, and what is wrong with it: `meshctl config`.

use serde::{Deserialize, Serialize};

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigView {
    /// Where it comes from: a directory, or `kubernetes`.
    pub source: String,
    /// Counts the configurations that have been put in force, from 1.
    pub generation: u64,
    /// Namespace whose security policies hold for the whole mesh.
    pub root_namespace: String,
    /// Number of resources in force.
    pub resources: usize,
    /// Fields that are not applied or have no effect.
    pub warnings: Vec<FindingView>,
    /// Why the last configuration was refused, where it was; the one before stays in force.
    pub refused: Option<RefusedView>,
}

/// A configuration that was not put in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedView {
    /// Seconds since it was refused.
    pub age_s: u64,
    /// What is wrong with it.
    pub errors: Vec<FindingView>,
}

/// Something to tell the operator about a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingView {
    /// File below the configuration directory.
    pub file: String,
    /// Position of the document in the file, from 1.
    pub document: usize,
    /// `kind namespace/name`, as far as it could be read.
    pub object: String,
    /// Path of the field, empty for the document as a whole.
    pub field: String,
    /// What is wrong, and what would be right.
    pub reason: String,
    /// Istio's code for it, where there is one.
    pub code: Option<String>,
}

impl From<&crate::resource::Finding> for FindingView {
    fn from(finding: &crate::resource::Finding) -> Self {
        Self {
            file: finding.origin.file.to_string(),
            document: finding.origin.document,
            object: finding.object.clone(),
            field: finding.field.clone(),
            reason: finding.reason.clone(),
            code: finding.code.map(str::to_owned),
        }
    }
}
