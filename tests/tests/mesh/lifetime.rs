//! Agents end, by accident or on purpose: never in the clear, and back in a moment.

use std::time::Duration;

use mesh_tests::{Capture, Node, contains, eventually};

use crate::bookinfo::{Bookinfo, VIP4};

/// Within which a restarted agent is to carry traffic again.
const BACK: Duration = Duration::from_secs(5);

#[test]
fn when_the_clients_agent_is_killed_connections_are_refused_and_nothing_passes_in_the_clear() {
    let mut mesh = Bookinfo::start();
    mesh.a.kill();
    let capture = Capture::start(&mesh.lab);
    for url in [
        format!("http://{VIP4}/secret-path"),
        format!("http://{}:9080/secret-path", mesh.v1.v4),
    ] {
        let reply = mesh.sleep.curl(&[&url]);
        assert_eq!(
            reply.exit, 7,
            "curl's code for a refused connection; {reply:?}"
        );
    }
    assert!(!contains(&capture.stop(), b"secret-path"));

    mesh.a.restart();
    eventually(BACK, "traffic flows again", || {
        match mesh.sleep.curl(&["http://reviews/"]).status {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        }
    });
}

#[test]
fn when_the_servers_agent_is_killed_nobody_gets_past_it() {
    let mut mesh = Bookinfo::start();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let url = format!("http://{}:9080/", mesh.v1.v4);
    assert_eq!(
        outside.curl(&[&url]).status,
        200,
        "PERMISSIVE is the default"
    );
    mesh.b.kill();
    let reply = outside.curl(&[&url]);
    assert_eq!(
        reply.exit, 7,
        "closed, although the application listens: {reply:?}"
    );

    mesh.b.restart();
    eventually(BACK, "traffic flows again", || {
        match outside.curl(&[&url]).status {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        }
    });
    eventually(BACK, "the tunnel works again", || {
        match mesh.sleep.curl(&["http://reviews/"]).status {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        }
    });
}

#[test]
fn identities_survive_a_restart() {
    let mut mesh = Bookinfo::start();
    // Only one of the two: each still trusts the other's certificates.
    mesh.b.stop();
    mesh.b.restart();
    mesh.until_reachable();
    mesh.a.stop();
    mesh.a.restart();
    mesh.until_reachable();
}
