//! A workload of ours calls one that is behind a sidecar of Istio: a real Envoy as Istio configures it.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, ServicePort, Workload, envoy, eventually, service, workload_entries,
};
use serde_json::json;

use crate::envoy_config::{
    address, bootstrap, cluster, extension, listener, mutual_tls, server_tls, tcp_proxy, with,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// The sidecar of `place`, as `account`, which serves `client` alone: port 9443 leads to the application.
fn server(lab: &Lab, place: &Workload, account: &str, client: &str) -> String {
    let meant = json!({
        "transport_protocol": "tls",
        "server_names": ["outbound_.80_._.web.default.svc.cluster.local"],
        "application_protocols":
            ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"],
    });
    let protocols = ["istio-peer-exchange", "h2", "http/1.1"];
    let certificate = lab.certificate(account, place);
    let tls = mutual_tls(lab, &certificate, client, &protocols, "TLSv1_2");
    let tls = server_tls(tls);
    let inspector = "filters.listener.tls_inspector.v3.TlsInspector";
    let mut inbound = listener(
        "inbound",
        address(place.v4, 9443),
        tcp_proxy(json!({"cluster": "application"})),
    );
    inbound["listener_filters"] = json!([extension("tls", inspector, json!({}))]);
    let chain = inbound["filter_chains"][0].take();
    inbound["filter_chains"][0] = with(with(chain, tls), json!({"filter_chain_match": meant}));
    let application = cluster("application", address("127.0.0.1", 9080), json!({}));
    bootstrap(&[inbound], &[application])
}

#[test]
fn a_workload_of_ours_reaches_one_behind_a_sidecar_and_nobody_in_its_place() {
    let Some(binary) = envoy() else { return };
    let lab = Lab::new();
    let sleep = lab.workload(Node::A, "sleep", &[("app", "sleep")]);
    let other = lab.workload(Node::A, "other", &[("app", "other")]);
    let web = lab.workload(Node::Outside, "web", &[]);
    let _server = web.serve(9080, "bookinfo", &["details"]);
    // As Istio describes it: no node of ours has it.
    let entry = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: web}}\n\
         spec: {{address: {}, serviceAccount: web, labels: {{app: web, security.istio.io/tlsMode: istio}}}}\n",
        web.v4
    );
    lab.configure(
        "workloads.yaml",
        &(workload_entries(&[&sleep, &other]) + &entry),
    );
    let port = |name, port| ServicePort {
        name,
        port,
        target: 9443,
    };
    lab.configure("web.yaml", &service("web", 40, &[port("http", 80)]));
    let agent = Agent::start(&lab, Node::A);
    let ask = |from: &Workload| from.curl(&["-4", "http://web/details/0"]);
    let status = |from: &Workload| ask(from).status;

    let mut imposter = web.envoy(&binary, 9443, &server(&lab, &web, "imposter", "sleep"));
    assert_eq!(status(&sleep), 503);
    imposter.kill();
    let _envoy = web.envoy(&binary, 9443, &server(&lab, &web, "web", "sleep"));
    eventually(PATIENCE, "sleep reaches web", || match ask(&sleep) {
        reply if reply.status == 200 => Ok(()),
        reply => Err(format!("{reply:?}")),
    });
    for _ in 0..20 {
        assert_eq!(status(&sleep), 200);
    }
    assert_eq!(status(&other), 503);
    for (client, is_served) in [("sleep", true), ("other", false)] {
        let rows = agent.meshctl_json(&["authn", "tls-check", client, "web"]);
        let seen = &rows[0]["observed"];
        let proven = seen["handshakes"].as_u64() > Some(0);
        assert!(
            proven == is_served && seen["plaintext"] == 0,
            "{client}: {seen}"
        );
    }
    let workloads = agent.meshctl(&["workloads"]).success();
    let line = workloads.lines().find(|line| line.contains(" web "));
    assert!(
        line.is_some_and(|line| line.contains("mTLS")),
        "{workloads}"
    );

    // Bytes of any protocol, as well; and where the mesh says so, in the clear.
    lab.configure("web.yaml", &service("web", 40, &[port("tcp", 80)]));
    eventually(PATIENCE, "as bytes", || match status(&sleep) {
        200 => Ok(()),
        status => Err(status.to_string()),
    });
    lab.configure(
        "rule.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\n\
         spec: {host: web.default.svc.cluster.local, trafficPolicy: {tls: {mode: DISABLE}}}\n",
    );
    eventually(PATIENCE, "in the clear it takes nothing", || {
        match status(&sleep) {
            0 | 503 => Ok(()),
            status => Err(status.to_string()),
        }
    });
}
