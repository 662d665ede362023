//! Connections that are open when a namespace is enrolled, or leaves: they go on as they began.

use std::time::Duration;

use mesh_tests::{Node, Process, Workload, eventually, wait_until, workload_entries};

use crate::bookinfo::Bookinfo;

const HOLD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/hold.py");
/// Within which a change of the configuration is in force.
const LIVE: Duration = Duration::from_secs(5);

fn hold(mesh: &Bookinfo, from: &Workload, address: &str, port: &str, name: &str) -> Process {
    let mut command = from.command("/usr/bin/python3");
    command
        .args([HOLD, address, port])
        .arg(mesh.lab.folder().join(format!("{name}.stop")));
    let log = mesh.lab.folder().join(format!("{name}.log"));
    let process = Process::spawn(&mut command, log).expect("python starts");
    assert!(
        wait_until(LIVE, || process.log().contains("held")),
        "{}",
        process.log()
    );
    process
}

fn end(mesh: &Bookinfo, mut process: Process, name: &str) -> String {
    let stop = mesh.lab.folder().join(format!("{name}.stop"));
    std::fs::write(stop, "").expect("the lab's folder is writable");
    assert!(
        wait_until(LIVE, || !process.is_running()),
        "{}",
        process.log()
    );
    process.log()
}

#[test]
fn open_connections_survive_enrolment_and_removal() {
    let (mesh, _echoes) = Bookinfo::start_with_echo();
    let late = mesh.lab.workload(Node::A, "late", &[("app", "late")]);
    let v1 = mesh.v1.v4.to_string();
    let all = [&mesh.sleep, &mesh.v1, &mesh.v2, &late];
    let _echo3 = late.serve(7, "bookinfo", &["echo", "--listen", "[::]:7"]);
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let into = late.v4.to_string();
    // Of a namespace that is not enrolled, and is now: from there, and to there.
    let early = hold(&mesh, &late, &v1, "7", "early");
    let early_into = hold(&mesh, &outside, &into, "7", "early-into");
    mesh.lab
        .configure("workloads.yaml", &workload_entries(&all));
    eventually(LIVE, "it is enrolled", || {
        match late.curl(&["http://reviews/"]).status {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        }
    });
    // Through the mesh, of a namespace that leaves.
    let open = hold(&mesh, &late, "10.96.0.40", "7", "open");
    let open_into = [(&outside, "outside-into"), (&mesh.sleep, "sleep-into")]
        .map(|(from, name)| (hold(&mesh, from, &into, "7", name), name));
    // Tuned while it is enrolled; what it was comes back.
    let tuned = |workload: &Workload| {
        let said = workload.run("cat", &["/proc/sys/net/ipv4/tcp_tw_reuse"]);
        said.success().trim().to_owned()
    };
    assert_eq!(tuned(&late), "1");
    mesh.lab
        .configure("workloads.yaml", &workload_entries(&all[..3]));
    eventually(LIVE, "it has left", || match tuned(&late).as_str() {
        "2" => Ok(()),
        other => Err(other.to_owned()),
    });
    std::thread::sleep(Duration::from_secs(1));
    let said = end(&mesh, early, "early");
    assert!(
        said.contains("whole") && said.contains(&format!("{v1} 7")),
        "{said}"
    );
    let said = end(&mesh, open, "open");
    assert!(
        said.contains("whole") && said.contains("peer 10.96.0.40 7"),
        "{said}"
    );
    for (process, name) in [(early_into, "early-into")].into_iter().chain(open_into) {
        let said = end(&mesh, process, name);
        let whole = said.contains("whole") && said.contains(&format!("peer {into} 7"));
        assert!(whole, "{name}: {said}");
    }
    // New ones are its own affair again.
    let plain = late.curl(&[&format!("http://{v1}:9080/peer")]);
    assert!(plain.body.contains(&late.v4.to_string()), "{plain:?}");
}
