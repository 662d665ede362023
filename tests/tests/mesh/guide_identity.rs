//! The guide's mutual TLS, as an operator sees it: tls-check word for word, and whom STRICT would cut off.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// STRICT for the whole mesh, as the guide has it.
fn strict() -> &'static str {
    let guide = include_str!("../../data/guide/peer-authentication.yaml");
    guide.split("\n---\n").next().expect("a document")
}

/// `sleep` on node a asks `reviews` (two versions, port 8080) on node b; `legacy` is not in the mesh.
struct Guide {
    a: Agent,
    b: Agent,
    sleep: Workload,
    legacy: Workload,
    v1: Workload,
    _servers: Vec<Process>,
    lab: Lab,
}

impl Guide {
    fn start() -> Self {
        let lab = Lab::new();
        let sleep = lab.workload(Node::A, "sleep", &[("app", "sleep")]);
        let legacy = lab.workload(Node::Outside, "legacy", &[]);
        let version = |version| {
            let labels = [("app", "reviews"), ("version", version)];
            lab.workload(Node::B, &format!("reviews-{version}"), &labels)
        };
        let (v1, v2) = (version("v1"), version("v2"));
        let servers = [("v1", &v1), ("v2", &v2)].map(|(version, workload)| {
            workload.serve(9080, "bookinfo", &["reviews", "--version", version])
        });
        lab.configure("workloads.yaml", &workload_entries(&[&sleep, &v1, &v2]));
        let port = ServicePort {
            name: "http",
            port: 8080,
            target: 9080,
        };
        lab.configure("reviews.yaml", &service("reviews", 10, &[port]));
        lab.configure(
            "virtual-service.yaml",
            include_str!("../../data/guide/virtual-service.yaml"),
        );
        let guide = Self {
            a: Agent::start(&lab, Node::A),
            b: Agent::start(&lab, Node::B),
            sleep,
            legacy,
            v1,
            _servers: servers.into(),
            lab,
        };
        eventually(Duration::from_secs(10), "reviews answers", || {
            match guide.sleep.curl(&["http://reviews:8080/"]).status {
                200 => Ok(()),
                status => Err(status.to_string()),
            }
        });
        guide
    }

    /// The cells of the row for reviews, and the exit code, once `wanted` is the status.
    fn row(&self, arguments: &[&str], wanted: &str) -> (Vec<String>, i32) {
        let mut found = None;
        let arguments = [&["authn", "tls-check", "sleep.default"], arguments].concat();
        eventually(PATIENCE, wanted, || {
            let said = self.a.meshctl(&arguments);
            let line = said
                .stdout
                .lines()
                .find(|line| line.starts_with("reviews.default.svc.cluster.local:8080 "))
                .ok_or_else(|| said.stdout.clone())?;
            let cells: Vec<String> = line
                .split("  ")
                .map(|cell| cell.trim().to_owned())
                .filter(|cell| !cell.is_empty())
                .collect();
            let right = cells.get(1).is_some_and(|status| status == wanted);
            found = Some((cells, said.code));
            if right { Ok(()) } else { Err(said.stdout) }
        });
        found.expect("a row")
    }
}

#[test]
fn tls_check_says_what_the_guide_prints_and_tells_conflicts() {
    let guide = Guide::start();
    guide.lab.configure("peer-authentication.yaml", strict());
    let (cells, code) = guide.row(&[], "STRICT");
    assert_eq!(
        cells,
        [
            "reviews.default.svc.cluster.local:8080",
            "STRICT",
            "mTLS",
            "mTLS",
            "default/",
            "reviews/default"
        ]
    );
    assert_eq!(code, 0);
    let header = guide
        .a
        .meshctl(&["authn", "tls-check", "sleep.default"])
        .stdout;
    let header: Vec<_> = header
        .lines()
        .next()
        .unwrap_or_default()
        .split("  ")
        .collect();
    let header: Vec<_> = header
        .iter()
        .map(|cell| cell.trim())
        .filter(|cell| !cell.is_empty())
        .collect();
    assert_eq!(
        header,
        [
            "HOST:PORT",
            "STATUS",
            "SERVER",
            "CLIENT",
            "AUTHN POLICY",
            "DESTINATION RULE"
        ]
    );
    // As Istio printed it when it still had the command.
    let (cells, _) = guide.row(&["--format", "istio-1.5"], "AUTO");
    assert_eq!(cells[2..], ["STRICT", "-", "/default", "default/reviews"]);
    // One service; each subset has a row; the proof is there.
    let rows = guide
        .a
        .meshctl_json(&["authn", "tls-check", "sleep.default", "reviews"]);
    let hosts: Vec<&str> = rows
        .as_array()
        .expect("rows")
        .iter()
        .filter_map(|row| row["host"].as_str())
        .collect();
    let host = "reviews.default.svc.cluster.local";
    assert_eq!(hosts, [host, &format!("{host}|v1"), &format!("{host}|v2")]);
    assert!(
        rows[0]["observed"]["handshakes"].as_u64() > Some(0),
        "{rows}"
    );
    assert_eq!(rows[0]["observed"]["plaintext"], 0, "{rows}");
    let wide = guide
        .a
        .meshctl(&["authn", "tls-check", "sleep.default", "-o", "wide"])
        .stdout;
    assert!(
        wide.lines()
            .next()
            .is_some_and(|line| line.contains("OBSERVED")),
        "{wide}"
    );

    // The servers' node has not seen the client's connections, and does not say that there were none.
    let arguments = ["authn", "tls-check", "sleep.default"];
    let rows = guide.b.meshctl_json(&arguments);
    assert!(rows[0]["observed"].is_null(), "{rows}");

    let rule = |mode: &str| {
        format!(
            "apiVersion: networking.istio.io/v1beta1\nkind: DestinationRule\nmetadata: {{name: reviews}}\n\
             spec: {{host: reviews, trafficPolicy: {{tls: {{mode: {mode}}}}}}}\n"
        )
    };
    guide
        .lab
        .configure("virtual-service.yaml", &rule("DISABLE"));
    let (cells, code) = guide.row(&[], "CONFLICT");
    assert_eq!((&*cells[2], &*cells[3], code), ("mTLS", "HTTP", 1));
    let (cells, code) = guide.row(&["--format", "istio-1.5"], "CONFLICT");
    assert_eq!((&*cells[2], &*cells[3], code), ("STRICT", "DISABLE", 1));
    for output in ["wide", "json"] {
        let arguments = ["authn", "tls-check", "sleep.default", "-o", output];
        let said = guide.a.meshctl(&arguments);
        assert!(
            said.code == 1 && said.stdout.contains("CONFLICT"),
            "{said:?}"
        );
    }
    guide
        .lab
        .configure("virtual-service.yaml", &rule("ISTIO_MUTUAL"));
    assert_eq!(guide.row(&[], "STRICT").1, 0);
    guide.lab.configure(
        "peer-authentication.yaml",
        &strict().replace("STRICT", "DISABLE"),
    );
    let (cells, code) = guide.row(&[], "CONFLICT");
    assert_eq!((&*cells[2], &*cells[3], code), ("HTTP", "mTLS", 1));
}

#[test]
fn before_strict_an_operator_sees_whom_it_would_cut_off() {
    let guide = Guide::start();
    let url = format!("http://{}:9080/", guide.v1.v4);
    let plaintext = || guide.b.meshctl_json(&["authn", "plaintext"]);
    assert_eq!(
        plaintext().as_array().map(Vec::len),
        Some(0),
        "{}",
        plaintext()
    );
    for _ in 0..3 {
        assert_eq!(guide.legacy.curl(&[&url]).status, 200);
    }
    let seen = plaintext();
    assert_eq!(seen[0]["workload"], "reviews-v1", "{seen}");
    assert_eq!(seen[0]["client"], guide.legacy.v4.to_string(), "{seen}");
    assert_eq!(
        (&seen[0]["connections"], &seen[0]["port"]),
        (&3.into(), &9080.into()),
        "{seen}"
    );
    let analyzed = guide.b.meshctl(&["analyze"]).success();
    assert!(
        analyzed.contains(&format!(
            "PERMISSIVE is in force: STRICT would cut off {}",
            guide.legacy.v4
        )),
        "{analyzed}"
    );

    // The file that is to come, before it is there.
    let file = guide.legacy.file("strict.yaml", strict());
    let file = file.to_string_lossy();
    let analyzed = guide.b.meshctl(&["analyze", &file, "--dry-run"]);
    assert_eq!(analyzed.code, 1, "{analyzed:?}");
    assert!(
        analyzed.stdout.contains(&format!(
            "(PeerAuthentication istio-system/default legacy-strict.yaml:1) spec.mtls.mode: STRICT would cut off {}, \
             which spoke plaintext to reviews-v1.default port 9080",
            guide.legacy.v4
        )),
        "{analyzed:?}"
    );
    assert!(
        analyzed
            .stdout
            .ends_with("1 clients that spoke plaintext within 10 minutes would be cut off.\n"),
        "{analyzed:?}"
    );
    // The guide's whole file leaves namespace default open.
    let file = guide.legacy.file(
        "guide.yaml",
        include_str!("../../data/guide/peer-authentication.yaml"),
    );
    let analyzed = guide
        .b
        .meshctl(&["analyze", &file.to_string_lossy(), "--dry-run"]);
    assert!(
        analyzed.code == 0 && analyzed.stdout.contains("\n0 clients"),
        "{analyzed:?}"
    );

    guide.lab.configure("peer-authentication.yaml", strict());
    eventually(PATIENCE, "it is cut off", || {
        match guide.legacy.curl(&[&url]).status {
            0 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    assert_eq!(
        plaintext().as_array().map(Vec::len),
        Some(0),
        "they are cut off already"
    );
    assert_eq!(guide.sleep.curl(&["http://reviews:8080/"]).status, 200);
    let check = guide.b.meshctl(&["check"]).stdout;
    let line = check
        .lines()
        .find(|line| line.contains("workload certificates are valid"));
    assert!(
        line.is_some_and(|line| ["23h", "1d0h"]
            .iter()
            .any(|left| line.contains(&format!("expires in {left}")))),
        "{check}"
    );
}
