use super::*;

const ROOT: &str = "{hosts: [reviews], http: [\
    {name: root, match: [{uri: {prefix: /a}, headers: {x: {exact: '1'}}}], timeout: 3s, delegate: {name: leaf, namespace: other}}, \
    {route: [{destination: {host: ratings}}]}]}";

fn leaf(rules: &str) -> String {
    format!("{{http: [{rules}]}}")
}

fn mesh(rules: &str) -> Mesh {
    let leaf = leaf(rules);
    Mesh::new(&[("default/root", ROOT), ("other/leaf", &leaf)], &[])
}

#[test]
fn delegated_rules_stand_in_place_of_the_rule() {
    let mut mesh = mesh(
        "{name: ab, match: [{uri: {prefix: /a/b}}], route: [{destination: {host: reviews}}]}, \
         {timeout: 9s, route: [{destination: {host: reviews.default.svc.cluster.local}}]}",
    );
    // Its short names are those of its own namespace; what it leaves out is the root's.
    let decision = mesh.decide(&CLIENT, "GET reviews/a/b x:1");
    assert_eq!(decision.route_name, "root-ab");
    let Outcome::Forward(plan) = decision.outcome else {
        panic!("not forwarded");
    };
    assert_eq!(plan.service.host, "reviews.other.svc.cluster.local");
    assert_eq!(plan.timeout.map(|timeout| timeout.as_secs()), Some(3));
    let plan = mesh.plan("GET reviews/a/c x:1");
    assert_eq!(plan.service.host, "reviews.default.svc.cluster.local");
    assert_eq!(plan.timeout.map(|timeout| timeout.as_secs()), Some(9));
    // What the root excludes, no delegate can have.
    assert_eq!(
        mesh.outcome(&CLIENT, "GET reviews/a/b"),
        "ratings.default:80"
    );
    assert_eq!(mesh.findings, []);
}

#[test]
fn rules_that_exclude_each_other_vanish() {
    for condition in [
        "{uri: {prefix: /b}}",
        "{uri: {regex: /a.*}}",
        "{headers: {x: {exact: '2'}}}",
        "{ignoreUriCase: true, uri: {exact: /a}}",
    ] {
        let rule = format!("{{match: [{condition}], route: [{{destination: {{host: reviews}}}}]}}");
        let mut mesh = mesh(&rule);
        assert_eq!(
            mesh.outcome(&CLIENT, "GET reviews/a x:1"),
            "ratings.default:80"
        );
        let [finding] = &mesh.findings[..] else {
            panic!("{:?}", mesh.findings);
        };
        assert_eq!(finding.field, "spec.http[0].match", "{condition}");
        assert_eq!(
            finding.reason,
            "has no effect: it excludes spec.http[0].match of VirtualService default/root, which delegates here"
        );
    }
}

#[test]
fn a_delegate_that_is_not_there_is_told() {
    let mut mesh = Mesh::new(&[("default/root", ROOT)], &[]);
    assert_eq!(
        mesh.outcome(&CLIENT, "GET reviews/a x:1"),
        "ratings.default:80"
    );
    assert_eq!(
        mesh.findings[0].reason,
        "there is no VirtualService other/leaf that default sees: the rule is left out"
    );
    let private = "{exportTo: ['.'], http: [{route: [{destination: {host: reviews}}]}]}";
    let mesh = Mesh::new(&[("default/root", ROOT), ("other/leaf", private)], &[]);
    assert_eq!(mesh.findings.len(), 1);
}

#[test]
fn a_delegate_does_not_delegate_on() {
    let mesh = mesh("{delegate: {name: next}}");
    let finding = &mesh.findings[0];
    assert_eq!(finding.field, "spec.http[0].delegate");
    assert!(finding.reason.contains("cannot delegate on"), "{finding}");
}
