//! From files to all resources of a configuration. What was read of a file stays
//! until the file changes.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::parse::Read;
use super::{Finding, Meta, Origin, Resource, ResourceSet, Resources, Severity};

/// Reads resources from files, given as `(name, text)` in the order in which
/// "the first wins". All findings are returned if one of them is an error.
pub fn parse<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<ResourceSet, Vec<Finding>> {
    Cache::default().parse(files)
}

/// Reads files again only where they have changed. A resource that has not is the same
/// value as before, whatever else its file holds.
#[derive(Debug, Default)]
pub struct Cache {
    files: HashMap<Box<str>, Known>,
    last: Reading,
}

/// A file that has been read.
#[derive(Debug)]
struct Known {
    /// Length and hash of the text.
    content: (usize, u64),
    read: Arc<Read>,
}

/// What the last reading came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Files that were read.
    pub read: usize,
    /// Files that were not, because they are as they were.
    pub reused: usize,
}

impl Cache {
    /// As [`parse()`].
    ///
    /// # Errors
    /// All findings, if one of them is an error.
    pub fn parse<'a>(
        &mut self,
        files: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<ResourceSet, Vec<Finding>> {
        let mut before = std::mem::take(&mut self.files);
        self.last = Reading::default();
        let mut in_order = Vec::new();
        for (name, text) in files {
            let content = (text.len(), hash(text));
            let known = match before.remove(name) {
                Some(known) if known.content == content => {
                    self.last.reused += 1;
                    known
                }
                known => {
                    self.last.read += 1;
                    let mut read = Read::new(name, text);
                    if let Some(known) = known {
                        read.set.keep(&known.read.set);
                    }
                    let read = Arc::new(read);
                    Known { content, read }
                }
            };
            in_order.push(known.read.clone());
            self.files.insert(name.into(), known);
        }
        together(&in_order)
    }

    /// What the last reading came to.
    pub fn last(&self) -> Reading {
        self.last
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The resources of all files, none of which may stand twice.
fn together(files: &[Arc<Read>]) -> Result<ResourceSet, Vec<Finding>> {
    let mut set = ResourceSet::default();
    let mut findings = Vec::new();
    let mut seen: HashMap<Key<'_>, &Origin> = HashMap::new();
    for file in files {
        findings.extend(file.findings.iter().cloned());
        for meta in file.set.metas() {
            let first = *seen.entry(key(meta)).or_insert(&meta.origin);
            if !std::ptr::eq(first, &meta.origin) {
                findings.push(twice(meta, first));
            }
        }
        set.extend(&file.set);
    }
    if findings
        .iter()
        .any(|finding| finding.severity == Severity::Error)
    {
        return Err(findings);
    }
    set.warnings = findings;
    Ok(set)
}

/// Kind, namespace and name of an object.
type Key<'m> = (&'static str, &'m str, &'m str);

fn key(meta: &Meta) -> Key<'_> {
    (meta.kind, &meta.namespace, &meta.name)
}

fn twice(meta: &Meta, other: &Origin) -> Finding {
    let reason = format!("the same object stands in {other} already");
    Finding::error(meta, "metadata.name", reason)
}

/// Puts equal resources of a reading before in the place of new ones.
pub(super) fn keep<S: PartialEq>(resources: &mut Resources<S>, before: &Resources<S>) {
    let name = |resource: &Resource<S>| {
        let meta = &resource.meta;
        (meta.namespace.clone(), meta.name.clone())
    };
    let known: HashMap<_, _> = before.iter().map(|one| (name(one), one)).collect();
    for resource in resources {
        let known = known.get(&name(resource));
        if let Some(known) = known.filter(|known| ***known == *resource) {
            *resource = Arc::clone(known);
        }
    }
}
