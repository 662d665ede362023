//! Istio `AuthorizationPolicy`.

mod validate;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Meta, WorkloadSelector};

pub(super) use validate::validate;
pub use validate::{DRY_RUN, is_dry_run};

/// `AuthorizationPolicy.spec`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorizationPolicySpec {
    /// The workloads it applies to; all of the namespace where left out, all of
    /// the mesh in the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// The older form of `targetRefs`, with one entry.
    pub target_ref: Option<TargetRef>,
    /// Services whose workloads it applies to, instead of a selector.
    pub target_refs: Vec<TargetRef>,
    /// What happens to a request that a rule matches.
    pub action: Action,
    /// Who decides, for `CUSTOM`.
    pub provider: Option<Provider>,
    /// Any of them has to match. None at all never matches.
    pub rules: Vec<Rule>,
}

/// `action`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// What matches may pass; where there is such a policy, nothing else may.
    #[default]
    Allow,
    /// What matches may not pass, whatever else allows it.
    Deny,
    /// What matches is told, nothing more.
    Audit,
    /// Somebody outside of the mesh decides.
    Custom,
}

/// `provider`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Provider {
    /// Name of the extension provider.
    pub name: String,
}

/// An entry of `targetRefs`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct TargetRef {
    /// API group; empty for Kubernetes' own kinds.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace, which has to be the policy's own.
    pub namespace: String,
}

/// An entry of `rules`: `from`, `to` and `when` together. What is left out matches all.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Any of these sources.
    pub from: Option<Vec<From>>,
    /// Any of these operations.
    pub to: Option<Vec<To>>,
    /// All of these conditions.
    pub when: Vec<Condition>,
}

/// An entry of `from`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct From {
    /// The source.
    pub source: Option<Source>,
}

/// An entry of `to`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct To {
    /// The operation.
    pub operation: Option<Operation>,
}

/// `source`: all of the fields that are there, of each any value.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[expect(
    missing_docs,
    reason = "named as the field that they hold; the twins negate"
)]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub trust_domains: Vec<String>,
    pub not_trust_domains: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

/// `operation`: all of the fields that are there, of each any value.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[expect(
    missing_docs,
    reason = "named as the field that they hold; the twins negate"
)]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// An entry of `when`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Condition {
    /// The attribute, such as `source.ip` or `request.headers[x-token]`.
    pub key: String,
    /// Any of these has to match, where there are any.
    pub values: Vec<String>,
    /// None of these may match.
    pub not_values: Vec<String>,
}

/// A field with its values and those of its twin that negates.
pub type Pair<'a> = (&'static str, &'a [String], &'a [String]);

impl Source {
    /// All fields.
    pub fn pairs(&self) -> [Pair<'_>; 7] {
        [
            ("principals", &self.principals, &self.not_principals),
            (
                "requestPrincipals",
                &self.request_principals,
                &self.not_request_principals,
            ),
            ("namespaces", &self.namespaces, &self.not_namespaces),
            (
                "serviceAccounts",
                &self.service_accounts,
                &self.not_service_accounts,
            ),
            ("trustDomains", &self.trust_domains, &self.not_trust_domains),
            ("ipBlocks", &self.ip_blocks, &self.not_ip_blocks),
            (
                "remoteIpBlocks",
                &self.remote_ip_blocks,
                &self.not_remote_ip_blocks,
            ),
        ]
    }
}

impl Operation {
    /// All fields.
    pub fn pairs(&self) -> [Pair<'_>; 4] {
        [
            ("hosts", &self.hosts, &self.not_hosts),
            ("ports", &self.ports, &self.not_ports),
            ("methods", &self.methods, &self.not_methods),
            ("paths", &self.paths, &self.not_paths),
        ]
    }
}

impl AuthorizationPolicySpec {
    /// The labels of the selector; `None` where it applies to more than some labels.
    pub fn match_labels(&self) -> Option<&BTreeMap<String, String>> {
        self.selector
            .as_ref()
            .map(|selector| &selector.match_labels)
            .filter(|labels| !labels.is_empty())
    }

    /// Both spellings of the targets.
    pub fn targets(&self) -> impl Iterator<Item = &TargetRef> {
        self.target_ref.iter().chain(&self.target_refs)
    }
}

/// An attribute of a connection or a request, as `when` names them. The fields
/// of `source` and `operation` are further names of some of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// `source.principal`, `principals`.
    Principal,
    /// `source.namespace`, `namespaces`.
    Namespace,
    /// `source.serviceAccount`, `serviceAccounts`.
    ServiceAccount,
    /// `source.trustDomain`, `trustDomains`.
    TrustDomain,
    /// `source.ip`, `ipBlocks`.
    SourceIp,
    /// `remote.ip`, `remoteIpBlocks`.
    RemoteIp,
    /// `destination.ip`.
    DestinationIp,
    /// `destination.port`, `ports`.
    DestinationPort,
    /// `hosts`.
    Host,
    /// `methods`.
    Method,
    /// `paths`.
    Path,
    /// `request.headers[name]`, name in lower case.
    Header(String),
    /// `connection.sni`: not applied by this version.
    Sni,
    /// `request.auth.*`, `requestPrincipals`: claims of a JWT, not applied by this version.
    Jwt,
    /// `experimental.envoy.filters.*`: Envoy's own.
    EnvoyFilter,
}

impl Attribute {
    /// The attribute that a key of `when` names.
    ///
    /// # Errors
    /// What is wrong with the key.
    pub fn of_key(key: &str) -> Result<Self, String> {
        let bracketed = |prefix: &str| {
            let rest = key.strip_prefix(prefix)?;
            let name = rest.strip_prefix('[')?.strip_suffix(']')?;
            (!name.is_empty()).then_some(name)
        };
        Ok(match key {
            "source.ip" => Self::SourceIp,
            "remote.ip" => Self::RemoteIp,
            "source.namespace" => Self::Namespace,
            "source.serviceAccount" => Self::ServiceAccount,
            "source.principal" => Self::Principal,
            "source.trustDomain" => Self::TrustDomain,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            "connection.sni" => Self::Sni,
            "request.auth.principal" | "request.auth.audiences" | "request.auth.presenter" => {
                Self::Jwt
            }
            _ if key.starts_with("experimental.envoy.filters.") => Self::EnvoyFilter,
            _ => {
                if let Some(name) = bracketed("request.headers") {
                    return header(name);
                }
                let claim = key.strip_prefix("request.auth.claims");
                if claim.is_some_and(|rest| rest.starts_with('[') && rest.ends_with(']')) {
                    return Ok(Self::Jwt);
                }
                return Err(format!("{key:?} is not an attribute that can be asked for"));
            }
        })
    }

    /// The attribute behind a field of `source` or `operation`.
    pub fn of_field(field: &str) -> Option<Self> {
        Some(match field {
            "principals" => Self::Principal,
            "requestPrincipals" => Self::Jwt,
            "namespaces" => Self::Namespace,
            "serviceAccounts" => Self::ServiceAccount,
            "trustDomains" => Self::TrustDomain,
            "ipBlocks" => Self::SourceIp,
            "remoteIpBlocks" => Self::RemoteIp,
            "hosts" => Self::Host,
            "ports" => Self::DestinationPort,
            "methods" => Self::Method,
            "paths" => Self::Path,
            _ => return None,
        })
    }

    /// Whether only an HTTP request has it.
    pub fn is_http(&self) -> bool {
        matches!(
            self,
            Self::Host | Self::Method | Self::Path | Self::Header(_) | Self::Jwt
        )
    }

    /// Why policies cannot ask for it in this version, where they cannot.
    pub fn not_applied(&self) -> Option<&'static str> {
        match self {
            Self::Jwt => Some("claims of JWTs are not applied by this version"),
            Self::Sni => Some("the server name of TLS is not applied by this version"),
            Self::EnvoyFilter => Some("metadata of Envoy's filters does not exist here"),
            _ => None,
        }
    }
}

/// A header field, or what HTTP/2 has in the form of one.
fn header(name: &str) -> Result<Attribute, String> {
    let lower = name.to_ascii_lowercase();
    let is_pseudo = matches!(&*lower, ":authority" | ":method" | ":path");
    if !is_pseudo && http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
        return Err(format!(
            "{name:?} is neither the name of a header field nor :authority, :method or :path"
        ));
    }
    Ok(Attribute::Header(lower))
}

/// `<namespace>/<name>`, as messages and answers name a policy.
pub fn policy_name(meta: &Meta) -> String {
    format!("{}/{}", meta.namespace, meta.name)
}
