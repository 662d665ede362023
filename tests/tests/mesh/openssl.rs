//! openssl as the peer of our agent, on either side: versions, ciphers, groups and certificates.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// `sleep` and `other` on node a, which has our agent; `web` on a machine that has none.
struct Stage {
    lab: Lab,
    sleep: Workload,
    other: Workload,
    web: Workload,
    _server: Process,
}

impl Stage {
    fn new() -> Self {
        let lab = Lab::new();
        let sleep = lab.workload(Node::A, "sleep", &[("app", "sleep")]);
        let other = lab.workload(Node::A, "other", &[("app", "other")]);
        // Known to speak HBONE.
        let labels = [("app", "web"), ("networking.istio.io/tunnel", "http")];
        let web = lab.workload(Node::Outside, "web", &labels);
        let server = sleep.serve(9080, "bookinfo", &["details"]);
        lab.configure("workloads.yaml", &workload_entries(&[&sleep, &other, &web]));
        let port = ServicePort {
            name: "http",
            port: 80,
            target: 9080,
        };
        lab.configure("web.yaml", &service("web", 40, &[port]));
        Self {
            lab,
            sleep,
            other,
            web,
            _server: server,
        }
    }

    /// `openssl s_client` at the tunnel of `sleep`, with a certificate of the mesh.
    fn s_client(&self, more: &[&str]) -> mesh_tests::Outcome {
        let (chain, key) = self.lab.certificate("web", &self.web);
        let root = self.lab.ca().join("root-cert.pem");
        let address = format!("{}:15008", self.sleep.v4);
        let (chain, key, root) = (
            chain.to_string_lossy(),
            key.to_string_lossy(),
            root.to_string_lossy(),
        );
        let arguments = [
            "10",
            "openssl",
            "s_client",
            "-connect",
            &address,
            "-alpn",
            "h2",
            "-cert",
            &chain,
            "-key",
            &key,
            "-cert_chain",
            &chain,
            "-CAfile",
            &root,
            "-verify_return_error",
        ];
        self.web.run("timeout", &[&arguments, more].concat())
    }

    /// `openssl s_server` in the place of `web`'s agent.
    fn s_server(&self, identity: &str, more: &[&str]) -> Process {
        let (chain, key) = self.lab.certificate_for(identity, "server", &self.web);
        let root = self.lab.ca().join("root-cert.pem");
        let (chain, key, root) = (
            chain.to_string_lossy(),
            key.to_string_lossy(),
            root.to_string_lossy(),
        );
        let arguments = [
            "s_server",
            // Without it, it reads its standard input.
            "-rev",
            "-msg",
            "-accept",
            "15008",
            "-cert",
            &chain,
            "-key",
            &key,
            "-cert_chain",
            &chain,
            "-CAfile",
            &root,
            "-Verify",
            "3",
            "-verify_return_error",
            "-alpn",
            "h2",
        ];
        self.web
            .serve(15008, "openssl", &[&arguments, more].concat())
    }

    /// What `server` prints when `sleep` connects; it never answers.
    fn connects(&self, server: &Process, printed: &str) -> String {
        eventually(PATIENCE, printed, || {
            let reply = self.sleep.curl(&["-4", "--max-time", "2", "http://web/"]);
            assert_ne!(reply.status, 200);
            let log = server.log();
            if log.contains(printed) {
                Ok(())
            } else {
                Err(format!("{reply:?} {log}"))
            }
        });
        server.log()
    }
}

#[test]
fn openssl_as_a_client_gets_tls_1_3_and_our_certificate_and_nothing_older() {
    let stage = Stage::new();
    let _agent = Agent::start(&stage.lab, Node::A);
    for suite in ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"] {
        let said = stage.s_client(&["-ciphersuites", suite]);
        assert!(
            said.stdout
                .contains(&format!("New, TLSv1.3, Cipher is {suite}")),
            "{said:?}"
        );
        assert!(said.stdout.contains("Verification: OK"), "{said:?}");
        // TLS 1.3 has no renegotiation.
        assert!(
            said.stdout
                .contains("Secure Renegotiation IS NOT supported"),
            "{said:?}"
        );
        assert!(said.stdout.contains("ALPN protocol: h2"), "{said:?}");
    }
    for old in ["-tls1_2", "-tls1_1"] {
        let said = stage.s_client(&[old]);
        assert!(
            said.code != 0 && said.stdout.contains("Cipher is (NONE)"),
            "{old}: {said:?}"
        );
    }
    // Where openssl has it (3.5 and later).
    let said = stage.s_client(&["-groups", "X25519MLKEM768"]);
    if said.stderr.contains("-groups") {
        eprintln!("SKIPPED: this openssl has no X25519MLKEM768");
    } else {
        assert!(said.stdout.contains("X25519MLKEM768"), "{said:?}");
    }
}

#[test]
fn our_agent_as_a_client_offers_openssl_post_quantum_groups_and_its_certificate() {
    let stage = Stage::new();
    let _agent = Agent::start(&stage.lab, Node::A);
    let server = stage.s_server("spiffe://cluster.local/ns/default/sa/web", &[]);
    let log = stage.connects(&server, "Ciphersuite: TLS_AES");
    assert!(
        log.contains("Verification: OK") && log.contains("Protocol version: TLSv1.3"),
        "{log}"
    );
    // Openssl takes what the client likes best.
    assert!(log.contains("Ciphersuite: TLS_AES_128_GCM_SHA256"), "{log}");
    // X25519MLKEM768, x25519, secp256r1, secp384r1: openssl before 3.5 has no name for the first.
    let bytes: Vec<&str> = log.split_whitespace().collect();
    let groups = ["11", "ec", "00", "1d", "00", "17", "00", "18"];
    assert!(
        bytes.windows(groups.len()).any(|window| window == groups),
        "{log}"
    );
    drop(server);

    // Somebody else at that address, and an older TLS.
    for (identity, more) in [
        ("spiffe://cluster.local/ns/default/sa/other", &[][..]),
        ("spiffe://cluster.local/ns/default/sa/web", &["-tls1_2"]),
    ] {
        let server = stage.s_server(identity, more);
        let log = stage.connects(&server, "CONNECTION FAILURE");
        assert!(!log.contains("Ciphersuite: TLS"), "{log}");
    }
}

#[test]
fn a_server_may_bear_an_alias_of_the_trust_domain() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.lab, Node::A);
    let renamed = "spiffe://old.example/ns/default/sa/web";
    let server = stage.s_server(renamed, &[]);
    let log = stage.connects(&server, "CONNECTION FAILURE");
    assert!(!log.contains("Ciphersuite: TLS"), "{log}");
    drop((agent, server));

    let _agent = Agent::start_with(
        &stage.lab,
        Node::A,
        &["--trust-domain-alias", "old.example"],
    );
    let server = stage.s_server(renamed, &[]);
    stage.connects(&server, "Ciphersuite: TLS_AES");
    drop(server);
    // Another account of the same trust domain is still somebody else.
    let server = stage.s_server("spiffe://old.example/ns/default/sa/other", &[]);
    let log = stage.connects(&server, "CONNECTION FAILURE");
    assert!(!log.contains("Ciphersuite: TLS"), "{log}");
}

/// Asks for a tunnel to each authority, by HTTP/2 written by hand; prints the
/// first byte of each answer's header block: 88 is status 200, 8c is 400 (RFC 7541, appendix A), and
/// 48 another one.
const CONNECT: &str = r#"
import socket, ssl, struct, sys
host, chain, key = sys.argv[1:4]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.load_cert_chain(chain, key)
context.set_alpn_protocols(["h2"])
frame = lambda kind, flags, stream, data: struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + data
text = lambda value: bytes([len(value)]) + value.encode()
for authority in sys.argv[4:]:
    connection = context.wrap_socket(socket.create_connection((host, 15008), 10))
    block = b"\x02" + text("CONNECT") + b"\x01" + text(authority)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block))
    received = b""
    while True:
        while len(received) < 9 or len(received) < 9 + int.from_bytes(received[:3], "big"):
            received += connection.recv(65536)
        length = int.from_bytes(received[:3], "big")
        kind, payload, received = received[3], received[9:9 + length], received[9 + length:]
        if kind == 1:
            # The table's size may be set first.
            while payload[0] & 0xe0 == 0x20: payload = payload[1:]
            print("%02x" % payload[0], flush=True)
            break
        if kind == 3:
            print("reset", flush=True)
            break
    connection.close()
"#;

#[test]
fn a_tunnel_leads_to_its_workloads_own_addresses_and_no_other() {
    let stage = Stage::new();
    let _agent = Agent::start(&stage.lab, Node::A);
    let _other = stage.other.serve(9080, "bookinfo", &["details"]);
    let (chain, key) = stage.lab.certificate("web", &stage.web);
    let host = stage.sleep.v4.to_string();
    let (own, own6, other) = (stage.sleep.v4, stage.sleep.v6, stage.other.v4);
    let cases = [
        (format!("{own}:9080"), "88"),
        (format!("[{own6}]:9080"), "88"),
        (format!("{other}:9080"), "8c"),
        // Nobody listens there within the workload: 503, and no way around in a circle.
        (format!("{own}:15008"), "48"),
        (format!("[{own6}]:15008"), "48"),
        ("127.0.0.1:9080".to_owned(), "8c"),
        ("[::1]:9080".to_owned(), "8c"),
        ("[::ffff:127.0.0.1]:9080".to_owned(), "8c"),
        (format!("[::ffff:{other}]:9080"), "8c"),
        ("0.0.0.0:9080".to_owned(), "8c"),
        ("[::]:9080".to_owned(), "8c"),
        ("169.254.169.254:80".to_owned(), "8c"),
        ("192.0.2.1:9080".to_owned(), "8c"),
        ("10.96.0.40:80".to_owned(), "8c"),
        ("10.77.3.254:9080".to_owned(), "8c"),
        ("localhost:9080".to_owned(), "8c"),
        ("sleep:9080".to_owned(), "8c"),
        (format!("{own}"), "8c"),
        (format!("{own}:0"), "48"),
        (format!("{own}:99999"), "8c"),
        (format!("x@{own}:9080"), "8c"),
        (format!("{own}:9080/"), "reset"),
    ];
    let (chain, key) = (chain.to_string_lossy(), key.to_string_lossy());
    let mut arguments = vec!["-c", CONNECT, &*host, &*chain, &*key];
    arguments.extend(cases.iter().map(|(authority, _)| authority.as_str()));
    let said = stage.web.run("/usr/bin/python3", &arguments).success();
    let said: Vec<_> = cases
        .iter()
        .map(|(name, _)| name.as_str())
        .zip(said.lines())
        .collect();
    let expected: Vec<_> = cases
        .iter()
        .map(|(name, answer)| (name.as_str(), *answer))
        .collect();
    assert_eq!(said, expected);
}
