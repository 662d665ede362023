//! What is refused, and what is said about what is not.

use crate::resource::parse;

/// What is said about a policy with this spec.
fn findings(spec: &str) -> Vec<String> {
    annotated("{}", spec)
}

fn annotated(annotations: &str, spec: &str) -> Vec<String> {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: p, annotations: {annotations}}}\nspec: {spec}\n"
    );
    let findings = match parse([("p.yaml", text.as_str())]) {
        Ok(set) => set.warnings,
        Err(findings) => findings,
    };
    findings
        .iter()
        .map(|finding| format!("{}: {}", finding.field, finding.reason))
        .collect()
}

/// One finding, which names the field and says this.
#[track_caller]
fn refused(spec: &str, field: &str, reason: &str) {
    let findings = findings(spec);
    let found = findings
        .iter()
        .any(|text| text.starts_with(&format!("{field}:")) && text.contains(reason));
    assert!(found, "{spec}: {findings:?}");
}

#[test]
fn policies_that_say_something_are_accepted() {
    for spec in [
        "{}",
        "{rules: [{}]}",
        "{action: DENY, rules: [{}]}",
        "{selector: {matchLabels: {app: a}}, action: AUDIT, rules: [{from: [{source: {principals: [\"*\"]}}]}]}",
        "{rules: [{to: [{operation: {ports: [\"80\"], paths: [\"/a/{*}/b/{**}\", \"/a*\", \"*b\", \"*\"]}}]}]}",
        "{rules: [{when: [{key: \"request.headers[X-A]\", values: [a]}, {key: source.ip, notValues: [10.0.0.0/8, \"::1\"]}]}]}",
        "{targetRefs: [{kind: Service, group: \"\", name: a}], rules: [{}]}",
        "{rules: [{from: [{source: {serviceAccounts: [a, shop/b]}}]}]}",
    ] {
        assert_eq!(findings(spec), Vec::<String>::new(), "{spec}");
    }
}

#[test]
fn what_never_acts_or_means_nothing_is_refused() {
    refused("{action: DENY}", "spec.rules", "is empty");
    refused(
        "{rules: [{from: []}]}",
        "spec.rules[0].from",
        "must not be empty",
    );
    refused(
        "{rules: [{from: [{}]}]}",
        "spec.rules[0].from[0].source",
        "required",
    );
    refused(
        "{rules: [{from: [{source: {}}]}]}",
        "spec.rules[0].from[0].source",
        "at least one field",
    );
    refused(
        "{rules: [{to: [{operation: {methods: [\"\"]}}]}]}",
        "spec.rules[0].to[0].operation.methods[0]",
        "must not be empty",
    );
    refused(
        "{rules: [{to: [{operation: {notPorts: [\"http\"]}}]}]}",
        "spec.rules[0].to[0].operation.notPorts[0]",
        "not a port",
    );
    refused(
        "{rules: [{when: [{key: destination.labels, values: [a]}]}]}",
        "spec.rules[0].when[0].key",
        "is not an attribute",
    );
    for name in [":scheme", ":authority ", "x role", "x]["] {
        refused(
            &format!(
                "{{action: DENY, rules: [{{when: [{{key: \"request.headers[{name}]\", values: [a]}}]}}]}}"
            ),
            "spec.rules[0].when[0].key",
            "neither the name of a header field",
        );
    }
    refused(
        "{rules: [{when: [{key: source.ip}]}]}",
        "spec.rules[0].when[0]",
        "neither",
    );
    refused(
        "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}",
        "spec.rules[0].from[0].source.ipBlocks[0]",
        "neither an IP address",
    );
    refused("{provider: {name: x}}", "spec.provider", "CUSTOM only");
    refused(
        "{action: CUSTOM, rules: [{}]}",
        "spec.provider.name",
        "required",
    );
    refused("{nothing: 1}", "spec.nothing", "unknown field");
    refused(
        "{selector: {matchLabels: {a: \"*\"}}}",
        "spec.selector.matchLabels[a]",
        "wildcards",
    );
}

#[test]
fn a_principal_with_a_scheme_matches_nobody_and_that_is_said() {
    let principal = "spiffe://cluster.local/ns/a/sa/b";
    refused(
        &format!("{{rules: [{{from: [{{source: {{notPrincipals: [\"{principal}\"]}}}}]}}]}}"),
        "spec.rules[0].from[0].source.notPrincipals[0]",
        "matches nobody",
    );
    refused(
        &format!("{{rules: [{{when: [{{key: source.principal, values: [\"{principal}\"]}}]}}]}}"),
        "spec.rules[0].when[0].values[0]",
        "without spiffe://",
    );
}

#[test]
fn service_accounts_stand_alone_and_without_wildcards() {
    let source = |source: &str| format!("{{rules: [{{from: [{{source: {source}}}]}}]}}");
    let field = "spec.rules[0].from[0].source.serviceAccounts";
    refused(
        &source("{serviceAccounts: [\"a*\"]}"),
        &format!("{field}[0]"),
        "wildcards",
    );
    refused(
        &source("{serviceAccounts: [a/b/c]}"),
        &format!("{field}[0]"),
        "neither",
    );
    refused(
        &source("{serviceAccounts: [a], namespaces: [b]}"),
        field,
        "cannot stand with",
    );
    let many = (0..17)
        .map(|n| format!("a{n}"))
        .collect::<Vec<_>>()
        .join(",");
    refused(
        &source(&format!("{{serviceAccounts: [{many}]}}")),
        field,
        "more than 16",
    );
}

#[test]
fn templates_are_whole_segments_and_any_comes_last() {
    let path =
        |path: &str| format!("{{rules: [{{to: [{{operation: {{paths: [\"{path}\"]}}}}]}}]}}");
    let field = "spec.rules[0].to[0].operation.paths[0]";
    refused(&path("/a/{**}/{*}"), field, "must be the last");
    refused(&path("/a/{**}/{**}"), field, "must be the last");
    refused(&path("/a/x{*}"), field, "whole segment");
    refused(&path("/a/{b}"), field, "whole segment");
    refused(&path("/a*/{*}"), field, "cannot stand beside");
}

#[test]
fn targets_are_bounded_and_of_known_kinds() {
    refused(
        "{targetRefs: [{kind: Deployment, group: apps, name: a}]}",
        "spec.targetRefs[0]",
        "is none of",
    );
    refused(
        "{selector: {}, targetRefs: [{kind: Service, name: a}]}",
        "spec.targetRefs",
        "cannot stand with",
    );
    refused(
        "{targetRefs: [{kind: Service, name: a, namespace: other}]}",
        "spec.targetRefs[0].namespace",
        "own namespace",
    );
    refused(
        "{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: a}]}",
        "spec.targetRefs[0]",
        "no gateways",
    );
}

#[test]
fn what_is_not_applied_is_said_with_what_it_means() {
    for (spec, field) in [
        (
            "{rules: [{from: [{source: {notRequestPrincipals: [\"*\"]}}]}]}",
            "spec.rules[0].from[0].source.requestPrincipals",
        ),
        (
            "{rules: [{when: [{key: \"request.auth.claims[iss]\", values: [a]}]}]}",
            "spec.rules[0].when[0]",
        ),
        (
            "{rules: [{when: [{key: connection.sni, values: [a]}]}]}",
            "spec.rules[0].when[0]",
        ),
    ] {
        refused(spec, field, "is denied");
    }
    refused(
        "{action: CUSTOM, provider: {name: x}, rules: [{}]}",
        "spec.action",
        "is denied",
    );
}

#[test]
fn a_dry_run_is_a_truth_value_of_a_policy_that_acts() {
    let annotation = "metadata.annotations[istio.io/dry-run]";
    let dry =
        |value: &str, spec: &str| annotated(&format!("{{istio.io/dry-run: \"{value}\"}}"), spec);
    assert_eq!(dry("true", "{}"), Vec::<String>::new());
    assert_eq!(dry("false", "{action: AUDIT}"), Vec::<String>::new());
    assert!(dry("yes", "{}")[0].starts_with(annotation));
    assert!(dry("true", "{action: AUDIT}")[0].contains("no effect"));
}
