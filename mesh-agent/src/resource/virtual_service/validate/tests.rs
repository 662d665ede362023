use super::*;
use crate::resource::Severity;
use crate::route::fixture::resource;

/// Findings as `severity field: reason`.
fn findings(spec: &str) -> Vec<String> {
    validate(&resource("VirtualService", "default/test", spec))
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

/// Findings of one HTTP rule, with `spec.http[0].` left out.
fn rule(rest: &str) -> Vec<String> {
    let spec = format!("{{hosts: [reviews], http: [{{{rest}}}]}}");
    let findings = findings(&spec);
    findings
        .iter()
        .map(|finding| finding.replacen("spec.http[0].", "", 1))
        .collect()
}

/// Each rule has exactly this finding.
fn check(cases: &[(&str, &str)]) {
    for (rest, expected) in cases {
        assert_eq!(rule(rest), [*expected], "{rest}");
    }
}

#[test]
fn the_guides_rules_have_no_findings() {
    for spec in [
        "{hosts: [reviews], http: [{match: [{headers: {end-user: {exact: jason}}}], \
          route: [{destination: {host: reviews, subset: v2}}]}, {route: [{destination: {host: reviews, subset: v1}}]}]}",
        "{hosts: [myapp], http: [{route: [{destination: {host: myapp, subset: stable}, weight: 90}, \
          {destination: {host: myapp, subset: canary}, weight: 10}]}]}",
    ] {
        assert_eq!(findings(spec), [""; 0]);
    }
}

#[test]
fn hosts_are_checked() {
    let to = "http: [{route: [{destination: {host: a}}]}]";
    for (hosts, expected) in [
        (
            "'*'",
            "error spec.hosts[0]: \"*\" alone cannot be used inside the mesh",
        ),
        ("a, A", "error spec.hosts[1]: \"A\" stands twice"),
        ("'a b'", "error spec.hosts[0]: \"a b\" is not a host name"),
        ("''", "error spec.hosts[0]: must not be empty"),
        (
            "'a.*.b'",
            "error spec.hosts[0]: \"a.*.b\" is not a host name",
        ),
    ] {
        assert_eq!(findings(&format!("{{hosts: [{hosts}], {to}}}")), [expected]);
    }
    assert_eq!(
        findings("{hosts: [a]}"),
        ["error spec: needs http, tls or tcp"]
    );
    assert_eq!(
        findings(&format!("{{hosts: [a], exportTo: ['*', b], {to}}}")),
        ["error spec.exportTo[0]: \"*\" cannot stand with others"]
    );
    // A delegate has no hosts; it has neither gateways nor other rules than HTTP's.
    assert_eq!(findings(&format!("{{{to}}}")), [""; 0]);
    assert!(
        findings(&format!("{{gateways: [mesh], {to}}}"))[0]
            .starts_with("error spec.hosts: must name a host")
    );
}

#[test]
fn a_rule_has_one_action() {
    check(&[
        (
            "name: a",
            "error spec.http[0]: needs one of route, redirect, directResponse and delegate",
        ),
        (
            "redirect: {uri: /a}, directResponse: {status: 200}",
            "error directResponse: excludes redirect",
        ),
        (
            "redirect: {uri: /a}, fault: {abort: {httpStatus: 500, percentage: {value: 1}}}",
            "error fault: excludes redirect",
        ),
        (
            "redirect: {uri: /b}, corsPolicy: {}",
            "warning corsPolicy: has no effect beside redirect, as in Istio",
        ),
        (
            "directResponse: {status: 200}, timeout: 1s",
            "warning timeout: has no effect beside directResponse, as in Istio",
        ),
        (
            "redirect: {}",
            "error redirect: needs at least one of uri, prefixRewrite, authority, scheme and port",
        ),
        (
            "redirect: {uri: /a, redirectCode: 304}",
            "error redirect.redirectCode: 304 is not one of 301, 302, 303, 307 and 308",
        ),
        (
            "redirect: {uri: /a, redirectCode: 200}",
            "error redirect.redirectCode: 200 is no redirection",
        ),
        (
            "redirect: {prefixRewrite: /a}",
            "error redirect.prefixRewrite: needs prefix matches of the uri",
        ),
        (
            "redirect: {scheme: ftp}",
            "error redirect.scheme: \"ftp\" is neither http nor https",
        ),
        (
            "directResponse: {status: 100}",
            "error directResponse.status: 100 is not within 200 to 599",
        ),
        (
            "directResponse: {status: 200, body: {string: a, bytes: YQ==}}",
            "error directResponse.body.bytes: excludes string",
        ),
    ]);
}

#[test]
fn destinations_and_weights_are_checked() {
    check(&[
        (
            "route: [{destination: {host: a}, weight: 1}, {destination: {host: b}, weight: -1}]",
            "error route[1].weight: -1 is negative",
        ),
        (
            "route: [{destination: {host: a}}, {destination: {host: b}}]",
            "error route: the weights add up to 0",
        ),
        (
            "route: [{destination: {host: ''}}]",
            "error route[0].destination.host: must not be empty",
        ),
        (
            "route: [{destination: {host: '*'}}]",
            "error route[0].destination.host: \"*\" is every service, and none",
        ),
        (
            "route: [{destination: {host: a, port: {number: 70000}}}]",
            "error route[0].destination.port.number: 70000 is not a port, 1 to 65535",
        ),
    ]);
    for accepted in [
        "route: [{destination: {host: a}, weight: 0}]",
        "route: [{destination: {host: '*.example.org'}}]",
    ] {
        assert_eq!(rule(accepted), [""; 0], "{accepted}");
    }
}

#[test]
fn matches_are_checked() {
    let case = |block: &str| {
        rule(&format!(
            "match: [{block}], route: [{{destination: {{host: a}}}}]"
        ))
    };
    for (block, expected) in [
        ("{}", "error match[0]: has no condition"),
        (
            "{uri: {exact: /a, prefix: /b}}",
            "error match[0].uri: takes one of exact, prefix and regex",
        ),
        (
            "{uri: {prefix: ''}}",
            "error match[0].uri.prefix: must not be empty",
        ),
        (
            "{uri: {regex: ''}}",
            "error match[0].uri.regex: must not be empty",
        ),
        (
            "{uri: {regex: 'a('}}",
            "error match[0].uri.regex: is not an RE2 expression: error: unclosed group",
        ),
        (
            "{headers: {'a b': {exact: c}}}",
            "error match[0].headers[a b]: is not a header name",
        ),
        (
            "{headers: {method: {exact: GET}}}",
            "warning match[0].headers[method]: has no effect: use the field of this name",
        ),
        (
            "{headers: {'@request.auth.claims.a': {exact: b}}}",
            "warning match[0].headers[@request.auth.claims.a]: not applied by this version: the condition never holds",
        ),
        (
            "{port: 0}",
            "error match[0].port: 0 is not a port, 1 to 65535",
        ),
        (
            "{sourceLabels: {app: 'a*'}}",
            "error match[0].sourceLabels[app]: wildcards are not allowed in labels",
        ),
        (
            "{port: 80, statPrefix: a}",
            "warning match[0].statPrefix: not applied by this version",
        ),
    ] {
        assert_eq!(case(block), [expected], "{block}");
    }
    let long = format!("{{uri: {{regex: '{}'}}}}", "a".repeat(1025));
    assert_eq!(
        case(&long),
        ["error match[0].uri.regex: is longer than 1024 characters"]
    );
}

#[test]
fn what_happens_to_a_request_is_checked() {
    let to = "route: [{destination: {host: a}}]";
    for (rest, expected) in [
        ("timeout: 1us", "error timeout: must be at least 1ms"),
        (
            "retries: {attempts: -1}",
            "error retries.attempts: -1 is negative",
        ),
        (
            "retries: {attempts: 1, retryOn: 'reset,nonsense'}",
            "error retries.retryOn: \"nonsense\" is not a condition for a retry",
        ),
        (
            "retries: {attempts: 1, retryOn: 'retriable-headers,http3-post-connect-failure'}",
            "warning retries.retryOn: \"http3-post-connect-failure\" has no effect: nothing is sent by HTTP/3",
        ),
        (
            "retries: {attempts: 1, retryOn: '99'}",
            "error retries.retryOn: 99 is not a status code",
        ),
        ("fault: {}", "error fault: needs delay or abort"),
        (
            "fault: {delay: {percentage: {value: 1}}}",
            "error fault.delay.fixedDelay: is required",
        ),
        (
            "fault: {delay: {fixedDelay: 1s}}",
            "warning fault.delay.percentage: is left out: no request is delayed",
        ),
        (
            "fault: {abort: {httpStatus: 99, percentage: {value: 1}}}",
            "error fault.abort.httpStatus: 99 is not within 200 to 599",
        ),
        (
            "fault: {abort: {grpcStatus: '14', percentage: {value: 1}}}",
            "error fault.abort.grpcStatus: \"14\" is not the name of a gRPC status",
        ),
        (
            "fault: {abort: {httpStatus: 500, percentage: {value: 100.1}}}",
            "error fault.abort.percentage.value: must be between 0 and 100",
        ),
        (
            "fault: {abort: {http2Error: X, percentage: {value: 1}}}",
            "error fault.abort.http2Error: is not supported",
        ),
        (
            "rewrite: {}",
            "error rewrite: needs uri, authority or uriRegexRewrite",
        ),
        (
            "rewrite: {uri: /a, uriRegexRewrite: {match: a, rewrite: b}}",
            "error rewrite.uriRegexRewrite: excludes uri",
        ),
        (
            "headers: {request: {set: {'a b': c}}}",
            "error headers.request.set[a b]: \"a b\" is not a header name",
        ),
        (
            "headers: {request: {set: {host: a}, add: {':authority': b}}}",
            "error headers.request: gives the authority twice",
        ),
        (
            "headers: {response: {set: {':status': '200'}}}",
            "warning headers.response.set[:status]: has no effect: this header is not edited here",
        ),
        (
            "headers: {request: {set: {a: '%REQ(x)%', b: '%DURATION%'}}}",
            "warning headers.request.set[b]: %DURATION% is not applied by this version: the header is left alone",
        ),
        (
            "headers: {response: {add: {a: '50% off'}}}",
            "error headers.response.add[a]: has a % that begins no command; a percent sign is written %%",
        ),
        (
            "mirrors: [{destination: {host: b}, percentage: {value: 101}}]",
            "error mirrors[0].percentage.value: must be between 0 and 100",
        ),
    ] {
        assert_eq!(rule(&format!("{rest}, {to}")), [expected], "{rest}");
    }
    assert_eq!(rule(&format!("timeout: 0s, {to}")), [""; 0]);
}

#[test]
fn rules_that_are_never_reached_are_named() {
    let spec = "{hosts: [a], http: [{match: [{uri: {prefix: /}}], route: [{destination: {host: a}}]}, {route: [{destination: {host: b}}]}]}";
    assert_eq!(
        findings(spec),
        ["warning spec.http[1]: is never reached: http[0] matches every request"]
    );
}

#[test]
fn tcp_and_tls_rules_are_checked() {
    let spec =
        "{hosts: [a], tcp: [{match: [{destinationSubnets: [x], sourceSubnet: y}], route: []}]}";
    assert_eq!(
        findings(spec),
        [
            "error spec.tcp[0].match[0].destinationSubnets[0]: \"x\" is not an address with a prefix length",
            "error spec.tcp[0].match[0].sourceSubnet: \"y\" is not an address with a prefix length",
            "error spec.tcp[0].route: is required",
        ]
    );
    let spec = "{hosts: [a, '*.b.com'], tls: [{match: [{sniHosts: [a, c.b.com, b.com, '*.c.b.com']}], route: [{destination: {host: a}}]}]}";
    assert_eq!(
        findings(spec),
        ["error spec.tls[0].match[0].sniHosts[2]: \"b.com\" is not one of spec.hosts"]
    );
}

#[test]
fn unknown_fields_and_wrong_types_are_refused() {
    for (spec, expected) in [
        ("{hosts: [a], https: []}", "https"),
        ("{http: [{rout: []}]}", "rout"),
        ("{http: [{timeout: 5}]}", "5"),
        ("{http: [{timeout: soon}]}", "soon"),
        ("{http: [{route: [{weight: 1}]}]}", "destination"),
    ] {
        let error = serde_saphyr::from_str::<VirtualServiceSpec>(spec).expect_err(spec);
        assert!(error.to_string().contains(expected), "{spec}: {error}");
    }
}

/// Every field of the schema, so that none is refused by its name.
#[test]
fn the_whole_schema_is_read() {
    let spec = r"
hosts: [a]
gateways: [mesh]
exportTo: ['.']
http:
- name: n
  match:
  - {name: m, uri: {exact: /}, scheme: {exact: http}, method: {exact: GET}, authority: {exact: a}, headers: {a: {}}, port: 80,
     sourceLabels: {a: b}, gateways: [mesh], queryParams: {a: {prefix: b}}, ignoreUriCase: true, withoutHeaders: {a: {regex: b}},
     sourceNamespace: c, statPrefix: d}
  route:
  - {destination: {host: a, subset: b, port: {number: 80}}, weight: 1, headers: {request: {set: {a: b}, add: {c: d}, remove: [e]}, response: {}}}
  redirect: {uri: /, authority: a, port: 80, derivePort: FROM_REQUEST_PORT, scheme: http, redirectCode: 301, prefixRewrite: /a}
  directResponse: {status: 200, body: {string: a, bytes: YQ==}}
  delegate: {name: a, namespace: b}
  rewrite: {uri: /, authority: a, uriRegexRewrite: {match: a, rewrite: b}}
  timeout: 1s
  retries: {attempts: 1, perTryTimeout: 1s, retryOn: 5xx, retryRemoteLocalities: true, retryIgnorePreviousHosts: false, backoff: 1s}
  fault: {delay: {percent: 1, fixedDelay: 1s, exponentialDelay: 1s, percentage: {value: 1}},
          abort: {httpStatus: 500, grpcStatus: OK, http2Error: a, percentage: {value: 0.5}}}
  mirror: {host: a}
  mirrors: [{destination: {host: a}, percentage: {value: 1}}]
  mirrorPercent: 1
  mirrorPercentage: {value: 1}
  corsPolicy: {allowOrigin: [a], allowOrigins: [{exact: a}], allowMethods: [GET], allowHeaders: [a], exposeHeaders: [b],
               maxAge: 24h, allowCredentials: true, unmatchedPreflights: IGNORE}
  headers: {}
tls:
- match: [{sniHosts: [a], destinationSubnets: [10.0.0.0/8], port: 443, sourceLabels: {a: b}, gateways: [mesh], sourceNamespace: c}]
  route: [{destination: {host: a}, weight: 1}]
tcp:
- match: [{destinationSubnets: [10.0.0.0/8], port: 1, sourceSubnet: 10.0.0.0/8, sourceLabels: {a: b}, gateways: [mesh], sourceNamespace: c}]
  route: [{destination: {host: a}, weight: 1}]
";
    let read: VirtualServiceSpec = serde_saphyr::from_str(spec).expect("the schema");
    assert_eq!((read.http.len(), read.tls.len(), read.tcp.len()), (1, 1, 1));
    assert_eq!(
        read.http[0].r#match[0].source_namespace.as_deref(),
        Some("c")
    );
}

#[test]
fn routes_are_bounded_by_annotation() {
    let with = |key: &str, value: &str| {
        let spec = "{hosts: [a], http: [{name: slow, match: [{uri: {prefix: /s}}], route: [{destination: {host: a}}]}, \
            {name: moved, redirect: {uri: /}}]}";
        let mut rules = resource("VirtualService", "default/test", spec);
        let (key, value) = (format!("undermesh.io/{key}"), value.to_owned());
        let meta = std::sync::Arc::make_mut(&mut rules.meta);
        meta.annotations.insert(key, value);
        let findings = validate(&rules);
        let text = |finding: &Finding| finding.reason.clone();
        findings.iter().map(text).collect::<Vec<_>>()
    };
    let limits = |value: &str| with("route-limits", value);
    assert_eq!(limits("slow: max-requests=3, max-retries=1"), [""; 0]);
    let breaker = "slow: max-pending=2, consecutive-errors=5, open-time=10s";
    assert_eq!(limits(breaker), [""; 0]);
    for (value, expected) in [
        ("slow", "\"slow\" is not NAME: name=value, ..."),
        (
            "fast: max-requests=1",
            "no http route that forwards has the name \"fast\"",
        ),
        (
            "moved: max-requests=1",
            "no http route that forwards has the name \"moved\"",
        ),
        (
            "slow: max-request=1",
            "slow: \"max-request\" is none of max-requests, max-pending, max-retries, consecutive-errors, open-time",
        ),
        (
            "slow: max-requests=0",
            "slow: max-requests: \"0\" is not a number from 1 to 1000000",
        ),
        (
            "slow: max-requests=1; slow: max-retries=1",
            "\"slow\" stands twice",
        ),
        (
            "slow: open-time=10s",
            "slow: open-time needs consecutive-errors",
        ),
    ] {
        assert_eq!(limits(value), [expected]);
    }
    let reason = "is not an annotation that the mesh knows; it knows undermesh.io/route-limits";
    assert_eq!(with("limits", "on"), [reason]);
}
