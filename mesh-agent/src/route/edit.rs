//! Changes of requests and responses on their way.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use regex::Regex;

use super::matching::Text;
use crate::resource::virtual_service::{HeaderOperations, Headers, RegexRewrite};

/// Edits of both directions.
#[derive(Debug, Default)]
pub(super) struct RouteEdits {
    pub(super) request: HeaderEdits,
    pub(super) response: HeaderEdits,
    /// New authority of the request.
    pub(super) authority: Option<HeaderValue>,
}

impl RouteEdits {
    pub(super) fn compile(headers: Option<&Headers>) -> Self {
        let Some(headers) = headers else {
            return Self::default();
        };
        let request = headers.request.as_ref();
        let authority = request.and_then(|operations| {
            [&operations.set, &operations.add]
                .into_iter()
                .flatten()
                .find(|(name, _)| is_authority(name))
                .and_then(|(_, value)| HeaderValue::from_str(value).ok())
        });
        Self {
            request: HeaderEdits::compile(request),
            response: HeaderEdits::compile(headers.response.as_ref()),
            authority,
        }
    }
}

fn is_authority(name: &str) -> bool {
    name == ":authority" || name.eq_ignore_ascii_case("host")
}

/// Header edits in the order of their application: set, add, remove.
#[derive(Debug, Default)]
pub struct HeaderEdits {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl HeaderEdits {
    fn compile(operations: Option<&HeaderOperations>) -> Self {
        let Some(operations) = operations else {
            return Self::default();
        };
        let values = |map: &std::collections::BTreeMap<String, String>| {
            map.iter()
                .filter(|(name, _)| !is_authority(name))
                .filter_map(|(name, value)| {
                    Some((
                        HeaderName::from_bytes(name.as_bytes()).ok()?,
                        // Envoy's escape of a percent sign.
                        HeaderValue::from_str(&value.replace("%%", "%")).ok()?,
                    ))
                })
                .collect()
        };
        Self {
            set: values(&operations.set),
            add: values(&operations.add),
            remove: operations
                .remove
                .iter()
                .filter(|name| !is_authority(name))
                .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
                .collect(),
        }
    }

    /// Applies the edits.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// Path and authority after the rule's rewrite; `None` means as they were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// Path with query.
    pub path_and_query: Option<String>,
    /// Authority.
    pub authority: Option<HeaderValue>,
}

/// How a rule changes the path.
#[derive(Debug)]
pub(super) enum PathRewrite {
    /// Instead of the matched prefix, or of the whole path.
    Replace(String),
    /// Parts that match the expression.
    Regex {
        expression: Regex,
        replacement: String,
    },
}

impl PathRewrite {
    /// Expressions have been validated; one that does not compile changes nothing.
    pub(super) fn regex(rewrite: &RegexRewrite) -> Option<Self> {
        Some(Self::Regex {
            expression: Regex::new(&rewrite.r#match).ok()?,
            replacement: re2_replacement(&rewrite.rewrite),
        })
    }

    /// The new path and query. `matched` is the test of the path that held.
    pub(super) fn apply(&self, path: &str, query: Option<&str>, matched: Option<&Text>) -> String {
        let path = match self {
            Self::Replace(uri) => replace_matched(path, uri, matched),
            Self::Regex {
                expression,
                replacement,
            } => expression
                .replace_all(path, replacement.as_str())
                .into_owned(),
        };
        with_query(path, query)
    }
}

/// `uri` instead of the matched prefix, or of all where no prefix was matched.
pub(super) fn replace_matched(path: &str, uri: &str, matched: Option<&Text>) -> String {
    let rest = match matched {
        Some(Text::Prefix { text, .. }) => path.get(text.len()..).unwrap_or_default(),
        // A rule without a condition on the path matches the prefix `/`.
        None => path.strip_prefix('/').unwrap_or(path),
        Some(_) => "",
    };
    let path = format!("{uri}{rest}");
    // A path that lost its slash is not a path any more.
    if path.starts_with('/') {
        path
    } else {
        format!("/{path}")
    }
}

/// Adds the query of the request, unless the path brings its own.
pub(super) fn with_query(mut path: String, query: Option<&str>) -> String {
    if let Some(query) = query
        && !path.contains('?')
    {
        path.push('?');
        path.push_str(query);
    }
    path
}

/// RE2 writes groups as `\1` and a backslash as `\\`; the regex crate writes `${1}`, and `$$` for a dollar sign.
fn re2_replacement(text: &str) -> String {
    let mut replacement = String::with_capacity(text.len());
    let mut symbols = text.chars();
    while let Some(symbol) = symbols.next() {
        let piece = match symbol {
            '$' => Cow::Borrowed("$$"),
            '\\' => match symbols.next() {
                Some(digit @ '0'..='9') => Cow::Owned(format!("${{{digit}}}")),
                Some('$') => Cow::Borrowed("$$"),
                Some(other) => Cow::Owned(other.to_string()),
                None => Cow::Borrowed("\\"),
            },
            other => Cow::Owned(other.to_string()),
        };
        replacement.push_str(&piece);
    }
    replacement
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn re2_groups_are_those_of_the_regex_crate() {
        let rewrite = PathRewrite::regex(&RegexRewrite {
            r#match: "^/v([0-9]+)/(.*)$".into(),
            rewrite: r"/\2/$\1\\".into(),
        })
        .expect("a valid expression");
        assert_eq!(
            rewrite.apply("/v2/books", Some("q=1"), None),
            r"/books/$2\?q=1"
        );
    }

    #[test]
    fn edits_are_set_then_add_then_remove() {
        let edits = HeaderEdits::compile(Some(&HeaderOperations {
            set: [
                ("x-a".into(), "new".into()),
                ("x-gone".into(), "1".into()),
                ("Host".into(), "h".into()),
            ]
            .into(),
            add: [("X-A".into(), "100%%".into())].into(),
            remove: vec!["x-gone".into(), "x-old".into()],
        }));
        let mut headers = HeaderMap::new();
        headers.append("x-a", HeaderValue::from_static("one"));
        headers.append("x-a", HeaderValue::from_static("two"));
        headers.append("x-old", HeaderValue::from_static("1"));
        edits.apply(&mut headers);
        let values: Vec<_> = headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["new", "100%"]);
        assert_eq!(headers.len(), 2);
    }
}
