//! Collects what is found in one resource.

use std::collections::BTreeMap;
use std::time::Duration;

use super::annotation::Problem;
use super::value::{GoDuration, Percent};
use super::{Finding, Meta};

/// Findings of one resource, in the order in which its fields are checked.
pub(super) struct Report<'a> {
    meta: &'a Meta,
    findings: Vec<Finding>,
}

impl<'a> Report<'a> {
    pub(super) fn new(meta: &'a Meta) -> Self {
        Self {
            meta,
            findings: Vec::new(),
        }
    }

    pub(super) fn into_findings(self) -> Vec<Finding> {
        self.findings
    }

    pub(super) fn error(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.findings.push(Finding::error(self.meta, field, reason));
    }

    pub(super) fn error_with_code(
        &mut self,
        code: &'static str,
        field: impl Into<String>,
        reason: impl Into<String>,
    ) {
        self.findings
            .push(Finding::error(self.meta, field, reason).with_code(code));
    }

    pub(super) fn warning(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.findings
            .push(Finding::warning(self.meta, field, reason));
    }

    pub(super) fn warning_with_code(
        &mut self,
        code: &'static str,
        field: impl Into<String>,
        reason: impl Into<String>,
    ) {
        self.findings
            .push(Finding::warning(self.meta, field, reason).with_code(code));
    }

    /// Says that a field which is there has no effect in this version.
    pub(super) fn not_applied(&mut self, present: bool, field: impl Into<String>) {
        if present {
            self.warning(field, "not applied by this version");
        }
    }

    /// What is wrong with an annotation of ours.
    pub(super) fn annotation(&mut self, key: &str, problem: Problem) {
        let field = format!("metadata.annotations[{key}]");
        match problem {
            Problem::Unknown(reason) => self.warning(field, reason),
            Problem::Value(reason) => self.error(field, reason),
        }
    }

    /// A port number, 1 to 65535.
    pub(super) fn port(&mut self, number: u32, field: impl Into<String>) {
        if !(1..=65535).contains(&number) {
            self.error(field, format!("{number} is not a port, 1 to 65535"));
        }
    }

    /// A duration of at least a millisecond.
    pub(super) fn duration(&mut self, duration: Option<GoDuration>, field: impl Into<String>) {
        if duration.is_some_and(|duration| duration.0 < Duration::from_millis(1)) {
            self.error(field, "must be at least 1ms");
        }
    }

    /// A duration of at least a millisecond, or 0 for "none".
    pub(super) fn duration_or_zero(
        &mut self,
        duration: Option<GoDuration>,
        field: impl Into<String>,
    ) {
        self.duration(
            duration.filter(|duration| duration.0 != Duration::ZERO),
            field,
        );
    }

    /// A percentage.
    pub(super) fn percent(&mut self, percent: Option<Percent>, field: impl Into<String>) {
        if let Some(problem) = percent.and_then(Percent::problem) {
            self.error(field, problem);
        }
    }

    /// A host name: DNS labels, a leading `*` label where `wildcard` allows it.
    /// Returns whether it is one.
    pub(super) fn host(&mut self, host: &str, wildcard: bool, field: impl Into<String>) -> bool {
        let name = match host.strip_prefix("*.") {
            Some(rest) if wildcard => rest,
            _ if wildcard && host == "*" => return true,
            _ => host,
        };
        let reason = if host.is_empty() {
            "must not be empty".to_owned()
        } else if is_dns_name(name) {
            return true;
        } else {
            format!("{host:?} is not a host name")
        };
        self.error(field, reason);
        false
    }

    /// Labels of a selector: no wildcards, no empty keys.
    pub(super) fn labels(&mut self, labels: &BTreeMap<String, String>, field: &str) {
        for (key, value) in labels {
            if key.is_empty() {
                self.error(field, "has an empty key");
            } else if key.contains('*') || value.contains('*') {
                self.error(
                    format!("{field}[{key}]"),
                    "wildcards are not allowed in labels",
                );
            }
        }
    }

    /// `exportTo`: `.`, `*`, `~` or names of namespaces.
    pub(super) fn export_to(&mut self, export_to: &[String]) {
        for (i, value) in export_to.iter().enumerate() {
            let field = format!("spec.exportTo[{i}]");
            if export_to[..i].contains(value) {
                self.error(field, format!("{value:?} stands twice"));
            } else if matches!(value.as_str(), "*" | "~") && export_to.len() > 1 {
                self.error(field, format!("{value:?} cannot stand with others"));
            } else if !matches!(value.as_str(), "." | "*" | "~") && !is_dns_label(value) {
                self.error(
                    field,
                    format!("{value:?} is not a namespace, \".\", \"*\" or \"~\""),
                );
            }
        }
    }
}

/// RFC 1123: labels of letters, digits and hyphens. Underscores occur in practice and are let through.
fn is_dns_name(name: &str) -> bool {
    name.len() <= 253
        && name
            .strip_suffix('.')
            .unwrap_or(name)
            .split('.')
            .all(is_dns_label)
}

fn is_dns_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}
