//! Certificates: renewal, another authority, revocation, and encryption on one node.

use std::collections::HashSet;
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};

/// `sleep` and `near` on node a, `far` on node b.
struct Mesh {
    a: Agent,
    b: Agent,
    _servers: Vec<Process>,
    sleep: Workload,
    lab: Lab,
}

fn mesh(flags: &[&str]) -> Mesh {
    let lab = Lab::new();
    let workload = |node, name| lab.workload(node, name, &[("app", name)]);
    let sleep = workload(Node::A, "sleep");
    let (near, far) = (workload(Node::A, "near"), workload(Node::B, "far"));
    let servers = [&near, &far].map(|server| server.serve(9080, "bookinfo", &["details"]));
    lab.configure("workloads.yaml", &workload_entries(&[&sleep, &near, &far]));
    for (name, host) in [("near", 40), ("far", 41)] {
        let port = ServicePort {
            name: "http",
            port: 80,
            target: 9080,
        };
        lab.configure(&format!("{name}.yaml"), &service(name, host, &[port]));
    }
    let mesh = Mesh {
        a: Agent::start_with(&lab, Node::A, flags),
        b: Agent::start_with(&lab, Node::B, flags),
        _servers: servers.into(),
        sleep,
        lab,
    };
    for url in ["http://near/", "http://far/"] {
        mesh.reaches(url);
    }
    mesh
}

impl Mesh {
    fn reaches(&self, url: &str) {
        eventually(Duration::from_secs(10), url, || {
            let reply = self.sleep.curl(&[url]);
            if reply.status == 200 {
                Ok(())
            } else {
                Err(format!("{reply:?}"))
            }
        });
    }

    /// Serial of the certificate that the server of `far` shows.
    fn serials(&self) -> Vec<String> {
        let all = self.a.meshctl_json(&["certs"]);
        let leaves = all.as_array().expect("a list").iter();
        leaves
            .filter(|one| one["kind"] == "Leaf")
            .map(|one| one["serial"].to_string())
            .collect()
    }
}

/// No program of the laboratory runs longer than a minute.
const MAX_LOAD_SECONDS: u32 = 45;

/// Asks all the time over one connection and over a new one for each request;
/// prints how often, and every failure.
const LOAD: &str = r#"
import http.client, sys, time
end, count = time.time() + float(sys.argv[1]), 0
kept = http.client.HTTPConnection("far", timeout=10)
while time.time() < end:
    fresh = http.client.HTTPConnection("far", timeout=10)
    for connection in (kept, fresh):
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                print("failed:", response.status)
        except Exception as error:
            print("failed:", repr(error))
            connection.close()
        count += 1
    fresh.close()
    time.sleep(0.005)
print("requests:", count)
"#;

/// `UNDERMESH_ROTATION_SECONDS=600` makes it the long run.
#[test]
fn certificates_of_ten_seconds_are_renewed_under_load_without_a_failed_request() {
    let seconds = std::env::var("UNDERMESH_ROTATION_SECONDS").ok();
    let mut seconds: u32 = seconds.map_or(25, |text| text.parse().expect("a number"));
    let mesh = mesh(&["--cert-lifetime", "10s"]);
    let (before, id) = (mesh.serials(), mesh.a.id());
    let mut all: HashSet<String> = HashSet::new();
    let (mut requests, mut resident) = (0, None);
    while seconds > 0 {
        let now = seconds.min(MAX_LOAD_SECONDS);
        seconds -= now;
        let said = std::thread::scope(|scope| {
            let arguments = ["-c", LOAD, &now.to_string()].map(str::to_owned);
            let sleep = &mesh.sleep;
            let load = scope.spawn(move || sleep.run("/usr/bin/python3", &arguments).success());
            while !load.is_finished() {
                all.extend(mesh.serials());
                std::thread::sleep(Duration::from_secs(1));
            }
            load.join().expect("an end")
        });
        assert!(
            !said.contains("failed"),
            "after {requests} requests: {said}"
        );
        let count = said.trim().rsplit(' ').next();
        requests += count
            .and_then(|count| count.parse::<u32>().ok())
            .expect("a count");
        resident.get_or_insert_with(|| mesh.a.resident_kib());
    }
    assert!(requests > 200, "{requests}");
    let after = mesh.serials();
    assert!(!after.is_empty() && after.iter().all(|serial| !before.contains(serial)));
    assert_eq!(mesh.a.id(), id);
    println!(
        "{requests} requests, none failed; {} certificates; resident after the first round \
         {} KiB, at the end {} KiB",
        all.len(),
        resident.unwrap_or_default(),
        mesh.a.resident_kib()
    );
}

#[test]
fn another_root_is_taken_up_while_the_mesh_works() {
    let mesh = mesh(&[]);
    let ca = mesh.lab.ca();
    // The new authority is made elsewhere by the same program; both roots are trusted first.
    let elsewhere = mesh.lab.folder().join("new-ca");
    std::fs::create_dir(&elsewhere).expect("a folder");
    let sign = format!(
        "cd {} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca-key.pem \
         -out ca-cert.pem -days 30 -subj /O=new/CN=root -addext basicConstraints=critical,CA:true 2>&1",
        elsewhere.display()
    );
    mesh.sleep.run("sh", &["-c", &sign]).success();
    let read = |path: &std::path::Path| std::fs::read_to_string(path).expect("a file");
    let (old_root, new_root) = (
        read(&ca.join("root-cert.pem")),
        read(&elsewhere.join("ca-cert.pem")),
    );
    let replace = |name: &str, text: &str| {
        let draft = ca.join(".draft");
        std::fs::write(&draft, text).expect("written");
        std::fs::rename(draft, ca.join(name)).expect("renamed");
    };
    // Of each agent: both look once a second.
    let roots = || {
        [&mesh.a, &mesh.b].map(|agent| {
            let all = agent.meshctl_json(&["certs"]);
            let all = all.as_array().expect("a list").iter();
            all.filter(|one| one["kind"] == "Root").count()
        })
    };
    let trusted = |count: usize, what: &str| {
        eventually(Duration::from_secs(10), what, || {
            let reply = mesh.sleep.curl(&["http://far/"]);
            assert_eq!(reply.status, 200, "{reply:?}");
            let roots = roots();
            let all = roots == [count; 2];
            all.then_some(()).ok_or_else(|| format!("{roots:?}"))
        });
    };
    replace("root-cert.pem", &format!("{old_root}{new_root}"));
    trusted(2, "both roots are trusted");
    replace("cert-chain.pem", &new_root);
    replace("ca-key.pem", &read(&elsewhere.join("ca-key.pem")));
    replace("ca-cert.pem", &new_root);
    eventually(Duration::from_secs(10), "the new authority signs", || {
        let reply = mesh.sleep.curl(&["http://far/"]);
        assert_eq!(reply.status, 200, "{reply:?}");
        let all = [&mesh.a, &mesh.b].map(|agent| agent.meshctl_json(&["certs"]).to_string());
        let is_new = |certs: &String| certs.contains("[\"O=new, CN=root\"]");
        all.iter()
            .all(is_new)
            .then_some(())
            .ok_or_else(|| all.join("\n"))
    });
    replace("root-cert.pem", &new_root);
    trusted(1, "the old root is gone");
}

#[test]
fn connections_on_one_node_are_encrypted_where_it_is_demanded() {
    let observed = |mesh: &Mesh, host: &str| {
        let rows = mesh.a.meshctl_json(&["authn", "tls-check", "sleep", host]);
        rows[0]["observed"].clone()
    };
    let attested = mesh(&[]);
    let seen = observed(&attested, "near");
    assert!(seen["same_node"].as_u64() > Some(0), "{seen}");
    assert_eq!(seen["handshakes"], 0, "{seen}");
    let seen = observed(&attested, "far");
    assert!(seen["handshakes"].as_u64() > Some(0), "{seen}");
    drop(attested);

    let encrypted = mesh(&["--same-node", "encrypt"]);
    let seen = observed(&encrypted, "near");
    assert!(
        seen["handshakes"] == 1 && seen["mutual_tls"].as_u64() > Some(0),
        "one, though both ends are here: {seen}"
    );
    assert_eq!(
        (&seen["same_node"], &seen["plaintext"]),
        (&0.into(), &0.into()),
        "{seen}"
    );
}

/// One workload demands it, also as the client; its neighbours go on as before.
#[test]
fn one_workload_demands_encryption_on_its_node() {
    let lab = Lab::new();
    let workload = |name| lab.workload(Node::A, name, &[("app", name)]);
    let (sleep, near) = (workload("sleep"), workload("near"));
    let vault = workload("vault").annotated("undermesh.io/same-node", "encrypt");
    let _servers = [&near, &vault].map(|server| server.serve(9080, "bookinfo", &["details"]));
    lab.configure(
        "workloads.yaml",
        &workload_entries(&[&sleep, &near, &vault]),
    );
    for (name, host) in [("near", 40), ("vault", 41)] {
        let port = ServicePort {
            name: "http",
            port: 80,
            target: 9080,
        };
        lab.configure(&format!("{name}.yaml"), &service(name, host, &[port]));
    }
    let agent = Agent::start(&lab, Node::A);
    let reached = |from: &Workload, host: &str| {
        let url = format!("http://{host}/");
        eventually(Duration::from_secs(10), &url, || {
            match from.curl(&[&url]).status {
                200 => Ok(()),
                status => Err(status.to_string()),
            }
        });
        let rows = agent.meshctl_json(&["authn", "tls-check", &from.name, host]);
        let seen = &rows[0]["observed"];
        let count = |what: &str| seen[what].as_u64().expect("a number");
        assert_eq!(count("plaintext"), 0, "{seen}");
        (
            count("mutual_tls") > 0 && count("handshakes") > 0,
            count("same_node") > 0,
        )
    };
    assert_eq!(reached(&sleep, "near"), (false, true));
    assert_eq!(reached(&sleep, "vault"), (true, false));
    assert_eq!(reached(&vault, "near"), (true, false));
}
