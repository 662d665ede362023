//! What Istio says of AuthorizationPolicy that is easily got wrong, one by one.

use super::*;

const BAD: &str = "example.org/ns/shop/sa/bad";

/// A rule of `shop/p` with this action.
fn rule(action: &str, rule: &str) -> World {
    world(&[&format!("shop/p {{action: {action}, rules: [{rule}]}}")])
}

fn get(world: &World, who: &str, path: &str) -> Verdict {
    world.request(who, &format!("GET a {path}"), &[]).verdict
}

fn tcp(world: &World, who: &str) -> Verdict {
    world.connect(who, 9000).verdict
}

#[test]
fn from_and_to_and_when_hold_together_and_their_entries_are_alternatives() {
    let world = rule(
        "ALLOW",
        "{from: [{source: {namespaces: [other]}}, {source: {serviceAccounts: [sleep]}}], \
          to: [{operation: {paths: [/a]}}, {operation: {methods: [PUT]}}], \
          when: [{key: source.ip, values: [10.0.0.0/8]}, {key: \"request.headers[x]\", notValues: [no]}]}",
    );
    let ask = |who: &str, line: &str, fields: &[&str]| world.request(who, line, fields).verdict;
    for (who, line, fields, allowed) in [
        (SLEEP, "GET a /a", &[][..], true),
        (OTHER, "PUT a /b", &["x: yes"], true),
        (OTHER, "GET a /b", &[], false),
        (BAD, "GET a /a", &[], false),
        (SLEEP, "GET a /a", &["x: no"], false),
    ] {
        let verdict = ask(who, line, fields);
        assert_eq!(
            verdict == Verdict::Allow,
            allowed,
            "{who} {line} {fields:?}"
        );
    }
}

#[test]
fn one_field_with_its_twin_needs_both() {
    let world = rule(
        "ALLOW",
        "{from: [{source: {namespaces: [shop], notPrincipals: [\"*/sa/bad\"]}}], \
          to: [{operation: {paths: [\"/a*\"], notPaths: [/admin]}}]}",
    );
    assert_eq!(get(&world, SLEEP, "/a"), Verdict::Allow);
    assert_eq!(get(&world, SLEEP, "/admin"), Verdict::Deny);
    assert_eq!(get(&world, BAD, "/a"), Verdict::Deny);
}

#[test]
fn an_empty_spec_allows_nothing_an_empty_rule_everything_and_audit_decides_nothing() {
    assert_eq!(tcp(&world(&["shop/p {}"]), SLEEP), Verdict::Deny);
    assert_eq!(tcp(&rule("ALLOW", "{}"), "-"), Verdict::Allow);
    assert_eq!(tcp(&rule("AUDIT", "{}"), "-"), Verdict::Allow);
    // An AUDIT policy is no ALLOW policy, which would shut others out.
    let audit = rule("AUDIT", "{from: [{source: {namespaces: [other]}}]}");
    assert_eq!(tcp(&audit, SLEEP), Verdict::Allow);
}

#[test]
fn deny_wins_over_allow_whichever_namespace_it_is_of() {
    for (allow, deny) in [("istio-system", "shop"), ("shop", "istio-system")] {
        let world = world(&[
            &format!("{allow}/a {{rules: [{{}}]}}"),
            &format!(
                "{deny}/d {{action: DENY, rules: [{{from: [{{source: {{namespaces: [shop]}}}}]}}]}}"
            ),
        ]);
        assert_eq!(tcp(&world, SLEEP), Verdict::Deny, "{deny}");
        assert_eq!(tcp(&world, OTHER), Verdict::Allow, "{allow}");
    }
}

#[test]
fn one_allow_policy_is_enough() {
    let world = world(&[
        "shop/a {rules: [{from: [{source: {namespaces: [other]}}]}]}",
        "shop/b {rules: [{from: [{source: {serviceAccounts: [sleep]}}]}]}",
    ]);
    assert_eq!(tcp(&world, SLEEP), Verdict::Allow);
    assert_eq!(tcp(&world, OTHER), Verdict::Allow);
    assert_eq!(tcp(&world, BAD), Verdict::Deny);
}

/// Plaintext has no identity: no value matches it, and so every negation does.
#[test]
fn plaintext_matches_no_identity_and_every_negation() {
    for field in ["principals", "namespaces", "trustDomains"] {
        let any = rule(
            "DENY",
            &format!("{{from: [{{source: {{{field}: [\"*\"]}}}}]}}"),
        );
        assert_eq!(tcp(&any, "-"), Verdict::Allow, "{field}");
        assert_eq!(tcp(&any, SLEEP), Verdict::Deny, "{field}");
        let mut twin = field.to_owned();
        twin[..1].make_ascii_uppercase();
        let none = rule(
            "DENY",
            &format!("{{from: [{{source: {{not{twin}: [\"*\"]}}}}]}}"),
        );
        assert_eq!(tcp(&none, "-"), Verdict::Deny, "not{twin}");
        assert_eq!(tcp(&none, SLEEP), Verdict::Allow, "not{twin}");
    }
    let key = rule(
        "ALLOW",
        "{when: [{key: source.principal, notValues: [\"*\"]}]}",
    );
    assert_eq!(tcp(&key, "-"), Verdict::Allow);
    assert_eq!(tcp(&key, SLEEP), Verdict::Deny);
}

#[test]
fn principals_are_written_without_a_scheme_and_compared_whole() {
    for (principal, allowed) in [
        ("example.org/ns/shop/sa/sleep", true),
        ("spiffe://example.org/ns/shop/sa/sleep", false),
        ("example.org/ns/shop/sa/slee", false),
        ("example.org/ns/shop/sa/SLEEP", false),
        ("example.org/ns/shop/sa/*", true),
        ("*/ns/shop/sa/sleep", true),
        ("*shop/sa/sleep", true),
    ] {
        let world = rule(
            "ALLOW",
            &format!("{{from: [{{source: {{principals: [\"{principal}\"]}}}}]}}"),
        );
        assert_eq!(tcp(&world, SLEEP) == Verdict::Allow, allowed, "{principal}");
    }
}

#[test]
fn an_account_without_a_namespace_is_of_the_policys() {
    let in_root =
        world(&["istio-system/p {rules: [{from: [{source: {serviceAccounts: [sleep]}}]}]}"]);
    assert_eq!(tcp(&in_root, SLEEP), Verdict::Deny);
    assert_eq!(
        tcp(&in_root, "example.org/ns/istio-system/sa/sleep"),
        Verdict::Allow
    );
    let other =
        world(&["istio-system/p {rules: [{from: [{source: {serviceAccounts: [shop/sleep]}}]}]}"]);
    assert_eq!(tcp(&other, SLEEP), Verdict::Allow);
}

#[test]
fn aliases_count_in_negations_conditions_and_trust_domains_too() {
    let old = "old.example/ns/shop/sa/sleep";
    let foreign = "foreign.example/ns/shop/sa/sleep";
    for rule in [
        "{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/sleep]}}]}",
        "{from: [{source: {notTrustDomains: [example.org]}}]}",
        "{when: [{key: source.principal, notValues: [old.example/ns/shop/sa/sleep]}]}",
        "{when: [{key: source.trustDomain, notValues: [cluster.local]}]}",
    ] {
        let policy = format!("shop/p {{rules: [{rule}]}}");
        let world = world_of(&[&policy], &["old.example"]);
        for (who, verdict) in [
            (SLEEP, Verdict::Deny),
            (old, Verdict::Deny),
            (foreign, Verdict::Allow),
        ] {
            assert_eq!(tcp(&world, who), verdict, "{rule} {who}");
        }
    }
}

/// Of a DENY or AUDIT rule on a TCP port only the attribute of HTTP is left out, of an ALLOW rule everything.
#[test]
fn attributes_of_http_on_tcp_ports() {
    for http in [
        "to: [{operation: {hosts: [a]}}]",
        "to: [{operation: {notHosts: [a]}}]",
        "to: [{operation: {methods: [GET]}}]",
        "to: [{operation: {notPaths: [/]}}]",
        "from: [{source: {requestPrincipals: [\"*\"]}}]",
        "when: [{key: \"request.headers[x]\", values: [a]}]",
        "when: [{key: \"request.auth.claims[x]\", values: [a]}]",
    ] {
        assert_eq!(
            tcp(&rule("ALLOW", &format!("{{{http}}}")), SLEEP),
            Verdict::Deny,
            "{http}"
        );
        assert_eq!(
            tcp(&rule("DENY", &format!("{{{http}}}")), SLEEP),
            Verdict::Deny,
            "{http}"
        );
        let audited = rule("AUDIT", &format!("{{{http}}}")).connect(SLEEP, 9000);
        assert_eq!(audited.audited, ["shop/p"], "{http}");
    }
    // What is left of the rule still has to match.
    let deny = rule(
        "DENY",
        "{to: [{operation: {methods: [GET], ports: [\"9001\"]}}]}",
    );
    assert_eq!(tcp(&deny, SLEEP), Verdict::Allow);
    let deny = rule(
        "DENY",
        "{from: [{source: {namespaces: [other], requestPrincipals: [\"*\"]}}]}",
    );
    assert_eq!(
        (tcp(&deny, SLEEP), tcp(&deny, OTHER)),
        (Verdict::Allow, Verdict::Deny)
    );
    // The address of the client is known of TCP, too.
    let remote = rule("ALLOW", "{from: [{source: {remoteIpBlocks: [10.0.0.9]}}]}");
    assert_eq!(tcp(&remote, "-"), Verdict::Allow);
}

#[test]
fn ports_are_the_workloads_and_not_the_services() {
    let world = rule("DENY", "{to: [{operation: {ports: [\"80\", \"90\"]}}]}");
    assert_eq!(
        (get(&world, SLEEP, "/"), tcp(&world, SLEEP)),
        (Verdict::Allow, Verdict::Allow)
    );
    let world = rule("DENY", "{to: [{operation: {ports: [\"8080\", \"9000\"]}}]}");
    assert_eq!(
        (get(&world, SLEEP, "/"), tcp(&world, SLEEP)),
        (Verdict::Deny, Verdict::Deny)
    );
}

#[test]
fn paths_are_compared_without_their_query_and_methods_by_case() {
    let world = rule(
        "ALLOW",
        "{to: [{operation: {paths: [/a, \"*.html\"], methods: [GET]}}]}",
    );
    for (line, allowed) in [
        ("GET a /a?x=/b", true),
        ("GET a /a#b", true),
        ("GET a /x.html?a", true),
        ("GET a /b?/a", false),
        ("GET a /A", false),
        ("get a /a", false),
    ] {
        let verdict = world.request(SLEEP, line, &[]).verdict;
        assert_eq!(verdict == Verdict::Allow, allowed, "{line}");
    }
}

#[test]
fn a_grpc_method_is_a_path() {
    let world = rule(
        "ALLOW",
        "{to: [{operation: {paths: [/pkg.Svc/Get], methods: [POST]}}]}",
    );
    let call = |path: &str| world.request(SLEEP, &format!("POST a {path}"), &[]).verdict;
    assert_eq!(call("/pkg.Svc/Get"), Verdict::Allow);
    assert_eq!(call("/pkg.Svc/Put"), Verdict::Deny);
}

#[test]
fn a_host_is_compared_without_regard_to_case_and_with_its_port() {
    for (host, authority, allowed) in [
        ("A.Example.com", "a.eXAMPLE.com", true),
        ("a.example.com", "a.example.com:80", false),
        ("a.example.com:*", "a.example.com:80", true),
        ("*.example.com", "example.com", false),
        ("*.example.com", "a.b.example.com", true),
    ] {
        let world = rule(
            "ALLOW",
            &format!("{{to: [{{operation: {{hosts: [\"{host}\"]}}}}]}}"),
        );
        let verdict = world
            .request(SLEEP, &format!("GET {authority} /"), &[])
            .verdict;
        assert_eq!(verdict == Verdict::Allow, allowed, "{host} {authority}");
    }
}

/// Whoever sends a request writes `x-forwarded-for`; the packet's address is another thing.
#[test]
fn the_address_of_the_packet_is_not_that_of_the_header() {
    let of = |block: &str| rule("ALLOW", &format!("{{from: [{{source: {{{block}}}}}]}}"));
    let forwarded = ["x-forwarded-for: 192.0.2.1"];
    let ask = |world: &World| world.request("-", "GET a /", &forwarded).verdict;
    assert_eq!(ask(&of("ipBlocks: [192.0.2.1]")), Verdict::Deny);
    assert_eq!(ask(&of("ipBlocks: [10.0.0.9]")), Verdict::Allow);
    assert_eq!(ask(&of("remoteIpBlocks: [192.0.2.1]")), Verdict::Allow);
    assert_eq!(ask(&of("notRemoteIpBlocks: [192.0.2.0/24]")), Verdict::Deny);
}

#[test]
fn a_dry_run_denies_nobody_and_allows_nobody_either() {
    let world = world(&[
        "dry:shop/dry {rules: [{from: [{source: {namespaces: [other]}}]}]}",
        "shop/real {rules: [{from: [{source: {namespaces: [shop]}}]}]}",
    ]);
    assert_eq!(tcp(&world, SLEEP), Verdict::Allow);
    assert_eq!(tcp(&world, OTHER), Verdict::Deny, "by the policy in force");
    // A dry run of ALLOW alone shuts nobody out, and says whom it would.
    let alone =
        super::world(&["dry:shop/dry {rules: [{from: [{source: {namespaces: [other]}}]}]}"]);
    let decision = alone.connect(SLEEP, 9000);
    assert_eq!(decision.verdict, Verdict::Allow);
    assert_eq!(decision.would_deny, Some(Reason::NoneAllowed));
}

#[test]
fn a_custom_policy_denies_what_it_matches_before_any_other_is_asked() {
    let world = world(&[
        "shop/all {rules: [{}]}",
        "shop/ask {action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {paths: [/a]}}]}]}",
    ]);
    assert_eq!(get(&world, SLEEP, "/a"), Verdict::Deny);
    assert_eq!(get(&world, SLEEP, "/b"), Verdict::Allow);
}

/// Where a port declares nothing, both readings count until the bytes are seen.
#[test]
fn an_undeclared_port_is_http_or_not() {
    let allow = rule("ALLOW", "{to: [{operation: {methods: [GET]}}]}");
    assert_eq!(allow.connect(SLEEP, 7000).verdict, Verdict::NeedsHttp);
    let deny = rule("DENY", "{to: [{operation: {paths: [/admin]}}]}");
    assert_eq!(deny.connect(SLEEP, 7000).verdict, Verdict::NeedsHttp);
    assert_eq!(deny.connect(SLEEP, 8080).verdict, Verdict::NeedsHttp);
    assert_eq!(deny.connect(SLEEP, 9000).verdict, Verdict::Deny);
}

#[test]
fn values_and_not_values_of_one_condition_hold_together() {
    let world = rule(
        "ALLOW",
        "{when: [{key: \"request.headers[x]\", values: [\"a*\"], notValues: [ab]}]}",
    );
    let ask = |fields: &[&str]| world.request(SLEEP, "GET a /", fields).verdict;
    assert_eq!(ask(&["x: ac"]), Verdict::Allow);
    assert_eq!(ask(&["x: ab"]), Verdict::Deny);
    assert_eq!(ask(&["x: b"]), Verdict::Deny);
    assert_eq!(ask(&[]), Verdict::Deny);
}

#[test]
fn a_namespace_is_compared_whole() {
    for (namespace, allowed) in [
        ("shop", true),
        ("sho", false),
        ("sh*", true),
        ("*op", true),
        ("SHOP", false),
    ] {
        let world = rule(
            "ALLOW",
            &format!("{{from: [{{source: {{namespaces: [\"{namespace}\"]}}}}]}}"),
        );
        assert_eq!(tcp(&world, SLEEP) == Verdict::Allow, allowed, "{namespace}");
    }
}
