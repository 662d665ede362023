//! Tables of policies and what becomes of connections and requests.

mod statements;

use http::HeaderMap;

use super::*;
use crate::registry::Registry;
use crate::resource::{Finding, parse};

/// Workload `a` of namespace `shop` is asked on 10.0.0.1:8080 (HTTP), 9000 (TCP), 7000 (nothing declared).
const MESH: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: a, namespace: shop}
spec: {address: 10.0.0.1, serviceAccount: a, labels: {app: a}}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: a}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp, port: 90, targetPort: 9000}
  - {name: other, port: 70, targetPort: 7000}
";

struct World {
    registry: Arc<Registry>,
    authorization: Authorization,
    findings: Vec<Finding>,
}

/// Policies, given as `namespace/name spec`; `dry:` before it for a dry run.
fn world(policies: &[&str]) -> World {
    world_of(policies, &[])
}

impl Authorization {
    /// All of it, in an order that does not depend on chance.
    pub(crate) fn inspect(&self) -> Vec<String> {
        let of_mesh = self.mesh.iter().map(|policy| format!("{policy:?}"));
        let of_namespaces = self.by_namespace.values();
        let mut shown: Vec<_> = of_namespaces
            .map(|policies| format!("{policies:?}"))
            .chain(self.protocols.iter().map(|port| format!("{port:?}")))
            .collect();
        shown.sort();
        of_mesh.chain(shown).collect()
    }
}

fn world_of(policies: &[&str], aliases: &[&str]) -> World {
    let mut text = MESH.to_owned();
    for policy in policies {
        let dry = policy.starts_with("dry:");
        let policy = policy.strip_prefix("dry:").unwrap_or(policy);
        let (object, spec) = policy.split_once(' ').unwrap();
        let (namespace, name) = object.split_once('/').unwrap();
        text += &format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: {namespace}, \
             annotations: {{istio.io/dry-run: \"{dry}\"}}}}\nspec: {spec}\n"
        );
    }
    let set = parse([("a.yaml", text.as_str())]).unwrap_or_else(|f| panic!("{f:?}"));
    let (registry, _) = Registry::compile(&set, "example.org", "cluster.local");
    let options = Options {
        root_namespace: "istio-system".to_owned(),
        trust_domain: "example.org".to_owned(),
        trust_domain_aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        path_normalization: PathNormalization::Base,
    };
    let (authorization, findings, _) = Compiler::default().compile(
        &set.authorization_policies,
        &registry,
        Protocols::new(),
        &options,
    );
    World {
        registry,
        authorization,
        findings,
    }
}

fn identity(text: &str) -> Identity {
    format!("spiffe://{text}").parse().unwrap()
}

/// Who asks: an identity without `spiffe://`, or `-` for plaintext.
fn asked<T>(who: &str, port: u16, ask: impl FnOnce(&Connection<'_>) -> T) -> T {
    let source = (who != "-").then(|| identity(who));
    ask(&Connection {
        source: source.as_ref(),
        source_ip: "10.0.0.9".parse().unwrap(),
        destination: format!("10.0.0.1:{port}").parse().unwrap(),
    })
}

impl World {
    fn connect(&self, who: &str, port: u16) -> Decision {
        asked(who, port, |connection| {
            (self.authorization).connection(&self.registry.workloads[0], connection)
        })
    }

    fn l4(&self, who: &str, port: u16) -> L4Verdict {
        asked(who, port, |connection| {
            self.authorization.l4_verdict(
                connection.source,
                connection.source_ip,
                &self.registry.workloads[0],
                connection.destination,
            )
        })
    }

    /// A request `METHOD authority path`, with header fields `name: value`.
    fn request(&self, who: &str, line: &str, fields: &[&str]) -> Decision {
        let words: Vec<&str> = line.split(' ').collect();
        let mut headers = HeaderMap::new();
        for field in fields {
            let (name, value) = field.split_once(": ").unwrap();
            let name: http::HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        asked(who, 8080, |connection| {
            let request = Request {
                method: words[0],
                authority: words[1],
                path_and_query: words[2],
                remote_ip: remote_ip(&headers, connection.source_ip),
                headers: &headers,
            };
            let payload = Payload::Http(&request);
            (self.authorization).decide(&self.registry.workloads[0], connection, payload)
        })
    }
}

const SLEEP: &str = "example.org/ns/shop/sa/sleep";
const OTHER: &str = "example.org/ns/other/sa/x";

#[test]
fn without_a_policy_all_may_pass() {
    let world = world(&["other/p {action: DENY, rules: [{}]}"]);
    assert_eq!(world.connect("-", 8080).reason, Reason::NoPolicy);
    assert_eq!(world.l4("-", 8080), L4Verdict::Allow);
}

#[test]
fn deny_comes_before_allow_and_allow_shuts_everybody_else_out() {
    let world = world(&[
        "shop/allow {rules: [{from: [{source: {namespaces: [shop]}}]}]}",
        "shop/deny {action: DENY, rules: [{from: [{source: {principals: [\"*/sa/bad\"]}}]}]}",
    ]);
    for (who, verdict, reason) in [
        (SLEEP, Verdict::Allow, "allowed by shop/allow, rule 0"),
        (
            "example.org/ns/shop/sa/bad",
            Verdict::Deny,
            "explicitly denied by shop/deny, rule 0",
        ),
        (
            OTHER,
            Verdict::Deny,
            "allow policies exist, but none allowed",
        ),
        ("-", Verdict::Deny, "allow policies exist, but none allowed"),
    ] {
        for port in [8080, 9000, 7000] {
            let decision = world.connect(who, port);
            assert_eq!(decision.verdict, verdict, "{who} {port}");
            assert_eq!(decision.reason.to_string(), reason, "{who} {port}");
        }
    }
}

#[test]
fn allow_nothing_and_allow_all() {
    assert_eq!(world(&["shop/p {}"]).l4(SLEEP, 8080), L4Verdict::Deny);
    assert_eq!(
        world(&["shop/p {rules: [{}]}"]).l4("-", 8080),
        L4Verdict::Allow
    );
    let deny_all = world(&["shop/p {action: DENY, rules: [{}]}", "shop/q {rules: [{}]}"]);
    assert_eq!(deny_all.l4(SLEEP, 9000), L4Verdict::Deny);
}

#[test]
fn a_policy_applies_to_its_scope() {
    let denies = |policy: &str| world(&[policy]).l4(SLEEP, 8080) == L4Verdict::Deny;
    assert!(denies("istio-system/p {}"));
    assert!(denies("istio-system/p {selector: {matchLabels: {app: a}}}"));
    assert!(!denies(
        "istio-system/p {selector: {matchLabels: {app: b}}}"
    ));
    assert!(denies("shop/p {selector: {matchLabels: {app: a}}}"));
    assert!(!denies(
        "shop/p {selector: {matchLabels: {app: a, version: v1}}}"
    ));
    assert!(denies("shop/p {selector: {matchLabels: {}}}"));
    assert!(denies("shop/p {targetRefs: [{kind: Service, name: a}]}"));
    assert!(denies("shop/p {targetRef: {kind: Service, name: a}}"));
    assert!(!denies("other/p {targetRefs: [{kind: Service, name: a}]}"));
    let nobody = world(&["shop/p {targetRefs: [{kind: Service, name: nobody}]}"]);
    assert_eq!(nobody.l4(SLEEP, 8080), L4Verdict::Allow);
    assert!(nobody.findings[0].reason.contains("no workload"));
}

/// What a source matches, of: sleep, other, plaintext.
#[test]
fn sources() {
    for (source, expected) in [
        (
            "{principals: [example.org/ns/shop/sa/sleep]}",
            [true, false, false],
        ),
        ("{principals: [\"*\"]}", [true, true, false]),
        (
            "{principals: [\"example.org/ns/shop/*\"]}",
            [true, false, false],
        ),
        ("{principals: [\"*/sa/x\"]}", [false, true, false]),
        ("{notPrincipals: [\"*\"]}", [false, false, true]),
        (
            "{notPrincipals: [example.org/ns/shop/sa/sleep]}",
            [false, true, true],
        ),
        ("{namespaces: [shop]}", [true, false, false]),
        ("{namespaces: [\"*\"]}", [true, true, false]),
        ("{namespaces: [\"o*\"]}", [false, true, false]),
        ("{notNamespaces: [shop]}", [false, true, true]),
        ("{serviceAccounts: [sleep]}", [true, false, false]),
        ("{serviceAccounts: [other/x]}", [false, true, false]),
        ("{serviceAccounts: [x]}", [false, false, false]),
        ("{notServiceAccounts: [sleep]}", [false, true, true]),
        ("{trustDomains: [example.org]}", [true, true, false]),
        ("{notTrustDomains: [example.org]}", [false, false, true]),
        ("{ipBlocks: [10.0.0.0/24]}", [true, true, true]),
        ("{ipBlocks: [10.0.0.8]}", [false, false, false]),
        ("{notIpBlocks: [10.0.0.9]}", [false, false, false]),
        ("{remoteIpBlocks: [10.0.0.9]}", [true, true, true]),
        // All fields together.
        (
            "{namespaces: [shop], notPrincipals: [\"*/sleep\"]}",
            [false, false, false],
        ),
    ] {
        let rule = format!("rules: [{{from: [{{source: {source}}}]}}]");
        let allow = world(&[&format!("shop/p {{{rule}}}")]);
        let deny = world(&[&format!("shop/p {{action: DENY, {rule}}}")]);
        for (who, matches) in [SLEEP, OTHER, "-"].into_iter().zip(expected) {
            let request = |world: &World| world.request(who, "GET a /", &[]).verdict;
            assert_eq!(request(&allow) == Verdict::Allow, matches, "{source} {who}");
            assert_eq!(
                request(&deny) == Verdict::Deny,
                matches,
                "deny {source} {who}"
            );
            let tcp = allow.connect(who, 9000).verdict;
            assert_eq!(tcp == Verdict::Allow, matches, "tcp {source} {who}");
        }
    }
}

/// Which of these requests an operation matches.
#[test]
fn operations() {
    const GET: &str = "GET a.shop:80 /info/x?q=1";
    const POST: &str = "POST A.Shop /admin";
    for (operation, expected) in [
        ("{methods: [GET]}", [true, false]),
        ("{methods: [get]}", [false, false]),
        ("{notMethods: [GET]}", [false, true]),
        ("{methods: [\"*\"]}", [true, true]),
        ("{methods: [\"P*\"]}", [false, true]),
        ("{hosts: [a.shop]}", [false, true]),
        ("{hosts: [\"a.SHOP*\"]}", [true, true]),
        ("{notHosts: [\"a.shop:80\"]}", [false, true]),
        ("{paths: [/info/x]}", [true, false]),
        ("{paths: [\"/info/*\", \"*min\"]}", [true, true]),
        ("{paths: [\"/info/{*}\"]}", [true, false]),
        ("{paths: [\"/{**}\"]}", [true, true]),
        ("{notPaths: [/admin]}", [true, false]),
        ("{ports: [\"8080\"]}", [true, true]),
        ("{ports: [\"80\"]}", [false, false]),
        ("{notPorts: [\"8080\"]}", [false, false]),
        ("{methods: [GET], paths: [/admin]}", [false, false]),
    ] {
        let rule = format!("rules: [{{to: [{{operation: {operation}}}]}}]");
        let allow = world(&[&format!("shop/p {{{rule}}}")]);
        let deny = world(&[&format!("shop/p {{action: DENY, {rule}}}")]);
        for (line, matches) in [GET, POST].into_iter().zip(expected) {
            let verdict = |world: &World| world.request(SLEEP, line, &[]).verdict;
            assert_eq!(
                verdict(&allow) == Verdict::Allow,
                matches,
                "{operation} {line}"
            );
            assert_eq!(
                verdict(&deny) == Verdict::Deny,
                matches,
                "deny {operation} {line}"
            );
        }
    }
}

#[test]
fn conditions() {
    let fields = [
        "x-token: one",
        "x-token: two",
        "x-list: one,two",
        "cookie: a=1",
        "cookie: b=2",
        "X-Forwarded-For: 1.2.3.4, 5.6.7.8",
    ];
    for (condition, expected) in [
        // Each field of a name counts by itself, else one beside it would hide it.
        ("{key: \"request.headers[X-Token]\", values: [one]}", true),
        ("{key: \"request.headers[x-token]\", values: [two]}", true),
        (
            "{key: \"request.headers[x-token]\", notValues: [two]}",
            false,
        ),
        (
            "{key: \"request.headers[x-token]\", values: [\"one,two\"]}",
            false,
        ),
        (
            "{key: \"request.headers[x-list]\", values: [\"one,two\"]}",
            true,
        ),
        ("{key: \"request.headers[x-list]\", values: [one]}", false),
        (
            "{key: \"request.headers[cookie]\", values: [\"a=1; b=2\"]}",
            true,
        ),
        (
            "{key: \"request.headers[cookie]\", values: [\"b=*\"]}",
            true,
        ),
        (
            "{key: \"request.headers[x-token]\", values: [\"one*\"]}",
            true,
        ),
        ("{key: \"request.headers[x-none]\", values: [\"*\"]}", false),
        (
            "{key: \"request.headers[x-none]\", notValues: [\"*\"]}",
            true,
        ),
        ("{key: \"request.headers[:method]\", values: [GET]}", true),
        ("{key: source.ip, values: [10.0.0.0/8]}", true),
        ("{key: remote.ip, values: [5.6.7.8]}", true),
        ("{key: remote.ip, values: [10.0.0.9]}", false),
        ("{key: source.namespace, values: [shop]}", true),
        ("{key: source.serviceAccount, values: [shop/sleep]}", true),
        ("{key: source.principal, values: [\"*/sleep\"]}", true),
        ("{key: source.trustDomain, values: [cluster.local]}", true),
        ("{key: destination.ip, values: [10.0.0.1]}", true),
        ("{key: destination.port, values: [\"8080\"]}", true),
        (
            "{key: destination.port, values: [\"8080\"], notValues: [\"8080\"]}",
            false,
        ),
    ] {
        let policy = format!("shop/p {{rules: [{{when: [{condition}]}}]}}");
        let verdict = world(&[&policy]).request(SLEEP, "GET a /", &fields).verdict;
        assert_eq!(verdict == Verdict::Allow, expected, "{condition}");
    }
}

#[test]
fn an_attribute_of_http_on_a_tcp_port_allows_nothing_and_denies_more() {
    let allow = world(&["shop/p {rules: [{to: [{operation: {methods: [GET]}}]}]}"]);
    assert_eq!(allow.l4(SLEEP, 9000), L4Verdict::Deny);
    // The whole rule is gone, also what could have matched without it.
    let mixed = world(
        &["shop/p {rules: [{from: [{source: {namespaces: [shop]}}], \
         to: [{operation: {ports: [\"9000\"]}}, {operation: {methods: [GET]}}]}]}"],
    );
    assert_eq!(mixed.l4(SLEEP, 9000), L4Verdict::Deny);

    let deny = world(&["shop/p {action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}"]);
    assert_eq!(deny.l4(SLEEP, 9000), L4Verdict::Deny);
    let of_other = world(&[
        "shop/p {action: DENY, rules: [{from: [{source: {namespaces: [other]}}], \
         to: [{operation: {notPaths: [/a]}}]}]}",
    ]);
    assert_eq!(of_other.l4(SLEEP, 9000), L4Verdict::Allow);
    assert_eq!(of_other.l4(OTHER, 9000), L4Verdict::Deny);
}

#[test]
fn what_only_requests_can_tell_needs_http() {
    let world = world(&[
        "shop/get {rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {methods: [GET]}}]}]}",
        "shop/open {rules: [{from: [{source: {namespaces: [open]}}]}]}",
    ]);
    for port in [8080, 7000] {
        assert_eq!(world.l4(SLEEP, port), L4Verdict::NeedsHttp, "{port}");
        assert_eq!(world.l4(OTHER, port), L4Verdict::Deny, "{port}");
        assert_eq!(world.l4("example.org/ns/open/sa/x", port), L4Verdict::Allow);
    }
    assert_eq!(world.request(SLEEP, "GET a /", &[]).verdict, Verdict::Allow);
    assert_eq!(world.request(SLEEP, "PUT a /", &[]).verdict, Verdict::Deny);
}

#[test]
fn claims_and_custom_deny_and_never_allow() {
    for policy in [
        "shop/p {rules: [{from: [{source: {requestPrincipals: [\"*\"]}}]}]}",
        "shop/p {rules: [{from: [{source: {notRequestPrincipals: [\"*\"]}}]}]}",
        "shop/p {rules: [{when: [{key: \"request.auth.claims[iss]\", notValues: [a]}]}]}",
        "shop/p {rules: [{when: [{key: connection.sni, values: [a]}]}]}",
        "shop/p {action: DENY, rules: [{from: [{source: {notRequestPrincipals: [\"*\"]}}]}]}",
        "shop/p {action: CUSTOM, provider: {name: x}, rules: [{}]}",
        "shop/p {action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {paths: [/]}}]}]}",
    ] {
        let world = world(&[policy]);
        let decision = world.request(SLEEP, "GET a /", &[]);
        assert_eq!(decision.verdict, Verdict::Deny, "{policy}");
        assert_eq!(world.l4(SLEEP, 9000), L4Verdict::Deny, "{policy}");
    }
    // What does not ask for a claim goes on.
    let other = world(&[
        "shop/p {rules: [{from: [{source: {requestPrincipals: [\"*\"]}}, {source: {namespaces: [shop]}}]}]}",
    ]);
    assert_eq!(other.request(SLEEP, "GET a /", &[]).verdict, Verdict::Allow);
    let outside = world(&[
        "shop/p {action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {paths: [/a]}}]}]}",
    ]);
    assert_eq!(
        outside.request(SLEEP, "GET a /b", &[]).verdict,
        Verdict::Allow
    );
}

#[test]
fn a_dry_run_reports_and_audit_marks() {
    let world = world(&[
        "dry:shop/deny {action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}",
        "shop/audit {action: AUDIT, rules: [{from: [{source: {namespaces: [other]}}]}]}",
    ]);
    let decision = world.connect(SLEEP, 9000);
    assert_eq!(decision.verdict, Verdict::Allow);
    assert_eq!(
        decision.would_deny.unwrap().to_string(),
        "explicitly denied by shop/deny, rule 0"
    );
    let decision = world.connect(OTHER, 9000);
    assert_eq!(
        (decision.would_deny, decision.audited),
        (None, vec!["shop/audit".to_owned()])
    );
    // The kernel must not pass by what has to be reported.
    assert_eq!(world.l4(OTHER, 9000), L4Verdict::NeedsHttp);
    let allow =
        self::world(&["dry:shop/allow {rules: [{from: [{source: {namespaces: [other]}}]}]}"]);
    assert_eq!(
        allow.connect(SLEEP, 9000).would_deny,
        Some(Reason::NoneAllowed)
    );
    assert_eq!(allow.connect(OTHER, 9000).would_deny, None);
}

#[test]
fn trust_domains_have_aliases() {
    let policy = |principal: &str| {
        format!("shop/p {{rules: [{{from: [{{source: {{principals: [\"{principal}\"]}}}}]}}]}}")
    };
    let allows = |principal: &str, who: &str| {
        let world = world_of(&[&policy(principal)], &["old.example"]);
        world.connect(who, 9000).verdict == Verdict::Allow
    };
    let (own, old, foreign) = (
        SLEEP,
        "old.example/ns/shop/sa/sleep",
        "foreign.example/ns/shop/sa/sleep",
    );
    for principal in [own, old, "cluster.local/ns/shop/sa/sleep"] {
        assert!(
            allows(principal, own) && allows(principal, old),
            "{principal}"
        );
        assert!(!allows(principal, foreign), "{principal}");
    }
    assert!(allows(foreign, foreign) && !allows(foreign, own));
    assert!(allows("*ample/ns/shop/sa/sleep", foreign));
}

#[test]
fn reasons_in_envoys_words() {
    let world = world(&[
        "shop/p {action: DENY, rules: [{when: [{key: source.ip, values: [1.1.1.1]}]}, {}]}",
    ]);
    assert_eq!(
        world.connect(SLEEP, 9000).reason.details(),
        "rbac_access_denied_matched_policy[ns[shop]-policy[p]-rule[1]]"
    );
    assert_eq!(
        Reason::NoneAllowed.details(),
        "rbac_access_denied_matched_policy[none]"
    );
}
