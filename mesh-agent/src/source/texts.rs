//! A configuration as people have written it.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::Loaded;
use crate::resource::{Cache, Finding, Origin, Severity};

/// The texts of files, by name, and why others could not be read.
#[derive(Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Texts {
    pub(super) files: Vec<(String, String)>,
    pub(super) unread: Vec<(String, String)>,
}

impl Texts {
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    pub(crate) fn parse(&self, cache: &mut Cache) -> Loaded {
        let texts = self.files.iter();
        let parsed = cache.parse(texts.map(|(name, text)| (name.as_str(), text.as_str())));
        if self.unread.is_empty() {
            return parsed;
        }
        // A file that cannot be read may hold what forbids something.
        let unread = self.unread.iter().map(|(name, reason)| Finding {
            severity: Severity::Error,
            origin: Origin {
                file: name.as_str().into(),
                document: 0,
            },
            object: String::new(),
            field: String::new(),
            reason: reason.clone(),
            code: None,
        });
        Err(unread.chain(parsed.err().into_iter().flatten()).collect())
    }
}
