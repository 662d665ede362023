//! Istio's `Telemetry`: whose requests the access log tells of, and what metrics say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};

use crate::prometheus::{curl, free_address};

const PATIENCE: Duration = Duration::from_secs(10);
const GUIDE: &str = include_str!("../../data/guide/telemetry.yaml");

/// `loud` and `quiet` ask `web`, all on one node.
struct Mesh {
    agent: Agent,
    _server: Process,
    loud: Workload,
    quiet: Workload,
    log: PathBuf,
    metrics: String,
    lab: Lab,
}

fn mesh(telemetry: &str) -> Mesh {
    start(Lab::new(), telemetry, &[])
}

/// With a log in a file.
fn mesh_with_file(telemetry: &str, flags: &[&str]) -> Mesh {
    let lab = Lab::new();
    let log = lab.folder().join("access.log");
    let log = log.to_string_lossy();
    let flags = [&["--access-log-file", &log], flags].concat();
    start(lab, telemetry, &flags)
}

fn start(lab: Lab, telemetry: &str, flags: &[&str]) -> Mesh {
    let workload = |name| lab.workload(Node::A, name, &[("app", name)]);
    let (loud, quiet, web) = (workload("loud"), workload("quiet"), workload("web"));
    let server = web.serve(9080, "bookinfo", &["backend"]);
    lab.configure("workloads.yaml", &workload_entries(&[&loud, &quiet, &web]));
    let port = ServicePort {
        name: "http",
        port: 80,
        target: 9080,
    };
    lab.configure("web.yaml", &service("web", 40, &[port]));
    lab.configure("telemetry.yaml", telemetry);
    let (log, metrics) = (lab.folder().join("access.log"), free_address());
    let flags = [flags, &["--metrics-address", &metrics]].concat();
    let agent = Agent::start_with(&lab, Node::A, &flags);
    for client in [&loud, &quiet] {
        eventually(PATIENCE, "web answers", || {
            match client.curl(&["http://web/"]).status {
                200 => Ok(()),
                status => Err(status.to_string()),
            }
        });
    }
    Mesh {
        agent,
        _server: server,
        loud,
        quiet,
        log,
        metrics,
        lab,
    }
}

impl Mesh {
    /// Asks from both clients, with this query.
    fn ask(&self, query: &str) {
        for client in [&self.loud, &self.quiet] {
            client.curl(&[&format!("http://web/status/404{query}")]);
        }
    }

    fn generation(&self) -> u64 {
        let config = self.agent.meshctl_json(&["config"]);
        config["generation"].as_u64().expect("a number")
    }

    /// Puts a configuration in force.
    fn configure(&self, telemetry: &str) {
        let before = self.generation();
        self.lab.configure("telemetry.yaml", telemetry);
        eventually(PATIENCE, "it is in force", || {
            let now = self.generation();
            (now > before).then_some(()).ok_or_else(|| now.to_string())
        });
    }
}

/// Lines of requests with this query, as client and status.
fn lines(text: &str, query: &str, mesh: &Mesh) -> BTreeSet<(&'static str, String)> {
    let lines = text
        .lines()
        .filter(|line| line.contains(&format!("{query} ")));
    let lines = lines.map(|line| {
        let own = [format!("{}:", mesh.loud.v4), format!("[{}]:", mesh.loud.v6)];
        let is_loud = own.iter().any(|own| line.contains(own));
        let code = line.split("HTTP/1.1\" ").nth(1).expect(line);
        let code = code.split(' ').next().expect("a code").to_owned();
        (if is_loud { "loud" } else { "quiet" }, code)
    });
    lines.collect()
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// S-27: without any flag, the guide's resource turns the log on, on the agent's own output.
#[test]
fn the_guides_telemetry_turns_the_access_log_on() {
    let mesh = mesh(GUIDE);
    mesh.ask("?guide");
    eventually(PATIENCE, "a line for each", || {
        let found = lines(&mesh.agent.log(), "?guide", &mesh).len();
        (found == 2).then_some(()).ok_or_else(|| mesh.agent.log())
    });
    // What is not applied is said; all the rest is.
    let config = mesh.agent.meshctl_json(&["config"]).to_string();
    assert!(config.contains("spec.tracing[0]"), "{config}");
    assert!(!config.contains("spec.accessLogging"), "{config}");
    assert!(!config.contains("spec.metrics"), "{config}");
    let metrics = curl(&[&format!("http://{}/metrics", mesh.metrics)]);
    assert!(metrics.contains("istio_requests_total{reporter=\"source\""));
}

#[test]
fn scopes_filters_and_sides_decide_which_lines_there_are() {
    let rule = |name: &str, namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let format = [
        "--access-log-format",
        "%REQ(:PATH)% HTTP/1.1\" %RESPONSE_CODE% %DOWNSTREAM_REMOTE_ADDRESS% tenant=%REQ(X-Tenant)%",
    ];
    let mesh = mesh_with_file("", &format);
    let log = |query: &str| lines(&read(&mesh.log), query, &mesh);
    let both = |code: &str| BTreeSet::from([("loud", code.to_owned()), ("quiet", code.to_owned())]);
    let tells = |query: &'static str, wanted: BTreeSet<(&'static str, String)>| {
        mesh.ask(query);
        eventually(PATIENCE, query, || {
            let found = log(query);
            (found == wanted)
                .then_some(())
                .ok_or_else(|| read(&mesh.log))
        });
    };
    // With a file and no resource all are told.
    tells("?all", both("404"));
    mesh.loud
        .curl(&["-H", "X-Tenant: acme", "http://web/tenant"]);
    eventually(PATIENCE, "header fields are in the format", || {
        let text = read(&mesh.log);
        text.contains("tenant=acme").then_some(()).ok_or(text)
    });

    let off = rule(
        "mesh",
        "istio-system",
        "{accessLogging: [{disabled: true}]}",
    );
    let loud = rule(
        "loud",
        "default",
        "{selector: {matchLabels: {app: loud}}, accessLogging: [{providers: [{name: envoy}], \
         filter: {expression: \"response.code >= 400 && request.path.endsWith('?told')\"}}]}",
    );
    mesh.configure(&format!("{off}{loud}"));
    // Lines are in order: where the second is, the first would be.
    mesh.ask("?hidden");
    tells("?told", BTreeSet::from([("loud", "404".to_owned())]));
    assert_eq!(log("?hidden"), BTreeSet::new());
    mesh.configure(&rule(
        "mesh",
        "istio-system",
        "{accessLogging: [{match: {mode: SERVER}}]}",
    ));
    mesh.ask("?server");
    mesh.configure("");
    tells("?again", both("404"));
    assert_eq!(log("?server"), BTreeSet::new());
}

#[test]
fn metrics_are_left_out_and_labels_changed() {
    let mesh = mesh("");
    let metrics = || curl(&[&format!("http://{}/metrics", mesh.metrics)]);
    let before = metrics();
    assert!(
        before.contains("istio_request_bytes_count{reporter=\"source\""),
        "{before}"
    );
    mesh.configure(
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
         metadata: {name: mesh, namespace: istio-system}\n\
         spec: {metrics: [{providers: [{name: prometheus}], overrides: [\
         {match: {metric: REQUEST_SIZE}, disabled: true}, \
         {match: {metric: REQUEST_COUNT, mode: CLIENT}, tagOverrides: {\
         source_version: {operation: REMOVE}, region: {value: \"'north'\"}, \
         response_code: {value: \"response.code >= 400 ? '4xx' : '2xx'\"}}}]}]}\n",
    );
    let after = metrics();
    assert!(!after.contains("istio_request_bytes_count{"), "{after}");
    let mut counts =
        (after.lines()).filter(|line| line.starts_with("istio_requests_total{reporter=\"source\""));
    let line = counts.find(|line| line.contains(",response_code=\"2xx\""));
    let line = line.unwrap_or_else(|| panic!("{after}"));
    assert!(!line.contains("source_version="), "{line}");
    assert!(line.contains(",region=\"north\""), "{line}");
    // Others keep what they had.
    let duration = after.lines().find(|line| {
        line.starts_with("istio_request_duration_milliseconds_count{reporter=\"source\"")
    });
    let duration = duration.expect("a count");
    assert!(duration.contains("source_version="), "{duration}");
}

/// A counter's value by its labels; each of `labels` has to be there.
pub(crate) fn counter(metrics: &str, name: &str, labels: &[(&str, &str)]) -> u64 {
    let series = metrics.lines().filter(|line| {
        let is_one = |(label, value): &(&str, &str)| line.contains(&format!("{label}=\"{value}\""));
        line.starts_with(&format!("{name}{{")) && labels.iter().all(is_one)
    });
    let values = series.map(|line| {
        line.rsplit(' ')
            .next()
            .and_then(|text| text.parse::<u64>().ok())
    });
    values.map(|value| value.expect("a number")).sum()
}

/// What is called knows who calls, and whether by mutual TLS.
#[test]
fn the_servers_side_reports_too() {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[("app", "client"), ("version", "v7")]);
    let web = lab.workload(Node::B, "web", &[("app", "web")]);
    let near = lab.workload(Node::B, "near", &[("app", "near")]);
    let outside = lab.workload(Node::Outside, "outside", &[]);
    let _server = web.serve(9080, "bookinfo", &["details"]);
    lab.configure("workloads.yaml", &workload_entries(&[&client, &web, &near]));
    let port = ServicePort {
        name: "http",
        port: 80,
        target: 9080,
    };
    lab.configure("web.yaml", &service("web", 40, &[port]));
    let a = Agent::start(&lab, Node::A);
    let address = free_address();
    let log = lab.folder().join("b.log");
    let file = log.to_string_lossy();
    let flags = [
        "--metrics-address",
        &address,
        "--cluster-id",
        "north",
        "--access-log-file",
        &file,
    ];
    let b = Agent::start_with(&lab, Node::B, &flags);
    let url = format!("http://{}:9080/", web.v4);
    let metrics = || curl(&[&format!("http://{address}/metrics")]);
    for (from, url) in [
        (&client, "http://web/"),
        (&near, "http://web/"),
        (&outside, &url),
    ] {
        eventually(PATIENCE, "web answers", || match from.curl(&[url]).status {
            200 => Ok(()),
            status => Err(status.to_string()),
        });
    }
    let of_web = [
        ("reporter", "destination"),
        ("destination_workload", "web"),
        ("destination_cluster", "north"),
        ("destination_service", "web.default.svc.cluster.local"),
        ("destination_service_namespace", "default"),
    ];
    let identity = "spiffe://cluster.local/ns/default/sa/client";
    let of_client = [
        ("source_workload", "client"),
        ("source_version", "v7"),
        ("source_principal", identity),
        ("connection_security_policy", "mutual_tls"),
    ];
    let of_near = [
        ("source_workload", "near"),
        ("connection_security_policy", "none"),
    ];
    let of_outside = [
        ("source_workload", "unknown"),
        ("source_principal", "unknown"),
        ("source_cluster", "unknown"),
        ("connection_security_policy", "none"),
    ];
    for labels in [&of_client[..], &of_near, &of_outside] {
        let labels = [&of_web[..], labels].concat();
        let text = metrics();
        let opened = counter(&text, "istio_tcp_connections_opened_total", &labels);
        assert!(opened > 0, "{labels:?} {text}");
    }

    // Of clients outside of the mesh nobody else tells.
    let from = format!("{}:9080 {}:", web.v4, outside.v4);
    eventually(PATIENCE, "a line for the client outside", || {
        let text = read(&log);
        let mut lines = text.lines();
        let found = lines.any(|line| line.contains(" inbound|9080|| ") && line.contains(&from));
        found.then_some(()).ok_or(text)
    });
    assert!(!read(&log).contains(&client.v4.to_string()));

    // Where policies look at requests, these are counted.
    lab.configure(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web}\n\
         spec: {action: DENY, selector: {matchLabels: {app: web}}, \
         rules: [{to: [{operation: {paths: [/secret]}}]}]}\n",
    );
    eventually(PATIENCE, "the policy is in force", || {
        match client.curl(&["http://web/secret"]).status {
            403 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    assert_eq!(client.curl(&["http://web/"]).status, 200);
    assert_eq!(outside.curl(&[&url]).status, 200);
    for (labels, code) in [
        (&of_client[..], "403"),
        (&of_client, "200"),
        (&of_outside, "200"),
    ] {
        let code = [("response_code", code), ("request_protocol", "http")];
        let labels = [&of_web[..], labels, &code].concat();
        eventually(PATIENCE, "a request is counted", || {
            let text = metrics();
            let count = counter(&text, "istio_requests_total", &labels);
            (count > 0)
                .then_some(())
                .ok_or_else(|| format!("{labels:?}"))
        });
    }
    let refused = [("reporter", "destination"), ("response_code", "403")];
    let sizes = counter(&metrics(), "istio_response_bytes_sum", &refused);
    assert!(sizes >= "RBAC: access denied".len() as u64, "{sizes}");

    // Its tunnels end, and with them what they have carried.
    drop(a);
    for labels in [&of_client[..], &of_outside] {
        let labels = [&of_web[..], labels].concat();
        eventually(PATIENCE, "bytes are counted", || {
            let text = metrics();
            let of = |name: &str| counter(&text, name, &labels);
            let counts = [
                of("istio_tcp_sent_bytes_total"),
                of("istio_tcp_received_bytes_total"),
                of("istio_tcp_connections_closed_total"),
            ];
            let [sent, received, closed] = counts;
            (sent > 100 && received > 50 && closed > 0)
                .then_some(())
                .ok_or_else(|| format!("{counts:?}"))
        });
    }
    drop(b);
}
