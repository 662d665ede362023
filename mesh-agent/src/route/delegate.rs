//! Rules that stand in another VirtualService: put in the place of the rule
//! that delegates to them, before anything is compiled.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::hosts::expand;
use crate::memo::{Memo, Same};
use crate::registry::Visibility;
use crate::resource::virtual_service::{
    Delegate, Destination, HttpMatch, HttpRoute, StringMatch, VirtualServiceSpec,
};
use crate::resource::{Finding, Resource};

/// A root, and what its rules delegate to: the VirtualService, where there is one.
type Parts = (
    Same<Resource<VirtualServiceSpec>>,
    Vec<Option<Same<Resource<VirtualServiceSpec>>>>,
);

/// A root with all delegated rules in place, and what was to tell.
type Resolved = (Arc<Resource<VirtualServiceSpec>>, Arc<[Finding]>);

/// Roots by what they were made from.
#[derive(Debug, Default)]
pub(super) struct Merged(Memo<Parts, Resolved>);

impl Merged {
    /// The resources with all delegated rules in place; those without hosts, which
    /// exist to be delegated to, are left out.
    pub(super) fn resolve<'a>(
        &mut self,
        resources: &'a [Arc<Resource<VirtualServiceSpec>>],
        cluster_domain: &str,
        findings: &mut Vec<Finding>,
    ) -> Cow<'a, [Arc<Resource<VirtualServiceSpec>>]> {
        let is_leaf = |resource: &Resource<VirtualServiceSpec>| resource.spec.hosts.is_empty();
        let concerned =
            |resource: &Arc<_>| is_leaf(resource) || delegates(resource).next().is_some();
        if !resources.iter().any(concerned) {
            return Cow::Borrowed(resources);
        }
        let by_name: Names<'_> = (resources.iter())
            .map(|resource| ((&*resource.meta.namespace, &*resource.meta.name), resource))
            .collect();
        let roots = resources.iter().filter(|resource| !is_leaf(resource));
        let resolved = roots.map(|root| {
            let leaves: Vec<_> = (delegates(root))
                .map(|(_, to)| leaf(root, to, &by_name))
                .collect();
            if leaves.is_empty() {
                return Arc::clone(root);
            }
            let parts = leaves.iter().map(|leaf| leaf.map(Same::new)).collect();
            let (resolved, found) = self.0.get((Same::new(root), parts), || {
                let mut findings = Vec::new();
                let resolved = resolve(root, &leaves, cluster_domain, &mut findings);
                (Arc::new(resolved), findings.into())
            });
            findings.extend_from_slice(&found);
            resolved
        });
        Cow::Owned(resolved.collect())
    }

    /// Ends a compilation.
    pub(super) fn end(&mut self) {
        self.0.end();
    }
}

/// VirtualServices by namespace and name.
type Names<'a> = HashMap<(&'a str, &'a str), &'a Arc<Resource<VirtualServiceSpec>>>;

/// The rules that delegate, by their index, and to what.
fn delegates(root: &Resource<VirtualServiceSpec>) -> impl Iterator<Item = (usize, &Delegate)> {
    let rules = root.spec.http.iter().enumerate();
    rules.filter_map(|(i, rule)| Some((i, rule.delegate.as_deref()?)))
}

/// Where the delegate is looked for.
fn namespace_of<'a>(root: &'a Resource<VirtualServiceSpec>, to: &'a Delegate) -> &'a str {
    let named = to.namespace.as_deref().filter(|name| !name.is_empty());
    named.unwrap_or(&root.meta.namespace)
}

fn leaf<'a>(
    root: &Resource<VirtualServiceSpec>,
    to: &Delegate,
    by_name: &Names<'a>,
) -> Option<&'a Arc<Resource<VirtualServiceSpec>>> {
    let found = *by_name.get(&(namespace_of(root, to), &*to.name))?;
    Visibility::new(&found.meta, &found.spec.export_to)
        .includes(&root.meta.namespace)
        .then_some(found)
}

/// A root with the rules of its leaves, of which there is one for each rule that delegates.
fn resolve(
    root: &Resource<VirtualServiceSpec>,
    leaves: &[Option<&Arc<Resource<VirtualServiceSpec>>>],
    cluster_domain: &str,
    findings: &mut Vec<Finding>,
) -> Resource<VirtualServiceSpec> {
    let mut leaves = leaves.iter();
    let mut http = Vec::new();
    for (i, rule) in root.spec.http.iter().enumerate() {
        let Some(to) = &rule.delegate else {
            http.push(rule.clone());
            continue;
        };
        let mut warn = |reason: String| {
            let field = format!("spec.http[{i}].delegate");
            findings.push(Finding::warning(&root.meta, field, reason));
        };
        let name = format!("VirtualService {}/{}", namespace_of(root, to), to.name);
        match leaves.next().copied().flatten() {
            None => warn(format!(
                "there is no {name} that {} sees: the rule is left out",
                root.meta.namespace
            )),
            Some(leaf) if !leaf.spec.hosts.is_empty() => warn(format!(
                "{name} has hosts of its own and cannot be delegated to: the rule is left out"
            )),
            Some(leaf) => http.extend(delegated(root, i, leaf, cluster_domain, findings)),
        }
    }
    Resource {
        meta: Arc::clone(&root.meta),
        spec: VirtualServiceSpec {
            http,
            ..root.spec.clone()
        },
    }
}

/// The rules in place of rule `i` of `root`.
fn delegated(
    root: &Resource<VirtualServiceSpec>,
    i: usize,
    leaf: &Resource<VirtualServiceSpec>,
    cluster_domain: &str,
    findings: &mut Vec<Finding>,
) -> Vec<HttpRoute> {
    let rule = &root.spec.http[i];
    let mut rules = Vec::new();
    for (j, own_rule) in leaf.spec.http.iter().enumerate() {
        if own_rule.delegate.is_some() {
            findings.push(Finding::warning(
                &leaf.meta,
                format!("spec.http[{j}].delegate"),
                "is not followed: a rule that is delegated to cannot delegate on",
            ));
            continue;
        }
        match merge(rule, own_rule, &leaf.meta.namespace, cluster_domain) {
            Some(merged) => rules.push(merged),
            None => findings.push(Finding::warning(
                &leaf.meta,
                format!("spec.http[{j}].match"),
                format!(
                    "has no effect: it excludes {} of VirtualService {}/{}, which delegates here",
                    format_args!("spec.http[{i}].match"),
                    root.meta.namespace,
                    root.meta.name
                ),
            )),
        }
    }
    rules
}

/// Both rules as one; `None` where no request could match both.
fn merge(
    root: &HttpRoute,
    leaf: &HttpRoute,
    namespace: &str,
    cluster_domain: &str,
) -> Option<HttpRoute> {
    let mut merged = leaf.clone();
    merged.r#match = matches(&root.r#match, &leaf.r#match)?;
    merged.name = joined(root.name.as_deref(), leaf.name.as_deref());
    // Short names are those of the delegate's namespace.
    let expand_host = |to: &mut Destination| to.host = expand(&to.host, namespace, cluster_domain);
    merged
        .route
        .iter_mut()
        .for_each(|entry| expand_host(&mut entry.destination));
    merged
        .mirror
        .as_deref_mut()
        .into_iter()
        .for_each(expand_host);
    merged
        .mirrors
        .iter_mut()
        .for_each(|mirror| expand_host(&mut mirror.destination));
    fn or<T: Clone>(own: &mut Option<T>, root: &Option<T>) {
        if own.is_none() {
            own.clone_from(root);
        }
    }
    or(&mut merged.rewrite, &root.rewrite);
    or(&mut merged.direct_response, &root.direct_response);
    or(&mut merged.timeout, &root.timeout);
    or(&mut merged.retries, &root.retries);
    or(&mut merged.fault, &root.fault);
    if merged.mirror.is_none() && merged.mirrors.is_empty() {
        merged.mirror.clone_from(&root.mirror);
        merged.mirrors.clone_from(&root.mirrors);
    }
    or(&mut merged.mirror_percent, &root.mirror_percent);
    or(&mut merged.mirror_percentage, &root.mirror_percentage);
    or(&mut merged.cors_policy, &root.cors_policy);
    or(&mut merged.headers, &root.headers);
    Some(merged)
}

fn joined(root: Option<&str>, leaf: Option<&str>) -> Option<String> {
    match (root.unwrap_or_default(), leaf.unwrap_or_default()) {
        ("", "") => None,
        ("", name) | (name, "") => Some(name.to_owned()),
        (root, leaf) => Some(format!("{root}-{leaf}")),
    }
}

/// Every pair of conditions that can hold together; no conditions are all requests.
fn matches(root: &[HttpMatch], leaf: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() || leaf.is_empty() {
        return Some([root, leaf].concat());
    }
    let mut merged = Vec::new();
    for block in leaf {
        let before = merged.len();
        let together = root.iter().filter(|other| !conflict(other, block));
        merged.extend(together.map(|other| both(other, block)));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn conflict(root: &HttpMatch, leaf: &HttpMatch) -> bool {
    let texts = [
        (&root.uri, &leaf.uri),
        (&root.scheme, &leaf.scheme),
        (&root.method, &leaf.method),
        (&root.authority, &leaf.authority),
    ];
    let maps = [
        (&root.headers, &leaf.headers),
        (&root.without_headers, &leaf.without_headers),
        (&root.query_params, &leaf.query_params),
    ];
    let in_maps = maps.iter().any(|(root, leaf)| {
        let mut shared = leaf
            .iter()
            .filter_map(|(key, test)| Some((root.get(key)?, test)));
        shared.any(|(root, leaf)| texts_conflict(root, leaf))
    });
    fn differ<T: PartialEq>(root: &Option<T>, leaf: &Option<T>) -> bool {
        root.is_some() && leaf.is_some() && root != leaf
    }
    let mut labels = leaf.source_labels.iter();
    texts.iter().any(|pair| match pair {
        (Some(root), Some(leaf)) => texts_conflict(root, leaf),
        _ => false,
    }) || in_maps
        || root.ignore_uri_case != leaf.ignore_uri_case
        || differ(&root.port, &leaf.port)
        || differ(&root.source_namespace, &leaf.source_namespace)
        || labels.any(|(key, value)| root.source_labels.get(key).is_some_and(|own| own != value))
        || (!root.gateways.is_empty()
            && !leaf.gateways.iter().all(|one| root.gateways.contains(one)))
}

/// Whether what the delegate demands may lie outside of what the root demands.
fn texts_conflict(root: &StringMatch, leaf: &StringMatch) -> bool {
    match (root, leaf) {
        (StringMatch { regex: Some(_), .. }, _) | (_, StringMatch { regex: Some(_), .. }) => true,
        (
            StringMatch {
                exact: Some(root), ..
            },
            StringMatch {
                exact: Some(leaf), ..
            },
        ) => root != leaf,
        (
            StringMatch { exact: Some(_), .. },
            StringMatch {
                prefix: Some(_), ..
            },
        ) => true,
        (
            StringMatch {
                prefix: Some(root), ..
            },
            StringMatch {
                exact: Some(leaf), ..
            }
            | StringMatch {
                prefix: Some(leaf), ..
            },
        ) => !leaf.starts_with(root.as_str()),
        _ => false,
    }
}

fn both(root: &HttpMatch, leaf: &HttpMatch) -> HttpMatch {
    fn map<T: Clone>(
        root: &BTreeMap<String, T>,
        leaf: &BTreeMap<String, T>,
    ) -> BTreeMap<String, T> {
        let mut merged = root.clone();
        merged.extend(leaf.clone());
        merged
    }
    let text =
        |leaf: &Option<StringMatch>, root: &Option<StringMatch>| leaf.clone().or(root.clone());
    HttpMatch {
        name: joined(root.name.as_deref(), leaf.name.as_deref()),
        uri: text(&leaf.uri, &root.uri),
        scheme: text(&leaf.scheme, &root.scheme),
        method: text(&leaf.method, &root.method),
        authority: text(&leaf.authority, &root.authority),
        headers: map(&root.headers, &leaf.headers),
        port: leaf.port.or(root.port),
        source_labels: map(&root.source_labels, &leaf.source_labels),
        gateways: if leaf.gateways.is_empty() {
            root.gateways.clone()
        } else {
            leaf.gateways.clone()
        },
        query_params: map(&root.query_params, &leaf.query_params),
        ignore_uri_case: leaf.ignore_uri_case,
        without_headers: map(&root.without_headers, &leaf.without_headers),
        source_namespace: leaf
            .source_namespace
            .clone()
            .or(root.source_namespace.clone()),
        stat_prefix: leaf.stat_prefix.clone().or(root.stat_prefix.clone()),
    }
}
