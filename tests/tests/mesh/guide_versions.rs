//! S-29: the guide mixes `v1beta1` and `v1alpha1`; under `v1` all is the same.

use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, ServicePort, Workload, eventually, service, workload_entries};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);
const GUIDE: [(&str, &str); 5] = [
    (
        "virtual-service.yaml",
        include_str!("../../data/guide/virtual-service.yaml"),
    ),
    (
        "canary-rollout.yaml",
        include_str!("../../data/guide/canary-rollout.yaml"),
    ),
    (
        "circuit-breaker.yaml",
        include_str!("../../data/guide/circuit-breaker.yaml"),
    ),
    (
        "peer-authentication.yaml",
        include_str!("../../data/guide/peer-authentication.yaml"),
    ),
    (
        "telemetry.yaml",
        include_str!("../../data/guide/telemetry.yaml"),
    ),
];

/// All that an operator is shown of the configuration, but for what is observed of the traffic.
fn shown(agent: &Agent) -> Vec<Value> {
    let mut config = agent.meshctl_json(&["config"]);
    let generation = config.as_object_mut().expect("fields");
    for field in ["generation", "loaded_at", "loaded_s", "age_s"] {
        generation.remove(field);
    }
    let mut rows = agent.meshctl_json(&["authn", "tls-check", "sleep.default"]);
    for row in rows.as_array_mut().expect("rows") {
        row.as_object_mut().expect("fields").remove("observed");
    }
    let route = |user: &str| {
        let header = format!("end-user: {user}");
        let arguments = [
            "routes",
            "sleep.default",
            "http://reviews:8080/",
            "-H",
            &header,
        ];
        agent.meshctl_json(&arguments)
    };
    let services = agent.meshctl_json(&["services"]);
    vec![config, rows, services, route("jason"), route("other")]
}

#[test]
fn every_version_of_the_guides_kinds_means_the_same() {
    let lab = Lab::new();
    let workload = |name: &str, labels: &[(&str, &str)]| lab.workload(Node::A, name, labels);
    let sleep = workload("sleep", &[("app", "sleep")]);
    let version = |app: &str, version: &str| {
        workload(
            &format!("{app}-{version}"),
            &[("app", app), ("version", version)],
        )
    };
    let (v1, v2) = (version("reviews", "v1"), version("reviews", "v2"));
    let _servers = [("v1", &v1), ("v2", &v2)].map(|(version, workload)| {
        workload.serve(9080, "bookinfo", &["reviews", "--version", version])
    });
    let workloads: [&Workload; 3] = [&sleep, &v1, &v2];
    lab.configure("workloads.yaml", &workload_entries(&workloads));
    for (name, host) in [("reviews", 10), ("myapp", 11), ("backend-service", 12)] {
        let port = ServicePort {
            name: "http",
            port: 8080,
            target: 9080,
        };
        lab.configure(&format!("{name}.yaml"), &service(name, host, &[port]));
    }
    for (file, text) in GUIDE {
        assert!(text.contains("/v1beta1") || text.contains("/v1alpha1"));
        lab.configure(file, text);
    }
    let agent = Agent::start(&lab, Node::A);
    let versions = || {
        let answer = |user: &str| {
            let header = format!("end-user: {user}");
            let reply = sleep.curl(&["-H", &header, "http://reviews:8080/"]);
            (reply.status, reply.body.contains("\"v2\""))
        };
        (answer("jason"), answer("other"))
    };
    let answers = ((200, true), (200, false));
    eventually(PATIENCE, "reviews answers by header", || {
        let found = versions();
        (found == answers)
            .then_some(())
            .ok_or_else(|| format!("{found:?}"))
    });
    let generation = || agent.meshctl_json(&["config"])["generation"].as_u64();
    let (old, before) = (shown(&agent), generation());
    for (file, text) in GUIDE {
        let text = text.replace("/v1beta1", "/v1").replace("/v1alpha1", "/v1");
        assert!(!text.contains("alpha") && !text.contains("beta"));
        lab.configure(file, &text);
    }
    // One file after the other; when they have been still for a moment all are in force.
    let mut last = before;
    eventually(PATIENCE, "the new versions are in force", || {
        std::thread::sleep(Duration::from_millis(1200));
        let now = generation();
        let is_still = now == last && now > before;
        last = now;
        is_still.then_some(()).ok_or_else(|| format!("{now:?}"))
    });
    let new = shown(&agent);
    for (old, new) in old.iter().zip(&new) {
        assert_eq!(old, new);
    }
    assert!(
        old[0].to_string().contains("\"refused\":null"),
        "{}",
        old[0]
    );
    assert_eq!(versions(), answers);
}
