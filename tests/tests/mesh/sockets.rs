//! Sockets that are used again, share a port, or have an address that others
//! have, too: the kernel programs do not mistake one for another.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, outcome, service, wait_until,
    workload_entries,
};

use crate::bookinfo::{Bookinfo, VIP4};

const SOCKETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/sockets.py");
/// Within which a change is in force.
const LIVE: Duration = Duration::from_secs(5);

fn python(from: &Workload, arguments: &[&str]) -> String {
    let all = [&[SOCKETS], arguments].concat();
    from.run("/usr/bin/python3", &all).success()
}

/// `count` of sockets.py, by answer.
fn count(from: &Workload, address: &str, port: &str, times: &str) -> Vec<(String, u32)> {
    let said = python(from, &["count", address, port, times]);
    let pair = |text: &str| {
        let (who, times) = text.split_once(':')?;
        Some((who.to_owned(), times.parse().ok()?))
    };
    said.split_whitespace().filter_map(pair).collect()
}

fn http(name: &'static str, host: u8) -> String {
    let port = ServicePort {
        name: "http",
        port: 80,
        target: 9080,
    };
    service(name, host, &[port])
}

#[test]
fn a_socket_that_connects_again_shows_its_new_peer() {
    let mesh = Bookinfo::start_with(|lab| {
        let tcp = ServicePort {
            name: "tcp-data",
            port: 5432,
            target: 5432,
        };
        // Nobody has these labels.
        lab.configure("nobody.yaml", &service("nobody", 20, &[tcp]));
    });
    let _own = mesh.sleep.serve(9080, "bookinfo", &["reviews"]);
    let own = mesh.sleep.v4.to_string();
    let said = python(&mesh.sleep, &["again", "10.96.0.20", VIP4, &own]);
    let expected =
        format!("refused ECONNREFUSED\npeer {own} 9080\npeer {VIP4} 80\npeer {own} 9080\n");
    assert_eq!(said, expected);
}

#[test]
fn a_request_that_comes_with_the_syn_is_captured() {
    let mesh = Bookinfo::start_with(|lab| {
        // Client and servers, without cookies, for every listener from now on (ip-sysctl).
        let on = "echo 1543 > /proc/sys/net/ipv4/tcp_fastopen";
        let sleep = format!("{}-sleep", lab.name());
        outcome(Command::new("ip").args(["netns", "exec", &sleep, "sh", "-c", on]))
            .expect("ip starts")
            .success();
    });
    let sleep = &mesh.sleep;
    let said = python(sleep, &["fastopen", VIP4, &sleep.v4.to_string()]);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 6, "{said}");
    for one in lines.chunks(3) {
        assert_eq!(one[0], format!("peer {VIP4} 80"), "{said}");
        assert_eq!(one[1], "with the SYN True", "{said}");
        assert!(one[2].starts_with("status 200 "), "{said}");
        assert!(one[2].contains(&sleep.v4.to_string()), "{said}");
    }
}

#[test]
fn two_namespaces_with_one_address_and_port_are_told_apart() {
    let lab = Lab::new();
    let one = lab.workload(Node::A, "one", &[]);
    // Its wire is cut: two machines of one network cannot have one address.
    let two = lab.workload(Node::A, "two", &[]);
    let ip = |arguments: &[&str]| two.run("ip", arguments).success();
    ip(&["link", "set", "eth0", "down"]);
    ip(&["address", "add", &format!("{}/32", one.v4), "dev", "lo"]);
    ip(&["route", "add", "default", "dev", "lo"]);
    let mut servers = Vec::new();
    let mut all = vec![one.clone(), two.clone()];
    for (name, host) in [("first", 41), ("second", 42)] {
        let server = lab.workload(Node::A, name, &[("app", name)]);
        servers.push(server.serve(9080, "bookinfo", &["reviews", "--version", name]));
        lab.configure(&format!("{name}.yaml"), &http(name, host));
        all.push(server);
    }
    lab.configure(
        "workloads.yaml",
        &workload_entries(&all.iter().collect::<Vec<_>>()),
    );
    let _agent = Agent::start(&lab, Node::A);
    let own = one.v4.to_string();
    let calls = [(&one, "10.96.0.41"), (&two, "10.96.0.42")].map(|(from, vip)| {
        let mut command = from.command("/usr/bin/python3");
        command.args([SOCKETS, "bound", &own, "45678", vip]);
        command.stdin(Stdio::piped());
        Process::spawn(&mut command, from.file("bound.log", "")).expect("python starts")
    });
    for (call, version) in calls.iter().zip(["first", "second"]) {
        eventually(LIVE, "the right one answers", || {
            let log = call.log();
            match log.contains(&format!("\"id\": \"{version}\"")) {
                true => Ok(()),
                false => Err(log),
            }
        });
    }
}

#[test]
fn servers_may_share_a_port_and_one_of_them_may_leave() {
    let mesh = Bookinfo::start();
    let outside = mesh.lab.workload(Node::Outside, "outside", &[]);
    let (v1, log) = (mesh.v1.v4.to_string(), mesh.v1.file("share.log", ""));
    // Nobody listens: the kernel says so, as it does without the mesh.
    let before = count(&outside, &v1, "7300", "3");
    assert_eq!(before, [("ConnectionRefusedError".to_owned(), 3)]);

    let mut command = mesh.v1.command("/usr/bin/python3");
    command
        .args([SOCKETS, "share", "7300"])
        .stdin(Stdio::piped());
    let mut sharing = Process::spawn(&mut command, log).expect("python starts");
    let mut input = sharing.stdin().expect("piped");
    assert!(wait_until(LIVE, || sharing.listens_on(7300)));
    let captured = || {
        let flows = mesh.b.meshctl_json(&["flows"]);
        let flows = flows.as_array().into_iter().flatten();
        flows
            .filter(|flow| flow["direction"] == "inbound" && flow["verdict"] == "proxy")
            .filter(|flow| {
                flow["endpoint"].to_string().contains(":7300")
                    || flow["destination"].to_string().contains(":7300")
            })
            .count()
    };
    assert_eq!(captured(), 0);
    let all = count(&outside, &v1, "7300", "100");
    let names: Vec<_> = all.iter().map(|(who, _)| who.as_str()).collect();
    assert_eq!(names, ["0", "1", "2", "3"], "{all:?}");
    assert!(captured() >= 100, "{}", mesh.b.meshctl(&["flows"]).stdout);

    input.write_all(b"close\n").expect("python reads");
    assert!(wait_until(LIVE, || sharing.log().contains("closed")));
    let rest = count(&outside, &v1, "7300", "100");
    let names: Vec<_> = rest.iter().map(|(who, _)| who.as_str()).collect();
    assert_eq!(names, ["1", "2", "3"], "{rest:?}");
    sharing.kill();
    let after = count(&outside, &v1, "7300", "3");
    assert_eq!(after, [("ConnectionRefusedError".to_owned(), 3)]);
}

#[test]
fn workloads_without_ipv6_are_served_over_ipv4_and_one_line_says_so() {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let server = lab.workload(Node::A, "server", &[("app", "server")]);
    let off = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6";
    for workload in [&client, &server] {
        workload.run("sh", &["-c", off]).success();
    }
    let _server = server.serve(9080, "bookinfo", &["reviews", "--listen", "0.0.0.0:9080"]);
    lab.configure("server.yaml", &http("server", 41));
    lab.configure("workloads.yaml", &workload_entries(&[&client, &server]));
    let mut agent = Agent::start(&lab, Node::A);
    let works = |agent: &Agent| {
        let reply = client.curl(&["http://server/peer"]);
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(reply.body.contains(&client.v4.to_string()), "{reply:?}");
        let log = agent.log();
        let lines = log.lines().filter(|line| line.contains("IPv6 is off"));
        let of = |workload: &Workload| {
            let name = format!("workload={}.default", workload.name);
            lines.clone().filter(|line| line.contains(&name)).count()
        };
        assert_eq!([of(&client), of(&server)], [1, 1], "{log}");
        assert!(!log.contains("ERROR"), "{log}");
    };
    works(&agent);
    let flows = agent.meshctl_json(&["flows"]);
    let flows = flows.as_array().cloned().unwrap_or_default();
    assert!(
        flows.iter().any(|flow| flow["verdict"] == "proxy"),
        "{flows:?}"
    );
    // In the clear, from outside of the mesh.
    let outside = lab.workload(Node::Outside, "outside", &[]);
    let reply = outside.curl(&[&format!("http://{}:9080/peer", server.v4)]);
    assert!(reply.body.contains(&outside.v4.to_string()), "{reply:?}");

    // Not again with each change, and once by the agent that takes over.
    let generation = || agent.meshctl_json(&["config"])["generation"].as_u64();
    let before = generation();
    lab.configure("other.yaml", &http("other", 42));
    assert!(wait_until(LIVE, || generation() > before));
    works(&agent);
    let _first = agent.take_over(&[]);
    works(&agent);
}
