//! Without an agent: what passes, what is left behind, and how it all goes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, Workload, eventually, outcome, wait_until, workload_entries,
};

use serde_json::Value;

use crate::bookinfo::{Bookinfo, VIP4};
use crate::bpftool::bpftool;

/// Within which a restarted agent is to carry traffic again.
const BACK: Duration = Duration::from_secs(10);

/// Where a map of node a is pinned.
pub fn pin(lab: &Lab, name: &str) -> String {
    lab.bpffs(Node::A).join(name).to_string_lossy().into_owned()
}

fn tcp_tw_reuse(workload: &Workload) -> String {
    let said = workload.run("cat", &["/proc/sys/net/ipv4/tcp_tw_reuse"]);
    said.success().trim().to_owned()
}

/// Says what it hears, to whom it came from.
const UDP_ECHO: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 53))
print("ready", flush=True)
while True:
    data, peer = s.recvfrom(2048)
    s.sendto(data, peer)
"#;

/// Asks a name server for what is no question: the mesh would not pass it on.
const UDP_ASK: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(2)
for connected in (False, True):
    if connected:
        s.connect((sys.argv[1], 53))
        s.send(b"x")
    else:
        s.sendto(b"x", (sys.argv[1], 53))
    print(*s.recvfrom(100))
"#;

/// Listens on the port of 127.0.0.1 that it is told.
const SQUAT: &str = r#"
import socket, sys
s = socket.socket()
s.bind(("127.0.0.1", int(sys.argv[1])))
s.listen()
print("ready", flush=True)
while True:
    s.accept()[0].close()
"#;

#[test]
fn a_workload_that_fails_open_is_left_alone_while_no_agent_runs() {
    let mut mesh = Bookinfo::start();
    let fails_open = |entries: String| {
        entries
            .replace(
                "undermesh.io/node: a\n",
                "undermesh.io/node: a\n    undermesh.io/fail-open: \"true\"\n",
            )
            .replace(
                &format!("undermesh.io/netns: {}\n", mesh.v1.netns),
                &format!(
                    "undermesh.io/netns: {}\n    undermesh.io/fail-open: \"true\"\n",
                    mesh.v1.netns
                ),
            )
    };
    let entries = fails_open(workload_entries(&[&mesh.sleep, &mesh.v1, &mesh.v2]));
    mesh.lab.configure("workloads.yaml", &entries);
    let flags = |lab: &Lab| {
        let dump = bpftool(&["map", "dump", "pinned", &pin(lab, "workloads")]);
        dump[0]["formatted"]["value"].clone()
    };
    eventually(BACK, "the kernel knows", || {
        let value = flags(&mesh.lab);
        match value["flags"].as_u64().unwrap_or(0) & 1 {
            1 => Ok(()),
            _ => Err(value.to_string()),
        }
    });
    mesh.until_reachable();
    let port = flags(&mesh.lab)["outbound4_port"].to_string();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let nameserver = mesh.lab.nameserver();
    let mut echo = nameserver.command("/usr/bin/python3");
    let log = mesh.lab.folder().join("udp.log");
    let echo = Process::spawn(echo.args(["-c", UDP_ECHO]), log).expect("python starts");
    assert!(wait_until(BACK, || echo.log().contains("ready")));

    mesh.a.kill();
    mesh.b.kill();
    // Outbound, inbound, and from one to the other.
    let url = |workload: &Workload| format!("http://{}:9080/peer", workload.v4);
    for client in [&mesh.sleep, &outside] {
        let reply = client.curl(&[&url(&mesh.v1)]);
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(reply.body.contains(&client.v4.to_string()), "{reply:?}");
        let reply = client.curl(&[&url(&mesh.v2)]);
        assert_eq!(reply.exit, 7, "this one fails closed: {reply:?}");
    }
    let server = nameserver.v4.to_string();
    let said = mesh
        .sleep
        .run("/usr/bin/python3", &["-c", UDP_ASK, &server])
        .success();
    assert_eq!(
        said.matches(&format!("('{server}', 53)")).count(),
        2,
        "{said}"
    );
    // Somebody else gets the agent's port: he is not taken for the agent.
    let log = mesh.lab.folder().join("squat.log");
    let mut squat = mesh.sleep.command("/usr/bin/python3");
    let squat = Process::spawn(squat.args(["-c", SQUAT, &port]), log).expect("python starts");
    assert!(
        wait_until(BACK, || squat.log().contains("ready")),
        "{}",
        squat.log()
    );
    assert_eq!(mesh.sleep.curl(&[&url(&mesh.v1)]).status, 200);
    drop(squat);

    mesh.a.restart();
    mesh.b.restart();
    mesh.until_reachable();
    assert_eq!(mesh.sleep.curl(&[&format!("http://{VIP4}/")]).status, 200);
}

/// Says what arrives at the UDP port that it is told.
const UDP_SQUAT: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
while True:
    print("heard", s.recv(2048), flush=True)
"#;

/// Asks name servers of either family, on sockets of their own; says how it goes.
const UDP_REFUSED: &str = r#"
import errno, socket, sys
for family, server in (socket.AF_INET, sys.argv[1]), (socket.AF_INET6, "::ffff:" + sys.argv[1]):
    for connected in (False, True):
        s = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if connected:
                s.connect((server, 53))
                s.send(b"x")
            else:
                s.sendto(b"x", (server, 53))
            print("sent")
        except OSError as error:
            print(errno.errorcode[error.errno])
"#;

#[test]
fn nobody_gets_the_questions_that_a_killed_agent_would_have_answered() {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    lab.configure("workloads.yaml", &workload_entries(&[&client]));
    let mut agent = Agent::start(&lab, Node::A);
    let dump = bpftool(&["map", "dump", "pinned", &pin(&lab, "workloads")]);
    let port = dump[0]["formatted"]["value"]["dns4_port"].to_string();
    agent.kill();

    let mut squat = client.command("/usr/bin/python3");
    squat.args(["-c", UDP_SQUAT, &port]);
    let log = lab.folder().join("udp-squat.log");
    let squat = Process::spawn(&mut squat, log).expect("python starts");
    assert!(
        wait_until(BACK, || squat.log().contains("ready")),
        "{}",
        squat.log()
    );
    let said = client
        .run("/usr/bin/python3", &["-c", UDP_REFUSED, "192.0.2.53"])
        .success();
    assert_eq!(said.lines().collect::<Vec<_>>(), ["ECONNREFUSED"; 4]);
    assert!(!squat.log().contains("heard"), "{}", squat.log());
}

#[test]
fn what_happens_without_an_agent_is_a_flag_that_a_workload_overrides() {
    let lab = Lab::new();
    let plain = lab.workload(Node::A, "plain", &[]);
    let strict = lab.workload(Node::A, "strict", &[]);
    let outside = lab.workload(Node::Outside, "outside", &[("app", "outside")]);
    let _server = outside.serve(9080, "bookinfo", &["reviews"]);
    let netns = format!("undermesh.io/netns: {}\n", strict.netns);
    let entries = workload_entries(&[&plain, &strict]).replace(
        &netns,
        &format!("{netns}    undermesh.io/fail-open: \"false\"\n"),
    );
    lab.configure("workloads.yaml", &entries);
    lab.configure(
        "outside.yaml",
        &format!(
            "{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: outside}}, \
             spec: {{address: {}}}}}\n",
            outside.v4
        ),
    );
    let url = format!("http://{}:9080/", outside.v4);
    let mut agent = Agent::start_with(&lab, Node::A, &["--when-agent-is-down", "pass"]);
    assert_eq!(plain.curl(&[&url]).status, 200);
    agent.kill();
    assert_eq!(plain.curl(&[&url]).status, 200);
    assert_eq!(strict.curl(&[&url]).exit, 7, "refused");
}

#[test]
fn an_agent_leaves_what_the_configuration_no_longer_names() {
    let mut mesh = Bookinfo::start();
    let late = mesh.lab.workload(Node::A, "late", &[]);
    let gone = mesh.lab.workload(Node::A, "gone", &[]);
    let all = workload_entries(&[&mesh.sleep, &late, &gone, &mesh.v1, &mesh.v2]);
    mesh.lab.configure("workloads.yaml", &all);
    let entries = |lab: &Lab, map: &str| {
        let dump = bpftool(&["map", "dump", "pinned", &pin(lab, map)]);
        dump.as_array().map_or(0, Vec::len)
    };
    eventually(BACK, "all three are enrolled", || {
        match entries(&mesh.lab, "workloads") {
            3 => Ok(()),
            count => Err(format!("{count} workloads")),
        }
    });
    let inbound = |lab: &Lab| {
        let links = fs::read_dir(lab.bpffs(Node::A).join("links")).expect("links");
        let names = links.flatten().map(|entry| entry.file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with("um_inbound_"))
            .count()
    };
    eventually(BACK, "they are steered", || match inbound(&mesh.lab) {
        3 => Ok(()),
        count => Err(format!("{count} links")),
    });
    assert_eq!(tcp_tw_reuse(&late), "1");

    mesh.a.kill();
    let remaining = workload_entries(&[&mesh.sleep, &mesh.v1, &mesh.v2]);
    mesh.lab.configure("workloads.yaml", &remaining);
    outcome(Command::new("ip").args(["netns", "delete", &gone.netns]))
        .expect("ip starts")
        .success();
    mesh.a.restart();
    mesh.until_reachable();
    assert_eq!(entries(&mesh.lab, "workloads"), 1);
    assert_eq!(inbound(&mesh.lab), 1);
    assert_eq!(tcp_tw_reuse(&late), "2", "as it was before");
    let plain = late.curl(&[&format!("http://{}:9080/peer", mesh.v1.v4)]);
    assert!(plain.body.contains(&late.v4.to_string()), "{plain:?}");
}

#[test]
fn maps_of_another_layout_are_refused_in_one_clear_line() {
    let mut mesh = Bookinfo::start();
    mesh.a.stop();
    let refused = |mesh: &mut Bookinfo, words: &[&str]| {
        let mut second = mesh.a.second(&[]).expect("it starts");
        assert!(wait_until(BACK, || !second.is_running()));
        let log = second.log();
        let lines: Vec<_> = log
            .lines()
            .filter(|line| line.starts_with("mesh-agent:"))
            .collect();
        assert_eq!(lines.len(), 1, "{log}");
        for word in words {
            assert!(lines[0].contains(word), "{word}: {}", lines[0]);
        }
    };
    // A version of the future.
    let layout = pin(&mesh.lab, "layout");
    let update = |value: &str| {
        let value = value.split(' ');
        let mut command = Command::new("bpftool");
        command.args([
            "map", "update", "pinned", &layout, "key", "0", "0", "0", "0", "value",
        ]);
        outcome(command.args(value))
            .expect("bpftool starts")
            .success();
    };
    let current =
        bpftool(&["map", "dump", "pinned", &layout])[0]["formatted"]["value"]["version"].clone();
    let current = current.as_u64().expect("a number");
    update("99 0 0 0");
    let way_out = format!(
        "uninstall --bpffs {}`, and start",
        mesh.lab.bpffs(Node::A).display()
    );
    refused(&mut mesh, &["layout", "version 99", &way_out]);
    update(&format!("{current} 0 0 0"));
    mesh.a.restart();
    mesh.until_reachable();
    mesh.a.stop();
    // A map of another kind, size, flags, or number of entries.
    let workloads = pin(&mesh.lab, "workloads");
    let shape = bpftool(&["map", "show", "pinned", &workloads]);
    let number = |field: &str| shape[field].as_u64().expect(field);
    let (key, value, entries) = (
        number("bytes_key"),
        number("bytes_value"),
        number("max_entries"),
    );
    for (kind, value, entries, flags, what) in [
        ("lru_hash", value, entries, "0", "type"),
        ("hash", value + 4, entries, "1", "value size"),
        ("hash", value, entries * 2, "1", "number of entries"),
        ("hash", value, entries, "0", "flags"),
    ] {
        fs::remove_file(&workloads).expect("a pin");
        let mut command = Command::new("bpftool");
        command.args([
            "map",
            "create",
            &workloads,
            "type",
            kind,
            "key",
            &key.to_string(),
        ]);
        command.args(["value", &value.to_string(), "entries", &entries.to_string()]);
        command.args(["name", "workloads", "flags", flags]);
        outcome(&mut command).expect("bpftool starts").success();
        refused(&mut mesh, &["workloads has another layout", what]);
    }
    // What the line says is the way out.
    let said = mesh.a.uninstall(&[]);
    assert_eq!(said.code, 0, "{said:?}");
    mesh.a.restart();
    mesh.until_reachable();
}

/// Kinds of kernel objects, as bpftool and /proc/PID/fdinfo name them.
const OBJECTS: [(&str, &str); 4] = [
    ("prog", "prog_id"),
    ("map", "map_id"),
    ("link", "link_id"),
    ("btf", "btf_id"),
];

/// Kernel objects, by kind and id.
type Objects = BTreeSet<(&'static str, u64)>;

/// All of the machine.
fn objects() -> Objects {
    let of_kind = |kind| {
        let all = bpftool(&[kind, "list"]).as_array().cloned();
        let ids = all.into_iter().flatten();
        ids.filter_map(move |object| Some((kind, object["id"].as_u64()?)))
    };
    OBJECTS.iter().flat_map(|(kind, _)| of_kind(kind)).collect()
}

/// Those that a process has open.
fn held_by(pid: u32) -> Objects {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("it runs");
    let texts = entries.flatten().map(|entry| entry.path());
    let texts = texts.filter_map(|path| fs::read_to_string(path).ok());
    let lines: Vec<_> = texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let mut held = Objects::new();
    for line in &lines {
        let Some((name, id)) = line.split_once(':') else {
            continue;
        };
        let kind = OBJECTS.iter().find(|(_, field)| *field == name.trim());
        held.extend(kind.and_then(|(kind, _)| Some((*kind, id.trim().parse().ok()?))));
    }
    held
}

/// Those that are pinned, and what they keep: the programs of links, the maps of programs.
fn pinned(folder: &Path) -> Objects {
    let mut objects = Objects::new();
    let show = |kind, path: &Path| {
        let path = path.to_str().expect("text");
        bpftool(&[kind, "show", "pinned", path])
    };
    let files = |folder: &Path| {
        let entries = fs::read_dir(folder).expect("a folder of pins").flatten();
        let paths = entries.map(|entry| entry.path());
        paths.filter(|path| !path.is_dir()).collect::<Vec<_>>()
    };
    for link in files(&folder.join("links")) {
        let link = show("link", &link);
        objects.extend(link["id"].as_u64().map(|id| ("link", id)));
        objects.extend(link["prog_id"].as_u64().map(|id| ("prog", id)));
    }
    for map in files(folder) {
        objects.extend(show("map", &map)["id"].as_u64().map(|id| ("map", id)));
    }
    let programs: Vec<_> = objects.iter().filter(|(kind, _)| *kind == "prog").collect();
    let programs: Vec<_> = programs.iter().map(|(_, id)| id.to_string()).collect();
    for program in programs {
        let program = bpftool(&["prog", "show", "id", &program]);
        let maps = program["map_ids"].as_array().into_iter().flatten();
        objects.extend(maps.filter_map(|id| Some(("map", id.as_u64()?))));
        objects.extend(program["btf_id"].as_u64().map(|id| ("btf", id)));
    }
    objects
}

/// What a namespace is like, as far as the mesh could have changed it: settings, rules, routes,
/// sockets that listen.
fn state(workload: &Workload) -> BTreeSet<String> {
    let said = |program: &str, arguments: &[&str]| workload.run(program, arguments).success();
    // Counts of the moment are none.
    let settings = workload
        .run("sysctl", &["-a", "--pattern", "^net[.]"])
        .stdout;
    let settings = settings.lines().filter(|line| !line.contains("_count"));
    let mut state: BTreeSet<_> = settings.map(str::to_owned).collect();
    assert!(state.len() > 100, "settings of a namespace: {state:?}");
    let rest = [
        workload.packet_filter(),
        said("ip", &["rule", "show"]),
        said("ip", &["route", "show", "table", "all"]),
        said("ip", &["address", "show"]),
        said("tc", &["qdisc", "show"]),
        said("ss", &["-Hltun"]),
    ];
    let lines = rest.iter().flat_map(|text| text.lines());
    // Link-local addresses come by themselves, a while after the interface.
    let lines = lines.filter(|line| !line.contains("fe80::"));
    state.extend(lines.map(str::to_owned));
    state
}

/// Programs that are attached to the lab's control groups, and below them.
fn attached(lab: &Lab) -> Value {
    let root = lab.cgroup(Node::A);
    let root = root
        .parent()
        .expect("the lab's own")
        .to_str()
        .expect("text");
    bpftool(&["cgroup", "tree", root])
}

#[test]
fn uninstall_leaves_nothing_behind() {
    let mut before = None;
    let mut mesh = Bookinfo::start_with(|lab| before = Some(attached(lab)));
    let before = before.expect("it was called");
    let folder = mesh.lab.bpffs(Node::A);
    mesh.b.stop();
    assert_eq!(mesh.b.uninstall(&[]).code, 0);
    // A workload that the agent finds and leaves shows what namespaces are like without it.
    let late = mesh.lab.workload(Node::A, "late", &[]);
    let untouched = state(&late);
    let all = workload_entries(&[&mesh.sleep, &late, &mesh.v1, &mesh.v2]);
    mesh.lab.configure("workloads.yaml", &all);
    eventually(
        BACK,
        "the late workload is enrolled",
        || match tcp_tw_reuse(&late).as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        },
    );
    assert_ne!(state(&late), untouched, "what can be seen of enrolment");
    assert_ne!(attached(&mesh.lab), before);
    let ours: Objects = &held_by(mesh.a.id()) | &pinned(&folder);
    for (kind, at_least) in [("prog", 12), ("map", 20), ("link", 13), ("btf", 1)] {
        let count = ours.iter().filter(|(of, _)| *of == kind).count();
        assert!(count >= at_least, "{count} of {kind}: {ours:?}");
    }
    let socket = mesh.a.socket().to_owned();
    let takeover = socket.with_extension("sock.takeover");
    assert!(takeover.exists());

    let said = mesh.a.uninstall(&[]);
    assert_ne!(said.code, 0, "an agent runs: {said:?}");
    assert!(said.stderr.contains("--force"), "{said:?}");
    assert_eq!(tcp_tw_reuse(&late), "1", "nothing has happened");

    // A crash leaves more than a stop does.
    mesh.a.kill();
    assert!(socket.exists() && takeover.exists());
    let said = mesh.a.uninstall(&[]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!folder.exists() && !socket.exists() && !takeover.exists());
    eventually(BACK, "every object of the kernel is gone", || {
        let left: Objects = &objects() & &ours;
        match left.is_empty() {
            true => Ok(()),
            false => Err(format!("{left:?}")),
        }
    });
    assert_eq!(attached(&mesh.lab), before);
    let left = &state(&late) ^ &untouched;
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(tcp_tw_reuse(&mesh.sleep), "2");
    assert!(
        fs::read_dir(mesh.lab.ca())
            .expect("the authority stays")
            .count()
            > 0
    );
    let plain = mesh
        .sleep
        .curl(&[&format!("http://{}:9080/peer", mesh.v1.v4)]);
    assert!(plain.body.contains(&mesh.sleep.v4.to_string()), "{plain:?}");
    // Again, with nothing there.
    assert_eq!(mesh.a.uninstall(&[]).code, 0);

    mesh.a.restart();
    let said = mesh.a.uninstall(&["--force"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!folder.exists());
    mesh.a.stop();
    let said = mesh.a.uninstall(&["--purge"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!mesh.lab.ca().exists(), "--purge takes the authority, too");
}

#[test]
fn uninstall_works_when_its_control_groups_are_gone() {
    let lab = Lab::new();
    let sleep = lab.workload(Node::A, "sleep", &[]);
    lab.configure("workloads.yaml", &workload_entries(&[&sleep]));
    let group = lab.cgroup(Node::A).join("short-lived");
    fs::create_dir(&group).expect("a group");
    let group = group.to_str().expect("text").to_owned();
    let mut agent = Agent::start(&lab, Node::A);
    agent.stop();
    let mut elsewhere = agent.second(&["--cgroup", &group]).expect("it starts");
    assert!(
        wait_until(BACK, || elsewhere.log().contains("agent is running")),
        "{}",
        elsewhere.log()
    );
    elsewhere.kill();
    fs::remove_dir(&group).expect("the group is empty");
    let said = agent.uninstall(&[]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!lab.bpffs(Node::A).exists());
    // And an agent finds its way after the group was made again.
    agent.restart();
    agent.stop();
    fs::create_dir(&group).expect("a group");
    let mut again = agent.second(&["--cgroup", &group]).expect("it starts");
    assert!(
        wait_until(BACK, || again.log().contains("agent is running")),
        "{}",
        again.log()
    );
    again.kill();
}
