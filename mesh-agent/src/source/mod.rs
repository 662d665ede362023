//! Where the configuration comes from.

pub mod directory;

use crate::resource::{Finding, ResourceSet};

/// The configuration as it stands now, or all findings if one of them is an error.
pub type Loaded = Result<ResourceSet, Vec<Finding>>;
