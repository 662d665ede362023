//! One end of a short-circuited connection is killed while bytes are under way:
//! the other end gets what was sent, hears of the end, and nobody else notices.

use std::io::Write;
use std::path::PathBuf;
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, wait_until,
    workload_entries,
};

use crate::held::{HELD, Held};

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/short_circuit/killed.py");
pub const VIP: &str = "10.96.0.40";
pub const BYSTANDERS: u16 = 81;
/// How long a program waits for what it is to see.
const PATIENCE: Duration = Duration::from_secs(25);

/// A client and a server on one node, and a connection of others that nothing must happen to.
pub struct Scene {
    pub bystander: Held,
    _echo: Process,
    server: Process,
    serving: Workload,
    pub client: Workload,
    agent: Agent,
    pub lab: Lab,
}

/// A client's program.
struct Client {
    process: Process,
    input: ChildStdin,
}

impl Scene {
    /// With `direct`, no agent is on the way.
    pub fn start(direct: bool) -> Self {
        let lab = Lab::new();
        let workload = |name| {
            lab.workload(Node::A, name, &[("app", name)])
                .annotated("undermesh.io/short-circuit", "on")
                .annotated("undermesh.io/direct", if direct { "true" } else { "false" })
        };
        let (client, serving) = (workload("client"), workload("server"));
        let server = Self::serve(&serving, &lab);
        let echo = serving.serve(7001, "python3", &[HELD, "serve", "7001"]);
        let entries = workload_entries(&[&client, &serving]);
        lab.configure("workloads.yaml", &entries);
        let ports = [("tcp", 80, 7000), ("tcp-echo", BYSTANDERS, 7001)];
        let ports = ports.map(|(name, port, target)| ServicePort { name, port, target });
        lab.configure("server.yaml", &service("server", 40, &ports));
        let agent = Agent::start(&lab, Node::A);
        Self {
            bystander: Held::open(&client, "v4", VIP, BYSTANDERS),
            _echo: echo,
            server,
            serving,
            client,
            agent,
            lab,
        }
    }

    fn serve(at: &Workload, lab: &Lab) -> Process {
        let signal = lab.folder().join("go");
        at.serve(
            7000,
            "python3",
            &[PROGRAM, "serve", "7000", &signal.to_string_lossy()],
        )
    }

    /// What servers wait for.
    fn signal(&self) -> PathBuf {
        self.lab.folder().join("go")
    }

    fn client(&self, what: &str) -> Client {
        let mut command = self.client.command("python3");
        command.args([PROGRAM, what, VIP]).stdin(Stdio::piped());
        let log = self.client.file(&format!("{what}.log"), "");
        let mut process = Process::spawn(&mut command, log).expect("python starts");
        let input = process.stdin().expect("piped");
        heard(&mut process, "open");
        Client { process, input }
    }

    /// Bytes have taken the short-circuit, the connection of others goes on, and new ones come about.
    fn is_well(&mut self) {
        self.bystander.echoes("afterwards");
        Held::open(&self.client, "v4", VIP, BYSTANDERS).echoes("new");
        let flows = || {
            let flows = self.agent.meshctl_json(&["flows"]);
            let flows = flows.as_array().cloned().unwrap_or_default();
            let killed = format!("{VIP}:80");
            (flows.into_iter()).filter(move |flow| flow["destination"] == *killed)
        };
        assert!(
            flows().any(|flow| flow["short_circuit_sent"].as_u64() > Some(0)
                || flow["short_circuit_received"].as_u64() > Some(0))
        );
        eventually(PATIENCE, "the account knows of the end", || {
            match flows().find(|flow| flow["state"] == "open") {
                None => Ok(()),
                Some(flow) => Err(flow.to_string()),
            }
        });
    }
}

/// The rest of the line that begins so.
fn heard(process: &mut Process, start: &str) -> String {
    let line = |log: String| {
        log.lines()
            .find_map(|line| Some(line.strip_prefix(start)?.trim().to_owned()))
    };
    let found = wait_until(PATIENCE, || line(process.log()).is_some());
    assert!(found, "no {start:?}: {}", process.log());
    line(process.log()).unwrap_or_default()
}

fn everywhere(test: fn(&mut Scene)) {
    for direct in [true, false] {
        let mut scene = Scene::start(direct);
        test(&mut scene);
        scene.is_well();
    }
}

#[test]
fn what_a_killed_client_has_sent_arrives_whole() {
    everywhere(|scene| {
        let mut client = scene.client("fill");
        let filled = heard(&mut client.process, "filled");
        client.process.kill();
        std::fs::write(scene.signal(), "").expect("the lab's folder is writable");
        let got = heard(&mut scene.server, "got");
        assert_eq!(got, format!("{filled} True EOF"));
    });
}

#[test]
fn what_a_killed_server_has_sent_arrives_whole() {
    everywhere(|scene| {
        let mut client = scene.client("read");
        let poured = heard(&mut scene.server, "poured");
        scene.server.kill();
        client.input.write_all(b"\n").expect("python reads");
        let got = heard(&mut client.process, "got");
        assert_eq!(got, format!("{poured} True EOF"));
    });
}

/// Who goes on writing is told soon, by one of the errors that TCP has for it.
fn hears_of_the_end(writer: &mut Process) {
    let told = heard(writer, "told");
    assert!(
        ["True EPIPE", "True ECONNRESET"].contains(&&*told),
        "{told}"
    );
}

#[test]
fn who_writes_to_a_killed_server_hears_of_it() {
    everywhere(|scene| {
        let mut client = scene.client("bereft");
        heard(&mut client.process, "filled");
        scene.server.kill();
        hears_of_the_end(&mut client.process);
        // Its port is free, and the next one is served.
        scene.server = Scene::serve(&scene.serving, &scene.lab);
        let mut client = scene.client("read");
        heard(&mut scene.server, "poured");
        client.process.kill();
    });
}

#[test]
fn who_writes_to_a_killed_client_hears_of_it() {
    everywhere(|scene| {
        let mut client = scene.client("idle");
        heard(&mut scene.server, "filled");
        client.process.kill();
        hears_of_the_end(&mut scene.server);
    });
}
