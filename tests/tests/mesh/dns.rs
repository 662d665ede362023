//! Names of the mesh are answered, all others are forwarded to where the
//! application asked.

use mesh_tests::Node;

use crate::bookinfo::{Bookinfo, V1, V2, VIP4, VIP6};

/// An address of TEST-NET-1 (RFC 5737).
const ELSEWHERE: &str = "192.0.2.7";

#[test]
fn short_names_full_names_and_addresses_all_work() {
    let mesh = Bookinfo::start();
    let vip6 = format!("[{VIP6}]");
    for host in [
        "reviews",
        "reviews.default",
        "reviews.default.svc",
        "reviews.default.svc.cluster.local",
        "reviews.default.svc.cluster.local.",
        "Reviews",
        VIP4,
        &vip6,
    ] {
        let reply = mesh.sleep.curl(&[&format!("http://{host}/")]);
        assert_eq!(reply.status, 200, "{host}: {reply:?}");
        assert!(
            [V1, V2].contains(&reply.body.trim_end()),
            "{host}: {reply:?}"
        );
    }
}

#[test]
fn the_resolver_gets_the_services_addresses_of_both_families() {
    let mesh = Bookinfo::start();
    for (database, address) in [("ahostsv4", VIP4), ("ahostsv6", VIP6)] {
        let said = mesh.sleep.run("getent", &[database, "reviews"]).success();
        assert!(
            said.starts_with(&format!("{address} ")),
            "{database}: {said}"
        );
    }
}

#[test]
fn other_names_are_forwarded_over_udp_and_tcp() {
    let mesh = Bookinfo::start();
    let nameserver = mesh.lab.nameserver();
    let _dnsmasq = nameserver.serve(
        53,
        "dnsmasq",
        &[
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--pid-file=",
            "--local=/test/",
            &format!("--address=/elsewhere.test/{ELSEWHERE}"),
            // More than fits a UDP answer without EDNS: clients come back over TCP.
            &format!(
                "--txt-record=long.test,{}",
                vec!["x".repeat(200); 5].join(",")
            ),
        ],
    );
    let server = format!("SERVER: {}#53", nameserver.v4);
    for transport in ["+notcp", "+tcp"] {
        let said = mesh
            .sleep
            .run("dig", &[transport, "+time=3", "elsewhere.test"])
            .success();
        assert!(said.contains(ELSEWHERE), "{transport}: {said}");
        assert!(
            said.contains(&server),
            "{transport}: the answer comes from whom we asked: {said}"
        );
        let said = mesh
            .sleep
            .run("dig", &[transport, "+time=3", "nobody.test"])
            .success();
        assert!(said.contains("status: NXDOMAIN"), "{transport}: {said}");
    }
    let said = mesh
        .sleep
        .run("dig", &["+noedns", "+short", "+time=3", "txt", "long.test"])
        .success();
    assert_eq!(said.matches(&"x".repeat(200)).count(), 5, "{said}");
    let said = mesh
        .sleep
        .run("getent", &["ahostsv4", "elsewhere.test"])
        .success();
    assert!(said.starts_with(ELSEWHERE), "{said}");
}

#[test]
fn names_are_not_captured_outside_of_the_mesh() {
    let mesh = Bookinfo::start();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let reply = outside.curl(&["http://reviews/"]);
    assert_eq!(
        reply.exit, 6,
        "curl's code for a name that is not found; {reply:?}"
    );
}
