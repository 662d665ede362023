//! The one form of a request's path that policies compare and applications
//! receive (Istio's `meshConfig.pathNormalization`). What it does to a path was
//! compared with Envoy 1.40, see the tests.

use std::borrow::Cow;
use std::str::FromStr;

/// How far paths are normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathNormalization {
    /// Not at all.
    None,
    /// As RFC 3986 has it (section 6.2.2): dot segments are resolved, escapes of unreserved
    /// characters undone; a backslash is a slash.
    #[default]
    Base,
    /// Also, several slashes are one.
    MergeSlashes,
    /// Also, escaped slashes and backslashes are slashes, before all else.
    DecodeAndMergeSlashes,
}

impl FromStr for PathNormalization {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "NONE" => Self::None,
            "BASE" | "DEFAULT" => Self::Base,
            "MERGE_SLASHES" => Self::MergeSlashes,
            "DECODE_AND_MERGE_SLASHES" => Self::DecodeAndMergeSlashes,
            _ => {
                return Err(
                    "is none of NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES".to_owned(),
                );
            }
        })
    }
}

impl PathNormalization {
    /// The path in its normal form, with the query as it is. `None` for a path
    /// that holds a NUL, which no application should see.
    pub fn apply(self, path_and_query: &str) -> Option<Cow<'_, str>> {
        let end = path_and_query
            .find(['?', '#'])
            .unwrap_or(path_and_query.len());
        let (path, query) = path_and_query.split_at(end);
        // `OPTIONS *` and CONNECT have no path.
        if self == Self::None || !path.starts_with('/') {
            return Some(path_and_query.into());
        }
        let decoded = if self == Self::DecodeAndMergeSlashes {
            decode_slashes(path)
        } else {
            Cow::Borrowed(path)
        };
        let escaped = unify_escapes(&decoded)?;
        let mut normal = remove_dot_segments(&escaped);
        if matches!(self, Self::MergeSlashes | Self::DecodeAndMergeSlashes) {
            normal = merge_slashes(normal);
        }
        if normal == path {
            return Some(path_and_query.into());
        }
        normal.push_str(query);
        Some(normal.into())
    }
}

fn decode_slashes(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return path.into();
    }
    let mut decoded = path.to_owned();
    for (escape, character) in [("%2f", "/"), ("%2F", "/"), ("%5c", "\\"), ("%5C", "\\")] {
        decoded = decoded.replace(escape, character);
    }
    decoded.into()
}

/// Undoes escapes of unreserved characters, escapes what may not stand in a
/// path, and makes backslashes slashes.
fn unify_escapes(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let mut unified = String::with_capacity(path.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        at += 1;
        match byte {
            b'\\' => unified.push('/'),
            b'%' => match bytes.get(at..at + 2).and_then(hex) {
                Some(0) => return None,
                Some(plain) if is_unreserved(plain) => {
                    unified.push(char::from(plain));
                    at += 2;
                }
                // Another character's escape, or no escape at all: as it is.
                _ => unified.push('%'),
            },
            b'"' | b'<' | b'>' | b'`' | b'{' | b'}' | b'|' | b'^' | ..=b' ' | 0x7f.. => {
                unified.push_str(&format!("%{byte:02X}"));
            }
            plain => unified.push(char::from(plain)),
        }
    }
    Some(unified)
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    match digits {
        [high, low] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
        _ => None,
    }
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// RFC 3986, section 5.2.4. A segment's parameters (`..;x`) do not make it
/// another segment: some applications leave them out.
fn remove_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment.split(';').next() {
            Some("..") => {
                kept.pop();
            }
            Some(".") => {}
            _ => {
                kept.push(segment);
                continue;
            }
        }
        if is_last {
            // `/a/..` is the directory: it keeps its slash.
            kept.push("");
        }
    }
    let mut normal = String::with_capacity(path.len());
    for segment in kept {
        normal.push('/');
        normal.push_str(segment);
    }
    normal
}

fn merge_slashes(path: String) -> String {
    if !path.contains("//") {
        return path;
    }
    let mut merged = String::with_capacity(path.len());
    for character in path.chars() {
        if !(character == '/' && merged.ends_with('/')) {
            merged.push(character);
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Path, as BASE has it, as DECODE_AND_MERGE_SLASHES has it.
    const TABLE: &[(&str, &str, &str)] = &[
        ("/a/../b", "/b", "/b"),
        ("/a/./b", "/a/b", "/a/b"),
        ("/a/%2e%2e/b", "/b", "/b"),
        ("/a/%2E/b", "/a/b", "/a/b"),
        ("/a\\b", "/a/b", "/a/b"),
        ("/a%5cb", "/a%5cb", "/a/b"),
        ("//a///b", "//a///b", "/a/b"),
        ("/a%2Fb", "/a%2Fb", "/a/b"),
        ("/%61bc", "/abc", "/abc"),
        ("/a%2fb/..%2f..%2fc", "/a%2fb/..%2f..%2fc", "/c"),
        ("/a/..;/b", "/b", "/b"),
        ("/a/..;x/b", "/b", "/b"),
        ("/a/%7euser", "/a/~user", "/a/~user"),
        ("/a/..", "/", "/"),
        ("/a/.", "/a/", "/a/"),
        ("/..", "/", "/"),
        ("/../../x?y=/../z", "/x?y=/../z", "/x?y=/../z"),
        ("/%zz", "/%zz", "/%zz"),
        ("/a\"b<c>", "/a%22b%3Cc%3E", "/a%22b%3Cc%3E"),
        ("/a/%2e%2e%2fb", "/a/..%2fb", "/b"),
        ("/A%3ab", "/A%3ab", "/A%3ab"),
        ("/a//../b", "/a/b", "/a/b"),
        ("/a|b^{}`", "/a%7Cb%5E%7B%7D%60", "/a%7Cb%5E%7B%7D%60"),
        ("/a/..\\b", "/b", "/b"),
        ("/a;x/b", "/a;x/b", "/a;x/b"),
        ("/a/%25%32%65/b", "/a/%252e/b", "/a/%252e/b"),
        ("/%2e%2e%5c%2e%2e/x", "/..%5c../x", "/x"),
        ("/a/.../b", "/a/.../b", "/a/.../b"),
        ("/a/%2F%2F", "/a/%2F%2F", "/a/"),
        ("/.//x", "//x", "/x"),
        ("//", "//", "/"),
    ];

    #[test]
    fn paths_become_what_envoy_makes_of_them() {
        for (path, base, decoded) in TABLE {
            let apply = |how: PathNormalization| how.apply(path).unwrap().into_owned();
            assert_eq!(apply(PathNormalization::Base), *base, "{path}");
            assert_eq!(
                apply(PathNormalization::DecodeAndMergeSlashes),
                *decoded,
                "{path}"
            );
            assert_eq!(apply(PathNormalization::None), *path);
        }
        let merged = PathNormalization::MergeSlashes.apply("//a///b%2f?c//d");
        assert_eq!(merged.unwrap(), "/a/b%2f?c//d");
        assert_eq!(PathNormalization::Base.apply("/%00"), None);
        assert_eq!(PathNormalization::Base.apply("*").unwrap(), "*");
    }

    /// Envoy leaves a parameter on an escaped dot segment, we do not.
    #[test]
    fn an_escape_does_not_hide_a_dot_segment_with_parameters() {
        let normal = PathNormalization::Base.apply("/a/%2e%2e;foo/b");
        assert_eq!(normal.unwrap(), "/b");
    }

    proptest! {
        #[test]
        fn the_normal_form_is_stable(path in "/[a-c./\\\\%25eEfF;?~ ]{0,40}") {
            for how in [
                PathNormalization::MergeSlashes,
                PathNormalization::DecodeAndMergeSlashes,
            ] {
                let Some(once) = how.apply(&path) else { continue };
                prop_assert!(once.starts_with('/'), "{once}");
                let plain = once.split(['?', '#']).next().unwrap();
                prop_assert!(!plain.split('/').any(|segment| matches!(segment, "." | "..")), "{plain}");
                prop_assert!(!plain.contains("//"), "{plain}");
            }
        }
    }

    #[test]
    fn fuzz_path() {
        crate::fuzz::run("path", |bytes| {
            let path = String::from_utf8_lossy(bytes);
            for how in [
                PathNormalization::None,
                PathNormalization::Base,
                PathNormalization::MergeSlashes,
                PathNormalization::DecodeAndMergeSlashes,
            ] {
                let Some(normal) = how.apply(&path) else {
                    continue;
                };
                if how != PathNormalization::None && path.starts_with('/') {
                    let end = normal.find(['?', '#']).unwrap_or(normal.len());
                    let mut segments = normal[..end].split('/');
                    assert!(
                        !segments.any(|segment| matches!(segment, "." | "..")),
                        "{normal}"
                    );
                }
            }
        });
    }
}
