//! Requests go where the guide's VirtualService sends them, byte for byte as printed.

use std::fs;
use std::path::Path;

use crate::bookinfo::{Bookinfo, V1, V2};

const VIRTUAL_SERVICE: &str = include_str!("../../data/guide/virtual-service.yaml");

/// Requests per case and protocol.
const REQUESTS: u32 = 1000;

fn start() -> Bookinfo {
    Bookinfo::start_with(|lab| lab.configure("virtual-service.yaml", VIRTUAL_SERVICE))
}

#[test]
fn the_guides_first_command_prints_the_first_version() {
    let mesh = start();
    let said = mesh
        .sleep
        .run("sh", &["-c", "curl -s http://reviews/ | head -2"])
        .success();
    assert_eq!(said, format!("{V1}\n"));
}

#[test]
fn only_jason_gets_the_second_version() {
    let mesh = start();
    let cases: &[(&[&str], &str)] = &[
        (&[], V1),
        (&["end-user: jason"], V2),
        (&["end-user: Jason"], V1),
        (&["end-user: jason2"], V1),
        (&["end-user: x jason"], V1),
        (&["end-user: jason", "end-user: jason"], V1),
    ];
    for (headers, expected) in cases {
        let arguments: Vec<_> = headers.iter().flat_map(|header| ["-H", header]).collect();
        for answers in [
            mesh.sleep
                .curl_many(REQUESTS, "http://reviews/", &arguments),
            mesh.sleep.nghttp_many(REQUESTS, "http://reviews/", headers),
        ] {
            assert_eq!(answers.len(), REQUESTS as usize, "{headers:?}");
            let other = answers.iter().find(|answer| answer != expected);
            assert_eq!(other, None, "{headers:?} is to get {expected}");
        }
    }
    // What only HTTP/1.1 can say: another case of the name, and an empty value.
    for (header, expected) in [("END-USER: jason", V2), ("end-user;", V1)] {
        let reply = mesh.sleep.curl(&["-H", header, "http://reviews/"]);
        assert_eq!(reply.body.trim_end(), expected, "{header}: {reply:?}");
    }
}

#[test]
fn every_way_to_write_the_host_is_routed() {
    let mesh = start();
    for host in [
        "reviews",
        "reviews.default",
        "reviews.default.svc.cluster.local",
        "reviews:80",
    ] {
        let reply = mesh
            .sleep
            .curl(&["-H", "end-user: jason", &format!("http://{host}/")]);
        assert_eq!(reply.body.trim_end(), V2, "{host}: {reply:?}");
    }
}

#[test]
fn the_guides_samples_are_as_printed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/guide");
    // Lengths of the printed files, in bytes: nobody has mended them to make a test pass.
    for (file, length) in [
        ("virtual-service.yaml", 621),
        ("peer-authentication.yaml", 365),
        ("canary-rollout.yaml", 332),
    ] {
        assert_eq!(
            fs::metadata(folder.join(file)).expect(file).len(),
            length,
            "{file}"
        );
    }
}
