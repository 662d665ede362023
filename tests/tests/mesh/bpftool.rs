//! bpftool is a user interface: names and fields explain themselves.

use std::fs;
use std::path::Path;
use std::process::Command;

use mesh_tests::{Lab, Node, outcome};

use crate::bookinfo::Bookinfo;

fn bpftool(arguments: &[&str]) -> serde_json::Value {
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
