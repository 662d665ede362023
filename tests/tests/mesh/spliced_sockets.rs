//! The maps of the short-circuit hold what is open and nothing else, however
//! connections end, and no connection needs them.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_tests::{Lab, Node, ServicePort, eventually, outcome, service};

use crate::bpftool::bpftool;
use crate::bridge::taken;
use crate::held::Held;
use crate::killed::{BYSTANDERS, Scene, VIP};
use crate::short_circuit::pair;

const PATIENCE: Duration = Duration::from_secs(10);

/// What sockets leave in maps while they are open, or come about.
const MAPS: [&str; 3] = ["spliced_sockets", "splice_peers", "connecting"];

fn entries(lab: &Lab, map: &str) -> Vec<serde_json::Value> {
    let pin = lab.bpffs(Node::A).join(map);
    let dump = bpftool(&["map", "dump", "pinned", &pin.to_string_lossy()]);
    dump.as_array().cloned().unwrap_or_default()
}

#[test]
fn nothing_is_left_of_connections_however_they_end_and_whatever_changes_meanwhile() {
    for direct in [true, false] {
        let pair = pair(direct, "on");
        let ends = AtomicBool::new(false);
        let (said, most) = std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                let mut most = 0;
                // The operator's switch, and verdicts, whose endpoints change.
                for number in 0_u8..200 {
                    pair.set_knob(0, number % 2);
                    let port = |name, port| ServicePort {
                        name,
                        port,
                        target: 7000,
                    };
                    let ports = [port("tcp", 80), port("tcp-more", 90 + u16::from(number))];
                    pair.lab
                        .configure("server.yaml", &service("server", 40, &ports));
                    most = most.max(entries(&pair.lab, MAPS[0]).len());
                    if ends.load(Ordering::Relaxed) {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                pair.set_knob(0, 0);
                most
            });
            let said = pair.sees("churn");
            ends.store(true, Ordering::Relaxed);
            (said, changes.join().expect("it changes"))
        });
        assert!(most > 0, "the map was in use");
        assert_eq!(said, "ended 400 wrong []\n", "direct: {direct}");
        eventually(PATIENCE, "bridges", || match taken(&pair.lab) {
            0 => Ok(()),
            count => Err(format!("{count} are left, direct: {direct}")),
        });
        for map in MAPS {
            eventually(PATIENCE, map, || match entries(&pair.lab, map).len() {
                0 => Ok(()),
                count => Err(format!("{count} are left in {map}, direct: {direct}")),
            });
        }
        assert_eq!(pair.sees("once"), "echo 1234567890\n");
    }
}

#[test]
fn who_empties_the_map_of_sockets_ends_no_connection() {
    for direct in [true, false] {
        let mut scene = Scene::start(direct);
        let pin = scene.lab.bpffs(Node::A).join("spliced_sockets");
        let keys: Vec<Vec<String>> = entries(&scene.lab, "spliced_sockets")
            .iter()
            .map(|entry| {
                let bytes = entry["key"].as_array().into_iter().flatten();
                bytes
                    .filter_map(|b| b.as_str().map(str::to_owned))
                    .collect()
            })
            .collect();
        // Both ends of it, or of each half.
        assert_eq!(keys.len(), if direct { 2 } else { 4 }, "{keys:?}");
        for key in keys {
            let mut delete = Command::new("bpftool");
            delete
                .args(["map", "delete", "pinned"])
                .arg(&pin)
                .arg("key");
            outcome(delete.args(key)).expect("bpftool starts").success();
        }
        assert_eq!(entries(&scene.lab, "spliced_sockets").len(), 0);
        // By TCP from now on.
        for word in ["one", "two", "three"] {
            scene.bystander.echoes(word);
        }
        let mut next = Held::open(&scene.client, "v4", VIP, BYSTANDERS);
        next.echoes("again");
        assert!(!entries(&scene.lab, "spliced_sockets").is_empty());
    }
}
