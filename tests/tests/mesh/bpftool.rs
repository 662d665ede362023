//! bpftool is a user interface: names and fields explain themselves.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mesh_tests::{Lab, Node, eventually, outcome};

use crate::bookinfo::Bookinfo;

/// What bpftool says, as JSON.
pub fn bpftool(arguments: &[&str]) -> serde_json::Value {
    let said = outcome(Command::new("bpftool").arg("--json").args(arguments))
        .expect("bpftool starts")
        .success();
    serde_json::from_str(&said)
        .unwrap_or_else(|error| panic!("bpftool {arguments:?}: {error}: {said}"))
}

/// Files below a folder of bpffs.
fn pins(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(pins(&entry.path()));
        } else {
            found.push(entry.path().to_string_lossy().into_owned());
        }
    }
    found
}

#[test]
fn every_pinned_map_has_btf_and_dumps_named_fields() {
    let mesh = Bookinfo::start();
    mesh.sleep.curl_many(5, "http://reviews/", &[]);
    let maps: Vec<_> = pins(&mesh.lab.bpffs(Node::A))
        .into_iter()
        .filter_map(|pin| {
            let said =
                outcome(Command::new("bpftool").args(["--json", "map", "show", "pinned", &pin]))
                    .expect("bpftool starts");
            let map: serde_json::Value = serde_json::from_str(&said.stdout).ok()?;
            map.get("type").is_some().then_some((pin, map))
        })
        .collect();
    assert!(
        !maps.is_empty(),
        "maps are pinned below {}",
        mesh.lab.bpffs(Node::A).display()
    );
    for (pin, map) in &maps {
        // The kernel takes no BTF for maps of sockets (map_check_no_btf in net/core/sock_map.c), and a
        // ring buffer has neither keys nor values.
        if !["sockmap", "sockhash", "ringbuf"].contains(&map["type"].as_str().unwrap_or_default()) {
            assert!(map.get("btf_id").is_some(), "{pin} has no BTF: {map}");
        }
    }
    let (flows, _) = maps
        .iter()
        .find(|(_, map)| {
            map["name"]
                .as_str()
                .is_some_and(|name| name.to_lowercase().contains("flow"))
                && map["type"]
                    .as_str()
                    .is_some_and(|kind| kind.ends_with("hash"))
        })
        .unwrap_or_else(|| panic!("no map of flows among {maps:?}"));
    let dump = bpftool(&["map", "dump", "pinned", flows]);
    let first = &dump[0]["formatted"]["value"];
    assert!(
        first.as_object().is_some_and(|fields| fields.len() > 3),
        "named fields: {dump}"
    );
}

/// `knobs` 1 is documented in docs/bpftool.md.
#[test]
fn the_kernel_programs_say_what_they_do_while_a_switch_asks_for_it() {
    let mesh = Bookinfo::start();
    let folder = mesh.lab.bpffs(Node::A);
    let set = |level: u8| {
        let (pin, level) = (folder.join("knobs"), level.to_string());
        let update = ["map", "update", "pinned", &pin.to_string_lossy()];
        let entry = ["key", "1", "0", "0", "0", "value", &level, "0", "0", "0"];
        outcome(Command::new("bpftool").args(update).args(entry))
            .expect("bpftool starts")
            .success();
    };
    let agent = &mesh.a;
    let shown = || agent.meshctl(&["kernel-log"]).success();
    let lines = |what: &str| {
        let log = agent.log();
        log.lines()
            .filter(|line| line.contains(" kernel: ") && line.contains(what))
            .count()
    };
    let call = || mesh.sleep.curl_many(5, "http://reviews/", &[]);
    let until = |level: &str| {
        eventually(Duration::from_secs(5), "the agent follows", || {
            let now = shown();
            if now.trim() == level {
                Ok(())
            } else {
                Err(now)
            }
        });
    };

    assert_eq!(shown(), "off\n");
    call();
    assert_eq!(lines(""), 0);
    let program = || bpftool(&["prog", "show", "name", "um_connect4"]);
    let before = program();

    // Only refusals and worse.
    set(3);
    until("info");
    call();
    assert_eq!(lines("goes to"), 0);
    // What becomes of each connection.
    set(4);
    until("debug");
    call();
    eventually(Duration::from_secs(5), "connections are logged", || {
        if lines("goes to") > 0 {
            Ok(())
        } else {
            Err(agent.log())
        }
    });
    // In the namespaces, too: what comes in.
    let server = &mesh.b;
    assert_eq!(
        server.meshctl(&["kernel-log", "debug"]).success(),
        "debug\n"
    );
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let reply = outside.curl(&[&format!("http://{}:9080/", mesh.v1.v4)]);
    assert_eq!(reply.status, 200, "{reply:?}");
    eventually(Duration::from_secs(5), "what comes in is logged", || {
        let log = server.log();
        if log.contains("to port 9080: to the agent") {
            Ok(())
        } else {
            Err(log)
        }
    });

    // And nothing again.
    set(0);
    until("off");
    let said = lines("");
    assert!(said > 0);
    call();
    assert_eq!(lines(""), said);
    let tags = |programs: &serde_json::Value| {
        let all = programs.as_array().cloned().unwrap_or_default();
        all.iter()
            .map(|p| p["tag"].to_string())
            .collect::<std::collections::HashSet<_>>()
    };
    assert!(
        tags(&program()).is_superset(&tags(&before)),
        "the same programs as before"
    );
    assert!(!folder.join("kernel_log").exists());
    server.meshctl(&["kernel-log", "off"]).success();
}

#[test]
fn the_kernel_programs_say_why() {
    let pair = crate::short_circuit::pair(true, "on");
    let agent = &pair.agent;
    let level = agent.meshctl(&["kernel-log", "debug"]).success();
    assert_eq!(level, "debug\n");
    let call = |vip: &str, port: &str| {
        let connect =
            "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)";
        pair.client
            .run("/usr/bin/python3", &["-c", connect, vip, port])
    };
    let says = |what: &str| {
        eventually(Duration::from_secs(5), what, || {
            let log = agent.log();
            let mut lines = log.lines().filter(|line| line.contains(" kernel: "));
            match lines.any(|line| line.contains(what)) {
                true => Ok(()),
                false => Err(log),
            }
        });
    };
    assert_eq!(call("10.96.0.40", "80").code, 0);
    says("connect to ::ffff:10.96.0.40 port 80 goes directly to ");
    says("short-circuit from port ");
    let server = pair.server.v4.to_string();
    says(&format!(
        "direct from ::ffff:{} to port 7000",
        pair.client.v4
    ));
    pair.client.run("getent", &["hosts", "server"]).success();
    says("question to ");

    pair.lab.configure(
        "deny.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\n\
         spec: {selector: {matchLabels: {app: server}}, action: DENY, \
         rules: [{from: [{source: {namespaces: [default]}}]}]}\n",
    );
    eventually(Duration::from_secs(5), "it is refused", || {
        // One that is on its way may be ended by the change.
        match call(&server, "7000").stderr {
            refused if refused.contains("ConnectionRefusedError") => Ok(()),
            other => Err(other),
        }
    });
    says(&format!(
        "connect to ::ffff:{server} port 7000 is refused by policy"
    ));
    pair.lab.unconfigure("deny.yaml");
    let port = mesh_tests::ServicePort {
        name: "tcp",
        port: 80,
        target: 80,
    };
    let nobody = mesh_tests::service("nobody", 50, &[port]);
    pair.lab.configure("nobody.yaml", &nobody);
    eventually(Duration::from_secs(5), "nobody is known", || {
        match call("10.96.0.50", "80").stderr {
            refused if refused.contains("ConnectionRefusedError") => Ok(()),
            other => Err(other),
        }
    });
    says("connect to ::ffff:10.96.0.50 port 80 is refused: it has no endpoint");
}

#[test]
fn the_object_loads_without_the_agent() {
    let lab = Lab::new();
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/undermesh.o");
    // Below the lab's own folder of bpffs, which goes with the lab.
    let folder = lab.bpffs(Node::A);
    fs::create_dir_all(folder.parent().expect("a folder per lab")).expect("bpffs is writable");
    let loaded = outcome(
        Command::new("bpftool")
            .args(["prog", "loadall"])
            .arg(object)
            .arg(&folder),
    )
    .expect("bpftool starts");
    assert_eq!(loaded.code, 0, "{loaded:?}");
    assert!(pins(&folder).len() >= 4, "{:?}", pins(&folder));
}
