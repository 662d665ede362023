//! Where the configuration comes from.

pub mod directory;
mod texts;

pub use texts::Texts;

use crate::resource::{Cache, Finding, ResourceSet};

/// The configuration as it stands now, or all findings if one of them is an error.
pub type Loaded = Result<ResourceSet, Vec<Finding>>;

/// A state of the configuration, and the texts that say so.
#[derive(Debug)]
pub struct State {
    /// As they were read.
    pub texts: Texts,
    /// What they mean.
    pub loaded: Loaded,
}

impl State {
    /// What texts mean; documents that `cache` has seen are not read again.
    pub(crate) fn of(texts: Texts, cache: &mut Cache) -> Self {
        let loaded = texts.parse(cache);
        Self { texts, loaded }
    }
}
