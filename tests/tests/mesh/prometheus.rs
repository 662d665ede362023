//! A real Prometheus reads the agent's metrics, and answers what an operator asks of them.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, eventually, outcome, service, workload_entries,
};
use serde_json::Value;

const RULE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: backend}
spec:
  host: backend
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 5, baseEjectionTime: 60s, maxEjectionPercent: 50}
";

/// An address of the machine's own on which nobody listens.
pub(crate) fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

pub(crate) fn curl(arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--max-time", "10"])
        .args(arguments);
    let outcome = outcome(&mut command);
    outcome.unwrap_or_else(|error| panic!("{error:#}")).stdout
}

/// What Prometheus answers to a query: labels and value of each series.
fn query(prometheus: &str, query: &str) -> Result<Vec<(Value, String)>, String> {
    let url = format!("http://{prometheus}/api/v1/query");
    let parameter = format!("query={query}");
    let text = curl(&["--get", "--data-urlencode", &parameter, &url]);
    let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    let series = answer["data"]["result"].as_array();
    let series = series.ok_or_else(|| text.clone())?.iter();
    let value = |one: &Value| one["value"][1].as_str().unwrap_or_default().to_owned();
    Ok(series
        .map(|one| (one["metric"].clone(), value(one)))
        .collect())
}

#[test]
fn a_real_prometheus_learns_of_an_ejection() {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let backends = ["bad", "good"].map(|name| lab.workload(Node::A, name, &[("app", "backend")]));
    let _servers = backends.each_ref().map(|backend| {
        let mut arguments = vec!["backend", "--version", &backend.name];
        arguments.extend(["--listen", "[::]:8080"]);
        arguments.extend((backend.name == "bad").then_some("--fail"));
        backend.serve(8080, "bookinfo", &arguments)
    });
    let workloads = workload_entries(&[&client, &backends[0], &backends[1]]);
    lab.configure("workloads.yaml", &workloads);
    let port = ServicePort {
        name: "http",
        port: 80,
        target: 8080,
    };
    lab.configure("service.yaml", &service("backend", 40, &[port]));
    lab.configure("rule.yaml", RULE);
    let address = free_address();
    let agent = Agent::start_with(&lab, Node::A, &["--metrics-address", &address]);

    let web = free_address();
    let config = lab.folder().join("prometheus.yml");
    let scrape = format!(
        "scrape_configs: [{{job_name: undermesh, scrape_interval: 1s, static_configs: [{{targets: [\"{address}\"]}}]}}]\n"
    );
    std::fs::write(&config, scrape).expect("a file");
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            lab.folder().join("tsdb").display()
        ))
        .arg(format!("--web.listen-address={web}"));
    let prometheus = Process::spawn(&mut command, lab.folder().join("prometheus.log"))
        .unwrap_or_else(|error| panic!("{error:#}"));

    for _ in 0..60 {
        client.curl(&["http://backend/"]);
    }
    eventually(Duration::from_secs(30), "Prometheus knows of it", || {
        let out = query(&web, "undermesh_cluster_endpoint_ejected == 1")
            .map_err(|reason| format!("{reason}\n{}", prometheus.log()))?;
        let is_bad = |(labels, _): &(Value, String)| {
            labels["destination_workload"] == "bad.default"
                && labels["source_workload"] == "client.default"
        };
        let knows = !out.is_empty() && out.iter().all(is_bad);
        knows.then_some(()).ok_or_else(|| format!("{out:?}"))
    });
    let one = |text: &str| {
        let series = query(&web, text).expect("an answer");
        assert_eq!(series.len(), 1, "{text}: {series:?}");
        series[0].1.parse::<f64>().expect("a number")
    };
    assert!(one("undermesh_config_generation") >= 1.0);
    assert_eq!(one("undermesh_config_refused_total"), 0.0);
    assert_eq!(one("up"), 1.0);
    let left = "min(undermesh_certificate_expiration_timestamp_seconds) - time()";
    assert!(one(left) > 3600.0);

    // A configuration that is refused can raise an alarm.
    lab.configure("wrong.yaml", "kind: VirtualService\n");
    eventually(Duration::from_secs(30), "the alarm is raised", || {
        let refused = query(&web, "undermesh_config_refused == 1")?;
        (refused.len() == 1)
            .then_some(())
            .ok_or_else(|| format!("{refused:?}"))
    });

    // Prometheus' own tool has nothing against the text.
    let text = curl(&[&format!("http://{address}/metrics")]);
    let file = lab.folder().join("metrics.txt");
    std::fs::write(&file, &text).expect("a file");
    let mut check = Command::new("sh");
    check
        .args(["-c", "promtool check metrics < \"$0\""])
        .arg(&file);
    let said = outcome(&mut check).unwrap_or_else(|error| panic!("{error:#}"));
    for complaint in said.stdout.lines().chain(said.stderr.lines()) {
        // Envoy's names of counters have no suffix.
        let is_envoys = complaint.starts_with("undermesh_cluster_")
            && complaint.ends_with("counter metrics should have \"_total\" suffix");
        // And Istio's are in milliseconds.
        let is_istios = complaint.starts_with("istio_request_duration_milliseconds");
        let is_known = is_envoys || is_istios;
        assert!(complaint.is_empty() || is_known, "{complaint}");
    }
    assert!(!text.contains("PRIVATE KEY"));
    drop(agent);
}
