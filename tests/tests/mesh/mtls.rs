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
                    // 28 would be curl's patience: it has to be told.
                    reply.status == 0 && reply.body.is_empty() && reply.exit != 28
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

/// An application that speaks TLS itself, to clients in the mesh and outside of it.
#[test]
fn an_applications_own_tls_passes_untouched_where_plaintext_may() {
    let lab = Lab::new();
    let sleep = lab.workload(Node::A, "sleep", &[("app", "sleep")]);
    let web = lab.workload(Node::B, "web", &[("app", "web")]);
    let outside = lab.workload(Node::Outside, "outside", &[]);
    let folder = lab.folder().display().to_string();
    let make = format!(
        "cd {folder} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout own.key \
         -out own.pem -days 1 -subj /CN=own -addext subjectAltName=IP:{} 2>&1",
        web.v4
    );
    web.run("sh", &["-c", &make]).success();
    let (certificate, key) = (format!("{folder}/own.pem"), format!("{folder}/own.key"));
    let _server = web.serve(
        9443,
        "openssl",
        &[
            "s_server",
            "-www",
            "-accept",
            "9443",
            "-cert",
            &certificate,
            "-key",
            &key,
            "-alpn",
            "http/1.1",
        ],
    );
    lab.configure("workloads.yaml", &workload_entries(&[&sleep, &web]));
    lab.configure(
        "peer-authentication.yaml",
        &peer_authentication("PERMISSIVE"),
    );
    let _agents = [Agent::start(&lab, Node::A), Agent::start(&lab, Node::B)];
    let url = format!("https://{}:9443/", web.v4);
    for client in [&sleep, &outside] {
        eventually(
            Duration::from_secs(10),
            "its own certificate is shown",
            || match client.curl(&["--cacert", &certificate, &url]) {
                reply if reply.status == 200 => Ok(()),
                reply => Err(format!("{}: {reply:?}", client.name)),
            },
        );
    }
    lab.configure("peer-authentication.yaml", &peer_authentication("STRICT"));
    eventually(Duration::from_secs(5), "STRICT", || {
        match outside.curl(&["--cacert", &certificate, &url]).status {
            0 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    let reply = sleep.curl(&["--cacert", &certificate, &url]);
    assert_eq!(reply.status, 200, "{reply:?}");
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
