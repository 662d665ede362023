//! What an agent keeps in memory when nothing happens.

use std::fmt::Write;
use std::time::Duration;

use mesh_tests::{Agent, Process, eventually, wait_until};

use crate::bookinfo::Bookinfo;
use crate::hostile::{ENDLESS, Stage};

/// How long it may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(30);
/// Kibibytes that something has to take, so that giving them back is to be seen.
const TAKES_KIB: u64 = 2 * 1024;

#[test]
fn what_a_start_a_change_traffic_and_answers_take_for_a_while_is_given_back() {
    let bookinfo = Bookinfo::start();
    let agent = &bookinfo.a;
    let start = agent.peak_kib();
    eventually(PATIENCE, "rest after the start", || {
        match agent.resident_kib() {
            kib if kib < start / 2 => Ok(()),
            kib => Err(format!("{kib} of {start} KiB")),
        }
    });

    gives_back(agent, "a change", || {
        bookinfo.lab.configure("many.yaml", &many());
        eventually(PATIENCE, "the change", || has_many(agent, true));
        bookinfo.lab.unconfigure("many.yaml");
        eventually(PATIENCE, "the change", || has_many(agent, false));
    });
    gives_back(agent, "traffic", || {
        for _ in 0..20 {
            assert_eq!(bookinfo.sleep.curl(&["http://reviews/"]).status, 200);
        }
    });
    gives_back(agent, "answers", || {
        for view in ["check", "config", "flows", "services", "endpoints", "certs"] {
            agent.meshctl(&[view]).success();
        }
    });
}

/// Services that are in nobody's way.
fn many() -> String {
    let mut text = String::new();
    for number in 0..2000 {
        let (high, low) = (number / 250, number % 250);
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: many-{number}}}\nspec:\n  \
             clusterIP: 10.97.{high}.{low}\n  ports: [{{name: http, port: 80}}]\n"
        );
    }
    text
}

fn has_many(agent: &Agent, are_there: bool) -> Result<(), String> {
    let services = agent.meshctl(&["services"]).stdout;
    match services.contains("many-1999") {
        found if found == are_there => Ok(()),
        _ => Err("the services are as before".to_owned()),
    }
}

/// Most of what `something` takes is there again afterwards.
fn gives_back(agent: &Agent, name: &str, something: impl FnOnce()) {
    let before = agent.resident_kib();
    agent.forget_peak();
    something();
    let peak = agent.peak_kib();
    assert!(
        peak > before + TAKES_KIB,
        "{name} takes nothing: {before} KiB, then {peak}"
    );
    eventually(PATIENCE, name, || match agent.resident_kib() {
        kib if kib < before + (peak - before) / 3 => Ok(()),
        kib => Err(format!("{kib} KiB; {before} before, {peak} meanwhile")),
    });
}

/// A hundred and more requests a second, without an end.
const STEADY: &str = r#"
import socket, sys, time
print("steady", flush=True)
while True:
    with socket.create_connection((sys.argv[1], 9080), 10) as s:
        s.sendall(b"GET /details/0 HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        while s.recv(65536): pass
    time.sleep(0.005)
"#;

/// What a flood leaves at most.
const LEFT_KIB: u64 = 16 * 1024;

#[test]
fn what_a_flood_took_is_given_back_while_others_go_on() {
    let stage = Stage::start();
    let _endless = stage.web.serve(9090, "/usr/bin/python3", &["-c", ENDLESS]);
    let (chain, key) = stage.lab.certificate("client", &stage.outside);
    let own = (chain.display().to_string(), key.display().to_string());
    let mut steady = stage.outside.command("/usr/bin/python3");
    steady.args(["-c", STEADY, &stage.web.v4.to_string()]);
    let log = stage.outside.file("steady.log", "");
    let mut steady = Process::spawn(&mut steady, log).expect("python starts");
    assert!(wait_until(PATIENCE, || steady.log().contains("steady")));
    assert_eq!(stage.peer_of(9080, "good", &own), "88");

    let before = stage.agent.resident_kib();
    stage.agent.forget_peak();
    assert_eq!(stage.peer_of(9090, "unread", &own), "88");
    let peak = stage.agent.peak_kib();
    assert!(peak > before + 2 * LEFT_KIB, "{peak} of {before} KiB");
    // Twice as long as the agent may wait.
    eventually(2 * PATIENCE, "the flood's memory", || {
        match stage.agent.resident_kib().saturating_sub(before) {
            kept if kept < LEFT_KIB => Ok(()),
            kept => Err(format!(
                "{kept} KiB more than {before}, and {peak} meanwhile"
            )),
        }
    });
    assert!(steady.is_running(), "{}", steady.log());
}
