//! How the values of a policy are compared.

use std::net::IpAddr;

use ipnet::IpNet;
use regex::Regex;

/// A text that a policy compares with: `*` alone is anything but nothing,
/// `*x` an end, `x*` a beginning, and everything else the text itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    form: Form,
    ignore_case: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    Any,
    End(String),
    Beginning(String),
    Exact(String),
}

impl Pattern {
    /// A pattern that tells upper from lower case.
    pub fn new(value: &str) -> Self {
        let form = if value == "*" {
            Form::Any
        } else if let Some(end) = value.strip_prefix('*') {
            Form::End(end.to_owned())
        } else if let Some(beginning) = value.strip_suffix('*') {
            Form::Beginning(beginning.to_owned())
        } else {
            Form::Exact(value.to_owned())
        };
        Self {
            form,
            ignore_case: false,
        }
    }

    /// One for a header field, where `*` asks for no more than that it is there.
    pub fn of_header(value: &str) -> Self {
        match value {
            "*" => Self {
                form: Form::Beginning(String::new()),
                ignore_case: false,
            },
            value => Self::new(value),
        }
    }

    /// One that does not, for ASCII letters.
    pub fn ignoring_case(value: &str) -> Self {
        Self {
            ignore_case: true,
            ..Self::new(value)
        }
    }

    /// Whether `text` is what the pattern asks for.
    pub fn matches(&self, text: &[u8]) -> bool {
        let same = |a: &[u8], b: &str| {
            if self.ignore_case {
                a.eq_ignore_ascii_case(b.as_bytes())
            } else {
                a == b.as_bytes()
            }
        };
        match &self.form {
            Form::Any => !text.is_empty(),
            Form::Exact(whole) => same(text, whole),
            Form::Beginning(beginning) => text
                .get(..beginning.len())
                .is_some_and(|head| same(head, beginning)),
            Form::End(end) => text
                .len()
                .checked_sub(end.len())
                .is_some_and(|from| same(&text[from..], end)),
        }
    }
}

/// A path: a pattern, or a template with `{*}` and `{**}`.
#[derive(Clone, Debug)]
pub enum PathPattern {
    Pattern(Pattern),
    Template(Regex),
}

/// Characters of one segment of a path that `{*}` stands for (RFC 3986, `pchar`).
const SEGMENT: &str = "[a-zA-Z0-9._~%!$&'()*+,;:@=-]";

impl PathPattern {
    /// The pattern of a value that was validated before; a template that is no
    /// regular expression would match nothing.
    pub fn new(value: &str) -> Option<Self> {
        if !(value.contains("{*}") || value.contains("{**}")) {
            return Some(Self::Pattern(Pattern::new(value)));
        }
        let segments: Vec<String> = value
            .split('/')
            .map(|segment| match segment {
                "{*}" => format!("{SEGMENT}+"),
                "{**}" => format!("(?:{SEGMENT}|/)*"),
                literal => regex::escape(literal),
            })
            .collect();
        Regex::new(&format!("^{}$", segments.join("/")))
            .ok()
            .map(Self::Template)
    }

    /// Whether the path, without its query, is what the pattern asks for.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Pattern(pattern) => pattern.matches(path.as_bytes()),
            Self::Template(template) => template.is_match(path),
        }
    }
}

/// A namespace: the text, in which any `*` stands for any number of characters.
pub fn namespace(value: &str) -> Option<Regex> {
    let parts: Vec<String> = value.split('*').map(regex::escape).collect();
    Regex::new(&format!("^{}$", parts.join(".*"))).ok()
}

/// An address or a range.
pub fn network(value: &str) -> Option<IpNet> {
    let address = || value.parse::<IpAddr>().ok().map(IpNet::from);
    address().or_else(|| value.parse().ok())
}

/// Whether the address is in the range; an IPv4 address that comes mapped into
/// IPv6 is the IPv4 address.
pub fn contains(network: &IpNet, address: IpAddr) -> bool {
    network.contains(&address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_forms() {
        for (pattern, text, expected) in [
            ("*", "x", true),
            ("*", "", false),
            ("ab", "ab", true),
            ("ab", "abc", false),
            ("ab", "AB", false),
            ("ab*", "ab", true),
            ("ab*", "abc", true),
            ("ab*", "a", false),
            ("*bc", "abc", true),
            ("*bc", "bcd", false),
            // A star elsewhere, or a second one, is a star.
            ("*a*", "ba*", true),
            ("*a*", "bac", false),
            ("a*b", "axb", false),
            ("a*b", "a*b", true),
        ] {
            let matches = Pattern::new(pattern).matches(text.as_bytes());
            assert_eq!(matches, expected, "{pattern} {text}");
        }
        assert!(Pattern::ignoring_case("*.Example.com").matches(b"A.eXample.COM"));
        assert!(Pattern::ignoring_case("A*").matches(b"ab"));
    }

    #[test]
    fn a_header_field_may_be_empty_where_only_its_presence_counts() {
        assert!(Pattern::of_header("*").matches(b""));
        assert!(!Pattern::new("*").matches(b""));
        assert!(!Pattern::of_header("a*").matches(b""));
    }

    #[test]
    fn templates() {
        for (template, path, expected) in [
            ("/a/{*}/c", "/a/b/c", true),
            ("/a/{*}/c", "/a/b/b/c", false),
            ("/a/{*}/c", "/a//c", false),
            ("/a/{*}", "/a/", false),
            ("/a/{**}", "/a/*", true),
            ("/a/{**}", "/a/", true),
            ("/a/{**}", "/a", false),
            ("/a/{**}", "/a/b/c", true),
            ("/{**}/c", "/a/b/c", true),
            ("/a.b/{*}", "/aXb/c", false),
            ("/{*}", "/a%20b", true),
            ("/{*}", "/a\"b", false),
        ] {
            let matches = PathPattern::new(template).unwrap().matches(path);
            assert_eq!(matches, expected, "{template} {path}");
        }
    }

    #[test]
    fn namespaces_and_networks() {
        assert!(namespace("sh*p").unwrap().is_match("shop"));
        assert!(!namespace("shop").unwrap().is_match("shop2"));
        assert!(namespace("*").unwrap().is_match("shop"));
        let mapped = "::ffff:10.1.2.3".parse().unwrap();
        assert!(contains(&network("10.0.0.0/8").unwrap(), mapped));
        assert!(!contains(
            &network("10.0.0.1").unwrap(),
            "10.0.0.2".parse().unwrap()
        ));
    }
}
