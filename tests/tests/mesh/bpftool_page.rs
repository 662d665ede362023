//! docs/bpftool.md is held to its word: its commands are run as they stand there, and what they
//! print, do and name is compared with what it says.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mesh_tests::{Lab, Node, Outcome, eventually, outcome, workload_entries};
use serde_json::Value;

use crate::bpftool::bpftool;
use crate::short_circuit::{Pair, VIP, pair};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Where the page has the agent's folder, and one to look at programs.
const FOLDER: &str = "/sys/fs/bpf/undermesh";
const LOOK: &str = "/sys/fs/bpf/look";
const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// Within which the agent follows a switch.
const SOON: Duration = Duration::from_secs(5);

fn page() -> String {
    fs::read_to_string(Path::new(ROOT).join("docs/bpftool.md")).expect("the page is there")
}

/// What stands between lines of three backticks.
fn blocks(page: &str) -> impl Iterator<Item = &str> {
    page.split("```\n").skip(1).step_by(2)
}

/// Commands with what the page shows of their output.
fn commands(page: &str) -> Vec<(&str, Vec<&str>)> {
    let mut commands: Vec<(&str, Vec<&str>)> = Vec::new();
    for block in blocks(page).filter(|block| block.starts_with("# ")) {
        for line in block.lines() {
            match (line.strip_prefix("# "), commands.last_mut()) {
                (Some(command), _) => commands.push((command, Vec::new())),
                (None, Some((_, shown))) => shown.push(line),
                (None, None) => panic!("{line:?} belongs to no command"),
            }
        }
    }
    commands
}

/// Runs a command of the page, in the project's folder, with the lab's folders in the place of its.
fn run(pair: &Pair, command: &str) -> Outcome {
    let bpffs = pair.lab.bpffs(Node::A);
    let meshctl = pair.agent.meshctl_command(&[]);
    let words = std::iter::once(meshctl.get_program()).chain(meshctl.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let command = match command.strip_prefix("meshctl ") {
        Some(rest) => format!("{} {rest}", words.join(" ")),
        None => command.to_owned(),
    };
    let command = command
        .replace(FOLDER, &bpffs.to_string_lossy())
        .replace(LOOK, &look(&pair.lab).to_string_lossy());
    let mut shell = Command::new("sh");
    outcome(shell.args(["-c", &command]).current_dir(ROOT)).expect("sh starts")
}

/// A folder of bpffs that goes with the lab.
fn look(lab: &Lab) -> PathBuf {
    lab.bpffs(Node::A).with_file_name("look")
}

/// A line without what differs from machine to machine: numbers, tags, addresses.
fn general(line: &str) -> String {
    let words = line.split_whitespace().map(|word| {
        let bare = word.trim_end_matches(':');
        let is_tag = word.len() == 16 && word.chars().all(|c| c.is_ascii_hexdigit());
        if is_tag
            || word.starts_with(|c: char| c.is_ascii_digit())
            || bare.parse::<IpAddr>().is_ok()
        {
            return "#".to_owned();
        }
        match word.rsplit_once('_') {
            Some((name, number)) if number.chars().all(|c| c.is_ascii_digit()) => {
                format!("{name}_#")
            }
            _ => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Names of fields in the order in which they come.
fn fields(text: &str) -> Vec<&str> {
    let strings = text.split('"').skip(1).step_by(2);
    strings.collect()
}

/// `shown` is what the command prints, but for numbers and what the page leaves out.
fn agrees(command: &str, shown: &[&str], real: &str) {
    if command.contains(" map dump ") {
        let shown = fields(&shown.join("\n")).join(" ");
        assert!(
            fields(real).join(" ").starts_with(&shown),
            "{command}: the page has {shown}, bpftool {real}"
        );
        return;
    }
    let real: Vec<_> = real.lines().map(general).collect();
    for line in shown.iter().filter(|line| line.trim() != "...") {
        let line = general(line);
        assert!(real.contains(&line), "{command}: no {line:?} in {real:#?}");
    }
}

/// Puts the kernel's setting back.
struct BpfStats(String);

impl BpfStats {
    fn keep() -> Self {
        Self(fs::read_to_string(BPF_STATS).expect("proc is mounted"))
    }
}

impl Drop for BpfStats {
    fn drop(&mut self) {
        let _ = fs::write(BPF_STATS, &self.0);
    }
}

#[test]
fn every_command_prints_and_does_what_the_page_says() {
    let _stats = BpfStats::keep();
    let pair = pair(true, "on");
    assert_eq!(pair.sees("once"), "echo 1234567890\n");
    let page = page();
    let commands = commands(&page);
    let mut switched = BTreeSet::new();
    for (command, shown) in &commands {
        let ran = run(&pair, command);
        assert_eq!(ran.code, 0, "{command}: {ran:?}");
        agrees(command, shown, &ran.stdout);
        if let Some((_, switch)) = command.split_once("/knobs key ") {
            has_effect(&pair, switch);
            switched.insert(switch);
        } else if command.starts_with("ls ") && command.ends_with(LOOK) {
            let programs: BTreeSet<_> = ran.stdout.lines().map(ToOwned::to_owned).collect();
            assert_eq!(programs, named(&page, "program"), "programs of the object");
        } else if command.ends_with("bpf_stats_enabled=1") {
            // The next command shows what has been counted.
            assert_eq!(pair.sees("farewell"), "farewell 10000\n");
        } else if let Some(level) = command.strip_prefix("meshctl kernel-log ") {
            follows(&pair, level);
        } else {
            only_shows(command);
        }
    }
    assert!(!look(&pair.lab).exists());
    // Each knob there is, on and off again.
    let knobs = bpftool(&["map", "dump", "pinned", &pin(&pair.lab, "knobs")]);
    let count = knobs.as_array().map_or(0, Vec::len);
    assert_eq!(switched.len(), 2 * count, "{switched:?}");
}

/// What is run without a look at its effect has none.
fn only_shows(command: &str) {
    let harmless = [
        "bpftool prog show ",
        "bpftool map dump ",
        "ls ",
        "meshctl check",
    ];
    let undone = ["bpftool prog loadall ", "rm -r ", "sysctl "];
    let mut known = harmless.iter().chain(&undone);
    assert!(
        known.any(|start| command.starts_with(start)),
        "nobody looks at what this does: {command}"
    );
}

fn pin(lab: &Lab, map: &str) -> String {
    lab.bpffs(Node::A).join(map).to_string_lossy().into_owned()
}

/// What the page says of a switch, given as the end of a command.
fn has_effect(pair: &Pair, switch: &str) {
    let before = pair.handed_over();
    let hands_over = || {
        assert_eq!(pair.sees("once"), "echo 1234567890\n");
        pair.handed_over() > before
    };
    let checked = || pair.agent.meshctl(&["check"]).stdout;
    match switch {
        "0 0 0 0 value 1 0 0 0" => {
            assert!(!hands_over());
            assert!(checked().contains("by the operator"), "{}", checked());
        }
        "0 0 0 0 value 0 0 0 0" => {
            assert!(hands_over());
            assert!(!checked().contains("by the operator"), "{}", checked());
        }
        "1 0 0 0 value 4 0 0 0" => follows(pair, "debug"),
        "1 0 0 0 value 0 0 0 0" => follows(pair, "off"),
        _ => panic!("nobody knows what this switch does: {switch}"),
    }
}

/// The programs say as much as `level`, and the map of their lines is there as long as they do.
fn follows(pair: &Pair, level: &str) {
    let is_on = level != "off";
    let wanted = format!("{level}\n");
    let ring = pair.lab.bpffs(Node::A).join("kernel_log");
    eventually(SOON, level, || {
        let said = pair.agent.meshctl(&["kernel-log"]).success();
        match said == wanted && ring.exists() == is_on {
            true => Ok(()),
            false => Err(said),
        }
    });
    let lines = || pair.agent.log().matches(" kernel: ").count();
    let before = lines();
    assert_eq!(pair.sees("once"), "echo 1234567890\n");
    if is_on {
        let maps: BTreeSet<_> = pinned(&pair.lab);
        assert_eq!(maps, named(&page(), "map"), "maps, with that of the log");
        let size = bpftool(&["map", "show", "pinned", &ring.to_string_lossy()]);
        assert_eq!(size["max_entries"], 128 << 10, "{size}");
        eventually(SOON, "a line", || match lines() > before {
            true => Ok(()),
            false => Err(pair.agent.log()),
        });
    } else {
        assert_eq!(lines(), before);
    }
}

/// Names in the first column of the page's table whose head begins so.
fn named(page: &str, head: &str) -> BTreeSet<String> {
    let head = format!("| {head} |");
    let table = page.lines().skip_while(|line| !line.starts_with(&head));
    let rows = table.skip(2).take_while(|line| line.starts_with('|'));
    let columns = rows.filter_map(|row| row.split('|').nth(1));
    let names = columns.flat_map(|column| column.split('`').skip(1).step_by(2));
    names
        .flat_map(|name| match name.strip_suffix("4/6") {
            Some(both) => vec![format!("{both}4"), format!("{both}6")],
            None => vec![name.to_owned()],
        })
        .collect()
}

/// All that is pinned beside links.
fn pinned(lab: &Lab) -> BTreeSet<String> {
    let pins = fs::read_dir(lab.bpffs(Node::A)).expect("the agent's folder");
    let names = pins.flatten().map(|pin| pin.file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name != "links").collect()
}

#[test]
fn the_page_names_every_map_and_program_and_no_other() {
    let pair = pair(true, "on");
    let page = page();
    let mut maps = named(&page, "map");
    assert!(
        maps.remove("kernel_log"),
        "there while a switch asks for it"
    );
    assert_eq!(pinned(&pair.lab), maps);

    // The programs of all links, and that of the map of sockets.
    let links = fs::read_dir(pair.lab.bpffs(Node::A).join("links")).expect("links");
    let of_links = links.flatten().map(|link| {
        let link = bpftool(&["link", "show", "pinned", &link.path().to_string_lossy()]);
        let id = link["prog_id"].to_string();
        name(&bpftool(&["prog", "show", "id", &id]))
    });
    let mut running: BTreeSet<_> = of_links.collect();
    let with_map = bpftool(&["map", "show", "pinned", &pin(&pair.lab, "spliced_sockets")]);
    let programs = bpftool(&["prog", "show", "name", "um_splice"]);
    let uses_map = |program: &&Value| {
        let maps = program["map_ids"].as_array().into_iter().flatten();
        maps.into_iter().any(|id| *id == with_map["id"])
    };
    let all = programs.as_array().cloned().unwrap_or(vec![programs]);
    running.extend(all.iter().find(uses_map).map(name));
    let mut programs = named(&page, "program");
    assert!(programs.remove("um_probe"), "at the agent's start alone");
    assert_eq!(running, programs);
}

fn name(program: &Value) -> String {
    program["name"].as_str().expect("a name").to_owned()
}

/// Values that `page` explains as `name` is N meaning, N meaning, ...
fn explained(page: &str, name: &str) -> BTreeSet<u64> {
    let page: Vec<_> = page.split_whitespace().collect();
    let page = page.join(" ");
    let text = page.split_once(&format!("`{name}` ")).expect(name).1;
    let text = text.trim_start_matches("is ");
    let sentence = text.split(['.', ';', '`']).next().unwrap_or_default();
    let parts = sentence.split(", ");
    let numbers = parts.filter_map(|part| part.split_whitespace().next()?.parse().ok());
    numbers.collect()
}

#[test]
fn numbers_mean_what_the_page_says() {
    let mut pair = pair(true, "on");
    let page = page();
    let counters = pair.counters().len() as u64;
    let table = page
        .lines()
        .skip_while(|line| !line.starts_with("| `counters` | |"));
    let rows = table.skip(2).take_while(|line| line.starts_with('|'));
    let numbers: Vec<u64> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|column| column.split(','))
        .map(|number| number.trim().parse().expect("a number"))
        .collect();
    assert_eq!(numbers, (0..counters).collect::<Vec<_>>());

    // Ends of all sorts, in the map and in words.
    assert_eq!(pair.sees("once"), "echo 1234567890\n");
    assert_eq!(pair.sees("farewell"), "farewell 10000\n");
    let server = pair.server.v4.to_string();
    let connect = "import socket, sys, struct; s = socket.socket(); \
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); \
        s.connect((sys.argv[1], int(sys.argv[2])))";
    let tries = |port: &str| (pair.client).run("python3", &["-c", connect, &server, port]);
    assert_eq!(tries("7002").code, 0);
    pair.serving.kill();
    assert_ne!(tries("7002").code, 0, "nobody listens");
    deny(&pair);
    assert_ne!(tries("7002").code, 0, "and nobody may come");

    let meanings = [
        (1, "by this end"),
        (2, "by the other end"),
        (3, "reset"),
        (5, "by policy"),
        (6, "refused"),
    ];
    let reasons = explained(&page, "close_reason");
    assert_eq!(reasons, (1..=7).collect(), "{page}");
    let verdicts = explained(&page, "kind");
    let mut seen = BTreeSet::new();
    let dump = bpftool(&["map", "dump", "pinned", &pin(&pair.lab, "flows")]);
    let words = pair.agent.meshctl_json(&["flows"]);
    for entry in dump.as_array().expect("records") {
        let (key, value) = (&entry["formatted"]["key"], &entry["formatted"]["value"]);
        let mut all = words.as_array().into_iter().flatten();
        let Some(flow) = all.find(|flow| flow["id"] == *key) else {
            continue;
        };
        let reason = value["close_reason"].as_u64().expect("a number");
        let meaning = meanings.iter().find(|(number, _)| *number == reason);
        assert_eq!(flow["reason"].as_str(), meaning.map(|(_, word)| *word));
        assert_eq!(value["state"], 2, "{flow}");
        assert!(verdicts.contains(&value["verdict"].as_u64().expect("a number")));
        seen.insert(reason);
    }
    assert_eq!(seen, meanings.map(|(number, _)| number).into(), "{words}");
}

/// The server is not to be called any more, and that is in force.
fn deny(pair: &Pair) {
    in_force(
        pair,
        "deny.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\n\
         spec: {selector: {matchLabels: {app: server}}, action: DENY, \
         rules: [{from: [{source: {namespaces: [default]}}]}]}\n",
    );
}

fn in_force(pair: &Pair, file: &str, text: &str) {
    let generation = || pair.agent.meshctl_json(&["config"])["generation"].as_u64();
    let before = generation();
    pair.lab.configure(file, text);
    eventually(SOON, file, || match generation() > before {
        true => Ok(()),
        false => Err(format!("{before:?}")),
    });
}

#[test]
fn every_log_line_of_the_page_is_said() {
    let pair = pair(true, "on");
    pair.agent.meshctl(&["kernel-log", "debug"]).success();
    assert_eq!(pair.sees("once"), "echo 1234567890\n");
    let outside = pair.lab.workload(Node::Outside, "outside", &[]);
    let entries = workload_entries(&[&pair.client, &pair.server]);
    pair.lab.configure("workloads.yaml", &entries);
    let server = pair.server.v4.to_string();
    let connect = "import socket, sys; socket.create_connection((sys.argv[1], 7000), 1)";
    outside.run("python3", &["-c", connect, &server]).success();
    // What the kernel cannot do itself goes to the agent.
    in_force(
        &pair,
        "rule.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: server}\n\
         spec: {host: server, trafficPolicy: {outlierDetection: {}}}\n",
    );
    assert_eq!(pair.sees("once"), "echo 1234567890\n");
    pair.lab.unconfigure("rule.yaml");
    deny(&pair);
    let refused = pair.client.run("python3", &["-c", connect, &server]);
    assert!(refused.stderr.contains("ConnectionRefused"), "{refused:?}");

    let page = page();
    let shown = blocks(&page).find(|block| block.starts_with("INFO "));
    for line in shown.expect("lines of the log").lines() {
        let wanted = general(line);
        eventually(SOON, line, || {
            let log = pair.agent.log();
            let said = log.lines().filter_map(|line| line.split_once("  "));
            match said
                .map(|(_, line)| general(line))
                .any(|line| line == wanted)
            {
                true => Ok(()),
                false => Err(format!("{wanted:?} is not in {log}")),
            }
        });
    }
    assert!(page.contains(&format!("::ffff:{VIP}")));
}
