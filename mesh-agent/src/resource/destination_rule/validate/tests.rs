use super::*;
use crate::resource::Severity;
use crate::route::fixture::resource;

/// Findings as `severity field: reason`.
fn findings(spec: &str) -> Vec<String> {
    validate(&resource("DestinationRule", "default/test", spec))
        .iter()
        .map(|finding| {
            let severity = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            format!("{severity} {}: {}", finding.field, finding.reason)
        })
        .collect()
}

#[test]
fn what_is_applied_has_no_findings() {
    let spec = "{host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}], \
        trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, tls: {mode: ISTIO_MUTUAL}, connectionPool: {tcp: {connectTimeout: 1s}}}}";
    assert_eq!(findings(spec), [""; 0]);
}

#[test]
fn the_guides_circuit_breaker_is_applied() {
    let spec = "{host: backend-service, trafficPolicy: {connectionPool: {tcp: {maxConnections: 100}, \
        http: {http1MaxPendingRequests: 50, maxRequestsPerConnection: 10}}, \
        outlierDetection: {consecutive5xxErrors: 5, interval: 30s, baseEjectionTime: 60s, maxEjectionPercent: 50}}}";
    assert_eq!(findings(spec), [""; 0]);
}

#[test]
fn what_cannot_be_is_refused() {
    for (spec, expected) in [
        ("{host: ''}", "error spec.host: must not be empty"),
        (
            "{host: a, subsets: [{name: ''}]}",
            "error spec.subsets[0].name: must not be empty",
        ),
        (
            "{host: a, subsets: [{name: b}, {name: b}]}",
            "error spec.subsets[1].name: \"b\" stands twice",
        ),
        (
            "{host: a, exportTo: ['*'], workloadSelector: {matchLabels: {a: b}}}",
            "error spec.exportTo: must be \".\" where a workloadSelector is given",
        ),
        (
            "{host: a, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1us}}}}",
            "error spec.trafficPolicy.connectionPool.tcp.connectTimeout: must be at least 1ms",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, sni: b}}}",
            "error spec.trafficPolicy.tls.sni: must be empty with mode ISTIO_MUTUAL",
        ),
        (
            "{host: a, trafficPolicy: {portLevelSettings: [{}]}}",
            "error spec.trafficPolicy.portLevelSettings[0].port: is required",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {}}}}",
            "error spec.trafficPolicy.loadBalancer.consistentHash: needs one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, httpHeaderName: x}}}}",
            "error spec.trafficPolicy.loadBalancer.consistentHash.useSourceIp: excludes httpHeaderName",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 100}}}}}",
            "error spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 100 is not a prime up to 5000011",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: eu, to: {eu: 50, us: 40}}]}}}}",
            "error spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: the weights add up to 90, not to 100",
        ),
        (
            "{host: a, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}], failoverPriority: [a, topology.kubernetes.io/zone]}}}}",
            "error spec.trafficPolicy.loadBalancer.localityLbSetting.failoverPriority: topology.kubernetes.io/zone excludes failover",
        ),
        (
            "{host: a, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us/*}]}}}}",
            "error spec.trafficPolicy.loadBalancer.localityLbSetting.failover[0].to: \"us/*\" is not a region",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: eu, to: {eu: 100}}], failover: [{from: eu, to: us}]}}}}",
            "error spec.trafficPolicy.loadBalancer.localityLbSetting.failover: excludes distribute",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: eu, to: {eu: 100}}], failoverPriority: [a]}}}}",
            "warning spec.trafficPolicy.loadBalancer.localityLbSetting.failoverPriority: has no effect beside distribute",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: eu, to: {eu: 100, us: 0}}]}}}}",
            "error spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: a weight is 0: leave the locality out",
        ),
        (
            "{host: a, trafficPolicy: {outlierDetection: {}}, subsets: [{name: b, trafficPolicy: {portLevelSettings: [{port: {number: 80}, loadBalancer: {localityLbSetting: {failoverPriority: [a]}}}]}}, \
             {name: c, trafficPolicy: {loadBalancer: {localityLbSetting: {failoverPriority: [a]}}}}]}",
            "warning spec.subsets[0].trafficPolicy.portLevelSettings[0].loadBalancer.localityLbSetting: has no effect without outlierDetection",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {warmup: {}}}}",
            "error spec.trafficPolicy.loadBalancer.warmup.duration: is required",
        ),
        (
            "{host: a, trafficPolicy: {outlierDetection: {consecutiveErrors: 3}}}",
            "warning spec.trafficPolicy.outlierDetection.consecutiveErrors: has no effect: use consecutive5xxErrors",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: MUTUAL, credentialName: b}}}",
            "warning spec.trafficPolicy.tls.credentialName: has no effect without spec.workloadSelector, as in Istio: such connections are refused",
        ),
        (
            "{host: a, workloadSelector: {matchLabels: {app: a}}, trafficPolicy: {tls: {mode: SIMPLE, credentialName: b, caCertificates: c}}}",
            "error spec.trafficPolicy.tls.caCertificates: excludes credentialName",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: SIMPLE, credentialName: b}}}",
            "warning spec.trafficPolicy.tls.credentialName: has no effect without spec.workloadSelector, as in Istio: the system's authorities are trusted",
        ),
    ] {
        assert_eq!(findings(spec), [expected], "{spec}");
    }
    for spec in [
        "{host: a, subset: []}",
        "{subsets: []}",
        "{host: a, trafficPolicy: {loadBalancer: {simple: FASTEST}}}",
    ] {
        assert!(
            serde_saphyr::from_str::<DestinationRuleSpec>(spec).is_err(),
            "{spec}"
        );
    }
}

/// Every field of the schema, so that none is refused by its name.
#[test]
fn the_whole_schema_is_read() {
    let policy = "
      loadBalancer: {simple: RANDOM, consistentHash: {httpHeaderName: a, httpCookie: {name: a, path: /, ttl: 0s, attributes: [{name: a, value: b}]},
        useSourceIp: true, httpQueryParameterName: a, ringHash: {minimumRingSize: 1}, maglev: {tableSize: 7}, minimumRingSize: 2},
        localityLbSetting: {distribute: [{from: a, to: {b: 100}}], failover: [{from: a, to: b}], failoverPriority: [a], enabled: true},
        zoneAwareLbSetting: {minClusterSize: 6}, warmupDurationSecs: 1s, warmup: {duration: 1s, minimumPercent: 10.5, aggression: 1}}
      connectionPool:
        tcp: {maxConnections: 1, connectTimeout: 1s, tcpKeepalive: {probes: 1, time: 1s, interval: 1s}, maxConnectionDuration: 1s, idleTimeout: 0s}
        http: {http1MaxPendingRequests: 1, http2MaxRequests: 1, maxRequestsPerConnection: 1, maxRetries: 1, idleTimeout: 1s, h2UpgradePolicy: UPGRADE,
          useClientProtocol: true, maxConcurrentStreams: 1, http2KeepAlive: {interval: 1s, timeout: 1s}}
      outlierDetection: {consecutiveErrors: 1, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 1, consecutiveGatewayErrors: 1,
        consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 1s, maxEjectionPercent: 1, minHealthPercent: 1, outlierDetectionHttpErrorCodes: [500]}
      tls: {mode: MUTUAL, clientCertificate: a, privateKey: b, caCertificates: c, caCrl: d, credentialName: e, subjectAltNames: [f], sni: g, insecureSkipVerify: false}
";
    let spec = format!(
        "
host: a
exportTo: ['.']
workloadSelector: {{matchLabels: {{a: b}}}}
trafficPolicy:
{}
  tunnel: {{protocol: CONNECT, targetHost: a, targetPort: 1}}
  proxyProtocol: {{version: V2}}
  retryBudget: {{percent: {{value: 20}}, minRetryConcurrency: 3, budgetInterval: 0s}}
  portLevelSettings:
    - port: {{number: 80}}
{policy}
subsets: [{{name: a, labels: {{b: c}}, trafficPolicy: {{}}}}]
",
        policy.replace("\n    ", "\n")
    );
    let read: DestinationRuleSpec =
        serde_saphyr::from_str(&spec).unwrap_or_else(|error| panic!("{spec}\n{error}"));
    let policy = read.traffic_policy.expect("a policy");
    let outliers = policy.outlier_detection.expect("a block");
    assert_eq!(outliers.consecutive_5xx_errors, Some(1));
    assert_eq!(
        policy.port_level_settings[0].outlier_detection.as_ref(),
        Some(&outliers)
    );
}

#[test]
fn endpoints_can_be_compared_by_annotation() {
    let with = |annotations: &[(&str, &str)], spec: &str| {
        let mut rule = resource("DestinationRule", "default/test", spec);
        for (key, value) in annotations {
            let key = format!("undermesh.io/{key}");
            let meta = std::sync::Arc::make_mut(&mut rule.meta);
            meta.annotations.insert(key, (*value).to_owned());
        }
        let findings = validate(&rule);
        let texts = findings.iter().map(|finding| finding.to_string());
        texts
            .map(|text| {
                text.split_once("default/test: ")
                    .expect("an object")
                    .1
                    .to_owned()
            })
            .collect::<Vec<_>>()
    };
    let spec = "{host: a, trafficPolicy: {outlierDetection: {}}}";
    for value in [
        "on",
        "off",
        "stdev-factor=1.5",
        "minimum-hosts=3, request-volume=10",
    ] {
        assert_eq!(
            with(&[("success-rate-ejection", value)], spec),
            [""; 0],
            "{value}"
        );
    }
    let value = "factor=2.5, minimum-difference=5ms";
    assert_eq!(with(&[("latency-ejection", value)], spec), [""; 0]);
    for (key, value, expected) in [
        (
            "success-rate-ejection",
            "true",
            "[undermesh.io/success-rate-ejection]: \"true\" is not name=value",
        ),
        (
            "success-rate-ejection",
            "factor=2",
            "[undermesh.io/success-rate-ejection]: \"factor\" is none of minimum-hosts, request-volume, stdev-factor",
        ),
        (
            "success-rate-ejection",
            "stdev-factor=-1",
            "[undermesh.io/success-rate-ejection]: stdev-factor: \"-1\" is not a number above 0, up to 1000",
        ),
        (
            "latency-ejection",
            "minimum-hosts=0",
            "[undermesh.io/latency-ejection]: minimum-hosts: \"0\" is not a number from 1 to 1000000",
        ),
        (
            "latency-ejection",
            "minimum-difference=5",
            "[undermesh.io/latency-ejection]: minimum-difference: \"5\" is not a duration such as 1h, 1m, 1s or 1ms",
        ),
        (
            "latency-ejection",
            "factor=2,factor=3",
            "[undermesh.io/latency-ejection]: \"factor\" stands twice",
        ),
        (
            "latency-eject",
            "on",
            "[undermesh.io/latency-eject]: is not an annotation that the mesh knows; it knows undermesh.io/success-rate-ejection, undermesh.io/latency-ejection",
        ),
    ] {
        assert_eq!(
            with(&[(key, value)], spec),
            [format!("metadata.annotations{expected}")]
        );
    }
    assert_eq!(
        with(&[("latency-ejection", "on")], "{host: a}"),
        ["metadata.annotations: ejection has no effect without an outlierDetection"]
    );
}
