//! Host names: what rules and clients write, and what it names.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::registry::canonical_host;

/// Values by host: exact names first, then the longest wildcard; several
/// values of one host stay in order.
#[derive(Debug)]
pub(super) struct HostTable<T> {
    exact: HashMap<String, Vec<T>>,
    /// Suffix with its leading dot (`.example.com`, or empty for `*`), longest first.
    wildcards: Vec<(String, Vec<T>)>,
}

impl<T> Default for HostTable<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            wildcards: Vec::new(),
        }
    }
}

impl<T> HostTable<T> {
    /// The values of exactly this host or wildcard, empty where it is new.
    pub(super) fn entry(&mut self, host: &str) -> &mut Vec<T> {
        let Some(suffix) = host.strip_prefix('*') else {
            return self.exact.entry(host.to_owned()).or_default();
        };
        let position = match self.wildcards.iter().position(|(known, _)| known == suffix) {
            Some(position) => position,
            None => {
                let position = self
                    .wildcards
                    .partition_point(|(known, _)| known.len() >= suffix.len());
                self.wildcards
                    .insert(position, (suffix.to_owned(), Vec::new()));
                position
            }
        };
        &mut self.wildcards[position].1
    }

    /// Values of exactly this host.
    pub(super) fn find_exact(&self, host: &str) -> impl Iterator<Item = &T> {
        self.exact.get(host).into_iter().flatten()
    }

    /// Values for a host (or a service's own wildcard host), most specific first.
    pub(super) fn find<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a T> {
        let exact = self.exact.get(host).into_iter();
        let wildcards = self
            .wildcards
            .iter()
            .filter(move |(suffix, _)| is_under(host, suffix))
            .map(|(_, values)| values);
        exact.chain(wildcards).flatten()
    }
}

#[cfg(test)]
impl<T: std::fmt::Debug> HostTable<T> {
    /// A line for each host.
    pub(super) fn inspect(&self) -> Vec<String> {
        let exact = self
            .exact
            .iter()
            .map(|(host, values)| format!("{host} {values:?}"));
        let wildcards = self.wildcards.iter().enumerate();
        let wildcards = wildcards.map(|(i, (suffix, values))| format!("{i} *{suffix} {values:?}"));
        exact.chain(wildcards).collect()
    }
}

/// Whether `host` (or the wildcard `host`) lies under a wildcard's suffix.
fn is_under(host: &str, suffix: &str) -> bool {
    match host.strip_prefix('*') {
        Some(own) => own.ends_with(suffix),
        None => host.len() > suffix.len() && host.ends_with(suffix),
    }
}

/// The full name of a host in a rule: a name without dots belongs to the rule's namespace.
pub fn expand(host: &str, namespace: &str, cluster_domain: &str) -> String {
    let host = canonical_host(host);
    if host.contains('.') || host.contains('*') {
        host.into_owned()
    } else {
        format!("{host}.{namespace}.svc.{cluster_domain}")
    }
}

/// The host of an authority: without user information and port, lower case.
pub fn host_of(authority: &str) -> Cow<'_, str> {
    let authority = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    if let Some(rest) = authority.strip_prefix('[')
        && let Some((address, _)) = rest.split_once(']')
    {
        return canonical_host(address);
    }
    match authority.split_once(':') {
        // More than one colon: an IPv6 address without brackets.
        Some((_, port)) if port.contains(':') => canonical_host(authority),
        Some((host, _)) => canonical_host(host),
        None => canonical_host(authority),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_gives_its_host() {
        for (authority, host) in [
            ("reviews", "reviews"),
            ("Reviews:80", "reviews"),
            ("reviews.default.", "reviews.default"),
            ("10.0.0.1:8080", "10.0.0.1"),
            ("[fd00::1]:80", "fd00::1"),
            ("[fd00::1]", "fd00::1"),
            ("fd00::1", "fd00::1"),
            ("user:secret@reviews:80", "reviews"),
            ("", ""),
            ("[", "["),
            (":80", ""),
        ] {
            assert_eq!(host_of(authority), host, "{authority}");
        }
    }

    #[test]
    fn the_most_specific_host_comes_first() {
        let mut table = HostTable::default();
        for host in ["*", "*.com", "*.foo.com", "a.foo.com", "*.com"] {
            let values = table.entry(host);
            values.push(format!("{host} {}", values.len()));
        }
        let found: Vec<_> = table.find("a.foo.com").collect();
        assert_eq!(
            found,
            ["a.foo.com 0", "*.foo.com 0", "*.com 0", "*.com 1", "* 0"]
        );
        let found: Vec<_> = table.find("foo.com").collect();
        assert_eq!(found, ["*.com 0", "*.com 1", "* 0"]);
        let found: Vec<_> = table.find("*.foo.com").collect();
        assert_eq!(found, ["*.foo.com 0", "*.com 0", "*.com 1", "* 0"]);
    }

    #[test]
    fn only_names_without_dots_belong_to_the_rules_namespace() {
        assert_eq!(
            expand("Reviews", "shop", "cluster.local"),
            "reviews.shop.svc.cluster.local"
        );
        assert_eq!(
            expand("reviews.default", "shop", "cluster.local"),
            "reviews.default"
        );
        assert_eq!(expand("*.com", "shop", "cluster.local"), "*.com");
    }

    proptest::proptest! {
        #[test]
        fn every_authority_has_a_host(authority in ".{0,30}") {
            let host = host_of(&authority);
            proptest::prop_assert!(host.len() <= authority.len());
        }
    }
}
