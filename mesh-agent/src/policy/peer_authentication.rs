//! Istio `PeerAuthentication`: which transport a workload's ports accept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::memo::{Memo, Same};
use crate::registry::Workload;
use crate::resource::{Finding, Meta, Mode, PeerAuthenticationSpec, Resource};

/// Effective mode of a port (`UNSET` has been resolved to what it inherits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Plaintext only.
    Disable,
    /// Plaintext and mutual TLS.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// All PeerAuthentication resources, compiled. One resource decides for the
/// mesh, one for each namespace, and one for each workload: the first that
/// there is, as Istio takes the oldest.
#[derive(Clone, Debug, Default)]
pub struct PeerAuthentications {
    mesh: Option<Arc<Policy>>,
    by_namespace: HashMap<String, Arc<Policy>>,
    /// Those with a selector, by namespace, in file order.
    by_workload: HashMap<String, Vec<Arc<Policy>>>,
}

/// What one resource says; `None` inherits.
#[derive(Clone, Debug)]
struct Policy {
    /// `<name>/<namespace>`, or `<name>/` in the root namespace.
    name: String,
    /// Labels of the workloads it applies to; empty for all.
    labels: BTreeMap<String, String>,
    mode: Option<MtlsMode>,
    ports: BTreeMap<u16, MtlsMode>,
}

/// Compiles resources, and remembers what it has made of which.
#[derive(Debug, Default)]
pub struct Compiler {
    policies: Memo<Same<Resource<PeerAuthenticationSpec>>, Arc<Policy>>,
}

impl Compiler {
    /// Compiles the resources, always with the same root namespace; those without a selector
    /// in it apply to the whole mesh. Resources without effect are told, and how many had to
    /// be compiled.
    pub fn compile(
        &mut self,
        resources: &[Arc<Resource<PeerAuthenticationSpec>>],
        root_namespace: &str,
    ) -> (PeerAuthentications, Vec<Finding>, usize) {
        let mut compiled = PeerAuthentications::default();
        let mut findings = Vec::new();
        for resource in resources {
            let Resource { meta, spec } = &**resource;
            let in_root = meta.namespace == root_namespace;
            let policy = (self.policies).get(Same::new(resource), || {
                Arc::new(Policy::new(meta, spec, in_root))
            });
            let first = match spec.match_labels() {
                Some(_) if in_root => {
                    let reason = "a policy of the root namespace applies to the whole mesh and \
                                  takes no selector: the policy is ignored, as in Istio";
                    findings.push(Finding::warning(meta, "spec.selector", reason));
                    continue;
                }
                Some(_) => {
                    let policies = compiled.by_workload.entry(meta.namespace.clone());
                    let policies = policies.or_default();
                    let of_same = policies.iter().position(|one| one.labels == policy.labels);
                    policies.push(policy.clone());
                    &policies[of_same.unwrap_or(policies.len() - 1)]
                }
                None if in_root => compiled.mesh.get_or_insert_with(|| policy.clone()),
                None => {
                    let namespace = compiled.by_namespace.entry(meta.namespace.clone());
                    namespace.or_insert_with(|| policy.clone())
                }
            };
            if first.name != policy.name {
                let reason = format!(
                    "is ignored: {} comes first and has the same scope",
                    first.name
                );
                findings.push(Finding::warning(meta, "", reason));
            }
        }
        (compiled, findings, self.policies.end())
    }
}

impl PeerAuthentications {
    /// Compiles resources once, as a [`Compiler`] does.
    pub fn compile(
        resources: &[Arc<Resource<PeerAuthenticationSpec>>],
        root_namespace: &str,
    ) -> (Self, Vec<Finding>) {
        let (compiled, findings, _) = Compiler::default().compile(resources, root_namespace);
        (compiled, findings)
    }

    /// The mode of `port` (a port of the workload, not of a service), with the
    /// name `<name>/<namespace>` of the resource that decided, `None` for the default.
    /// The namespace is left out where the resource applies to the whole mesh.
    /// Precedence: port, workload, namespace, mesh.
    pub fn mode(&self, workload: &Workload, port: u16) -> (MtlsMode, Option<&str>) {
        self.of(&workload.name.namespace, &workload.labels, port)
    }

    /// The same of a workload with these labels.
    pub fn of(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        port: u16,
    ) -> (MtlsMode, Option<&str>) {
        let mut policies = self.by_workload.get(namespace).into_iter().flatten();
        let own = policies.find(|policy| policy.selects(labels));
        let of_port = own.and_then(|policy| Some((*policy.ports.get(&port)?, policy)));
        let widening = [own, self.by_namespace.get(namespace), self.mesh.as_ref()];
        let decided = of_port.or_else(|| {
            let mut policies = widening.into_iter().flatten();
            policies.find_map(|policy| Some((policy.mode?, policy)))
        });
        match decided {
            Some((mode, policy)) => (mode, Some(&policy.name)),
            None => (MtlsMode::Permissive, None),
        }
    }
}

#[cfg(test)]
impl PeerAuthentications {
    /// All of it, in an order that does not depend on chance.
    pub(crate) fn inspect(&self) -> Vec<String> {
        let one = self.by_namespace.iter().map(|one| format!("{one:?}"));
        let several = self.by_workload.iter().map(|one| format!("{one:?}"));
        let mut shown: Vec<_> = one.chain(several).collect();
        shown.push(format!("{:?}", self.mesh));
        shown.sort();
        shown
    }
}

impl Policy {
    fn new(meta: &Meta, spec: &PeerAuthenticationSpec, in_root: bool) -> Self {
        let namespace = if in_root { "" } else { &meta.namespace };
        let ports = spec.port_level_mtls.iter().flatten();
        Self {
            name: format!("{}/{namespace}", meta.name),
            labels: spec.match_labels().cloned().unwrap_or_default(),
            mode: effective(spec.mtls.mode),
            ports: ports
                .filter_map(|(port, mtls)| Some((port.0, effective(mtls.mode)?)))
                .collect(),
        }
    }

    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let mut wanted = self.labels.iter();
        wanted.all(|(key, value)| labels.get(key) == Some(value))
    }
}

fn effective(mode: Mode) -> Option<MtlsMode> {
    match mode {
        Mode::Unset => None,
        Mode::Disable => Some(MtlsMode::Disable),
        Mode::Permissive => Some(MtlsMode::Permissive),
        Mode::Strict => Some(MtlsMode::Strict),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use crate::resource::parse;

    /// Compiles policies, given as `namespace/name spec`, and asks them about a
    /// port of a workload `app=a` in namespace `shop`.
    fn mode(policies: &[&str], port: u16) -> (MtlsMode, Option<String>) {
        let mut text = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
            metadata: {name: a, namespace: shop}\nspec: {address: 10.0.0.1, labels: {app: a}}\n"
            .to_owned();
        for policy in policies {
            let (object, spec) = policy.split_once(' ').unwrap();
            let (namespace, name) = object.split_once('/').unwrap();
            text += &format!(
                "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
            );
        }
        let set = parse([("a.yaml", text.as_str())]).unwrap();
        let (registry, _) = Registry::compile(&set, "cluster.local", "cluster.local");
        let (compiled, _) = PeerAuthentications::compile(&set.peer_authentications, "istio-system");
        let (mode, name) = compiled.mode(&registry.workloads[0], port);
        (mode, name.map(str::to_owned))
    }

    const MESH: &str = "istio-system/default {mtls: {mode: STRICT}}";
    const NAMESPACE: &str = "shop/ns {mtls: {mode: PERMISSIVE}}";
    const WORKLOAD: &str = "shop/w {selector: {matchLabels: {app: a}}, mtls: {mode: DISABLE}, \
                            portLevelMtls: {8080: {mode: STRICT}, 8081: {mode: UNSET}}}";

    fn by(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    #[test]
    fn the_narrowest_scope_decides() {
        assert_eq!(mode(&[], 80), (MtlsMode::Permissive, None));
        assert_eq!(mode(&[MESH], 80), (MtlsMode::Strict, by("default/")));
        assert_eq!(
            mode(&[MESH, NAMESPACE], 80),
            (MtlsMode::Permissive, by("ns/shop"))
        );
        let all = [WORKLOAD, NAMESPACE, MESH];
        assert_eq!(mode(&all, 80), (MtlsMode::Disable, by("w/shop")));
        assert_eq!(mode(&all, 8080), (MtlsMode::Strict, by("w/shop")));
        assert_eq!(mode(&all, 8081), (MtlsMode::Disable, by("w/shop")));
    }

    #[test]
    fn unset_inherits() {
        for spec in ["{}", "{mtls: {}}", "{mtls: {mode: UNSET}}", "{mtls: null}"] {
            let unset = format!("shop/ns {spec}");
            assert_eq!(
                mode(&[&unset, MESH], 80),
                (MtlsMode::Strict, by("default/"))
            );
        }
        let ports_only =
            "shop/w {selector: {matchLabels: {app: a}}, portLevelMtls: {80: {mode: DISABLE}}}";
        let policies = [ports_only, MESH];
        assert_eq!(mode(&policies, 80), (MtlsMode::Disable, by("w/shop")));
        assert_eq!(mode(&policies, 81), (MtlsMode::Strict, by("default/")));
    }

    #[test]
    fn the_first_of_a_scope_decides_even_if_it_is_unset() {
        let later = "shop/later {mtls: {mode: DISABLE}}";
        assert_eq!(
            mode(&[NAMESPACE, later], 80),
            (MtlsMode::Permissive, by("ns/shop"))
        );
        assert_eq!(
            mode(&["shop/first {}", later, MESH], 80),
            (MtlsMode::Strict, by("default/"))
        );
    }

    #[test]
    fn other_namespaces_and_other_labels_do_not_matter() {
        let policies = [
            "other/x {mtls: {mode: STRICT}}",
            "shop/y {selector: {matchLabels: {app: a, version: v1}}, mtls: {mode: STRICT}}",
            "istio-system/z {selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}}",
        ];
        assert_eq!(mode(&policies, 80), (MtlsMode::Permissive, None));
    }

    #[test]
    fn an_empty_selector_is_the_whole_namespace() {
        let policy = "shop/ns {selector: {matchLabels: {}}, mtls: {mode: STRICT}}";
        assert_eq!(mode(&[policy], 80), (MtlsMode::Strict, by("ns/shop")));
    }

    #[test]
    fn policies_without_effect_are_told() {
        let text = "\
            {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a}, spec: {}}\n\
            --- {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: b}, spec: {}}\n\
            --- {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: c}, spec: {selector: {matchLabels: {app: a}}}}\n\
            --- {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: d}, spec: {selector: {matchLabels: {app: b}}}}\n\
            --- {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: e}, spec: {selector: {matchLabels: {app: a}}}}\n";
        let set = parse([("p.yaml", text)]).unwrap();
        let (_, findings) = PeerAuthentications::compile(&set.peer_authentications, "istio-system");
        assert_eq!(
            findings.iter().map(Finding::to_string).collect::<Vec<_>>(),
            [
                "p.yaml, document 2: PeerAuthentication default/b: is ignored: a/default comes \
              first and has the same scope",
                "p.yaml, document 5: PeerAuthentication default/e: is ignored: c/default comes \
              first and has the same scope"
            ]
        );
    }
}
