//! Conditions of rules, compiled.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};
use regex::bytes::Regex;

use super::view::{ClientView, RequestView};
use crate::resource::virtual_service::{HttpMatch, StringMatch};

/// A test of one text.
#[derive(Debug)]
pub(super) enum Text {
    /// Anything, as long as it is there.
    Present,
    Exact {
        text: String,
        ignore_case: bool,
    },
    Prefix {
        text: String,
        ignore_case: bool,
    },
    Regex(Regex),
}

impl Text {
    pub(super) fn compile(test: &StringMatch, ignore_case: bool) -> Self {
        match test {
            StringMatch {
                exact: Some(text), ..
            } => Self::Exact {
                text: text.clone(),
                ignore_case,
            },
            StringMatch {
                prefix: Some(text), ..
            } => Self::Prefix {
                text: text.clone(),
                ignore_case,
            },
            // Istio reads the expression `*` as "present".
            StringMatch {
                regex: Some(text), ..
            } if text != "*" => whole(text).map_or(
                Self::Exact {
                    text: text.clone(),
                    ignore_case: false,
                },
                Self::Regex,
            ),
            _ => Self::Present,
        }
    }

    pub(super) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Present => true,
            Self::Exact {
                text,
                ignore_case: false,
            } => value == text.as_bytes(),
            Self::Exact {
                text,
                ignore_case: true,
            } => value.eq_ignore_ascii_case(text.as_bytes()),
            Self::Prefix {
                text,
                ignore_case: false,
            } => value.starts_with(text.as_bytes()),
            Self::Prefix {
                text,
                ignore_case: true,
            } => value
                .get(..text.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes())),
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// An expression that has to match the whole text. Expressions have been
/// validated; one that does not compile matches nothing but itself.
fn whole(expression: &str) -> Option<Regex> {
    Regex::new(&format!(r"\A(?:{expression})\z")).ok()
}

/// Conditions on the client, known when its workload is.
#[derive(Debug, Default)]
pub(super) struct ClientMatch {
    labels: BTreeMap<String, String>,
    namespace: Option<String>,
}

impl ClientMatch {
    pub(super) fn new(labels: &BTreeMap<String, String>, namespace: Option<&str>) -> Self {
        Self {
            labels: labels.clone(),
            namespace: namespace.filter(|name| !name.is_empty()).map(str::to_owned),
        }
    }

    pub(super) fn matches(&self, client: &ClientView<'_>) -> bool {
        self.namespace
            .as_deref()
            .is_none_or(|namespace| namespace == client.namespace)
            && self
                .labels
                .iter()
                .all(|(key, value)| client.labels.get(key) == Some(value))
    }
}

/// One condition block, compiled.
#[derive(Debug, Default)]
pub(super) struct Match {
    pub(super) name: String,
    pub(super) client: ClientMatch,
    pub(super) path: Option<Text>,
    scheme: Option<Text>,
    method: Option<Text>,
    authority: Option<Text>,
    port: Option<u16>,
    headers: Vec<(HeaderName, Text)>,
    without_headers: Vec<(HeaderName, Text)>,
    query: Vec<(String, Text)>,
    /// Holds a condition that this version cannot test, and therefore never holds.
    never: bool,
}

impl Match {
    /// What the log calls it.
    pub(super) fn route_name(&self) -> &str {
        if self.name.is_empty() {
            "default"
        } else {
            &self.name
        }
    }

    /// Matches every request.
    pub(super) fn all(rule: &str) -> Self {
        Self {
            name: rule.to_owned(),
            ..Self::default()
        }
    }

    /// `None` for a block that is not for clients inside the mesh.
    /// `rule` is the name of the rule, which the log joins with the block's.
    pub(super) fn compile(block: &HttpMatch, rule: &str) -> Option<Self> {
        if !block.gateways.is_empty() && !block.gateways.iter().any(|gateway| gateway == "mesh") {
            return None;
        }
        // Where gateways are named, Istio does not look at sourceLabels.
        let no_labels = BTreeMap::new();
        let labels = if block.gateways.is_empty() {
            &block.source_labels
        } else {
            &no_labels
        };
        let text =
            |test: &Option<StringMatch>| test.as_ref().map(|test| Text::compile(test, false));
        Some(Self {
            name: match (rule, block.name.as_deref().unwrap_or_default()) {
                ("", name) | (name, "") => name.to_owned(),
                (rule, name) => format!("{rule}.{name}"),
            },
            client: ClientMatch::new(labels, block.source_namespace.as_deref()),
            path: block
                .uri
                .as_ref()
                .map(|test| Text::compile(test, block.ignore_uri_case)),
            scheme: text(&block.scheme),
            method: text(&block.method),
            authority: text(&block.authority),
            port: block.port.and_then(|port| u16::try_from(port).ok()),
            headers: header_tests(&block.headers),
            without_headers: header_tests(&block.without_headers),
            query: block
                .query_params
                .iter()
                .map(|(name, test)| (name.clone(), Text::compile(test, false)))
                .collect(),
            never: [&block.headers, &block.without_headers]
                .iter()
                .any(|tests| tests.keys().any(|name| name.starts_with("@request.auth."))),
        })
    }

    /// The first condition that does not hold.
    pub(super) fn mismatch(
        &self,
        request: &RequestView<'_>,
        client: &ClientView<'_>,
        port: u16,
    ) -> Option<String> {
        if self.matches(request, client, port) {
            return None;
        }
        let fails = |test: &Option<Text>, value: &str| {
            test.as_ref()
                .is_some_and(|test| !test.matches(value.as_bytes()))
        };
        let found = |value: Option<Cow<'_, [u8]>>| match value {
            Some(value) => format!("is {:?}", String::from_utf8_lossy(&value)),
            None => "is missing".to_owned(),
        };
        let texts = [
            ("method", &self.method, request.method.as_str()),
            ("uri", &self.path, request.path()),
            ("scheme", &self.scheme, request.scheme),
            ("authority", &self.authority, request.authority),
        ];
        if self.port.is_some_and(|own| own != port) {
            return Some(format!("port is {port}"));
        }
        for (name, test, value) in texts {
            if fails(test, value) {
                return Some(format!("{name} is {value:?}"));
            }
        }
        if !self.client.matches(client) {
            return Some("sourceLabels or sourceNamespace are another client's".to_owned());
        }
        for (name, test) in &self.headers {
            let value = header(request.headers, name);
            if !value.as_ref().is_some_and(|value| test.matches(value)) {
                return Some(format!("header {name} {}", found(value)));
            }
        }
        for (name, test) in &self.query {
            let value = query_value(request.query(), name);
            if !value.is_some_and(|value| test.matches(value.as_bytes())) {
                let value = value.map(|value| Cow::Borrowed(value.as_bytes()));
                return Some(format!("query parameter {name} {}", found(value)));
            }
        }
        for (name, test) in &self.without_headers {
            let value = header(request.headers, name);
            if !is_without(test, value.as_deref()) {
                return Some(format!(
                    "header {name}, which shall not match, {}",
                    found(value)
                ));
            }
        }
        Some("a condition is not applied".to_owned())
    }

    pub(super) fn matches(
        &self,
        request: &RequestView<'_>,
        client: &ClientView<'_>,
        port: u16,
    ) -> bool {
        let holds = |test: &Option<Text>, value: &str| {
            test.as_ref()
                .is_none_or(|test| test.matches(value.as_bytes()))
        };
        !self.never
            && self.port.is_none_or(|own| own == port)
            && holds(&self.method, request.method.as_str())
            && holds(&self.path, request.path())
            && holds(&self.scheme, request.scheme)
            && holds(&self.authority, request.authority)
            && self.client.matches(client)
            && self.headers.iter().all(|(name, test)| {
                header(request.headers, name).is_some_and(|value| test.matches(&value))
            })
            && self
                .without_headers
                .iter()
                .all(|(name, test)| is_without(test, header(request.headers, name).as_deref()))
            && self.query.iter().all(|(name, test)| {
                query_value(request.query(), name)
                    .is_some_and(|value| test.matches(value.as_bytes()))
            })
    }
}

/// Whether a condition of `withoutHeaders` holds. A header that is missing counts as
/// empty, except for "present".
fn is_without(test: &Text, value: Option<&[u8]>) -> bool {
    match test {
        Text::Present => value.is_none(),
        test => !test.matches(value.unwrap_or_default()),
    }
}

fn header_tests(tests: &BTreeMap<String, StringMatch>) -> Vec<(HeaderName, Text)> {
    tests
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "uri" | "scheme" | "method" | "authority"))
        .filter_map(|(name, test)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, Text::compile(test, false)))
        })
        .collect()
}

/// The value of a header; several are joined with commas (RFC 9110, section 5.3).
fn header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<Cow<'h, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let mut joined = Cow::Borrowed(first);
    for value in values {
        let joined = joined.to_mut();
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    Some(joined)
}

/// The first value of a query parameter, as it is written; empty for `?name`.
fn query_value<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}
