//! The configuration changes while traffic flows.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use mesh_tests::eventually;

use crate::bookinfo::{Bookinfo, V1, V2};

const VIRTUAL_SERVICE: &str = include_str!("../../data/guide/virtual-service.yaml");

/// Within which a change is to be live.
const LIVE: Duration = Duration::from_secs(1);

#[test]
fn a_change_is_live_within_a_second_and_loses_no_request() {
    let mesh = Bookinfo::start_with(|lab| lab.configure("virtual-service.yaml", VIRTUAL_SERVICE));
    let swapped = VIRTUAL_SERVICE
        .replace("subset: v1", "subset: x")
        .replace("subset: v2", "subset: v1")
        .replace("subset: x", "subset: v2");
    let stop = AtomicBool::new(false);
    let rounds_of_load = AtomicUsize::new(0);

    // Over kept connections, and over a new one for each request.
    let load = |arguments: &'static [&'static str]| {
        let mut answers = 0;
        while !stop.load(Ordering::Relaxed) {
            let bodies =
                mesh.sleep
                    .curl_many(100, "http://reviews/", &[&["--fail"], arguments].concat());
            assert!(
                bodies.iter().all(|body| [V1, V2].contains(&&**body)),
                "{bodies:?}"
            );
            assert_eq!(bodies.len(), 100);
            answers += bodies.len();
            rounds_of_load.fetch_add(1, Ordering::Relaxed);
        }
        answers
    };
    let answers: usize = thread::scope(|scope| {
        let loads = [
            scope.spawn(|| load(&[])),
            scope.spawn(|| load(&["-H", "Connection: close"])),
        ];
        // On a busy machine a hundred requests take longer than six changes.
        let is_enough = |changes| changes >= 6 && rounds_of_load.load(Ordering::Relaxed) >= 4;
        for round in (0..60).take_while(|changes| !is_enough(*changes)) {
            let (text, expected) = if round % 2 == 0 {
                (&*swapped, V2)
            } else {
                (VIRTUAL_SERVICE, V1)
            };
            mesh.lab.configure("virtual-service.yaml", text);
            eventually(LIVE, "the change", || {
                let reply = mesh.sleep.curl(&["http://reviews/"]);
                if reply.body.trim_end() == expected {
                    Ok(())
                } else {
                    Err(format!("{reply:?}"))
                }
            });
        }
        stop.store(true, Ordering::Relaxed);
        loads
            .into_iter()
            .map(|load| load.join().expect("no request is lost"))
            .sum()
    });
    assert!(answers > 200, "there was load: {answers}");
}

/// Waits until `meshctl check` fails and `meshctl config` says why in these words.
fn until_refused(mesh: &Bookinfo, words: &[&str]) {
    eventually(LIVE * 2, "meshctl says what was refused", || {
        let (check, config) = (mesh.a.meshctl(&["check"]), mesh.a.meshctl(&["config"]));
        let missing: Vec<_> = words
            .iter()
            .filter(|word| !config.stdout.contains(**word))
            .collect();
        if check.code == 1 && missing.is_empty() {
            Ok(())
        } else {
            Err(format!("without {missing:?}: {check:?} {config:?}"))
        }
    });
}

#[test]
fn an_invalid_document_is_named_and_the_last_good_state_stays() {
    let mesh = Bookinfo::start_with(|lab| lab.configure("virtual-service.yaml", VIRTUAL_SERVICE));
    let bad = VIRTUAL_SERVICE.replace(
        "subset: v1\n---",
        "subset: v1\n          weight: heavy\n---",
    );
    let other =
        "apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {ports: [{port: 80}]}";
    let broken = format!("{other}\n---\n{bad}");
    mesh.lab.configure("virtual-service.yaml", &broken);

    until_refused(
        &mesh,
        &[
            "virtual-service.yaml",
            "document 2",
            "VirtualService default/reviews",
            "spec.http[1].route[0].weight",
            "heavy",
        ],
    );
    for (header, expected) in [("x: y", V1), ("end-user: jason", V2)] {
        let reply = mesh.sleep.curl(&["-H", header, "http://reviews/"]);
        assert_eq!(reply.body.trim_end(), expected, "{reply:?}");
    }

    mesh.lab.configure("virtual-service.yaml", VIRTUAL_SERVICE);
    eventually(LIVE * 2, "the error is gone", || {
        let check = mesh.a.meshctl(&["check"]);
        if check.code == 0 {
            Ok(())
        } else {
            Err(format!("{check:?}"))
        }
    });
}

#[test]
fn text_that_is_not_yaml_changes_nothing() {
    let mesh = Bookinfo::start();
    mesh.lab.configure("broken.yaml", "kind: [unfinished\n");
    until_refused(&mesh, &["broken.yaml"]);
    assert_eq!(mesh.sleep.curl(&["http://reviews/"]).status, 200);
}

#[test]
fn a_workload_is_enrolled_and_released_while_it_runs() {
    let mesh = Bookinfo::start();
    let late = mesh
        .lab
        .workload(mesh_tests::Node::A, "late", &[("app", "late")]);
    assert_eq!(
        late.curl(&["http://reviews/"]).status,
        0,
        "not yet enrolled"
    );
    mesh.lab
        .configure("late.yaml", &mesh_tests::workload_entries(&[&late]));
    eventually(LIVE, "the workload is enrolled", || {
        match late.curl(&["http://reviews/"]).status {
            200 => Ok(()),
            status => Err(format!("status {status}")),
        }
    });
    mesh.lab.unconfigure("late.yaml");
    eventually(LIVE, "the workload is released", || {
        match late.curl(&["http://reviews/"]).status {
            0 => Ok(()),
            status => Err(format!("status {status}")),
        }
    });
    let direct = late.curl(&[&format!("http://{}:9080/", mesh.v1.v4)]);
    assert_eq!(
        direct.status, 200,
        "it talks on without the mesh: {direct:?}"
    );
}
