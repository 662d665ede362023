use super::*;
use crate::resource::parse;
use crate::resource::telemetry::Metric;

/// Compiles resources given as `namespace/name spec`, beside a workload `app=a` of namespace `shop`.
fn compiled(resources: &[&str]) -> (Rules, Arc<Workload>, Vec<String>) {
    let mut text = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
        metadata: {name: a, namespace: shop}\nspec: {address: 10.0.0.1, labels: {app: a}}\n"
        .to_owned();
    for resource in resources {
        let (object, spec) = resource.split_once(' ').expect("a spec");
        let (namespace, name) = object.split_once('/').expect("a name");
        text += &format!(
            "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        );
    }
    let set = parse([("a.yaml", text.as_str())]).expect("resources");
    let (registry, _) = Registry::compile(&set, "cluster.local", "cluster.local");
    let (rules, findings) = Rules::compile(&set.telemetries, &registry, "istio-system");
    let findings = set.warnings.iter().chain(&findings);
    let findings = findings.map(|one| format!("{}: {}", one.field, one.reason));
    let (workload, findings) = (registry.workloads[0].clone(), findings.collect());
    (rules, workload, findings)
}

fn logging(resources: &[&str], side: Side) -> Logging {
    let (rules, workload, _) = compiled(resources);
    rules.logging(&workload, side)
}

fn filter(text: &str) -> Logging {
    Logging::Where(Arc::new(Expression::parse(text).expect(text)))
}

const MESH: &str = "istio-system/mesh {accessLogging: [{providers: [{name: envoy}]}]}";

#[test]
fn the_narrower_scope_is_put_over_the_wider() {
    let of = |resources: &[&str]| logging(resources, Side::Client);
    assert_eq!(of(&[]), Logging::AsStarted);
    assert_eq!(of(&["istio-system/mesh {}"]), Logging::AsStarted);
    assert_eq!(of(&[MESH]), Logging::Always);
    let off = "shop/off {accessLogging: [{disabled: true}]}";
    assert_eq!(of(&[MESH, off]), Logging::Never);
    let errors = "shop/e {selector: {matchLabels: {app: a}}, accessLogging: \
                  [{filter: {expression: response.code >= 400}}]}";
    assert_eq!(of(&[MESH, off, errors]), filter("response.code >= 400"));
    let others = errors.replace("app: a", "app: b");
    assert_eq!(of(&[MESH, off, &others]), Logging::Never);
    let elsewhere = off.replace("shop", "other");
    assert_eq!(of(&[MESH, &elsewhere]), Logging::Always);
    // A narrower scope that says nothing of it leaves it as it is.
    assert_eq!(of(&[MESH, "shop/x {metrics: []}"]), Logging::Always);
}

#[test]
fn each_side_has_its_own() {
    let one = "shop/x {accessLogging: [{match: {mode: CLIENT}}, \
               {match: {mode: SERVER}, filter: {expression: connection.mtls}}]}";
    assert_eq!(logging(&[one], Side::Client), Logging::Always);
    assert_eq!(logging(&[one], Side::Server), filter("connection.mtls"));
    let client = "shop/x {accessLogging: [{match: {mode: SERVER}}]}";
    assert_eq!(logging(&[client], Side::Client), Logging::Never);
}

#[test]
fn the_narrowest_scope_that_names_providers_decides_whose() {
    let other = "shop/x {accessLogging: [{providers: [{name: otel}]}]}";
    assert_eq!(logging(&[MESH, other], Side::Client), Logging::Never);
    let again =
        "shop/y {selector: {matchLabels: {app: a}}, accessLogging: [{providers: [{name: Envoy}]}]}";
    assert_eq!(
        logging(&[MESH, other, again], Side::Client),
        Logging::Always
    );
}

#[test]
fn metrics_and_labels_are_changed_in_order() {
    let mesh = "istio-system/mesh {metrics: [{providers: [{name: prometheus}], overrides: [\
        {tagOverrides: {source_version: {operation: REMOVE}, region: {value: \"'eu'\"}}}, \
        {match: {metric: REQUEST_SIZE, mode: CLIENT}, disabled: true}]}]}";
    let (rules, workload, _) = compiled(&[mesh]);
    let of = |side, metric| {
        rules
            .metrics(&workload, side)
            .and_then(|all| all.metric(metric).cloned())
    };
    let size = of(Side::Client, Metric::RequestSize).expect("a rule");
    assert!(size.disabled);
    let count = of(Side::Server, Metric::RequestCount).expect("a rule");
    assert!(!count.disabled);
    assert_eq!(count.labels["source_version"], Change::Remove);
    assert_eq!(count.labels.len(), 2);

    let narrower =
        "shop/x {metrics: [{overrides: [{match: {metric: REQUEST_SIZE}, disabled: false}]}]}";
    let (rules, workload, _) = compiled(&[mesh, narrower]);
    let of = |side, metric| {
        rules
            .metrics(&workload, side)
            .and_then(|all| all.metric(metric).cloned())
    };
    assert!(
        !of(Side::Client, Metric::RequestSize)
            .expect("a rule")
            .disabled
    );
    let nobody = "shop/x {metrics: [{providers: [{name: stackdriver}]}]}";
    let (rules, workload, _) = compiled(&[mesh, nobody]);
    let of = |side, metric| {
        rules
            .metrics(&workload, side)
            .and_then(|all| all.metric(metric).cloned())
    };
    assert!(
        of(Side::Client, Metric::TcpSentBytes)
            .expect("a rule")
            .disabled
    );
}

#[test]
fn what_is_not_applied_is_told() {
    let (_, _, findings) = compiled(&[
        "shop/x {tracing: [{providers: [{name: zipkin}]}], accessLogging: [{providers: [{name: otel}]}, \
         {filter: {expression: 'source.colour == 1'}}], metrics: [{reportingInterval: 5s, overrides: [\
         {match: {customMetric: mine}}, {match: {metric: GRPC_REQUEST_MESSAGES}}, \
         {tagOverrides: {host: {value: request.host}}}]}]}",
        "shop/y {}",
        "shop/one {selector: {matchLabels: {app: a}}}",
        "shop/two {selector: {matchLabels: {app: a}}}",
        "shop/three {selector: {matchLabels: {app: c}}}",
    ]);
    assert_eq!(
        findings,
        [
            "spec.accessLogging[0].providers[0].name: \"otel\" is not known here, only \"envoy\"",
            "spec.metrics[0].reportingInterval: not applied by this version: metrics are those of the moment in which they are read",
            "spec.metrics[0].overrides[0].match.customMetric: not applied by this version: there are Istio's metrics only",
            "spec.metrics[0].overrides[1].match.metric: not applied by this version: messages of gRPC are not counted",
            "spec.tracing[0]: not applied by this version: no spans are made",
            "spec.accessLogging[1].filter.expression: not applied, every line is written: source.colour is not known here",
            "spec.metrics[0].overrides[2].tagOverrides.host.value: not applied, the label stays as it is: what \"request.host\" asks for of each request is not known here",
            ": is ignored: x comes first and has the same scope",
            "spec.selector: selects workloads that one has selected before, which decides for them",
            "spec.selector: selects no workload of namespace shop",
        ]
    );
}

#[test]
fn what_is_wrong_is_refused() {
    for (spec, expected) in [
        (
            "{accessLogging: [{filter: {expression: 'response.code >'}}]}",
            "character 16",
        ),
        (
            "{accessLogging: [{filter: {expression: ''}}]}",
            "must not be empty",
        ),
        (
            "{accessLogging: [{match: {mode: BOTH}}]}",
            "unknown variant `BOTH`",
        ),
        ("{accessLogging: [{providers: [{}]}]}", "is required"),
        (
            "{metrics: [{overrides: [{tagOverrides: {a-b: {operation: REMOVE}}}]}]}",
            "no name of a label",
        ),
        (
            "{metrics: [{overrides: [{tagOverrides: {a: {operation: UPSERT}}}]}]}",
            "is required to UPSERT",
        ),
        (
            "{metrics: [{overrides: [{tagOverrides: {a: {operation: REMOVE, value: x}}}]}]}",
            "cannot stand beside REMOVE",
        ),
        ("{logging: []}", "unknown field `logging`"),
    ] {
        let text = format!(
            "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: x}}\nspec: {spec}\n"
        );
        let findings = match parse([("a.yaml", text.as_str())]) {
            Err(findings) => findings,
            Ok(set) => Rules::compile(&set.telemetries, &Registry::default(), "istio-system").1,
        };
        let errors: Vec<_> = findings.iter().map(Finding::to_string).collect();
        assert!(
            errors.iter().any(|error| error.contains(expected)),
            "{spec}: {errors:?}"
        );
    }
}
