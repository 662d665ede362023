//! From the text of files to typed resources and findings.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::documents;
use super::kinds::{self, Kind, Treatment};
use super::scalar::{is_dns_label, is_dns_name};
use super::{
    Finding, Meta, Origin, Resource, ResourceSet, Severity, authorization_policy, destination_rule,
    sidecar, virtual_service, workload_group,
};

/// Namespace of objects that do not name one.
const DEFAULT_NAMESPACE: &str = "default";

/// Reads resources from files, given as `(name, text)` in the order in which
/// "the first wins". All findings are returned if one of them is an error.
pub fn parse<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<ResourceSet, Vec<Finding>> {
    Cache::default().parse(files)
}

/// Reads files again only where their content has changed.
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
    /// As [`parse`].
    pub fn parse<'a>(
        &mut self,
        files: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<ResourceSet, Vec<Finding>> {
        let mut before = std::mem::take(&mut self.files);
        self.last = Reading::default();
        let mut in_order = Vec::new();
        for (name, text) in files {
            let content = (text.len(), hash(text));
            let known = before.remove(name).filter(|known| known.content == content);
            let known = match known {
                Some(known) => {
                    self.last.reused += 1;
                    known
                }
                None => {
                    self.last.read += 1;
                    let read = Arc::new(Reader::read(name, text));
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
    let mut seen: HashMap<&Key, &Origin> = HashMap::new();
    for file in files {
        findings.extend(file.findings.iter().cloned());
        for (key, meta) in &file.objects {
            if let Some(other) = seen.insert(key, &meta.origin) {
                findings.push(twice(meta, other));
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

fn twice(meta: &Meta, other: &Origin) -> Finding {
    let reason = format!("the same object stands in {other} already");
    Finding::error(meta, "metadata.name", reason)
}

/// Kind, namespace and name of an object.
type Key = (&'static str, String, String);

/// What one file holds.
#[derive(Debug, Default)]
struct Read {
    set: ResourceSet,
    findings: Vec<Finding>,
    objects: Vec<(Key, Meta)>,
}

#[derive(Default)]
struct Reader {
    set: ResourceSet,
    findings: Vec<Finding>,
    /// Every object of the file, and where it stands.
    objects: Vec<(Key, Meta)>,
    seen: HashMap<Key, Origin>,
}

/// `metadata`, as far as it matters.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// An object whose metadata is not known (yet).
struct Place<'a> {
    origin: &'a Origin,
    object: String,
}

impl Place<'_> {
    fn error(&self, field: impl Into<String>, reason: impl Into<String>) -> Finding {
        Finding {
            severity: Severity::Error,
            origin: self.origin.clone(),
            object: self.object.clone(),
            field: field.into(),
            reason: reason.into(),
            code: None,
        }
    }
}

impl Reader {
    fn read(file: &str, text: &str) -> Read {
        let mut reader = Self::default();
        reader.file(file, text);
        Read {
            set: reader.set,
            findings: reader.findings,
            objects: reader.objects,
        }
    }

    fn file(&mut self, file: &str, text: &str) {
        let name: Arc<str> = file.into();
        for document in documents::split(file, text) {
            let origin = Origin {
                file: name.clone(),
                document: document.number,
            };
            let place = Place {
                origin: &origin,
                object: String::new(),
            };
            match document.content {
                // A JSON document may be null, as an empty one is in YAML.
                Ok(Value::Null) => {}
                Ok(Value::Object(object)) => self.document(place, object),
                Ok(_) => (self.findings)
                    .push(place.error("", "is not a mapping with apiVersion and kind")),
                Err(reason) => self.findings.push(place.error("", reason)),
            }
        }
    }

    /// An object, or a `List` of them.
    fn document(&mut self, place: Place<'_>, mut object: Map<String, Value>) {
        if object.get("kind").and_then(Value::as_str) != Some("List") {
            return self.object(place, object);
        }
        let items = match object.remove("items") {
            None | Some(Value::Null) => return,
            Some(Value::Array(items)) => items,
            Some(_) => return self.findings.push(place.error("items", "is not a list")),
        };
        for (index, item) in items.into_iter().enumerate() {
            let place = Place {
                origin: place.origin,
                object: format!("items[{index}]"),
            };
            match item {
                Value::Object(object) => self.object(place, object),
                _ => (self.findings)
                    .push(place.error("", "is not a mapping with apiVersion and kind")),
            }
        }
    }

    fn object(&mut self, mut place: Place<'_>, object: Map<String, Value>) {
        describe(&mut place.object, &object);
        let kind = match text_field(&place, &object, "kind") {
            Ok(kind) => kind,
            Err(finding) => return self.findings.push(finding),
        };
        match kinds::treatment(kind) {
            Treatment::Applied(kind) => {
                if let Err(finding) = self.applied(kind, &place, object) {
                    self.findings.push(finding);
                }
            }
            Treatment::NotApplied(then) => self.findings.push(Finding {
                severity: Severity::Warning,
                ..place.error(
                    "kind",
                    format!("{kind} is not applied by this version{then}"),
                )
            }),
        }
    }

    /// An object of a kind that is applied. What ends the reading of it is
    /// returned, what does not is noted.
    fn applied(
        &mut self,
        kind: Kind,
        place: &Place<'_>,
        mut object: Map<String, Value>,
    ) -> Result<(), Finding> {
        let version = text_field(place, &object, "apiVersion")?;
        if !kind.api_versions().contains(&version) {
            let reason = format!(
                "{version:?} has no kind {}; it is in {}",
                kind.name(),
                kind.api_versions().join(", ")
            );
            return Err(place.error("apiVersion", reason));
        }
        let known = ["apiVersion", "kind", "metadata", "spec", "status"];
        if let Some(field) = object.keys().find(|key| !known.contains(&key.as_str())) {
            let reason = format!("unknown field; beside spec stand only {}", known.join(", "));
            return Err(place.error(field, reason));
        }
        let metadata = object.remove("metadata").unwrap_or_default();
        let meta = meta(kind, place, metadata)?;
        let spec = object.remove("spec").unwrap_or_default();

        let key = (meta.kind, meta.namespace.clone(), meta.name.clone());
        if let Some(other) = self.seen.get(&key) {
            return Err(twice(&meta, other));
        }
        self.seen.insert(key.clone(), meta.origin.clone());
        self.objects.push((key, meta.clone()));

        let Self { set, findings, .. } = self;
        match kind {
            Kind::Service => {
                let resource = typed(meta, spec, super::ServiceSpec::check, findings)?;
                set.services.push(resource);
            }
            Kind::WorkloadEntry => {
                let check =
                    |spec: &super::WorkloadEntrySpec, meta: &Meta, findings: &mut Vec<Finding>| {
                        spec.check(meta, "spec", findings);
                    };
                set.workload_entries
                    .push(typed(meta, spec, check, findings)?);
            }
            Kind::WorkloadGroup => {
                let resource = typed(meta, spec, |_, _, _| {}, findings)?;
                findings.extend(workload_group::validate(&resource));
                set.workload_groups.push(resource);
            }
            Kind::ServiceEntry => {
                let resource = typed(meta, spec, super::ServiceEntrySpec::check, findings)?;
                set.service_entries.push(resource);
            }
            Kind::PeerAuthentication => {
                let check = super::PeerAuthenticationSpec::check;
                set.peer_authentications
                    .push(typed(meta, spec, check, findings)?);
            }
            Kind::AuthorizationPolicy => {
                let resource = typed(meta, spec, |_, _, _| {}, findings)?;
                findings.extend(authorization_policy::validate(&resource));
                set.authorization_policies.push(resource);
            }
            Kind::VirtualService => {
                let resource = typed(meta, spec, |_, _, _| {}, findings)?;
                findings.extend(virtual_service::validate(&resource));
                set.virtual_services.push(resource);
            }
            Kind::DestinationRule => {
                let resource = typed(meta, spec, |_, _, _| {}, findings)?;
                findings.extend(destination_rule::validate(&resource));
                set.destination_rules.push(resource);
            }
            Kind::Sidecar => {
                let resource = typed(meta, spec, |_, _, _| {}, findings)?;
                findings.extend(sidecar::validate(&resource));
                set.sidecars.push(resource);
            }
        }
        Ok(())
    }
}

/// Replaces `object` by `kind namespace/name`, as far as they can be read.
fn describe(object: &mut String, fields: &Map<String, Value>) {
    let metadata = |field: &str| fields.get("metadata")?.get(field)?.as_str();
    let Some(kind) = fields.get("kind").and_then(Value::as_str) else {
        return;
    };
    *object = match metadata("name") {
        Some(name) => {
            let namespace = metadata("namespace").unwrap_or(DEFAULT_NAMESPACE);
            format!("{kind} {namespace}/{name}")
        }
        None if object.is_empty() => kind.to_owned(),
        None => format!("{kind} {object}"),
    };
}

fn text_field<'v>(
    place: &Place<'_>,
    object: &'v Map<String, Value>,
    field: &str,
) -> Result<&'v str, Finding> {
    match object.get(field) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        Some(Value::Null | Value::String(_)) | None => Err(place.error(field, "is required")),
        Some(_) => Err(place.error(field, "must be a text")),
    }
}

fn meta(kind: Kind, place: &Place<'_>, metadata: Value) -> Result<Meta, Finding> {
    let metadata: Metadata =
        deserialize(metadata, "metadata").map_err(|(field, reason)| place.error(field, reason))?;
    if metadata.name.is_empty() {
        return Err(place.error("metadata.name", "is required"));
    }
    if !is_dns_name(&metadata.name) {
        let reason = "must consist of lower-case letters, digits, \"-\" and \".\"";
        return Err(place.error("metadata.name", reason));
    }
    let namespace = match metadata.namespace {
        Some(namespace) if !namespace.is_empty() => namespace,
        _ => DEFAULT_NAMESPACE.to_owned(),
    };
    if !is_dns_label(&namespace) {
        let reason = "must consist of lower-case letters, digits and \"-\"";
        return Err(place.error("metadata.namespace", reason));
    }
    Ok(Meta {
        kind: kind.name(),
        name: metadata.name,
        namespace,
        labels: metadata.labels,
        annotations: metadata.annotations,
        origin: place.origin.clone(),
    })
}

fn typed<S: DeserializeOwned>(
    meta: Meta,
    spec: Value,
    check: impl Fn(&S, &Meta, &mut Vec<Finding>),
    findings: &mut Vec<Finding>,
) -> Result<Resource<S>, Finding> {
    let spec = deserialize(spec, "spec")
        .map_err(|(field, reason)| Finding::error(&meta, field, reason))?;
    check(&spec, &meta, findings);
    Ok(Resource { meta, spec })
}

/// Gives a part of an object its type; the error is the field's path and the reason.
fn deserialize<T: DeserializeOwned>(mut value: Value, path: &str) -> Result<T, (String, String)> {
    match &mut value {
        // As in Kubernetes, what is null was left out. Only here: further
        // down a null may be an entry of a map, where leaving it out would
        // make a selector or a match wider than it was meant.
        Value::Object(fields) => fields.retain(|_, field| !field.is_null()),
        Value::Null => value = Value::Object(Map::new()),
        _ => {}
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = match error.path().to_string().as_str() {
            "." => path.to_owned(),
            below => format!("{path}.{below}"),
        };
        (field, error.into_inner().to_string())
    })
}
