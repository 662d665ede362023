//! Every field of Istio's traffic resources has an effect on what is compiled,
//! or is told to have none: nothing is ignored in silence.

use mesh_agent::resource::{Finding, Severity, parse};
use mesh_agent::snapshot::{Options, Snapshot};
use serde_json::{Value, json};

/// Beside the resource that is looked at: two workloads, two services, and what some fields refer to.
const MESH: &str = r"
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: w1}, spec: {address: 10.0.0.1, labels: {app: a, version: v1}}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: w2}, spec: {address: 10.0.0.2, labels: {app: b}}}
---
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, selector: {app: a}, ports: [{port: 80, name: http}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: b}, spec: {clusterIP: 10.96.0.2, selector: {app: b}, ports: [{port: 80, name: http}, {port: 81, name: tcp}]}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: leaf}, spec: {http: [{route: [{destination: {host: b}}]}]}}
";

/// Compiles the mesh with one more resource; what is compiled, as lines in no order, and findings.
fn compile(kind: &str, spec: &Value) -> (Vec<String>, Vec<Finding>) {
    let resource = json!({
        "apiVersion": if kind == "Service" { "v1" } else { "networking.istio.io/v1" },
        "kind": kind,
        "metadata": {"name": "x", "annotations": {"istio.io/autoRegistrationGroup": "g"}},
        "spec": spec,
    });
    // For groups: a workload that belongs to one; for others: the group that the resource may name.
    let other = if kind == "WorkloadGroup" {
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: m, annotations: \
         {istio.io/autoRegistrationGroup: x}}, spec: {address: 10.0.0.9}}"
    } else {
        "{apiVersion: networking.istio.io/v1, kind: WorkloadGroup, metadata: {name: g}, spec: {}}"
    };
    let text = format!("{MESH}---\n{other}\n---\n{resource}\n");
    let compiled = parse([("a.yaml", text.as_str())])
        .and_then(|resources| Snapshot::compile(1, &resources, &Options::default()));
    match compiled {
        Ok(snapshot) => {
            let text = format!("{:#?}{:#?}", snapshot.registry, snapshot.routes);
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            let findings = snapshot.warnings.into_iter();
            (
                lines,
                findings.filter(|one| one.origin.document > 6).collect(),
            )
        }
        Err(findings) => (Vec::new(), findings),
    }
}

/// `base` with what `field` (`a.b[0].c`) is to be.
fn with(base: &Value, field: &str, value: &Value) -> Value {
    fn put(at: &mut Value, path: &[String], value: &Value) {
        let Some((first, rest)) = path.split_first() else {
            *at = value.clone();
            return;
        };
        if let Ok(index) = first.parse::<usize>() {
            if !at.is_array() {
                *at = json!([]);
            }
            let list = at.as_array_mut().expect("a list");
            while list.len() <= index {
                list.push(json!({}));
            }
            put(&mut list[index], rest, value);
        } else {
            if !at.is_object() {
                *at = json!({});
            }
            let fields = at.as_object_mut().expect("a mapping");
            put(
                fields.entry(first.clone()).or_insert(json!({})),
                rest,
                value,
            );
        }
    }
    let path: Vec<String> = (field.replace('[', ".").replace(']', "").split('.'))
        .map(str::to_owned)
        .collect();
    let mut spec = base.clone();
    put(&mut spec, &path, value);
    spec
}

/// Each field, set alone over the base, changes what is compiled or is named by a warning.
fn check(kind: &str, base: &Value, fields: &[(&str, Value)]) -> Vec<String> {
    let (without, before) = compile(kind, base);
    // What is compared says the same of the same.
    assert_eq!(compile(kind, base).0, without);
    assert!(
        !without.is_empty(),
        "the base of {kind} is refused: {}",
        before[0]
    );
    let mut wrong = Vec::new();
    for (field, value) in fields {
        let (lines, findings) = compile(kind, &with(base, field, value));
        let refused = findings.iter().find(|one| one.severity == Severity::Error);
        if let Some(refused) = refused {
            wrong.push(format!("{kind} {field}: {refused}"));
            continue;
        }
        let named = format!("spec.{field}");
        let is_told = findings
            .iter()
            .filter(|one| !before.contains(one))
            .any(|one| {
                one.field == named
                    || named.starts_with(&format!("{}.", one.field))
                    || one.field.starts_with(&named)
            });
        if lines == without && !is_told {
            wrong.push(format!("{kind} {field}: ignored in silence"));
        }
    }
    wrong
}

#[test]
fn virtual_service() {
    let to = json!([{"destination": {"host": "a"}}]);
    let base = json!({"hosts": ["b"], "http": [{"route": to}]});
    let matched =
        json!({"hosts": ["b"], "http": [{"match": [{"uri": {"prefix": "/p"}}], "route": to}]});
    let text = |text: &str| json!({"exact": text});
    let mut wrong = check(
        "VirtualService",
        &base,
        &[
            ("hosts", json!(["b", "b.default.svc"])),
            ("gateways", json!(["edge"])),
            ("exportTo", json!(["."])),
            ("http[0].name", json!("n")),
            ("http[0].match", json!([{"uri": {"prefix": "/"}}])),
            ("http[0].route[0].weight", json!(7)),
            ("http[0].route[0].headers.request.set", json!({"x": "y"})),
            ("http[0].route[0].headers.response.add", json!({"x": "y"})),
            ("http[0].route[0].destination.subset", json!("v9")),
            ("http[0].route[0].destination.port.number", json!(80)),
            ("http[0].rewrite.uri", json!("/x")),
            ("http[0].rewrite.authority", json!("x")),
            (
                "http[0].rewrite.uriRegexRewrite",
                json!({"match": "a", "rewrite": "b"}),
            ),
            ("http[0].timeout", json!("3s")),
            ("http[0].retries.attempts", json!(7)),
            ("http[0].retries.perTryTimeout", json!("3s")),
            ("http[0].retries.retryOn", json!("5xx")),
            ("http[0].retries.retryRemoteLocalities", json!(true)),
            ("http[0].retries.retryIgnorePreviousHosts", json!(false)),
            ("http[0].retries.backoff", json!("3s")),
            (
                "http[0].fault.delay",
                json!({"fixedDelay": "1s", "percentage": {"value": 5}}),
            ),
            (
                "http[0].fault.abort",
                json!({"httpStatus": 500, "percentage": {"value": 5}}),
            ),
            ("http[0].mirror", json!({"host": "b"})),
            ("http[0].mirrors", json!([{"destination": {"host": "b"}}])),
            (
                "http[0].corsPolicy.allowOrigins",
                json!([{"exact": "https://a.example"}]),
            ),
            ("http[0].headers.request.remove", json!(["x"])),
            (
                "tls",
                json!([{"match": [{"sniHosts": ["b"]}], "route": to}]),
            ),
            ("tcp", json!([{"route": to}])),
        ],
    );
    wrong.extend(check(
        "VirtualService",
        &matched,
        &[
            ("http[0].match[0].name", json!("n")),
            ("http[0].match[0].uri", text("/x")),
            ("http[0].match[0].scheme", text("http")),
            ("http[0].match[0].method", text("GET")),
            ("http[0].match[0].authority", text("b")),
            ("http[0].match[0].headers", json!({"x": {"exact": "y"}})),
            ("http[0].match[0].port", json!(80)),
            ("http[0].match[0].sourceLabels", json!({"app": "a"})),
            ("http[0].match[0].gateways", json!(["edge"])),
            ("http[0].match[0].queryParams", json!({"x": {"exact": "y"}})),
            ("http[0].match[0].ignoreUriCase", json!(true)),
            (
                "http[0].match[0].withoutHeaders",
                json!({"x": {"exact": "y"}}),
            ),
            ("http[0].match[0].sourceNamespace", json!("default")),
            ("http[0].match[0].statPrefix", json!("s")),
        ],
    ));
    let mirrored = json!({"hosts": ["b"], "http": [{"route": to, "mirror": {"host": "b"}}]});
    wrong.extend(check(
        "VirtualService",
        &mirrored,
        &[
            ("http[0].mirrorPercentage.value", json!(7)),
            ("http[0].mirrorPercent", json!(7)),
        ],
    ));
    let redirected = json!({"hosts": ["b"], "http": [{"match": [{"uri": {"prefix": "/p"}}], "redirect": {"authority": "x"}}]});
    wrong.extend(check(
        "VirtualService",
        &redirected,
        &[
            ("http[0].redirect.uri", json!("/x")),
            ("http[0].redirect.prefixRewrite", json!("/x")),
            ("http[0].redirect.authority", json!("y")),
            ("http[0].redirect.port", json!(81)),
            ("http[0].redirect.derivePort", json!("FROM_REQUEST_PORT")),
            ("http[0].redirect.scheme", json!("https")),
            ("http[0].redirect.redirectCode", json!(302)),
        ],
    ));
    let direct = json!({"hosts": ["b"], "http": [{"directResponse": {"status": 200}}]});
    wrong.extend(check(
        "VirtualService",
        &direct,
        &[
            ("http[0].directResponse.status", json!(418)),
            ("http[0].directResponse.body.string", json!("x")),
            ("http[0].directResponse.body.bytes", json!("eA==")),
        ],
    ));
    let delegated = json!({"hosts": ["b"], "http": [{"delegate": {"name": "nobody"}}]});
    wrong.extend(check(
        "VirtualService",
        &delegated,
        &[
            ("http[0].delegate.name", json!("leaf")),
            ("http[0].delegate.namespace", json!("other")),
        ],
    ));
    let cors = json!({"hosts": ["b"], "http": [{"route": to, "corsPolicy": {"allowOrigins": [{"exact": "x"}]}}]});
    wrong.extend(check(
        "VirtualService",
        &cors,
        &[
            ("http[0].corsPolicy.allowOrigin", json!(["y"])),
            ("http[0].corsPolicy.allowMethods", json!(["GET"])),
            ("http[0].corsPolicy.allowHeaders", json!(["x"])),
            ("http[0].corsPolicy.exposeHeaders", json!(["x"])),
            ("http[0].corsPolicy.maxAge", json!("24h")),
            ("http[0].corsPolicy.allowCredentials", json!(true)),
            ("http[0].corsPolicy.unmatchedPreflights", json!("IGNORE")),
        ],
    ));
    let faulty = json!({"hosts": ["b"], "http": [{"route": to, "fault": {
        "delay": {"fixedDelay": "1s", "percentage": {"value": 5}}, "abort": {"httpStatus": 500, "percentage": {"value": 5}}}}]});
    wrong.extend(check(
        "VirtualService",
        &faulty,
        &[
            ("http[0].fault.delay.fixedDelay", json!("2s")),
            ("http[0].fault.delay.percentage.value", json!(6)),
            ("http[0].fault.abort.httpStatus", json!(501)),
            ("http[0].fault.abort.percentage.value", json!(6)),
        ],
    ));
    let opaque = json!({"hosts": ["b"], "tcp": [{"match": [{"port": 81}], "route": to}],
        "tls": [{"match": [{"sniHosts": ["b"]}], "route": to}]});
    for rule in ["tcp", "tls"] {
        let field = |name: &str| format!("{rule}[0].match[0].{name}");
        let fields: Vec<(String, Value)> = [
            ("destinationSubnets", json!(["10.0.0.0/8"])),
            ("port", json!(82)),
            ("sourceLabels", json!({"app": "a"})),
            ("gateways", json!(["edge"])),
            ("sourceNamespace", json!("default")),
        ]
        .into_iter()
        .chain((rule == "tcp").then(|| ("sourceSubnet", json!("10.0.0.0/8"))))
        .map(|(name, value)| (field(name), value))
        .collect();
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()))
            .collect();
        wrong.extend(check("VirtualService", &opaque, &fields));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn destination_rule() {
    let base = json!({"host": "a"});
    let mut wrong = check(
        "DestinationRule",
        &base,
        &[
            ("host", json!("b")),
            (
                "subsets",
                json!([{"name": "v1", "labels": {"version": "v1"}}]),
            ),
            ("exportTo", json!(["."])),
            ("workloadSelector.matchLabels", json!({"app": "a"})),
            (
                "trafficPolicy.tunnel",
                json!({"targetHost": "x", "targetPort": 1}),
            ),
            (
                "trafficPolicy.tunnel",
                json!({"protocol": "POST", "targetHost": "x", "targetPort": 1}),
            ),
            ("trafficPolicy.proxyProtocol.version", json!("V2")),
            ("trafficPolicy.retryBudget.percent.value", json!(7)),
            ("trafficPolicy.retryBudget.minRetryConcurrency", json!(7)),
            ("trafficPolicy.retryBudget.budgetInterval", json!("7s")),
            (
                "trafficPolicy.portLevelSettings",
                json!([{"port": {"number": 80}}]),
            ),
        ],
    );
    let blocks: Vec<(&str, Value)> = vec![
        ("loadBalancer.simple", json!("RANDOM")),
        ("loadBalancer.consistentHash.httpHeaderName", json!("x")),
        (
            "loadBalancer.consistentHash.httpCookie",
            json!({"name": "c", "path": "/", "ttl": "1s", "attributes": [{"name": "Secure"}]}),
        ),
        ("loadBalancer.consistentHash.useSourceIp", json!(true)),
        (
            "loadBalancer.consistentHash.httpQueryParameterName",
            json!("q"),
        ),
        (
            "loadBalancer.localityLbSetting.distribute",
            json!([{"from": "r/*", "to": {"r/z": 100}}]),
        ),
        (
            "loadBalancer.localityLbSetting.failover",
            json!([{"from": "r", "to": "s"}]),
        ),
        (
            "loadBalancer.localityLbSetting.failoverPriority",
            json!(["version"]),
        ),
        ("loadBalancer.localityLbSetting.enabled", json!(false)),
        ("loadBalancer.zoneAwareLbSetting.minClusterSize", json!(7)),
        ("loadBalancer.warmupDurationSecs", json!("7s")),
        (
            "loadBalancer.warmup",
            json!({"duration": "7s", "minimumPercent": 5, "aggression": 2}),
        ),
        ("connectionPool.tcp.maxConnections", json!(7)),
        ("connectionPool.tcp.connectTimeout", json!("7s")),
        ("connectionPool.tcp.tcpKeepalive.probes", json!(7)),
        ("connectionPool.tcp.tcpKeepalive.time", json!("7s")),
        ("connectionPool.tcp.tcpKeepalive.interval", json!("7s")),
        ("connectionPool.tcp.maxConnectionDuration", json!("7s")),
        ("connectionPool.tcp.idleTimeout", json!("7s")),
        ("connectionPool.http.http1MaxPendingRequests", json!(7)),
        ("connectionPool.http.http2MaxRequests", json!(7)),
        ("connectionPool.http.maxRequestsPerConnection", json!(7)),
        ("connectionPool.http.maxRetries", json!(7)),
        ("connectionPool.http.idleTimeout", json!("7s")),
        ("connectionPool.http.h2UpgradePolicy", json!("UPGRADE")),
        ("connectionPool.http.useClientProtocol", json!(true)),
        ("connectionPool.http.maxConcurrentStreams", json!(7)),
        (
            "connectionPool.http.http2KeepAlive",
            json!({"interval": "7s", "timeout": "7s"}),
        ),
        ("outlierDetection.consecutiveErrors", json!(7)),
        (
            "outlierDetection.splitExternalLocalOriginErrors",
            json!(true),
        ),
        ("outlierDetection.consecutiveGatewayErrors", json!(7)),
        ("outlierDetection.consecutive5xxErrors", json!(7)),
        ("outlierDetection.interval", json!("7s")),
        ("outlierDetection.baseEjectionTime", json!("7s")),
        ("outlierDetection.maxEjectionPercent", json!(70)),
        ("outlierDetection.minHealthPercent", json!(7)),
        (
            "outlierDetection.outlierDetectionHttpErrorCodes",
            json!([404]),
        ),
        ("tls.mode", json!("SIMPLE")),
    ];
    let top: Vec<_> = blocks
        .iter()
        .map(|(field, value)| (format!("trafficPolicy.{field}"), value.clone()))
        .collect();
    let fields: Vec<_> = top
        .iter()
        .map(|(field, value)| (field.as_str(), value.clone()))
        .collect();
    wrong.extend(check("DestinationRule", &base, &fields));
    let of_port =
        json!({"host": "a", "trafficPolicy": {"portLevelSettings": [{"port": {"number": 80}}]}});
    let port: Vec<_> = blocks
        .iter()
        .map(|(field, value)| {
            (
                format!("trafficPolicy.portLevelSettings[0].{field}"),
                value.clone(),
            )
        })
        .collect();
    let fields: Vec<_> = port
        .iter()
        .map(|(field, value)| (field.as_str(), value.clone()))
        .collect();
    wrong.extend(check("DestinationRule", &of_port, &fields));
    let of_subset = json!({"host": "a", "subsets": [{"name": "v1"}]});
    let subset: Vec<_> = blocks
        .iter()
        .map(|(field, value)| (format!("subsets[0].trafficPolicy.{field}"), value.clone()))
        .collect();
    let fields: Vec<_> = subset
        .iter()
        .map(|(field, value)| (field.as_str(), value.clone()))
        .collect();
    wrong.extend(check("DestinationRule", &of_subset, &fields));
    let split = json!({"host": "a", "trafficPolicy": {"outlierDetection": {"splitExternalLocalOriginErrors": true}}});
    wrong.extend(check(
        "DestinationRule",
        &split,
        &[(
            "trafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
            json!(7),
        )],
    ));
    let hash = json!({"host": "a", "trafficPolicy": {"loadBalancer": {"consistentHash": {"useSourceIp": true}}}});
    wrong.extend(check(
        "DestinationRule",
        &hash,
        &[
            (
                "trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize",
                json!(7),
            ),
            (
                "trafficPolicy.loadBalancer.consistentHash.minimumRingSize",
                json!(7),
            ),
            (
                "trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
                json!(7),
            ),
        ],
    ));
    let tls = json!({"host": "a", "trafficPolicy": {"tls": {"mode": "MUTUAL", "clientCertificate": "c", "privateKey": "k"}}});
    wrong.extend(check(
        "DestinationRule",
        &tls,
        &[
            ("trafficPolicy.tls.clientCertificate", json!("x")),
            ("trafficPolicy.tls.privateKey", json!("x")),
            ("trafficPolicy.tls.caCertificates", json!("x")),
            ("trafficPolicy.tls.caCrl", json!("x")),
            ("trafficPolicy.tls.subjectAltNames", json!(["x"])),
            ("trafficPolicy.tls.sni", json!("x")),
            ("trafficPolicy.tls.insecureSkipVerify", json!(true)),
        ],
    ));
    // Instead of files.
    let tls = json!({"mode": "SIMPLE"});
    let chosen = json!({"matchLabels": {"app": "sleep"}});
    for base in [
        json!({"host": "a", "trafficPolicy": {"tls": tls}}),
        json!({"host": "a", "workloadSelector": chosen, "trafficPolicy": {"tls": tls}}),
    ] {
        let fields = [("trafficPolicy.tls.credentialName", json!("x"))];
        wrong.extend(check("DestinationRule", &base, &fields));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn service_entry() {
    let base = json!({"hosts": ["x.example.com"], "resolution": "STATIC", "ports": [{"number": 80, "name": "p"}],
        "endpoints": [{"address": "10.9.0.1"}]});
    let mut wrong = check(
        "ServiceEntry",
        &base,
        &[
            ("hosts", json!(["x.example.com", "y.example.com"])),
            ("addresses", json!(["192.0.2.1"])),
            ("ports[0].number", json!(81)),
            ("ports[0].protocol", json!("HTTP")),
            ("ports[0].name", json!("http")),
            ("ports[0].targetPort", json!(8080)),
            ("location", json!("MESH_INTERNAL")),
            ("resolution", json!("DNS")),
            ("endpoints[0].address", json!("10.9.0.2")),
            ("endpoints[0].ports", json!({"p": 8080})),
            ("endpoints[0].labels", json!({"a": "b"})),
            ("endpoints[0].network", json!("n")),
            ("endpoints[0].locality", json!("r/z")),
            ("endpoints[0].weight", json!(7)),
            ("exportTo", json!(["."])),
            ("subjectAltNames", json!(["x"])),
        ],
    );
    let inside = json!({"hosts": ["x.example.com"], "resolution": "STATIC", "location": "MESH_INTERNAL",
        "ports": [{"number": 80, "name": "p"}], "endpoints": [{"address": "10.9.0.1", "labels": {"networking.istio.io/tunnel": "http"}}]});
    wrong.extend(check(
        "ServiceEntry",
        &inside,
        &[("endpoints[0].serviceAccount", json!("s"))],
    ));
    let selecting = json!({"hosts": ["x.example.com"], "resolution": "STATIC", "location": "MESH_INTERNAL",
        "ports": [{"number": 80, "name": "p"}]});
    wrong.extend(check(
        "ServiceEntry",
        &selecting,
        &[("workloadSelector.labels", json!({"app": "a"}))],
    ));
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn workload_entry_and_group() {
    let base = json!({"address": "10.0.0.3"});
    let mut wrong = check(
        "WorkloadEntry",
        &base,
        &[
            ("address", json!("10.0.0.4")),
            ("ports", json!({"http": 8080})),
            ("labels", json!({"app": "a"})),
            ("network", json!("n")),
            ("locality", json!("r/z")),
            ("weight", json!(7)),
            ("serviceAccount", json!("s")),
        ],
    );
    let group = json!({"probe": {"tcpSocket": {"port": 1}}});
    wrong.extend(check(
        "WorkloadGroup",
        &group,
        &[
            ("metadata.labels", json!({"app": "a"})),
            (
                "metadata.annotations",
                json!({"undermesh.io/direct": "true"}),
            ),
            ("template.ports", json!({"http": 8080})),
            ("template.network", json!("n")),
            ("template.locality", json!("r/z")),
            ("template.weight", json!(7)),
            ("template.serviceAccount", json!("s")),
            ("probe.initialDelaySeconds", json!(7)),
            ("probe.timeoutSeconds", json!(7)),
            ("probe.periodSeconds", json!(7)),
            ("probe.successThreshold", json!(7)),
            ("probe.failureThreshold", json!(7)),
            ("probe.tcpSocket.host", json!("127.0.0.1")),
            ("probe.tcpSocket.port", json!(7)),
            ("probe", json!({"exec": {"command": ["true"]}})),
            ("probe", json!({"grpc": {"port": 1, "service": "s"}})),
        ],
    ));
    let http = json!({"probe": {"httpGet": {"port": 1}}});
    wrong.extend(check(
        "WorkloadGroup",
        &http,
        &[
            ("probe.httpGet.path", json!("/x")),
            ("probe.httpGet.port", json!(7)),
            ("probe.httpGet.host", json!("127.0.0.1")),
            ("probe.httpGet.scheme", json!("HTTPS")),
            (
                "probe.httpGet.httpHeaders",
                json!([{"name": "x", "value": "y"}]),
            ),
        ],
    ));
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn sidecar() {
    let base = json!({"egress": [{"hosts": ["./*"]}]});
    let mut wrong = check(
        "Sidecar",
        &base,
        &[
            ("workloadSelector.labels", json!({"app": "a"})),
            (
                "ingress",
                json!([{"port": {"number": 80}, "defaultEndpoint": "127.0.0.1:8080"}]),
            ),
            (
                "ingress",
                json!([{"port": {"number": 80}, "bind": "10.0.0.1"}]),
            ),
            (
                "ingress",
                json!([{"port": {"number": 80}, "captureMode": "NONE"}]),
            ),
            (
                "ingress",
                json!([{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}]),
            ),
            (
                "ingress",
                json!([{"port": {"number": 80}, "connectionPool": {"tcp": {"maxConnections": 7}}}]),
            ),
            ("egress[0].port.number", json!(80)),
            ("egress[0].bind", json!("127.0.0.1")),
            ("egress[0].captureMode", json!("NONE")),
            ("egress[0].hosts", json!(["./*", "other/*"])),
            ("outboundTrafficPolicy.mode", json!("REGISTRY_ONLY")),
            (
                "outboundTrafficPolicy",
                json!({"mode": "ALLOW_ANY", "egressProxy": {"host": "b.default.svc.cluster.local", "port": {"number": 80}}}),
            ),
            (
                "ingress",
                json!([{"port": {"number": 80}, "defaultEndpoint": "unix:///run/a"}]),
            ),
            (
                "ingress",
                json!([{"port": {"number": 80, "protocol": "GRPC"}}]),
            ),
            (
                "ingress",
                json!([{"port": {"number": 80, "name": "tcp-a"}}]),
            ),
            ("inboundConnectionPool.tcp.maxConnections", json!(7)),
            ("inboundConnectionPool.tcp.connectTimeout", json!("7s")),
            ("inboundConnectionPool.tcp.tcpKeepalive.time", json!("7s")),
            (
                "inboundConnectionPool.tcp.maxConnectionDuration",
                json!("7s"),
            ),
            ("inboundConnectionPool.tcp.idleTimeout", json!("7s")),
            (
                "inboundConnectionPool.http.http1MaxPendingRequests",
                json!(7),
            ),
            ("inboundConnectionPool.http.http2MaxRequests", json!(7)),
            (
                "inboundConnectionPool.http.maxRequestsPerConnection",
                json!(7),
            ),
            ("inboundConnectionPool.http.maxRetries", json!(7)),
            ("inboundConnectionPool.http.idleTimeout", json!("7s")),
            (
                "inboundConnectionPool.http.h2UpgradePolicy",
                json!("UPGRADE"),
            ),
            ("inboundConnectionPool.http.useClientProtocol", json!(true)),
            ("inboundConnectionPool.http.maxConcurrentStreams", json!(7)),
            (
                "inboundConnectionPool.http.http2KeepAlive",
                json!({"interval": "7s", "timeout": "7s"}),
            ),
        ],
    );
    wrong.extend(check(
        "Sidecar",
        &base,
        &[("outboundTrafficPolicy", json!({}))],
    ));
    assert_eq!(wrong, Vec::<String>::new());
}

/// No timeout at all is what there is without the field.
#[test]
fn a_field_without_effect_is_noticed() {
    let base = json!({"hosts": ["b"], "http": [{"route": [{"destination": {"host": "a"}}]}]});
    let wrong = check("VirtualService", &base, &[("http[0].timeout", json!("0s"))]);
    assert_eq!(
        wrong,
        ["VirtualService http[0].timeout: ignored in silence"]
    );
}

/// Every field of a Kubernetes Service that concerns clients inside the cluster.
#[test]
fn service() {
    let base = json!({"clusterIP": "10.96.0.9", "selector": {"app": "a"}, "ports": [{"port": 80, "name": "http"}]});
    let affine = with(&base, "sessionAffinity", &json!("ClientIP"));
    let timeout = "sessionAffinityConfig.clientIP.timeoutSeconds";
    let mut wrong = check(
        "Service",
        &base,
        &[
            ("clusterIP", json!("10.96.0.8")),
            ("selector", json!({"app": "b"})),
            ("ports[0].port", json!(81)),
            ("ports[0].name", json!("tcp")),
            ("ports[0].targetPort", json!(8080)),
            ("ports[0].appProtocol", json!("tcp")),
            ("ports[0].protocol", json!("UDP")),
            ("externalIPs", json!(["192.0.2.1"])),
            ("sessionAffinity", json!("ClientIP")),
            (timeout, json!(5)),
            ("internalTrafficPolicy", json!("Local")),
            ("trafficDistribution", json!("PreferSameZone")),
        ],
    );
    wrong.extend(check("Service", &affine, &[(timeout, json!(5))]));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
