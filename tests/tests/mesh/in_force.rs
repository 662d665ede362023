//! Once a configuration is said to be in force, no connection is decided by the one before.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, service, wait_until, workload_entries,
};

const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/over_and_over.py");
const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/says_its_name.py");
const VIP: &str = "10.96.0.40";
const IN_FORCE: Duration = Duration::from_secs(20);
/// For how long each configuration is left alone.
const WINDOW: Duration = Duration::from_millis(400);

const DENY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [default]}}]}]}
";
const ROUTE: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front}
spec: {hosts: [front], tcp: [{route: [{destination: {host: first}}]}]}
";

/// What is changed, and who answers then.
type Change = (&'static str, Option<String>, &'static str);

/// From when to when a configuration was in force, and who answers.
struct Window {
    from: u128,
    until: u128,
    answers: &'static str,
}

fn now() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_nanos()
}

/// The service that clients ask for, with endpoints of that application.
fn front(application: &str) -> String {
    let ports = [ServicePort {
        name: "tcp",
        port: 80,
        target: 7000,
    }];
    service("front", 40, &ports).replace("app: front", &format!("app: {application}"))
}

#[test]
fn no_connection_is_decided_by_a_configuration_that_is_not_in_force_any_more() {
    let lab = Lab::new();
    let client = |name, direct| {
        lab.workload(Node::A, name, &[("app", name)])
            .annotated("undermesh.io/direct", direct)
    };
    let (carried, past) = (client("carried", "false"), client("past", "true"));
    let servers = ["first", "second"].map(|name| lab.workload(Node::A, name, &[("app", name)]));
    let _serving = servers
        .each_ref()
        .map(|server| server.serve(7000, "python3", &[SERVER, "7000", &server.name]));
    let [first, second] = &servers;
    lab.configure(
        "workloads.yaml",
        &workload_entries(&[&carried, &past, first, second]),
    );
    let ports = [ServicePort {
        name: "tcp",
        port: 80,
        target: 7000,
    }];
    lab.configure("first.yaml", &service("first", 41, &ports));
    lab.configure("front.yaml", &front("first"));
    let agent = Agent::start(&lab, Node::A);

    let run = |from: &Workload| {
        let log = from.file("over-and-over.log", "");
        let mut command = from.command("python3");
        Process::spawn(command.args([CLIENT, VIP, "80"]), log).expect("python starts")
    };
    let mut running = [run(&carried), run(&past)];
    let answered = |process: &mut Process| process.log().contains(" first\n");
    assert!(
        running
            .each_mut()
            .map(|process| wait_until(IN_FORCE, || answered(process)))
            == [true; 2]
    );

    let changes: [Change; 6] = [
        // Who may.
        ("deny.yaml", Some(DENY.to_owned()), ""),
        ("deny.yaml", None, "first"),
        // Where the endpoints are.
        ("front.yaml", Some(front("second")), "second"),
        // Where a route leads.
        ("route.yaml", Some(ROUTE.to_owned()), "first"),
        ("route.yaml", None, "second"),
        ("front.yaml", Some(front("first")), "first"),
    ];
    let generation = || agent.meshctl_json(&["config"])["generation"].as_u64();
    let mut windows: Vec<Window> = Vec::new();
    for (file, content, answers) in changes.iter().cycle().take(2 * changes.len()) {
        let before = generation();
        if let Some(last) = windows.last_mut() {
            last.until = now();
        }
        match content {
            Some(content) => lab.configure(file, content),
            None => lab.unconfigure(file),
        }
        assert!(wait_until(IN_FORCE, || generation() > before), "{file}");
        windows.push(Window {
            from: now(),
            until: u128::MAX,
            answers,
        });
        std::thread::sleep(WINDOW);
    }

    for process in &mut running {
        let log = process.log();
        // The last line may be written at this moment.
        let (lines, _) = log.rsplit_once('\n').expect("lines");
        let connections: Vec<(u128, u128, &str)> = lines
            .lines()
            .map(|line| {
                let mut words = line.split(' ');
                let mut next = || words.next().expect("three words");
                (
                    next().parse().expect("a time"),
                    next().parse().expect("a time"),
                    next(),
                )
            })
            .collect();
        for (number, window) in windows.iter().enumerate() {
            let within = || {
                let is_within =
                    |of: &&(u128, u128, &str)| of.0 > window.from && of.1 < window.until;
                connections.iter().filter(is_within)
            };
            assert!(within().count() > 10, "change {number}: {log}");
            for (began, _, answer) in within() {
                let is_right = match window.answers {
                    "" => answer.ends_with("Error"),
                    name => *answer == name,
                };
                let after = Duration::from_nanos((began - window.from) as u64);
                assert!(
                    is_right,
                    "{answer} {after:?} after change {number}, wanted {:?}",
                    window.answers
                );
            }
        }
    }
}
