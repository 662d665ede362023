//! Peers behind a sidecar of Istio, which speak mutual TLS to an application's own port: a real
//! Envoy as Istio configures it, and openssl where it has to misbehave.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Outcome, Process, Workload, envoy, eventually, workload_entries,
};
use serde_json::json;

use crate::envoy_config::{
    address, bootstrap, client_tls, cluster, http_proxy, listener, mutual_tls, speaks, tcp_proxy,
    with,
};
use crate::prometheus::{curl, free_address};
use crate::trust::revocation_list;

const PATIENCE: Duration = Duration::from_secs(10);

/// Listens on the first port; the cluster of each has its own protocols (ALPN).
const WAYS: [(u16, &str, &[&str]); 3] = [
    (10001, "tcp", &["istio-peer-exchange", "istio"]),
    (10002, "http1", &["istio-http/1.1", "istio", "http/1.1"]),
    (10003, "http2", &["istio-h2", "istio", "h2"]),
];

/// Says its second argument to whoever connects, and then sends back what it is told.
const GREETER: &str = r#"
import socket, sys, threading
listener = socket.create_server(("", int(sys.argv[1])))
def serve(client):
    try:
        client.sendall(sys.argv[2].encode())
        while data := client.recv(65536): client.sendall(data)
    except ConnectionError: pass
    client.close()
while True: threading.Thread(target=serve, args=[listener.accept()[0]]).start()
"#;

/// A sidecar's TLS, begun after a pause of so many seconds: the protocol, and what came until a word
/// came back; with one more argument, the connection's end as well.
const LATE: &str = r#"
import socket, ssl, sys, time
host, port, pause, chain, key, root, *hold = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.load_verify_locations(root)
context.load_cert_chain(chain, key)
context.set_alpn_protocols(["istio"])
plain = socket.create_connection((host, int(port)), 10)
time.sleep(float(pause))
tls = context.wrap_socket(plain)
tls.sendall(b"word")
said = b""
while not said.endswith(b"word") and (data := tls.recv(65536)): said += data
print(tls.selected_alpn_protocol(), said.decode(), flush=True)
if hold:
    try: tls.recv(1)
    except OSError: pass
    print("ended", flush=True)
"#;

/// Begins like a sidecar and then stalls: after nothing, in the middle of the first message, behind it.
/// Says how each connection ended.
const STALLED: &str = r#"
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.set_alpn_protocols(["istio"])
hello = ssl.MemoryBIO()
try: context.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
except ssl.SSLWantReadError: hello = hello.read()
connections = []
for length in [0, 20, len(hello)]:
    connections.append(socket.create_connection((sys.argv[1], int(sys.argv[2])), 10))
    connections[-1].sendall(hello[:length])
for connection in connections:
    try:
        while connection.recv(65536): pass
        print("ended")
    except TimeoutError: print("open")
    except ConnectionError: print("ended")
"#;

struct Stage {
    agent: Agent,
    _servers: [Process; 4],
    web: Workload,
    outside: Workload,
    metrics: String,
    lab: Lab,
}

impl Stage {
    fn start() -> Self {
        let lab = Lab::new();
        let web = lab.workload(Node::A, "web", &[("app", "web")]);
        let outside = lab.workload(Node::Outside, "outside", &[]);
        let servers = [
            web.serve(9080, "bookinfo", &["details"]),
            web.serve_tls(9443).0,
            web.serve(
                7000,
                "/usr/bin/python3",
                &["-c", GREETER, "7000", "welcome "],
            ),
            web.serve(7001, "/usr/bin/python3", &["-c", GREETER, "7001", ""]),
        ];
        lab.configure("workloads.yaml", &workload_entries(&[&web]));
        let metrics = free_address();
        let agent = Agent::start_with(&lab, Node::A, &["--metrics-address", &metrics]);
        Self {
            agent,
            _servers: servers,
            web,
            outside,
            metrics,
            lab,
        }
    }

    fn apply(&self, file: &str, text: &str) {
        let generation = || self.agent.meshctl_json(&["config"])["generation"].as_u64();
        let before = generation();
        self.lab.configure(file, text);
        eventually(PATIENCE, "it is in force", || match generation() {
            now if now > before => Ok(()),
            now => Err(format!("{now:?}")),
        });
    }

    fn mode(&self, mode: &str) {
        self.apply(
            "mode.yaml",
            &format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {{name: default}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
            ),
        );
    }

    /// `openssl s_client` at one of web's ports.
    fn s_client(&self, port: u16, more: &[&str]) -> Outcome {
        let address = format!("{}:{port}", self.web.v4);
        let arguments = ["10", "openssl", "s_client", "-connect", &address, "-quiet"];
        let script = format!(
            "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout {} {}",
            arguments.join(" "),
            more.join(" ")
        );
        self.outside.run("sh", &["-c", &script])
    }

    fn late(&self, port: &str, pause: &str, account: &str) -> Outcome {
        let arguments = self.arguments(port, pause, account);
        self.outside.run("/usr/bin/python3", &arguments)
    }

    /// Of [`LATE`].
    fn arguments(&self, port: &str, pause: &str, account: &str) -> Vec<String> {
        let (chain, key) = self.lab.certificate(account, &self.outside);
        let root = self.lab.ca().join("root-cert.pem");
        let files = [chain, key, root].map(|path| path.display().to_string());
        let host = self.web.v4.to_string();
        let mut arguments: Vec<_> = ["-c", LATE, &host, port, pause].map(str::to_owned).into();
        arguments.extend(files);
        arguments
    }
}

/// A sidecar that is `account`, and that expects `web`.
fn sidecar(lab: &Lab, place: &Workload, server: &Workload, account: &str) -> String {
    let certificate = lab.certificate(account, place);
    let listeners = WAYS.map(|(port, way, _)| {
        let route = json!({"match": {"prefix": "/"}, "route": {"cluster": way}});
        let filter = match way {
            "tcp" => tcp_proxy(json!({"cluster": way})),
            _ => http_proxy(route, json!({})),
        };
        listener(way, address("127.0.0.1", port), filter)
    });
    let clusters = WAYS.map(|(_, way, protocols)| {
        let version = match way {
            "http2" => "http2_protocol_options",
            _ => "http_protocol_options",
        };
        let tls = client_tls(
            mutual_tls(lab, &certificate, "web", protocols, "TLSv1_2"),
            json!({"sni": "outbound_.9080_._.web.default.svc.cluster.local"}),
        );
        let fields = with(speaks(version), tls);
        cluster(way, address(server.v4, 9080), fields)
    });
    bootstrap(&listeners, &clusters)
}

#[test]
fn a_sidecar_proves_whose_it_is_at_the_applications_own_port() {
    let Some(binary) = envoy() else { return };
    let stage = Stage::start();
    let (lab, outside) = (&stage.lab, &stage.outside);
    let _envoy = outside.envoy(&binary, 10001, &sidecar(lab, outside, &stage.web, "friend"));
    let status = |port: u16, path: &str| {
        outside
            .curl(&[&format!("http://127.0.0.1:{port}{path}")])
            .status
    };
    for mode in ["PERMISSIVE", "STRICT"] {
        stage.mode(mode);
        for (port, way, _) in WAYS {
            eventually(PATIENCE, &format!("{way} under {mode}"), || {
                match status(port, "/details/0") {
                    200 => Ok(()),
                    status => Err(status.to_string()),
                }
            });
            let body = "x".repeat(300_000);
            let file = outside.file("body", &body);
            let file = format!("@{}", file.display());
            let url = format!("http://127.0.0.1:{port}/echo");
            let reply = outside.curl(&["--data-binary", &file, &url]);
            assert!(
                reply.status == 200 && reply.body == body,
                "{way}: {reply:?}"
            );
        }
        let plain = outside.curl(&[&format!("http://{}:9080/", stage.web.v4)]);
        let expected = if mode == "STRICT" { 0 } else { 200 };
        assert_eq!(plain.status, expected, "{mode}: {plain:?}");
    }

    let allow = |principal: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: by-name}}\n\
             spec: {{action: ALLOW, rules: [{{from: [{{source: {{principals: [\"cluster.local/ns/default/sa/{principal}\"]}}}}], \
             to: [{{operation: {{notPaths: [/admin]}}}}]}}]}}\n"
        )
    };
    stage.apply("policy.yaml", &allow("friend"));
    for (port, way, _) in WAYS {
        assert_eq!(status(port, "/details/0"), 200, "{way}");
        assert_eq!(status(port, "/admin"), 403, "{way}");
    }
    stage.apply("policy.yaml", &allow("somebody"));
    for (port, way, _) in WAYS {
        assert_ne!(status(port, "/details/0"), 200, "{way}");
    }
    let report = stage.agent.meshctl(&["authz", "report"]).success();
    assert!(report.contains("/sa/friend"), "{report}");
    let metrics = curl(&[&format!("http://{}/metrics", stage.metrics)]);
    let seen = metrics.lines().any(|line| {
        line.starts_with("istio_tcp_connections_opened_total") || line.starts_with("istio_requests_total")
    } && line.contains("/sa/friend") && line.contains("mutual_tls"));
    assert!(seen, "{metrics}");
}

#[test]
fn what_is_no_sidecar_stays_the_applications_and_what_proves_nothing_does_not_reach_it() {
    let stage = Stage::start();
    stage.mode("PERMISSIVE");
    let (chain, key) = stage.lab.certificate("friend", &stage.outside);
    let (chain, key) = (chain.to_string_lossy(), key.to_string_lossy());
    let sidecar = [
        "-alpn",
        "istio",
        "-cert",
        &chain,
        "-key",
        &key,
        "-cert_chain",
        &chain,
    ];
    let own = |outcome: &Outcome| outcome.stderr.contains("CN = own");

    for more in [&["-alpn", "h2,http/1.1"][..], &[]] {
        let to_application = stage.s_client(9443, more);
        assert!(own(&to_application), "{more:?}: {to_application:?}");
        assert!(to_application.stdout.contains("200"), "{to_application:?}");
    }
    // A sidecar gets the mesh's certificate, and speaks in the clear to what is behind it.
    let proven = stage.s_client(9080, &sidecar);
    assert!(
        !own(&proven) && proven.stdout.contains("200 OK"),
        "{proven:?}"
    );
    for (what, more) in [
        ("no certificate", &["-alpn", "istio"][..]),
        (
            "no protocol of both",
            &[&["-alpn", "istio-peer-exchange"], &sidecar[2..]].concat(),
        ),
        ("TLS 1.2", &[&sidecar[..], &["-tls1_2"]].concat()),
    ] {
        for port in [9080, 9443] {
            let refused = stage.s_client(port, more);
            assert!(
                !own(&refused) && !refused.stdout.contains("HTTP"),
                "{what} at {port}: {refused:?}"
            );
        }
    }
    stage.mode("STRICT");
    assert!(stage.s_client(9080, &sidecar).stdout.contains("200 OK"));
    let refused = stage.s_client(9443, &["-alpn", "h2"]);
    assert!(!own(&refused), "{refused:?}");
    // There, all of TLS is the application's.
    stage.mode("DISABLE");
    assert!(own(&stage.s_client(9443, &sidecar)));
}

#[test]
fn who_waits_is_greeted_and_may_still_turn_out_to_be_a_sidecar() {
    let stage = Stage::start();
    stage.mode("PERMISSIVE");
    // In the clear, the application speaks first.
    let greeted = format!("timeout 10 head -c 8 < /dev/tcp/{}/7000", stage.web.v4);
    assert_eq!(
        stage.outside.run("bash", &["-c", &greeted]).success(),
        "welcome "
    );
    assert_eq!(
        stage.late("7000", "0", "friend").success(),
        "istio welcome word\n"
    );
    // Where the application waits as well, the client may take its time.
    assert_eq!(
        stage.late("7001", "0.5", "friend").success(),
        "istio word\n"
    );

    // Whoever has no name is not spoken to, however long it thinks before it proves that it has one.
    stage.apply(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: by-name}\n\
         spec: {action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/friend]}}]}]}\n",
    );
    assert_eq!(
        stage.late("7000", "0.5", "friend").success(),
        "istio welcome word\n"
    );
    let denied = stage.late("7000", "0.5", "somebody");
    assert!(!denied.stdout.contains("welcome"), "{denied:?}");
    stage.apply("policy.yaml", "# none\n");
    stage.mode("STRICT");
    assert_eq!(
        stage.late("7000", "0.5", "friend").success(),
        "istio welcome word\n"
    );
    assert_ne!(
        stage.outside.run("bash", &["-c", &greeted]).stdout,
        "welcome "
    );
}

#[test]
fn who_stalls_before_it_has_proven_anything_is_cut_off() {
    let stage = Stage::start();
    stage.mode("STRICT");
    let host = stage.web.v4.to_string();
    let arguments = ["-c", STALLED, &host, "7000"];
    let ended = stage.outside.run("/usr/bin/python3", &arguments).success();
    assert_eq!(ended, "ended\nended\nended\n");
}

#[test]
fn an_open_connection_of_a_sidecar_ends_when_its_certificate_is_revoked() {
    let stage = Stage::start();
    let mut arguments = stage.arguments("7001", "0", "friend");
    arguments.push("hold".to_owned());
    let log = stage.outside.file("held.log", "");
    let mut command = stage.outside.command("/usr/bin/python3");
    let held = Process::spawn(command.args(&arguments), log).expect("python starts");
    let says = |what: &str| {
        eventually(PATIENCE, what, || match held.log() {
            log if log.contains(what) => Ok(()),
            log => Err(log),
        });
    };
    says("istio word");
    let chain = stage.lab.folder().join("friend.pem");
    let script = format!("openssl x509 -in {} -noout -serial", chain.display());
    let serial = stage.outside.run("sh", &["-c", &script]).success();
    let serial = serial.trim().trim_start_matches("serial=");
    let list = |serials: &[&str]| {
        let list = revocation_list(&stage.lab, &stage.outside, serials);
        std::fs::write(stage.lab.ca().join("crl.pem"), list).expect("written");
    };
    // Somebody else's does not matter.
    list(&["0123456789"]);
    eventually(PATIENCE, "the list is read", || match stage.agent.log() {
        log if log.contains("certificate authority is renewed") => Ok(()),
        log => Err(log),
    });
    assert!(!held.log().contains("ended"), "{}", held.log());
    list(&["0123456789", serial]);
    says("ended");
    let again = stage.outside.run("/usr/bin/python3", &arguments);
    assert!(!again.stdout.contains("word"), "{again:?}");
}
