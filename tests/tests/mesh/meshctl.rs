//! What people type.

use std::os::unix::fs::PermissionsExt;

use crate::bookinfo::{Bookinfo, peer_authentication};

#[test]
fn check_has_a_tick_for_everything_that_is_well() {
    let mesh = Bookinfo::start();
    let check = mesh.a.meshctl(&["check"]);
    assert_eq!(check.code, 0, "{check:?}");
    for subject in [
        "kernel is",
        "BTF",
        "BPF file system",
        "cgroup2",
        "agent is running",
        "certificates are valid",
    ] {
        let line = check.stdout.lines().find(|line| line.contains(subject));
        assert!(
            line.is_some_and(|line| line.starts_with('√')),
            "{subject}: {check:?}"
        );
    }
    mesh.a.meshctl_json(&["check"]);
}

#[test]
fn check_says_that_the_agent_is_down() {
    let mut mesh = Bookinfo::start();
    mesh.a.kill();
    let check = mesh.a.meshctl(&["check"]);
    assert_ne!(check.code, 0, "{check:?}");
    assert!(check.stdout.contains("× agent is running"), "{check:?}");
}

#[test]
fn workloads_and_services_are_listed_for_people_and_as_json() {
    let mesh = Bookinfo::start();
    let said = mesh.a.meshctl(&["workloads"]).success();
    for word in ["sleep", "reviews-v1", "reviews-v2"] {
        assert!(said.contains(word), "{said}");
    }
    let json = mesh.a.meshctl_json(&["workloads"]);
    assert_eq!(json.as_array().map(Vec::len), Some(3), "{json}");
    let said = mesh.a.meshctl(&["services"]).success();
    assert!(
        said.contains("reviews") && said.contains("10.96.0.10"),
        "{said}"
    );
    let json = mesh.a.meshctl_json(&["services"]);
    assert_eq!(json.as_array().map(Vec::len), Some(1), "{json}");
}

#[test]
fn flows_show_the_traffic_that_the_kernel_counted() {
    let mesh = Bookinfo::start();
    mesh.sleep.curl_many(20, "http://reviews/", &[]);
    let said = mesh.a.meshctl(&["flows"]).success();
    assert!(said.contains("sleep"), "{said}");
    let json = mesh.a.meshctl_json(&["flows"]);
    assert!(
        json.as_array().is_some_and(|flows| !flows.is_empty()),
        "{json}"
    );
}

#[test]
fn tls_check_has_the_guides_columns() {
    let mesh = Bookinfo::start_with(|lab| {
        lab.configure("peer-authentication.yaml", &peer_authentication("STRICT"));
        lab.configure(
            "virtual-service.yaml",
            include_str!("../../data/guide/virtual-service.yaml"),
        );
    });
    let check = mesh.a.meshctl(&["authn", "tls-check", "sleep.default"]);
    let mut lines = check.stdout.lines();
    let header: Vec<_> = lines
        .next()
        .unwrap_or("")
        .split("  ")
        .map(str::trim)
        .filter(|column| !column.is_empty())
        .collect();
    assert_eq!(
        header[..6],
        [
            "HOST:PORT",
            "STATUS",
            "SERVER",
            "CLIENT",
            "AUTHN POLICY",
            "DESTINATION RULE"
        ],
        "{check:?}"
    );
    let row = lines
        .find(|line| line.starts_with("reviews.default.svc.cluster.local:80 "))
        .unwrap_or_else(|| panic!("no row for reviews: {check:?}"));
    for word in ["STRICT", "mTLS", "reviews/default"] {
        assert!(row.contains(word), "{row}");
    }
    assert_eq!(check.code, 0, "no conflict: {check:?}");
}

#[test]
fn version_and_the_sockets_mode() {
    let mesh = Bookinfo::start();
    let said = mesh.a.meshctl(&["version"]).success();
    assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    let mode = std::fs::metadata(mesh.a.socket())
        .expect("the socket is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "only root may talk to the agent");
}
