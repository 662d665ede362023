//! The guide's canary: without subsets it says what is missing, with them it splits.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};

const CANARY_ROLLOUT: &str = include_str!("../../data/guide/canary-rollout.yaml");

const SUBSETS: &str = r"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: myapp
spec:
  host: myapp
  subsets:
    - name: stable
      labels: {version: v1}
    - name: canary
      labels: {version: v2}
";

/// Requests of one measurement.
const REQUESTS: u32 = 2000;

struct Canary {
    _agents: [Agent; 2],
    _servers: Vec<Process>,
    sleep: Workload,
    lab: Lab,
}

fn start() -> Canary {
    let lab = Lab::new();
    let sleep = lab.workload(Node::A, "sleep", &[]);
    let apps = ["v1", "v2"].map(|version| {
        lab.workload(
            Node::B,
            &format!("myapp-{version}"),
            &[("app", "myapp"), ("version", version)],
        )
    });
    let servers = apps
        .iter()
        .map(|app| {
            app.serve(
                8000,
                "bookinfo",
                &[
                    "reviews",
                    "--version",
                    &app.labels["version"],
                    "--listen",
                    "[::]:8000",
                ],
            )
        })
        .collect();
    lab.configure(
        "workloads.yaml",
        &workload_entries(&[&sleep, &apps[0], &apps[1]]),
    );
    lab.configure(
        "myapp.yaml",
        &service(
            "myapp",
            20,
            &[ServicePort {
                name: "http",
                port: 80,
                target: 8000,
            }],
        ),
    );
    lab.configure("canary-rollout.yaml", CANARY_ROLLOUT);
    let agents = [Agent::start(&lab, Node::A), Agent::start(&lab, Node::B)];
    Canary {
        _agents: agents,
        _servers: servers,
        sleep,
        lab,
    }
}

#[test]
fn without_subsets_the_answer_is_503_and_says_why() {
    let canary = start();
    let mut last = None;
    eventually(Duration::from_secs(10), "an answer", || {
        let reply = canary.sleep.curl(&["http://myapp/"]);
        let status = reply.status;
        last = Some(reply);
        if status == 503 {
            Ok(())
        } else {
            Err(format!("{last:?}"))
        }
    });
    let reply = last.expect("eventually has seen a reply");
    assert!(reply.body.contains("subset"), "{reply:?}");
    assert!(
        reply.body.contains("stable") || reply.body.contains("canary"),
        "{reply:?}"
    );
    assert!(reply.body.contains("DestinationRule"), "{reply:?}");
}

#[test]
fn with_subsets_a_tenth_of_the_requests_goes_to_the_canary() {
    let canary = start();
    canary.lab.configure("subsets.yaml", SUBSETS);
    eventually(Duration::from_secs(10), "the split is live", || {
        let reply = canary.sleep.curl(&["http://myapp/"]);
        if reply.status == 200 {
            Ok(())
        } else {
            Err(format!("{reply:?}"))
        }
    });
    let measurements = [
        canary
            .sleep
            .curl_many(REQUESTS, "http://myapp/", &["--fail"]),
        canary.sleep.nghttp_many(REQUESTS, "http://myapp/", &[]),
    ];
    for answers in measurements {
        let second = answers
            .iter()
            .filter(|answer| answer.contains("v2"))
            .count();
        assert_eq!(answers.len(), REQUESTS as usize);
        // Mean 200, standard deviation 13.4: five of them on either side.
        assert!((133..=267).contains(&second), "{second} of {REQUESTS}");
    }
}
