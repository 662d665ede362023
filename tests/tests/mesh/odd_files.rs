//! Files that are something else: FIFOs, which keep whoever opens them waiting, directories, devices.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, ServicePort, eventually, service, workload_entries};

const PATIENCE: Duration = Duration::from_secs(10);

fn fifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.expect("mkfifo runs").success());
}

#[test]
fn a_file_that_is_something_else_is_named_and_holds_up_nothing() {
    let lab = Lab::new();
    let sleep = lab.workload(Node::A, "sleep", &[("app", "sleep")]);
    let far = lab.workload(Node::B, "far", &[("app", "far")]);
    let _server = far.serve(9080, "bookinfo", &["details"]);
    lab.configure("workloads.yaml", &workload_entries(&[&sleep, &far]));
    let port = ServicePort {
        name: "http",
        port: 80,
        target: 9080,
    };
    lab.configure("far.yaml", &service("far", 41, &[port]));
    let _far = Agent::start(&lab, Node::B);
    let crl = lab.ca().join("crl.pem");

    fifo(&crl);
    let error = Agent::try_start(&lab, Node::A).err();
    let error = format!("{:#}", error.expect("it does not start"));
    assert!(
        error.contains("ca/crl.pem: it is a FIFO, not a regular file"),
        "{error}"
    );
    fs::remove_file(&crl).expect("removed");

    let agent = Agent::start(&lab, Node::A);
    let says = |what: &str| {
        eventually(PATIENCE, what, || {
            let [config, workloads] =
                ["config", "workloads"].map(|view| agent.meshctl(&[view]).stdout);
            let said = agent.log() + &config + &workloads;
            if said.contains(what) {
                Ok(())
            } else {
                Err(said)
            }
        });
        // New connections, with the certificates and the configuration of before.
        let reply = sleep.curl(&["-H", "Connection: close", "http://far/"]);
        assert_eq!(reply.status, 200, "{what}: {reply:?}");
    };
    fifo(&crl);
    says("crl.pem: it is a FIFO, not a regular file");
    says("certificate authority not renewed, the old one stays");
    fs::remove_file(&crl).expect("removed");
    fs::create_dir(&crl).expect("a folder");
    says("crl.pem: it is a directory, not a regular file");
    fs::remove_dir(&crl).expect("removed");
    symlink("/dev/zero", &crl).expect("a link");
    says("crl.pem: it is a device, not a regular file");
    fs::remove_file(&crl).expect("removed");

    let odd = lab.config().join("odd.yaml");
    fifo(&odd);
    says("odd.yaml: cannot be read: it is a FIFO, not a regular file");
    fs::remove_file(&odd).expect("removed");

    let place = lab.folder().join("netns");
    fifo(&place);
    let entry = workload_entries(&[&sleep]).replace("name: sleep", "name: other");
    let netns = format!("undermesh.io/netns: {}", sleep.netns);
    let entry = entry
        .replace(&netns, &format!("undermesh.io/netns: {}", place.display()))
        .replace(&sleep.v4.to_string(), "10.77.1.200")
        .replace(&sleep.v6.to_string(), "fd77::200");
    lab.configure("other.yaml", &entry);
    says(&format!(
        "cannot enter network namespace {}",
        place.display()
    ));
}
