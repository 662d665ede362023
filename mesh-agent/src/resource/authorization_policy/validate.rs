//! What the types of an `AuthorizationPolicy`'s fields cannot say.

use ipnet::IpNet;
use std::net::IpAddr;

use super::super::report::Report;
use super::super::{Finding, Meta, Resource};
use super::{Action, Attribute, AuthorizationPolicySpec, Pair, Rule, Source};

/// Most rules of a policy.
const MAX_RULES: usize = 512;
/// Most `targetRefs`.
const MAX_TARGETS: usize = 16;
/// Most values of `serviceAccounts`.
const MAX_SERVICE_ACCOUNTS: usize = 16;
/// Annotation that makes a policy report rather than act.
pub const DRY_RUN: &str = "istio.io/dry-run";

/// How identities begin, but not in policies.
const SCHEME: &str = "spiffe://";

/// Matches one segment of a path.
const ONE_SEGMENT: &str = "{*}";
/// Matches the rest of a path.
const ANY_SEGMENTS: &str = "{**}";

/// Whether the annotation asks for a dry run; `None` where it is no truth value
/// (those that Go's `strconv.ParseBool` reads).
pub fn is_dry_run(meta: &Meta) -> Option<bool> {
    match meta.annotations.get(DRY_RUN).map(String::as_str) {
        Some("1" | "t" | "T" | "TRUE" | "true" | "True") => Some(true),
        None | Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Some(false),
        Some(_) => None,
    }
}

pub fn validate(policy: &Resource<AuthorizationPolicySpec>) -> Vec<Finding> {
    let Resource { meta, spec } = policy;
    let mut report = Report::new(meta);
    annotation(spec, meta, &mut report);
    if let Some(selector) = &spec.selector {
        report.labels(&selector.match_labels, "spec.selector.matchLabels");
    }
    targets(spec, meta, &mut report);
    action(spec, &mut report);
    if spec.rules.len() > MAX_RULES {
        report.error("spec.rules", format!("has more than {MAX_RULES} rules"));
        return report.into_findings();
    }
    for (index, entry) in spec.rules.iter().enumerate() {
        rule(entry, &format!("spec.rules[{index}]"), &mut report);
    }
    report.into_findings()
}

fn annotation(spec: &AuthorizationPolicySpec, meta: &Meta, report: &mut Report<'_>) {
    let field = format!("metadata.annotations[{DRY_RUN}]");
    match (is_dry_run(meta), spec.action) {
        (None, _) => report.error(field, "must be \"true\" or \"false\""),
        (Some(true), Action::Audit | Action::Custom) => report.warning(
            field,
            "has no effect: only ALLOW and DENY have a dry run, this policy acts",
        ),
        _ => {}
    }
}

fn targets(spec: &AuthorizationPolicySpec, meta: &Meta, report: &mut Report<'_>) {
    let count = spec.targets().count();
    if count > 0 && spec.selector.is_some() {
        report.error("spec.targetRefs", "cannot stand with spec.selector");
    }
    if spec.target_ref.is_some() && !spec.target_refs.is_empty() {
        report.error("spec.targetRefs", "cannot stand with spec.targetRef");
    }
    if count > MAX_TARGETS {
        report.error(
            "spec.targetRefs",
            format!("has more than {MAX_TARGETS} entries"),
        );
    }
    for (index, target) in spec.targets().enumerate() {
        let field = format!("spec.targetRefs[{index}]");
        if target.name.is_empty() {
            report.error(format!("{field}.name"), "is required");
        }
        if !target.namespace.is_empty() && target.namespace != meta.namespace {
            report.error(
                format!("{field}.namespace"),
                "must be the policy's own namespace",
            );
        }
        match (target.group.as_str(), target.kind.as_str()) {
            ("" | "core", "Service") | ("networking.istio.io", "ServiceEntry") => {}
            ("gateway.networking.k8s.io", "Gateway" | "GatewayClass") => report.warning(
                field,
                "is not applied: this mesh has no gateways, so nothing passes one",
            ),
            (group, kind) => report.error(
                field,
                format!(
                    "kind {kind:?} of group {group:?} is none of Service, ServiceEntry \
                     (networking.istio.io), Gateway, GatewayClass (gateway.networking.k8s.io)"
                ),
            ),
        }
    }
}

fn action(spec: &AuthorizationPolicySpec, report: &mut Report<'_>) {
    let provider = spec.provider.as_ref();
    match spec.action {
        Action::Custom => {
            if provider.is_none_or(|provider| provider.name.is_empty()) {
                report.error("spec.provider.name", "is required with action CUSTOM");
            }
            report.warning(
                "spec.action",
                "CUSTOM is not applied by this version: nobody is asked, and what the rules \
                 match is denied",
            );
        }
        _ if provider.is_some() => {
            report.error("spec.provider", "is for action CUSTOM only");
        }
        _ => {}
    }
    if matches!(spec.action, Action::Deny | Action::Custom) && spec.rules.is_empty() {
        report.error(
            "spec.rules",
            "is empty, so that the policy would never act; a rule {} matches everything",
        );
    }
}

fn rule(rule: &Rule, field: &str, report: &mut Report<'_>) {
    if rule.from.as_ref().is_some_and(Vec::is_empty) {
        report.error(format!("{field}.from"), "must not be empty");
    }
    if rule.to.as_ref().is_some_and(Vec::is_empty) {
        report.error(format!("{field}.to"), "must not be empty");
    }
    for (index, from) in rule.from.iter().flatten().enumerate() {
        let field = format!("{field}.from[{index}].source");
        match &from.source {
            Some(source) => {
                pairs(&source.pairs(), &field, report);
                service_accounts(source, &field, report);
            }
            None => report.error(field, "is required"),
        }
    }
    for (index, to) in rule.to.iter().flatten().enumerate() {
        let field = format!("{field}.to[{index}].operation");
        match &to.operation {
            Some(operation) => pairs(&operation.pairs(), &field, report),
            None => report.error(field, "is required"),
        }
    }
    for (index, condition) in rule.when.iter().enumerate() {
        let field = format!("{field}.when[{index}]");
        let (own, not) = (&condition.values, &condition.not_values);
        match Attribute::of_key(&condition.key) {
            Ok(attribute) => {
                values(&attribute, own, &format!("{field}.values"), report);
                values(&attribute, not, &format!("{field}.notValues"), report);
                report_not_applied(&attribute, &field, report);
            }
            Err(reason) => report.error(format!("{field}.key"), reason),
        }
        if own.is_empty() && not.is_empty() {
            report.error(field, "has neither values nor notValues");
        }
    }
}

/// The fields of a source or an operation.
fn pairs(pairs: &[Pair<'_>], field: &str, report: &mut Report<'_>) {
    if pairs
        .iter()
        .all(|(_, own, not)| own.is_empty() && not.is_empty())
    {
        report.error(field, "must have at least one field");
    }
    for (name, own, not) in pairs {
        let Some(attribute) = Attribute::of_field(name) else {
            continue;
        };
        let mut twin = name.to_string();
        twin[..1].make_ascii_uppercase();
        values(&attribute, own, &format!("{field}.{name}"), report);
        values(&attribute, not, &format!("{field}.not{twin}"), report);
        if !(own.is_empty() && not.is_empty()) {
            report_not_applied(&attribute, &format!("{field}.{name}"), report);
        }
    }
}

fn report_not_applied(attribute: &Attribute, field: &str, report: &mut Report<'_>) {
    if let Some(reason) = attribute.not_applied() {
        report.warning(
            field,
            format!(
                "{reason}: what would be allowed by it is denied, and what would be denied \
                 by it is denied whatever its value is"
            ),
        );
    }
}

fn values(attribute: &Attribute, values: &[String], field: &str, report: &mut Report<'_>) {
    for (index, value) in values.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if let Some(reason) = problem(attribute, value) {
            report.error(field, reason);
        } else if *attribute == Attribute::Principal && value.starts_with(SCHEME) {
            report.warning(
                field,
                format!("matches nobody: principals are written without {SCHEME}"),
            );
        }
    }
}

/// What is wrong with one value.
fn problem(attribute: &Attribute, value: &str) -> Option<String> {
    if value.is_empty() {
        return Some("must not be empty".to_owned());
    }
    match attribute {
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
            let is_network = value.parse::<IpAddr>().is_ok() || value.parse::<IpNet>().is_ok();
            (!is_network).then(|| {
                format!("{value:?} is neither an IP address nor a range such as 10.0.0.0/8")
            })
        }
        Attribute::DestinationPort => {
            let is_port = value.parse::<u16>().is_ok_and(|port| port > 0);
            (!is_port).then(|| format!("{value:?} is not a port, \"1\" to \"65535\""))
        }
        Attribute::ServiceAccount => service_account_problem(value),
        Attribute::Path => path_problem(value),
        _ => None,
    }
}

fn service_account_problem(value: &str) -> Option<String> {
    let parts = value.split('/').count();
    if value.contains('*') {
        Some("takes no wildcards".to_owned())
    } else if parts > 2 || value.split('/').any(str::is_empty) {
        Some(format!(
            "{value:?} is neither <account> nor <namespace>/<account>"
        ))
    } else {
        None
    }
}

fn service_accounts(source: &Source, field: &str, report: &mut Report<'_>) {
    let accounts = [&source.service_accounts, &source.not_service_accounts];
    if accounts.iter().all(|accounts| accounts.is_empty()) {
        return;
    }
    let field = format!("{field}.serviceAccounts");
    if accounts
        .iter()
        .any(|accounts| accounts.len() > MAX_SERVICE_ACCOUNTS)
    {
        report.error(
            &*field,
            format!("has more than {MAX_SERVICE_ACCOUNTS} values"),
        );
    }
    let others = [
        &source.principals,
        &source.not_principals,
        &source.namespaces,
        &source.not_namespaces,
    ];
    if others.iter().any(|values| !values.is_empty()) {
        report.error(&*field, "cannot stand with principals or namespaces");
    }
}

/// A path with templates: whole segments, `{**}` as the last, no `*` beside.
fn path_problem(path: &str) -> Option<String> {
    let is_template = path.contains(ONE_SEGMENT) || path.contains(ANY_SEGMENTS);
    let mut ended = false;
    for segment in path.trim_matches('/').split('/') {
        match segment {
            ONE_SEGMENT | ANY_SEGMENTS if ended => {
                return Some(format!("{ANY_SEGMENTS} must be the last template"));
            }
            ANY_SEGMENTS => ended = true,
            ONE_SEGMENT => {}
            _ if segment.contains(['{', '}']) => {
                return Some(format!(
                    "a template is a whole segment, {ONE_SEGMENT} or {ANY_SEGMENTS}"
                ));
            }
            _ if is_template && !segment.bytes().all(is_literal) => {
                return Some(format!(
                    "{segment:?} cannot stand beside a template: letters, digits and \
                     -._~%!$&'()+,;:@= can"
                ));
            }
            _ => {}
        }
    }
    None
}

/// Characters of a path beside templates (RFC 3986, `pchar`, without `*`).
fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&byte)
}

#[cfg(test)]
mod tests;
