//! Host names, and the services that they stand for.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Registry, Service};

/// Lower case where there is something to lower, without a final dot.
pub(crate) fn canonical_host(host: &str) -> Cow<'_, str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// The full names that `host`, as a client of `client_namespace` writes it, may
/// stand for: itself, and that of `reviews`, `reviews.default` or `reviews.default.svc`.
pub(crate) fn full_names<'h>(
    host: &'h str,
    client_namespace: &str,
    cluster_domain: &str,
) -> impl Iterator<Item = Cow<'h, str>> {
    let expanded = match host.bytes().filter(|byte| *byte == b'.').count() {
        0 => Some(format!("{host}.{client_namespace}.svc.{cluster_domain}")),
        1 => Some(format!("{host}.svc.{cluster_domain}")),
        2 if host.ends_with(".svc") => Some(format!("{host}.{cluster_domain}")),
        _ => None,
    };
    [Some(Cow::Borrowed(host)), expanded.map(Cow::Owned)]
        .into_iter()
        .flatten()
}

impl Registry {
    /// The service with exactly this host or, where there is none, with the
    /// most specific wildcard, as far as `namespace` sees them. `host` is in lower
    /// case and fully qualified.
    pub fn service_of_host(&self, host: &str, namespace: &str) -> Option<&Arc<Service>> {
        if let Some(service) = self.named(host, namespace) {
            return Some(service);
        }
        let mut rest = host;
        // `*.b.c`, then `*.c` for `a.b.c`. The number of labels bounds the look-ups.
        while let Some(dot) = rest.find('.') {
            let suffix = &rest[dot..];
            let mut key = String::with_capacity(suffix.len() + 1);
            key.push('*');
            key.push_str(suffix);
            if let Some(service) = self.named(&key, namespace) {
                return Some(service);
            }
            rest = &rest[dot + 1..];
        }
        None
    }

    /// The service that a client in `client_namespace` means by a host (without
    /// its port): the fully qualified name, the name shortened as in
    /// Kubernetes, or an address of the service, in any case and with or
    /// without a dot at the end.
    pub fn resolve_host(&self, host: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        let host = canonical_host(host);
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(&host).parse::<IpAddr>() {
            let destination = (address.to_canonical(), 0).into();
            return self.service_for_client(destination, |service| {
                service.visibility.includes(client_namespace)
            });
        }
        if host.is_empty() {
            return None;
        }
        // Its own short names before a wildcard that happens to cover them.
        full_names(&host, client_namespace, &self.cluster_domain)
            .find_map(|name| self.named(name.as_ref(), client_namespace))
            .or_else(|| self.service_of_host(&host, client_namespace))
    }
}
