//! What people write: Kubernetes and Istio resources, read from YAML and
//! checked field by field. Every message names file, document, object, field
//! and reason.

mod annotation;
pub mod authorization_policy;
mod cache;
pub mod destination_rule;
mod documents;
pub mod format;
mod given;
mod kinds;
mod parse;
mod peer_authentication;
mod report;
pub mod scalar;
mod secret;
mod service;
mod service_entry;
pub mod sidecar;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod value;
pub mod virtual_service;
mod workload_entry;
pub mod workload_group;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use authorization_policy::AuthorizationPolicySpec;
pub use cache::{Cache, Reading, parse};
pub use destination_rule::DestinationRuleSpec;
pub use documents::MAX_FILE_BYTES;
pub use peer_authentication::{Mode, MutualTls, PeerAuthenticationSpec, WorkloadSelector};
pub use secret::{Kept, SecretSpec};
pub use service::{
    ClusterIp, InternalTrafficPolicy, IpFamily, ServicePortSpec, ServiceSpec, ServiceType,
    Transport,
};
pub use service_entry::{
    EndpointSelector, LocationSpec, PortProtocol, ResolutionSpec, ServiceEntryPort,
    ServiceEntrySpec,
};
pub use sidecar::SidecarSpec;
pub use telemetry::TelemetrySpec;
pub use virtual_service::VirtualServiceSpec;
pub use workload_entry::{Address, WorkloadEntrySpec};
pub use workload_group::WorkloadGroupSpec;

/// File and document that a resource was read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Path of the file below the configuration directory.
    pub file: Arc<str>,
    /// Position of the document in the file, from 1; 0 for the file as a whole.
    pub document: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        match self.document {
            0 => Ok(()),
            document => write!(f, ", document {document}"),
        }
    }
}

/// `kind`, `metadata` and where the resource comes from. Resources are kept in
/// file order, then document order: where Istio says "oldest wins", the first wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// `kind`.
    pub kind: &'static str,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`, `default` where it is left out.
    pub namespace: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// File and document.
    pub origin: Origin,
}

/// A resource of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource<S> {
    /// Name and origin.
    pub meta: Arc<Meta>,
    /// `spec`.
    pub spec: S,
}

/// Resources of one kind. One that has not changed is the same value in the next
/// configuration, so that whoever compiles it can tell.
pub type Resources<S> = Vec<Arc<Resource<S>>>;

/// All resources of a configuration, each kind in file order, then document order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceSet {
    /// Kubernetes `Service`.
    pub services: Resources<ServiceSpec>,
    /// Istio `WorkloadEntry`.
    pub workload_entries: Resources<WorkloadEntrySpec>,
    /// Istio `WorkloadGroup`.
    pub workload_groups: Resources<WorkloadGroupSpec>,
    /// Istio `ServiceEntry`.
    pub service_entries: Resources<ServiceEntrySpec>,
    /// Istio `VirtualService`.
    pub virtual_services: Resources<VirtualServiceSpec>,
    /// Istio `DestinationRule`.
    pub destination_rules: Resources<DestinationRuleSpec>,
    /// Istio `Sidecar`.
    pub sidecars: Resources<SidecarSpec>,
    /// Istio `PeerAuthentication`.
    pub peer_authentications: Resources<PeerAuthenticationSpec>,
    /// Istio `AuthorizationPolicy`.
    pub authorization_policies: Resources<AuthorizationPolicySpec>,
    /// Kubernetes `Secret`.
    pub secrets: Resources<SecretSpec>,
    /// Istio `Telemetry`.
    pub telemetries: Resources<TelemetrySpec>,
    /// What was noticed while they were read.
    pub warnings: Vec<Finding>,
}

impl ResourceSet {
    /// Number of resources.
    pub fn len(&self) -> usize {
        self.services.len()
            + self.workload_entries.len()
            + self.workload_groups.len()
            + self.service_entries.len()
            + self.virtual_services.len()
            + self.destination_rules.len()
            + self.sidecars.len()
            + self.peer_authentications.len()
            + self.authorization_policies.len()
            + self.secrets.len()
            + self.telemetries.len()
    }

    /// Adds the resources of another file.
    fn extend(&mut self, other: &Self) {
        // Every field is named, here and below: a new kind is not forgotten.
        let Self {
            services,
            workload_entries,
            workload_groups,
            service_entries,
            virtual_services,
            destination_rules,
            sidecars,
            peer_authentications,
            authorization_policies,
            secrets,
            telemetries,
            warnings,
        } = other;
        self.services.extend_from_slice(services);
        self.workload_entries.extend_from_slice(workload_entries);
        self.workload_groups.extend_from_slice(workload_groups);
        self.service_entries.extend_from_slice(service_entries);
        self.virtual_services.extend_from_slice(virtual_services);
        self.destination_rules.extend_from_slice(destination_rules);
        self.sidecars.extend_from_slice(sidecars);
        self.peer_authentications
            .extend_from_slice(peer_authentications);
        self.authorization_policies
            .extend_from_slice(authorization_policies);
        self.secrets.extend_from_slice(secrets);
        self.telemetries.extend_from_slice(telemetries);
        self.warnings.extend_from_slice(warnings);
    }

    /// Makes resources that are equal to those of a reading before the same values.
    fn keep(&mut self, before: &Self) {
        let Self {
            services,
            workload_entries,
            workload_groups,
            service_entries,
            virtual_services,
            destination_rules,
            sidecars,
            peer_authentications,
            authorization_policies,
            secrets,
            telemetries,
            warnings: _,
        } = self;
        cache::keep(services, &before.services);
        cache::keep(workload_entries, &before.workload_entries);
        cache::keep(workload_groups, &before.workload_groups);
        cache::keep(service_entries, &before.service_entries);
        cache::keep(virtual_services, &before.virtual_services);
        cache::keep(destination_rules, &before.destination_rules);
        cache::keep(sidecars, &before.sidecars);
        cache::keep(peer_authentications, &before.peer_authentications);
        cache::keep(authorization_policies, &before.authorization_policies);
        cache::keep(secrets, &before.secrets);
        cache::keep(telemetries, &before.telemetries);
    }

    /// Names and origins of all of them.
    fn metas(&self) -> impl Iterator<Item = &Meta> {
        fn of<S>(resources: &Resources<S>) -> impl Iterator<Item = &Meta> {
            resources.iter().map(|resource| &*resource.meta)
        }
        let Self {
            services,
            workload_entries,
            workload_groups,
            service_entries,
            virtual_services,
            destination_rules,
            sidecars,
            peer_authentications,
            authorization_policies,
            secrets,
            telemetries,
            warnings: _,
        } = self;
        of(services)
            .chain(of(workload_entries))
            .chain(of(workload_groups))
            .chain(of(service_entries))
            .chain(of(virtual_services))
            .chain(of(destination_rules))
            .chain(of(sidecars))
            .chain(of(peer_authentications))
            .chain(of(authorization_policies))
            .chain(of(secrets))
            .chain(of(telemetries))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The resource is in force, but this field of it is not applied, or has no effect.
    Warning,
    /// The resource cannot be used: the whole configuration is refused.
    Error,
}

/// Something to tell the operator about a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How grave.
    pub severity: Severity,
    /// File and document.
    pub origin: Origin,
    /// `kind namespace/name`, as far as it could be read.
    pub object: String,
    /// Path of the field, such as `spec.http[0].route[1].weight`; empty for the document as a whole.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
    /// Istio's code for it (`IST0101`), where Istio's own analysis knows it.
    pub code: Option<&'static str>,
}

impl Finding {
    /// An error in `field` of the resource.
    pub fn error(meta: &Meta, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(Severity::Error, meta, field, reason)
    }

    /// A field of the resource that is not applied or has no effect.
    pub fn warning(meta: &Meta, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(Severity::Warning, meta, field, reason)
    }

    fn new(
        severity: Severity,
        meta: &Meta,
        field: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            origin: meta.origin.clone(),
            object: format!("{} {}/{}", meta.kind, meta.namespace, meta.name),
            field: field.into(),
            reason: reason.into(),
            code: None,
        }
    }

    /// The same with Istio's code.
    #[must_use]
    pub fn with_code(self, code: &'static str) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        for part in [&self.object, &self.field, &self.reason] {
            if !part.is_empty() {
                write!(f, ": {part}")?;
            }
        }
        Ok(())
    }
}
