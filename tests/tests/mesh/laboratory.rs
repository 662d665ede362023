//! The laboratory itself: without a mesh, workloads reach one another in the
//! clear, and nothing is left behind. What the mesh changes is seen against this.

use std::path::Path;

use mesh_tests::{Capture, Lab, Node, contains};

#[test]
fn without_an_agent_workloads_talk_in_the_clear_over_both_address_families() {
    let lab = Lab::new();
    let sleep = lab.workload(Node::A, "sleep", &[]);
    let reviews = lab.workload(Node::B, "reviews-v1", &[]);
    let _server = reviews.serve(9080, "bookinfo", &["reviews", "--version", "v1"]);

    let capture = Capture::start(&lab);
    for url in [
        format!("http://{}:9080/", reviews.v4),
        format!("http://[{}]:9080/", reviews.v6),
    ] {
        let reply = sleep.curl(&[&url]);
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(
            reply.body,
            "{\"id\": \"v1\", \"reviews\": [\"good\", \"average\"]}\n"
        );
        assert_eq!(reply.headers["content-type"], "application/json");
    }
    let packets = capture.stop();
    assert!(
        contains(&packets, b"average"),
        "the capture sees what passes between the nodes"
    );
}

#[test]
fn a_lab_leaves_nothing_behind_even_when_its_test_panics() {
    let lab = Lab::new();
    let name = lab.name().to_owned();
    let folders = [
        lab.folder().to_owned(),
        lab.cgroup(Node::A),
        Path::new("/run/netns").join(lab.wire_netns()),
    ];
    let workload = lab.workload(Node::A, "sleep", &[]);
    let server = workload.serve(9080, "bookinfo", &["echo"]);
    let process = format!("/proc/{}", server.id());
    assert!(folders.iter().all(|folder| folder.exists()));

    let test = std::thread::spawn(move || {
        let _held = (lab, server);
        panic!("on purpose");
    });
    assert!(test.join().is_err());

    for folder in folders {
        assert!(!folder.exists(), "{} is left", folder.display());
    }
    assert!(!Path::new(&process).exists(), "a process of {name} is left");
    let left: Vec<_> = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(
        !left
            .iter()
            .any(|netns| netns.to_string_lossy().starts_with(&format!("{name}-"))),
        "{left:?}"
    );
}
