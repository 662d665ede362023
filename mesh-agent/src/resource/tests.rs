//! What is read, and the messages that people get for what is not.

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<ResourceSet, Vec<String>> {
    parse([("a.yaml", text)]).map_err(|findings| findings.iter().map(Finding::to_string).collect())
}

fn only_error(text: &str) -> String {
    let mut errors = read(text).expect_err("the text has an error");
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

/// An object with `name: x` and this `spec`.
fn object(kind: &str, spec: &str) -> String {
    let group = match kind {
        "Service" => "v1",
        "PeerAuthentication" => "security.istio.io/v1",
        _ => "networking.istio.io/v1",
    };
    format!("{{apiVersion: {group}, kind: {kind}, metadata: {{name: x}}, spec: {spec}}}\n")
}

#[test]
fn a_service_as_kubectl_prints_it() {
    let set = read(
        r#"
apiVersion: v1
kind: Service
metadata:
  name: reviews
  namespace: shop
  creationTimestamp: null
  uid: 6c1a
  labels: {app: reviews}
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, "fd00:96::7"]
  internalTrafficPolicy: Cluster
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: PreferDualStack
  ports:
    - {name: http, port: 80, protocol: TCP, targetPort: 8080, appProtocol: http}
    - {name: metrics, port: 9090, targetPort: metrics, nodePort: 31000}
  selector: {app: reviews}
  sessionAffinity: None
  type: NodePort
status: {loadBalancer: {}}
"#,
    )
    .unwrap();
    assert_eq!(set.warnings, []);
    let [service] = set.services.as_slice() else {
        panic!("{set:?}");
    };
    assert_eq!(service.meta.namespace, "shop");
    assert_eq!(service.meta.labels["app"], "reviews");
    assert_eq!(
        service.spec.cluster_ips(),
        [
            ClusterIp::Address("10.96.0.7".parse().unwrap()),
            ClusterIp::Address("fd00:96::7".parse().unwrap()),
        ]
    );
    assert_eq!(
        service.spec.ports[1].target_port,
        Some(scalar::TargetPort::Name("metrics".to_owned()))
    );
}

#[test]
fn every_version_of_a_kind_is_the_same() {
    let at = |version: &str| {
        read(&format!(
            "apiVersion: security.istio.io/{version}\nkind: PeerAuthentication\n\
             metadata: {{name: x}}\nspec: {{mtls: {{mode: STRICT}}}}"
        ))
    };
    assert_eq!(at("v1"), at("v1beta1"));
    assert_eq!(
        at("v1").unwrap().peer_authentications[0].spec.mtls.mode,
        Mode::Strict
    );
    assert_eq!(
        at("v1alpha1").unwrap_err(),
        [
            "a.yaml, document 1: PeerAuthentication default/x: apiVersion: \
          \"security.istio.io/v1alpha1\" has no kind PeerAuthentication; it is in \
          security.istio.io/v1, security.istio.io/v1beta1"
        ]
    );
}

#[test]
fn lists_are_unpacked() {
    let set = read(
        "apiVersion: v1\nkind: List\nitems:\n\
         - {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}\n\
         - {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {ports: [{port: 80}]}}\n",
    )
    .unwrap();
    assert_eq!(set.services.len(), 2);
    assert_eq!(
        only_error("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Service}]"),
        "a.yaml, document 1: Service items[0]: metadata.name: is required"
    );
}

#[test]
fn kinds_that_are_not_applied_are_told() {
    let set = read(
        "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\n\
         metadata: {name: mesh-default, namespace: istio-system}\nspec: {configPatches: []}",
    )
    .unwrap();
    assert_eq!(
        set.warnings[0].to_string(),
        "a.yaml, document 1: EnvoyFilter istio-system/mesh-default: kind: \
         EnvoyFilter is not applied by this version"
    );
    assert_eq!(set.warnings[0].severity, Severity::Warning);
}

#[test]
fn a_kind_in_another_case_is_an_error() {
    assert_eq!(
        only_error("apiVersion: networking.istio.io/v1\nkind: virtualService\nmetadata: {name: a}"),
        "a.yaml, document 1: virtualService default/a: kind: \"virtualService\" is written VirtualService"
    );
}

#[test]
fn fields_that_are_null_were_left_out() {
    let set = read(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\n\
         spec:\n  hosts: [a]\n  gateways:\n  http:\n  - match:\n    timeout:\n    headers:\n    \
         route:\n    - destination: {host: a, subset: }\n      weight:\n",
    )
    .unwrap();
    assert!(set.virtual_services[0].spec.http[0].r#match.is_empty());
    // What a map has is no field: a selector does not become wider.
    assert!(
        only_error(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}], selector: {app: }}"
        )
        .contains("spec.selector.app")
    );
}

#[test]
fn what_follows_from_tokens_that_are_not_verified_is_said() {
    let text = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: x}";
    assert_eq!(
        parse([("a.yaml", text)]).unwrap().warnings[0].to_string(),
        "a.yaml, document 1: RequestAuthentication default/x: kind: RequestAuthentication is not \
         applied by this version: tokens are not verified, and policies that ask for their claims deny"
    );
}

#[test]
fn messages_name_file_document_object_field_and_reason() {
    let cases = [
        ("a: [1".to_owned(), "a.yaml, document 1: "),
        (
            "just text".to_owned(),
            "a.yaml, document 1: is not a mapping with apiVersion and kind",
        ),
        (
            "apiVersion: v1\nmetadata: {name: x}".to_owned(),
            "a.yaml, document 1: kind: is required",
        ),
        (
            "kind: Service\nmetadata: {name: x}".to_owned(),
            "a.yaml, document 1: Service default/x: apiVersion: is required",
        ),
        (
            "apiVersion: v1\nkind: Service\nspec: {}".to_owned(),
            "a.yaml, document 1: Service: metadata.name: is required",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: X}".to_owned(),
            "a.yaml, document 1: Service default/X: metadata.name: must consist of lower-case \
             letters, digits, \"-\" and \".\"",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nports: []".to_owned(),
            "a.yaml, document 1: Service default/x: ports: unknown field; beside spec stand only \
             apiVersion, kind, metadata, spec, status",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: x, labels: {version: 1}}".to_owned(),
            "a.yaml, document 1: Service default/x: metadata.labels.version: invalid type: \
             integer `1`, expected a string",
        ),
        (
            object("Service", "{ports: [{port: 80, targetport: 8080}]}"),
            "a.yaml, document 1: Service default/x: spec.ports[0].targetport: unknown field \
             `targetport`, expected one of `name`, `port`, `targetPort`, `protocol`, \
             `appProtocol`, `nodePort`",
        ),
        (
            object("Service", "{ports: [{port: 70000}]}"),
            "a.yaml, document 1: Service default/x: spec.ports[0].port: 70000 is not a port, \
             which is a number from 1 to 65535",
        ),
        (
            object("Service", "{ports: [{port: 80}, {name: a, port: 81}]}"),
            "a.yaml, document 1: Service default/x: spec.ports[0].name: is required where a \
             Service has several ports",
        ),
        (
            object("Service", "{clusterIP: 10.0.0, ports: [{port: 80}]}"),
            "a.yaml, document 1: Service default/x: spec.clusterIP: \"10.0.0\" is neither an IP \
             address nor None",
        ),
        (
            object("Service", "{selector: {app: null}, ports: [{port: 80}]}"),
            "a.yaml, document 1: Service default/x: spec.selector.app: invalid type: null, \
             expected a string",
        ),
        (
            object("WorkloadEntry", "{address: 10.0.0.300}"),
            "a.yaml, document 1: WorkloadEntry default/x: spec.address: \"10.0.0.300\" is neither \
             an IP address nor a host name",
        ),
        (
            object("WorkloadEntry", "{ports: {http: 8080}}"),
            "a.yaml, document 1: WorkloadEntry default/x: spec.address: is required: an IP \
             address or a host name",
        ),
        (
            object("WorkloadEntry", "{address: 10.0.0.1, ports: {http: 0}}"),
            "a.yaml, document 1: WorkloadEntry default/x: spec.ports.http: 0 is not a port, which \
             is a number from 1 to 65535",
        ),
        (
            object("PeerAuthentication", "{mtls: {mode: strict}}"),
            "a.yaml, document 1: PeerAuthentication default/x: spec.mtls.mode: unknown variant \
             `strict`, expected one of `UNSET`, `DISABLE`, `PERMISSIVE`, `STRICT`",
        ),
        (
            object(
                "PeerAuthentication",
                "{portLevelMtls: {8080: {mode: STRICT}}}",
            ),
            "a.yaml, document 1: PeerAuthentication default/x: spec.portLevelMtls: needs \
             spec.selector.matchLabels: ports belong to a workload",
        ),
        (
            object(
                "PeerAuthentication",
                "{selector: {matchLabels: {app: a}}, portLevelMtls: {http: {mode: STRICT}}}",
            ),
            "a.yaml, document 1: PeerAuthentication default/x: spec.portLevelMtls",
        ),
        (
            object("ServiceEntry", "{ports: [{number: 80, name: http}]}"),
            "a.yaml, document 1: ServiceEntry default/x: spec: missing field `hosts`",
        ),
        (
            object(
                "ServiceEntry",
                "{hosts: [a.b], resolution: DNS, ports: [{number: 80, name: h, protocol: HTP}]}",
            ),
            "a.yaml, document 1: ServiceEntry default/x: spec.ports[0].protocol: \"HTP\" is not \
             one of HTTP, HTTP2, HTTPS, GRPC, GRPC-WEB, TLS, TCP, MONGO, REDIS, MYSQL, UDP",
        ),
        (
            object(
                "ServiceEntry",
                "{hosts: ['*.a.b'], resolution: DYNAMIC_DNS, ports: [{number: 80, name: tcp, protocol: TCP}]}",
            ),
            "a.yaml, document 1: ServiceEntry default/x: spec.ports: resolution DYNAMIC_DNS needs \
             a protocol in which clients say a name: HTTP, HTTP2, GRPC or TLS",
        ),
        (
            object(
                "ServiceEntry",
                "{hosts: ['*.a.b'], resolution: DNS, addresses: [10.0.0.1], \
                 ports: [{number: 80, name: h}]}",
            ),
            "a.yaml, document 1: ServiceEntry default/x: spec.hosts: a wildcard cannot be \
             resolved by DNS: name the endpoints, or use resolution NONE",
        ),
    ];
    for (text, expected) in cases {
        let message = only_error(&text);
        assert!(
            message.starts_with(expected),
            "\n    got {message}\nexpected {expected}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn the_same_object_twice_is_an_error_that_names_both() {
    let text = object("PeerAuthentication", "{mtls: {mode: STRICT}}");
    let findings = parse([("a.yaml", text.as_str()), ("sub/b.yaml", text.as_str())]).unwrap_err();
    assert_eq!(
        findings[0].to_string(),
        "sub/b.yaml, document 1: PeerAuthentication default/x: metadata.name: \
         the same object stands in a.yaml, document 1 already"
    );
}

#[test]
fn one_bad_document_does_not_hide_another() {
    let text = [
        object("Service", "{ports: 80}"),
        object("WorkloadEntry", "{adress: 10.0.0.1}"),
    ]
    .join("---\n");
    let errors = read(&text).unwrap_err();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[1].contains("document 2"), "{errors:?}");
}

#[test]
fn integer_keys_are_ports() {
    let set = read(&object(
        "PeerAuthentication",
        "{selector: {matchLabels: {app: a}}, portLevelMtls: {8080: {mode: DISABLE}}}",
    ))
    .unwrap();
    let ports = set.peer_authentications[0].spec.port_level_mtls.as_ref();
    assert_eq!(ports.unwrap()[&scalar::Port(8080)].mode, Mode::Disable);
}

proptest! {
    /// Texts that come close to resources, so that they get past the syntax.
    #[test]
    fn no_object_makes_the_reader_panic(
        kind in "Service|WorkloadEntry|WorkloadGroup|ServiceEntry|Sidecar|PeerAuthentication|List|Foo",
        field in "ports|address|hosts|mtls|selector|clusterIP|endpoints|items",
        value in "[0-9a-z.*:{}\\[\\], ~-]{0,30}",
    ) {
        let text = object(&kind, &format!("{{{field}: {value}}}"));
        if let Err(errors) = read(&text) {
            prop_assert!(errors.iter().all(|error| error.starts_with("a.yaml")), "{errors:?}");
        }
    }
}

#[test]
fn fuzz_resources() {
    crate::fuzz::run("resources", |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        for name in ["a.yaml", "a.json"] {
            let Ok(set) = parse([(name, text)]) else {
                continue;
            };
            // What is accepted compiles, or is refused in words.
            let options = crate::snapshot::Options::default();
            let _ = crate::snapshot::Snapshot::compile(1, &set, &options);
        }
    });
}

#[test]
fn only_files_that_have_changed_are_read_again() {
    let service = |name: &str, port: u16| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        )
    };
    let mut texts: Vec<(String, String)> = (0..100)
        .map(|i| (format!("{i:03}.yaml"), service(&format!("s{i}"), 80)))
        .collect();
    let mut cache = Cache::default();
    let mut read = |texts: &[(String, String)]| {
        let files = texts
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()));
        (cache.parse(files), cache.last())
    };
    let (first, counts) = read(&texts);
    assert_eq!(
        counts,
        Reading {
            read: 100,
            reused: 0
        }
    );
    texts[40].1 = service("s40", 81);
    let (second, counts) = read(&texts);
    assert_eq!(
        counts,
        Reading {
            read: 1,
            reused: 99
        }
    );
    let (first, second) = (first.expect("valid"), second.expect("valid"));
    assert_ne!(first, second);
    // The same as everything read anew, in the same order.
    let files = texts
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()));
    assert_eq!(second, parse(files).expect("valid"));
    // One that is gone, one that has an error, and an object that stands in two files.
    texts.remove(0);
    let (third, counts) = read(&texts);
    assert_eq!((third.expect("valid").len(), counts.reused), (99, 99));
    texts[0].1 = service("s40", 80);
    let (fourth, counts) = read(&texts);
    assert_eq!(
        counts,
        Reading {
            read: 1,
            reused: 98
        }
    );
    assert_eq!(
        fourth.expect_err("twice")[0].to_string(),
        "040.yaml, document 1: Service default/s40: metadata.name: the same object stands in \
         001.yaml, document 1 already"
    );
}
