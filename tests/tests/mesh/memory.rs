//! What an agent keeps in memory when nothing happens.

use std::fmt::Write;
use std::time::Duration;

use mesh_tests::{Agent, eventually};

use crate::bookinfo::Bookinfo;

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
