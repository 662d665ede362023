//! Which kinds of resources are applied, and which are known but not applied.

/// A kind that is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Service,
    WorkloadEntry,
    WorkloadGroup,
    ServiceEntry,
    VirtualService,
    DestinationRule,
    Sidecar,
    PeerAuthentication,
    AuthorizationPolicy,
    Secret,
    Telemetry,
}

/// What happens to an object of some kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// It is applied.
    Applied(Kind),
    /// The name of this kind in another case.
    Misspelt(Kind),
    /// It is left aside, with a warning that says what follows, where that is not plain.
    NotApplied(&'static str),
}

const CORE: &[&str] = &["v1"];
const NETWORKING: &[&str] = &[
    "networking.istio.io/v1",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1alpha3",
];
const SECURITY: &[&str] = &["security.istio.io/v1", "security.istio.io/v1beta1"];
const TELEMETRY: &[&str] = &["telemetry.istio.io/v1", "telemetry.istio.io/v1alpha1"];

impl Kind {
    const ALL: [Self; 11] = [
        Self::Service,
        Self::WorkloadEntry,
        Self::WorkloadGroup,
        Self::ServiceEntry,
        Self::VirtualService,
        Self::DestinationRule,
        Self::Sidecar,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::Secret,
        Self::Telemetry,
    ];

    /// As it stands in `kind`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::WorkloadGroup => "WorkloadGroup",
            Self::ServiceEntry => "ServiceEntry",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::Sidecar => "Sidecar",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::Secret => "Secret",
            Self::Telemetry => "Telemetry",
        }
    }

    /// The values of `apiVersion`. All have one schema.
    pub(super) fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Service | Self::Secret => CORE,
            Self::PeerAuthentication | Self::AuthorizationPolicy => SECURITY,
            Self::Telemetry => TELEMETRY,
            _ => NETWORKING,
        }
    }

    /// What an object of this kind may consist of.
    pub(super) fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Secret => &[
                "apiVersion",
                "kind",
                "metadata",
                "type",
                "data",
                "stringData",
                "immutable",
            ],
            _ => &["apiVersion", "kind", "metadata", "spec", "status"],
        }
    }
}

/// What happens to objects of the kind `name`.
pub(super) fn treatment(name: &str) -> Treatment {
    if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) {
        return Treatment::Applied(kind);
    }
    // Nobody means another kind by another case.
    let is_meant = |kind: &Kind| kind.name().eq_ignore_ascii_case(name);
    if let Some(kind) = Kind::ALL.into_iter().find(is_meant) {
        return Treatment::Misspelt(kind);
    }
    match name {
        "RequestAuthentication" => Treatment::NotApplied(
            ": tokens are not verified, and policies that ask for their claims deny",
        ),
        _ => Treatment::NotApplied(""),
    }
}
