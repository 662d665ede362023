//! Between nodes everything is encrypted and both ends are known.

use mesh_tests::{Agent, Capture, Lab, Node, contains, eventually, workload_entries};
use std::time::Duration;

use crate::bookinfo::{Bookinfo, VIP4, VIP6, peer_authentication};

/// Words that nothing but the application says.
const SECRET: &str = "honorificabilitudinitatibus";

#[test]
fn a_capture_between_the_nodes_shows_no_byte_of_the_application() {
    let mesh = Bookinfo::start();
    let capture = Capture::start(&mesh.lab);
    for url in [
        format!("http://{VIP4}/echo"),
        format!("http://[{VIP6}]/echo"),
    ] {
        let reply = mesh
            .sleep
            .curl(&["--data", SECRET, "-H", "x-token: incarnadine", &url]);
        assert_eq!((reply.status, &*reply.body), (200, SECRET), "{reply:?}");
    }
    let packets = capture.stop();
    for plain in [SECRET, "incarnadine", "/echo", "HTTP/1.1", "reviews"] {
        assert!(
            !contains(&packets, plain.as_bytes()),
            "{plain:?} passed in the clear"
        );
    }
    assert!(
        contains(&packets, &[0x17, 0x03, 0x03]),
        "TLS application data passed"
    );
}

#[test]
fn strict_refuses_plaintext_and_permissive_passes_it() {
    let mesh = Bookinfo::start();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let urls = [
        format!("http://{}:9080/", mesh.v1.v4),
        format!("http://[{}]:9080/", mesh.v1.v6),
    ];
    for (mode, passes) in [
        ("STRICT", false),
        ("PERMISSIVE", true),
        ("STRICT", false),
        ("DISABLE", true),
    ] {
        mesh.lab
            .configure("peer-authentication.yaml", &peer_authentication(mode));
        for url in &urls {
            eventually(Duration::from_secs(2), mode, || {
                let reply = outside.curl(&[url]);
                let right = if passes {
                    reply.status == 200
                } else {
                    reply.status == 0 && reply.body.is_empty()
                };
                if right {
                    Ok(())
                } else {
                    Err(format!("{url}: {reply:?}"))
                }
            });
        }
        if mode != "DISABLE" {
            let meshed = mesh.sleep.curl(&["http://reviews/"]);
            assert_eq!(
                meshed.status, 200,
                "{mode}: workloads of the mesh talk on: {meshed:?}"
            );
        }
    }
}

#[test]
fn the_guides_peer_authentication_is_strict_everywhere_but_in_its_permissive_namespace() {
    let lab = Lab::new();
    let sleep = lab.workload(Node::A, "sleep", &[("app", "sleep")]);
    let shop = lab
        .workload(Node::B, "shop", &[("app", "shop")])
        .in_namespace("shop");
    let open = lab.workload(Node::B, "open", &[("app", "open")]);
    let outside = lab.workload(Node::Outside, "outside", &[]);
    let _servers = [
        shop.serve(9080, "bookinfo", &["details"]),
        open.serve(9080, "bookinfo", &["details"]),
    ];
    lab.configure("workloads.yaml", &workload_entries(&[&sleep, &shop, &open]));
    lab.configure(
        "peer-authentication.yaml",
        include_str!("../../data/guide/peer-authentication.yaml"),
    );
    let _agents = [Agent::start(&lab, Node::A), Agent::start(&lab, Node::B)];

    let ask = |from: &mesh_tests::Workload, to: &mesh_tests::Workload| {
        from.curl(&[&format!("http://{}:9080/", to.v4)]).status
    };
    eventually(Duration::from_secs(10), "the mesh is there", || {
        match ask(&sleep, &shop) {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        }
    });
    assert_eq!(ask(&outside, &shop), 0, "STRICT refuses plaintext");
    assert_eq!(ask(&outside, &open), 200, "PERMISSIVE passes it");
    assert_eq!(ask(&sleep, &open), 200);
}

#[test]
fn the_tunnel_refuses_clients_without_a_certificate_and_shows_the_workloads_own() {
    let mesh = Bookinfo::start();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let address = format!("{}:15008", mesh.v1.v4);

    let script = format!(
        "openssl s_client -connect {address} -alpn h2 -showcerts </dev/null 2>/dev/null | openssl x509 -noout -text"
    );
    let certificate = outside.run("sh", &["-c", &script]).success();
    assert!(
        certificate.contains("URI:spiffe://cluster.local/ns/default/sa/reviews"),
        "{certificate}"
    );

    let refused = outside.run(
        "timeout",
        &[
            "10", "openssl", "s_client", "-connect", &address, "-alpn", "h2", "-quiet",
        ],
    );
    assert!(
        refused.code == 1,
        "the server ends the connection by itself: {refused:?}"
    );
    assert!(
        refused.stderr.contains("certificate required"),
        "{refused:?}"
    );

    let old = outside.run(
        "timeout",
        &["10", "openssl", "s_client", "-connect", &address, "-tls1_2"],
    );
    assert_ne!(old.code, 0, "TLS 1.3 only: {old:?}");
}
