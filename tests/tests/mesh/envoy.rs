//! Envoy as the peer of our agent: both speak HBONE, both check the other's
//! SPIFFE identity.

use std::path::PathBuf;
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, ServicePort, Workload, envoy, eventually, service, workload_entries,
};
use serde_json::{Value, json};

use crate::envoy_config::{
    address, bootstrap, client_tls, cluster, http_proxy, listener, mutual_tls, server_tls, speaks,
    tcp_proxy, with,
};

/// TLS as both Envoys below have it, with the peer's only permitted identity.
fn tls(lab: &Lab, certificate: &(PathBuf, PathBuf), peer: &str) -> Value {
    mutual_tls(lab, certificate, peer, &["h2"], "TLSv1_3")
}

/// Listens on 127.0.0.1:`port` and tunnels to `server`, which must be `peer`.
fn client(lab: &Lab, place: &Workload, server: &Workload, listeners: &[(u16, &str)]) -> String {
    let certificate = lab.certificate("envoy", place);
    let tunnel = format!("{}:9080", server.v4);
    let listener = |(port, peer): &(u16, &str)| {
        let tunnelled = json!({"cluster": peer, "tunneling_config": {"hostname": tunnel}});
        listener(peer, address("127.0.0.1", *port), tcp_proxy(tunnelled))
    };
    let cluster = |(_, peer): &(u16, &str)| {
        let tls = client_tls(tls(lab, &certificate, peer), json!({}));
        let fields = with(speaks("http2_protocol_options"), tls);
        cluster(peer, address(server.v4, 15008), fields)
    };
    bootstrap(
        &listeners.iter().map(listener).collect::<Vec<_>>(),
        &listeners.iter().map(cluster).collect::<Vec<_>>(),
    )
}

/// Terminates HBONE at the workload's own address for the application on port 9080.
fn server(lab: &Lab, place: &Workload, peer: &str) -> String {
    let connect = json!({"upgrade_type": "CONNECT", "connect_config": {}});
    let http = http_proxy(
        json!({
            "match": {"connect_matcher": {}},
            "route": {"cluster": "application", "upgrade_configs": [connect]},
        }),
        json!({
            "codec_type": "HTTP2",
            "http2_protocol_options": {"allow_connect": true},
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        }),
    );
    let certificate = lab.certificate(place.service_account(), place);
    let tls = server_tls(tls(lab, &certificate, peer));
    let mut hbone = listener("hbone", address(place.v4, 15008), http);
    hbone["filter_chains"][0] = with(hbone["filter_chains"][0].take(), tls);
    let application = cluster("application", address("127.0.0.1", 9080), json!({}));
    bootstrap(&[hbone], &[application])
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
