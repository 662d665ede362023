//! Workloads that are found by the id of their container: real ones, by runc,
//! with the machine's own programs in them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Outcome, Process, ServicePort, Workload, binary, container_entries,
    eventually, outcome, service, wait_until,
};
use serde_json::json;

/// Within which the mesh has to notice a container.
const NOTICED: Duration = Duration::from_secs(5);

/// A container in the place of a workload: its network namespace, its control group.
struct Container {
    id: String,
    runc: PathBuf,
    process: Process,
}

impl Container {
    fn start(lab: &Lab, workload: &Workload, id: &str, command: &[&str]) -> Self {
        let folder = lab.folder().join(id);
        let root = folder.join("rootfs");
        let mut mounts = vec![json!({"destination": "/proc", "type": "proc", "source": "proc"})];
        for name in ["dev", "etc", "proc"] {
            fs::create_dir_all(root.join(name)).expect("the lab's folder is writable");
        }
        // The machine's own programs; where /usr is merged, the others are links into it.
        for name in ["usr", "bin", "lib", "lib64"] {
            let path = Path::new("/").join(name);
            if let Ok(target) = fs::read_link(&path) {
                // A container that is made again has them.
                let _ = symlink(target, root.join(name));
            } else if path.is_dir() {
                mounts.push(json!({
                    "destination": &path, "type": "bind", "source": &path, "options": ["rbind", "ro"],
                }));
            }
        }
        fs::copy(binary("bookinfo"), root.join("bookinfo")).expect("bookinfo is built");
        for name in ["resolv.conf", "nsswitch.conf"] {
            fs::copy(lab.folder().join(name), root.join("etc").join(name)).expect("the lab has it");
        }
        let group = lab.cgroup(workload.node);
        let group = Path::new("/").join(
            group
                .strip_prefix(group.ancestors().nth(2).expect("below the mount point"))
                .expect("an ancestor"),
        );
        let configuration = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": command, "env": ["PATH=/usr/bin:/bin"], "user": {"uid": 0, "gid": 0}},
            "mounts": mounts,
            "linux": {
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"},
                    {"type": "network", "path": workload.netns_path()},
                ],
                "cgroupsPath": group.join(id),
            },
        });
        fs::write(folder.join("config.json"), configuration.to_string()).expect("writable");
        let runc = lab.folder().join("runc");
        let mut run = std::process::Command::new("runc");
        run.arg("--root").arg(&runc).args(["run", "--bundle"]);
        run.arg(&folder).arg(id).stdin(std::process::Stdio::null());
        let mut container = Self {
            id: id.to_owned(),
            runc,
            process: Process::spawn(&mut run, lab.folder().join(format!("{id}.log")))
                .expect("runc is installed"),
        };
        let running = wait_until(NOTICED, || {
            container.runc(&["state"]).stdout.contains("\"running\"")
                || !container.process.is_running()
        });
        assert!(
            running && container.process.is_running(),
            "{id}: {}",
            container.process.log()
        );
        container
    }

    fn runc(&self, command: &[&str]) -> Outcome {
        let mut runc = std::process::Command::new("runc");
        runc.arg("--root")
            .arg(&self.runc)
            .args(command)
            .arg(&self.id);
        outcome(&mut runc).expect("runc is installed")
    }

    /// Runs a command in the container.
    fn exec(&self, command: &[&str]) -> Outcome {
        let mut runc = std::process::Command::new("runc");
        runc.arg("--root").arg(&self.runc).arg("exec").arg(&self.id);
        outcome(runc.args(command)).expect("runc is installed")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.runc(&["delete", "--force"]);
    }
}

#[test]
fn containers_are_enrolled_by_their_ids_as_they_come_and_go() {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let server = lab.workload(Node::B, "server", &[("app", "server")]);
    let id = |of: &str| format!("{of}{}", lab.name().replace("um-", "-").replace('-', "0"));
    let (client_id, server_id) = (id("c1"), id("5e"));
    let serve: &[&str] = &["/bookinfo", "details", "--listen", "[::]:8080"];
    lab.configure(
        "workloads.yaml",
        // The beginning of an id is enough, as `docker ps` shows it.
        &container_entries(&[(&client, &client_id[..6]), (&server, &server_id)]),
    );
    let ports = [ServicePort {
        name: "http",
        port: 80,
        target: 8080,
    }];
    lab.configure("server.yaml", &service("server", 30, &ports));
    let in_client = Container::start(&lab, &client, &client_id, &["sleep", "120"]);
    let first = Container::start(&lab, &server, &server_id, serve);
    let (a, b) = (Agent::start(&lab, Node::A), Agent::start(&lab, Node::B));

    let ask = || in_client.exec(&["curl", "-sS", "--max-time", "5", "http://server/peer"]);
    let own = [client.v4.to_string(), client.v6.to_string()];
    let reachable = || {
        let said = ask();
        if own.iter().any(|own| said.stdout.contains(own)) {
            Ok(())
        } else {
            Err(format!("{said:?}"))
        }
    };
    eventually(
        NOTICED,
        "one container reaches the other by name",
        reachable,
    );
    let flows = a.meshctl(&["flows", "-o", "json"]).success();
    assert!(flows.contains("mutual_tls"), "{flows}");
    let workloads = b.meshctl(&["workloads", "-o", "wide"]).success();
    assert!(
        workloads.contains(&format!("container/{server_id}")),
        "{workloads}"
    );

    drop(first);
    eventually(NOTICED, "the container's end is noticed", || {
        let workloads = b.meshctl_json(&["workloads"]);
        let server = workloads
            .as_array()
            .into_iter()
            .flatten()
            .find(|workload| workload["name"] == "server");
        if server.is_some_and(|server| server["state"] != "enrolled") {
            Ok(())
        } else {
            Err(workloads.to_string())
        }
    });
    let _again = Container::start(&lab, &server, &server_id, serve);
    eventually(
        NOTICED,
        "the container that was made again serves",
        reachable,
    );
}
