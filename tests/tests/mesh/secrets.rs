//! What an agent says of itself holds no secret, whoever asks.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{fs, str};

use mesh_tests::{Agent, Node, Workload};

use crate::ca_client::Stage;

/// How private keys begin, in PEM and as DER in base64: PKCS #8, SEC 1 and PKCS #1.
const KEYS: [&str; 5] = [
    "PRIVATE KEY",
    "MIGHAgEA",
    "MC4CAQAw",
    "MHcCAQEE",
    "MIIEvAIBAD",
];

/// The lines of a key in PEM.
fn lines(pem: &str) -> Vec<String> {
    let body = pem.lines().filter(|line| !line.starts_with('-'));
    body.map(str::to_owned).collect()
}

/// A key that openssl makes.
fn key(place: &Workload) -> String {
    let arguments = ["ecparam", "-name", "prime256v1", "-genkey", "-noout"];
    place.run("openssl", &arguments).success()
}

/// What the agent answers to each question that there is.
fn answers(agent: &Agent, place: &Workload, metrics: &str) -> Vec<(String, String)> {
    let questions = [
        "version",
        "check",
        "workloads",
        "services",
        "endpoints",
        "endpoints far",
        "routes sleep.default http://far/",
        "analyze",
        "flows",
        "kernel-log",
        "authn tls-check sleep.default",
        "authn plaintext",
        "authz check far.default --from sleep.default --port 9080",
        "authz report",
        "config",
        "certs",
    ];
    let mut all = Vec::new();
    for question in questions {
        for output in ["table", "wide", "json"] {
            let arguments: Vec<&str> = question.split(' ').chain(["-o", output]).collect();
            let said = agent.meshctl(&arguments);
            assert!(!said.stdout.is_empty(), "{question} -o {output}: {said:?}");
            all.push((
                format!("{question} -o {output}"),
                said.stdout + &said.stderr,
            ));
        }
    }
    let reply = place.curl(&[&format!("http://{metrics}/metrics")]);
    assert_eq!(reply.status, 200, "{reply:?}");
    all.push(("metrics".to_owned(), reply.body));
    let command_line = fs::read(format!("/proc/{}/cmdline", agent.id())).expect("it runs");
    all.push((
        "arguments".to_owned(),
        String::from_utf8_lossy(&command_line).into_owned(),
    ));
    all.push(("log".to_owned(), agent.log()));
    all
}

#[test]
fn no_answer_and_no_log_holds_a_key_or_a_token_and_no_door_is_open_to_other_machines() {
    let stage = Stage::new();
    let _authority = stage.authority();
    let metrics = "127.0.0.1:15020";
    let flags = ["--ca-token", &stage.token, "--metrics-address", metrics];
    let agent = stage.agent_with(Node::A, &flags);
    let _far = stage.agent_with(Node::B, &["--ca-token", &stage.token]);
    stage.reaches();
    // Keys for servers outside of the mesh: one that is good, one without a certificate.
    let (good, bad) = (key(&stage.host), key(&stage.host));
    let indented = |pem: &str| pem.trim().replace('\n', "\n    ");
    let secret = |name: &str, pem: &str, certificate: &str| {
        format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData:\n  tls.crt: |\n    \
             {}\n  tls.key: |\n    {}\n",
            indented(certificate),
            indented(pem)
        )
    };
    let ca = |name| fs::read_to_string(stage.lab.ca().join(name)).expect("a file");
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: far}\n\
        spec: {host: far, workloadSelector: {matchLabels: {app: sleep}}, trafficPolicy: {tls: {mode: MUTUAL, credentialName: bad}}}\n";
    let text =
        secret("good", &good, &ca("root-cert.pem")) + &secret("bad", &bad, "nonsense") + rule;
    stage.lab.configure("secrets.yaml", &text);
    let token = fs::read_to_string(&stage.token).expect("a file");
    let mut hidden = vec![token.trim().to_owned()];
    for pem in [&good, &bad, &ca("ca-key.pem"), &ca("root-key.pem")] {
        hidden.extend(lines(pem));
    }
    hidden.extend(KEYS.map(str::to_owned));
    mesh_tests::eventually(crate::ca_client::PATIENCE, "the rule is there", || {
        let said = agent.meshctl_json(&["config"]).to_string();
        if said.contains("DestinationRule") {
            Ok(())
        } else {
            Err(said)
        }
    });
    for (question, answer) in answers(&agent, &stage.host, metrics) {
        for secret in &hidden {
            assert!(
                !answer.contains(secret),
                "{question} says {secret}: {answer}"
            );
        }
    }

    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(agent.socket()), 0o600);
    for key in ["ca-key.pem", "root-key.pem"] {
        assert_eq!(mode(&stage.lab.ca().join(key)), 0o600, "{key}");
    }
    let listening = stage.host.run("ss", &["-Hltnup"]).success();
    let own = format!("pid={},", agent.id());
    let own: Vec<&str> = listening
        .lines()
        .filter(|line| line.contains(&own))
        .collect();
    assert!(!own.is_empty(), "{listening}");
    for line in own {
        let local = line.split_whitespace().nth(4).expect("an address");
        assert!(
            local.starts_with("127.") || local.starts_with("[::1]"),
            "{line}"
        );
    }
}
