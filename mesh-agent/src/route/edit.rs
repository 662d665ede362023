//! Changes of requests and responses on their way.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use regex::Regex;

use super::format;
use super::matching::Text;
use super::view::RequestView;
use crate::resource::format::{Piece, parse};
use crate::resource::virtual_service::{HeaderOperations, Headers, RegexRewrite};

/// Edits of both directions.
#[derive(Clone, Debug, Default)]
pub(super) struct RouteEdits {
    pub(super) request: HeaderEdits,
    pub(super) response: HeaderEdits,
    /// Those whose values depend on the request.
    formatted: Vec<Formatted>,
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
        let mut formatted = Vec::new();
        Self {
            request: HeaderEdits::compile(request, Side::Request, &mut formatted),
            response: HeaderEdits::compile(
                headers.response.as_ref(),
                Side::Response,
                &mut formatted,
            ),
            formatted,
            authority,
        }
    }

    /// The edits with the values that they have for this request.
    pub(super) fn of(&self, request: &RequestView<'_>, route_name: &str) -> Edits<'_> {
        if self.formatted.is_empty() {
            return Edits::OfRule(self);
        }
        let mut edits = Self {
            formatted: Vec::new(),
            ..self.clone()
        };
        for formatted in &self.formatted {
            let Some(value) = format::value(&formatted.pieces, request, route_name) else {
                continue;
            };
            let side = match formatted.side {
                Side::Request => &mut edits.request,
                Side::Response => &mut edits.response,
            };
            let list = match formatted.verb {
                Verb::Set => &mut side.set,
                Verb::Add => &mut side.add,
            };
            list.push((formatted.name.clone(), value));
        }
        Edits::OfRequest(Box::new(edits))
    }
}

/// The edits of a rule, for one request.
#[derive(Debug)]
pub(super) enum Edits<'r> {
    /// The same for all.
    OfRule(&'r RouteEdits),
    /// With values that depend on it.
    OfRequest(Box<RouteEdits>),
}

impl std::ops::Deref for Edits<'_> {
    type Target = RouteEdits;

    fn deref(&self) -> &RouteEdits {
        match self {
            Self::OfRule(edits) => edits,
            Self::OfRequest(edits) => edits,
        }
    }
}

/// An edit whose value depends on the request.
#[derive(Clone, Debug)]
struct Formatted {
    side: Side,
    verb: Verb,
    name: HeaderName,
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Request,
    Response,
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Set,
    Add,
}

fn is_authority(name: &str) -> bool {
    name == ":authority" || name.eq_ignore_ascii_case("host")
}

/// Header edits in the order of their application: set, add, remove.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdits {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl HeaderEdits {
    /// Values that depend on the request go to `formatted`.
    fn compile(
        operations: Option<&HeaderOperations>,
        side: Side,
        formatted: &mut Vec<Formatted>,
    ) -> Self {
        let Some(operations) = operations else {
            return Self::default();
        };
        let mut values = |map: &BTreeMap<String, String>, verb: Verb| {
            map.iter()
                .filter(|(name, _)| !is_authority(name))
                .filter_map(|(name, value)| {
                    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                    // A command that is not understood has been reported: the header stays.
                    match parse(value).ok()?.as_slice() {
                        [] => Some((name, HeaderValue::from_static(""))),
                        [Piece::Text(text)] => Some((name, HeaderValue::from_str(text).ok()?)),
                        pieces => {
                            let pieces = pieces.to_vec();
                            formatted.push(Formatted {
                                side,
                                verb,
                                name,
                                pieces,
                            });
                            None
                        }
                    }
                })
                .collect()
        };
        Self {
            set: values(&operations.set, Verb::Set),
            add: values(&operations.add, Verb::Add),
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
        let operations = HeaderOperations {
            set: [
                ("x-a".into(), "new".into()),
                ("x-gone".into(), "1".into()),
                ("Host".into(), "h".into()),
            ]
            .into(),
            add: [("X-A".into(), "100%%".into())].into(),
            remove: vec!["x-gone".into(), "x-old".into()],
        };
        let edits = HeaderEdits::compile(Some(&operations), Side::Request, &mut Vec::new());
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
