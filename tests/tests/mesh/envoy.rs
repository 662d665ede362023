//! Envoy as the peer of our agent: both speak HBONE, both check the other's
//! SPIFFE identity.

use std::path::Path;
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, ServicePort, Workload, envoy, eventually, service, workload_entries,
};

/// TLS as both Envoys below have it, with the peer's only permitted identity.
fn tls(kind: &str, (chain, key): (&Path, &Path), lab: &Lab, peer: &str) -> String {
    format!(
        r#"name: tls
typed_config:
  "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}
  common_tls_context:
    alpn_protocols: [h2]
    tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}
    tls_certificates:
    - certificate_chain: {{filename: {chain}}}
      private_key: {{filename: {key}}}
    validation_context:
      trusted_ca: {{filename: {root}}}
      match_typed_subject_alt_names:
      - san_type: URI
        matcher: {{exact: "spiffe://cluster.local/ns/default/sa/{peer}"}}
"#,
        chain = chain.display(),
        key = key.display(),
        root = lab.ca().join("root-cert.pem").display(),
    )
}

fn indented(text: &str, by: usize) -> String {
    let pad = " ".repeat(by);
    text.lines().map(|line| format!("{pad}{line}\n")).collect()
}

/// Listens on 127.0.0.1:`port` and tunnels to `server`, which must be `peer`.
fn client(lab: &Lab, place: &Workload, server: &Workload, listeners: &[(u16, &str)]) -> String {
    let (chain, key) = lab.certificate("envoy", place);
    let mut text = "static_resources:\n  listeners:\n".to_owned();
    for (port, peer) in listeners {
        text += &format!(
            r#"  - name: to-{peer}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: {peer}
          cluster: {peer}
          tunneling_config: {{hostname: "{address}:9080"}}
"#,
            address = server.v4,
        );
    }
    text += "  clusters:\n";
    for (_, peer) in listeners {
        text += &format!(
            r#"  - name: {peer}
    type: STATIC
    load_assignment:
      cluster_name: {peer}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {address}, port_value: 15008}}}}}}}}]}}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    transport_socket:
{tls}"#,
            address = server.v4,
            tls = indented(&tls("UpstreamTlsContext", (&chain, &key), lab, peer), 6),
        );
    }
    text
}

/// Terminates HBONE at the workload's own address for the application on port 9080.
fn server(lab: &Lab, place: &Workload, peer: &str) -> String {
    let (chain, key) = lab.certificate(place.service_account(), place);
    format!(
        r#"static_resources:
  listeners:
  - name: hbone
    address: {{socket_address: {{address: {address}, port_value: 15008}}}}
    filter_chains:
    - transport_socket:
{tls}      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: hbone
          codec_type: HTTP2
          http2_protocol_options: {{allow_connect: true}}
          upgrade_configs: [{{upgrade_type: CONNECT}}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{connect_matcher: {{}}}}
                route:
                  cluster: application
                  upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: application
    type: STATIC
    load_assignment:
      cluster_name: application
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 9080}}}}}}}}]}}]
"#,
        address = place.v4,
        tls = indented(
            &(tls("DownstreamTlsContext", (&chain, &key), lab, peer)
                + "  require_client_certificate: true\n"),
            8
        ),
    )
}

#[test]
fn envoy_reaches_a_workload_of_ours_through_hbone() {
    let Some(binary) = envoy() else { return };
    let lab = Lab::new();
    let web = lab.workload(Node::A, "web", &[("app", "web")]);
    let outside = lab.workload(Node::Outside, "outside", &[]);
    let _server = web.serve(9080, "bookinfo", &["details"]);
    lab.configure("workloads.yaml", &workload_entries(&[&web]));
    lab.configure(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {name: strict}\nspec: {mtls: {mode: STRICT}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: envoy}\nspec: {action: DENY, rules: [\
         {from: [{source: {notPrincipals: [cluster.local/ns/default/sa/envoy]}}]}, \
         {to: [{operation: {paths: [/admin]}}]}]}\n",
    );
    let agent = Agent::start(&lab, Node::A);
    let configuration = client(&lab, &outside, &web, &[(10001, "web"), (10002, "other")]);
    let _envoy = outside.envoy(&binary, 10001, &configuration);
    eventually(Duration::from_secs(10), "Envoy reaches web", || {
        let reply = outside.curl(&["http://127.0.0.1:10001/"]);
        if reply.status == 200 {
            Ok(())
        } else {
            Err(format!("{reply:?}"))
        }
    });
    let body = "x".repeat(300_000);
    let file = outside.file("body", &body);
    let reply = outside.curl(&[
        "--data-binary",
        &format!("@{}", file.display()),
        "http://127.0.0.1:10001/echo",
    ]);
    assert!(
        reply.status == 200 && reply.body == body,
        "{}",
        reply.status
    );
    assert_eq!(outside.curl(&["http://127.0.0.1:10001/admin"]).status, 403);
    // The same Envoy, told to expect somebody else there, refuses our agent.
    assert_eq!(outside.curl(&["http://127.0.0.1:10002/"]).status, 0);
    let plain = outside.curl(&[&format!("http://{}:9080/", web.v4)]);
    assert_eq!(plain.status, 0, "{plain:?}");
    let report = agent.meshctl(&["authz", "report"]).success();
    assert!(report.contains("/sa/envoy"), "{report}");
}

#[test]
fn a_workload_of_ours_reaches_envoy_through_hbone() {
    let Some(binary) = envoy() else { return };
    let lab = Lab::new();
    let sleep = lab.workload(Node::A, "sleep", &[("app", "sleep")]);
    let other = lab.workload(Node::A, "other", &[("app", "other")]);
    // No agent of ours runs on the node `outside`: Envoy stands in for one.
    let web = lab.workload(Node::Outside, "web", &[("app", "web")]);
    let _server = web.serve(9080, "bookinfo", &["details"]);
    lab.configure("workloads.yaml", &workload_entries(&[&sleep, &other, &web]));
    let port = ServicePort {
        name: "http",
        port: 80,
        target: 9080,
    };
    lab.configure("web.yaml", &service("web", 40, &[port]));
    let agent = Agent::start(&lab, Node::A);
    let _envoy = web.envoy(&binary, 15008, &server(&lab, &web, "sleep"));
    eventually(Duration::from_secs(10), "sleep reaches Envoy", || {
        let reply = sleep.curl(&["-4", "http://web/"]);
        if reply.status == 200 {
            Ok(())
        } else {
            Err(format!("{reply:?}"))
        }
    });
    for _ in 0..20 {
        assert_eq!(sleep.curl(&["-4", "http://web/"]).status, 200);
    }
    // Envoy accepts sleep's identity alone.
    assert_eq!(other.curl(&["-4", "http://web/"]).status, 503);
    let observed = |client: &str| {
        let rows = agent.meshctl_json(&["authn", "tls-check", client, "web"]);
        rows[0]["observed"].clone()
    };
    let seen = observed("sleep");
    assert!(
        seen["handshakes"].as_u64() > Some(0) && seen["plaintext"] == 0,
        "{seen}"
    );
    // For a client of TLS 1.3 the handshake is over before the server looks at its certificate.
    let seen = observed("other");
    assert_eq!(seen["handshakes"], 0, "{seen}");
}
