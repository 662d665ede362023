//! From the text of a file to typed resources and findings.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::documents;
use super::given::Given;
use super::kinds::{self, Kind, Treatment};
use super::scalar::{is_dns_label, is_dns_name};
use super::{
    Finding, Meta, Origin, Resource, ResourceSet, Severity, authorization_policy, destination_rule,
    sidecar, telemetry, virtual_service, workload_group,
};

/// Namespace of objects that do not name one.
const DEFAULT_NAMESPACE: &str = "default";

/// What one file holds.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) set: ResourceSet,
    pub(super) findings: Vec<Finding>,
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

impl Read {
    pub(super) fn new(file: &str, text: &str) -> Self {
        let mut read = Self::default();
        read.file(file, text);
        read
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
            Treatment::Misspelt(meant) => {
                let reason = format!("{kind:?} is written {}", meant.name());
                self.findings.push(place.error("kind", reason));
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
        let known = kind.fields();
        if let Some(field) = object.keys().find(|key| !known.contains(&key.as_str())) {
            let content = if kind == Kind::Secret { "data" } else { "spec" };
            let known = known.join(", ");
            let reason = format!("unknown field; beside {content} stand only {known}");
            return Err(place.error(field, reason));
        }
        let metadata = object.remove("metadata").unwrap_or_default();
        let meta = Arc::new(meta(kind, place, metadata)?);
        let spec = object.remove("spec").unwrap_or_default();

        let Self { set, findings } = self;
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
            Kind::Secret => {
                let spec = super::SecretSpec::read(&object)
                    .map_err(|(field, reason)| Finding::error(&meta, field, reason))?;
                set.secrets.push(Arc::new(Resource { meta, spec }));
            }
            Kind::Telemetry => {
                let resource = typed(meta, spec, |_, _, _| {}, findings)?;
                findings.extend(telemetry::validate(&resource));
                set.telemetries.push(resource);
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
    meta: Arc<Meta>,
    spec: Value,
    check: impl Fn(&S, &Meta, &mut Vec<Finding>),
    findings: &mut Vec<Finding>,
) -> Result<Arc<Resource<S>>, Finding> {
    let spec = deserialize(spec, "spec")
        .map_err(|(field, reason)| Finding::error(&meta, field, reason))?;
    check(&spec, &meta, findings);
    Ok(Arc::new(Resource { meta, spec }))
}

/// Gives a part of an object its type; the error is the field's path and the reason.
fn deserialize<T: DeserializeOwned>(value: Value, path: &str) -> Result<T, (String, String)> {
    let value = match value {
        Value::Null => Value::Object(Map::new()),
        value => value,
    };
    serde_path_to_error::deserialize(Given(value)).map_err(|error| {
        let field = match error.path().to_string().as_str() {
            "." => path.to_owned(),
            below => format!("{path}.{below}"),
        };
        (field, error.into_inner().to_string())
    })
}
