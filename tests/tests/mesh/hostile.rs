//! Peers that mean no good, at the port of a running agent.

use std::time::Duration;

use mesh_tests::{Agent, Conversation, Lab, Node, Process, Workload, eventually, workload_entries};

use crate::prometheus::{curl, free_address};

/// `web` behind our agent, `outside` without one; both have certificates of the mesh.
pub struct Stage {
    pub agent: Agent,
    _server: Process,
    pub web: Workload,
    pub outside: Workload,
    pub lab: Lab,
}

impl Stage {
    pub fn start() -> Self {
        let lab = Lab::new();
        let web = lab.workload(Node::A, "web", &[("app", "web")]);
        let outside = lab.workload(Node::Outside, "outside", &[]);
        let server = web.serve(9080, "bookinfo", &["details"]);
        lab.configure("workloads.yaml", &workload_entries(&[&web]));
        let agent = Agent::start(&lab, Node::A);
        Self {
            agent,
            _server: server,
            web,
            outside,
            lab,
        }
    }

    /// A certificate with these extensions, as files of the chain and the key, signed
    /// by the authority in `ca`, valid from now for `days`.
    fn certificate(&self, name: &str, ca: &str, days: &str, names: &str) -> (String, String) {
        let folder = self.lab.folder().display();
        let script = format!(
            "set -e; cd {folder}\n\
             openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key \
               -out {name}.csr -subj /\n\
             printf 'subjectAltName=critical,{names}\\nextendedKeyUsage=serverAuth,clientAuth\\n' > {name}.ext\n\
             openssl x509 -req -in {name}.csr -CA {ca}/ca-cert.pem -CAkey {ca}/ca-key.pem \
               -set_serial 0x$(openssl rand -hex 8) {days} -extfile {name}.ext -out {name}.crt\n\
             cat {ca}/ca-cert.pem >> {name}.crt\n"
        );
        let made = self.outside.run("sh", &["-c", &script]);
        assert_eq!(made.code, 0, "{made:?}");
        (
            format!("{folder}/{name}.crt"),
            format!("{folder}/{name}.key"),
        )
    }

    /// What `PEER` says of `kind` of hostility.
    pub fn peer(&self, kind: &str, certificate: &(String, String)) -> String {
        self.peer_of(9080, kind, certificate)
    }

    /// The same with tunnels to this port of `web`.
    pub fn peer_of(&self, port: u16, kind: &str, (chain, key): &(String, String)) -> String {
        let own = format!("{}:{port}", self.web.v4);
        let host = self.web.v4.to_string();
        let arguments = ["-c", PEER, kind, &host, chain, key, &own];
        let said = self.outside.run("/usr/bin/python3", &arguments);
        assert_eq!(said.code, 0, "{kind}: {said:?}");
        said.stdout.trim().to_owned()
    }
}

/// One kind of hostility; prints what came of it. Status 200 in a header block is
/// 88 (RFC 7541, appendix A).
const PEER: &str = r#"
import itertools, select, socket, ssl, struct, sys, threading, time
kind, host, chain, key, authority = sys.argv[1:]
frame = lambda kind, flags, stream, data: struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + data
text = lambda value: bytes([len(value)]) + value.encode()
connect = lambda stream, more=b"", flags=4: frame(1, flags, stream, b"\x02" + text("CONNECT") + b"\x01" + text(authority) + more)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
def tcp():
    return socket.create_connection((host, 15008), 10)
def tls(of=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if chain != "-": context.load_cert_chain(chain, key)
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(of or tcp())
class Feeding:
    """Writes these pieces while it is read from, by one thread: an SSL object is no place for two."""
    def __init__(self, connection, pieces):
        connection.settimeout(0)
        self.connection, self.pieces, self.left = connection, iter(pieces), b""
    def recv(self, size):
        while True:
            is_stuck = True
            self.left = self.left or next(self.pieces, b"")
            try:
                if self.left: self.left, is_stuck = self.left[self.connection.send(self.left):], False
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError): pass
            try: return self.connection.recv(size)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError): pass
            if is_stuck: select.select([self.connection], [self.connection] if self.left else [], [])
def frames(connection):
    data = b""
    while True:
        while len(data) < 9 or len(data) < 9 + int.from_bytes(data[:3], "big"):
            more = connection.recv(65536)
            if not more: return
            data += more
        length = int.from_bytes(data[:3], "big")
        yield data[3], int.from_bytes(data[5:9], "big"), data[9:9 + length]
        data = data[9 + length:]
def status(connection):
    for kind, stream, payload in frames(connection):
        if kind == 1:
            while payload[0] & 0xe0 == 0x20: payload = payload[1:]
            return "%02x" % payload[0]
        if kind == 3: return "reset"
        if kind == 7: return "goaway"
    return "closed"
try:
    if kind == "good":
        connection = tls(); connection.sendall(PREFACE + connect(1)); print(status(connection))
    elif kind == "garbage":
        connection = tcp(); connection.sendall(b"\x16\x03\x01\xff\xff" + b"\0" * 70000)
        connection.settimeout(10)
        while connection.recv(65536): pass
        print("closed")
    elif kind in ("silent", "slow"):
        # Two hundred at once, which never finish.
        began = time.time()
        all = [tcp() for _ in range(200)]
        if kind == "slow":
            for one in all: one.sendall(b"\x16\x03\x01\x02\x00")
        connection = tls(); connection.sendall(PREFACE + connect(1)); good = status(connection)
        for one in all:
            one.settimeout(10)
            try:
                while one.recv(65536): pass
            except ConnectionError: pass
        print(good, "cut" if 4 < time.time() - began < 9 else time.time() - began)
    elif kind == "headers":
        connection = tls()
        field = b"\x00" + text("x-large") + b"\x7f\x81\x7c" + b"a" * 16000
        connection.sendall(PREFACE + connect(1, b"", 0) + b"".join(frame(9, 0, 1, field) for _ in range(3)) + frame(9, 4, 1, b""))
        print(status(connection))
    elif kind == "continuation":
        connection = tls(); connection.sendall(PREFACE + connect(1, b"", 0))
        field = (b"\x00\x01a\x64" + b"b" * 100) * 150
        for _ in range(4000): connection.sendall(frame(9, 0, 1, field))
        print(status(connection))
    elif kind == "streams":
        # A thousand tunnels at once, from which nobody reads.
        connection = tls(); connection.sendall(PREFACE + b"".join(connect(2 * n + 1) for n in range(1000)))
        opened = refused = 0
        for number, stream, payload in frames(connection):
            if number == 1: opened += 1
            if number == 3: refused += 1
            if opened + refused == 1000: break
        print(opened, refused)
    elif kind == "many":
        # For each word as many connections more, with a tunnel on each: how many stay open; all are
        # closed for "0".
        all = []
        for line in sys.stdin:
            for _ in range(int(line)):
                try:
                    one = tls(); one.sendall(PREFACE + connect(1))
                    if status(one) == "88": all.append(one)
                except (ConnectionError, ssl.SSLError): pass
            if line == "0\n":
                for one in all: one.close()
                all = []
            print(len(all), flush=True)
    elif kind == "stuffing":
        # Four hundred tunnels, and as much for each as its window takes, to somebody who reads nothing;
        # who asks is told how many of them were reset.
        ends, written = [set() for _ in range(4)], [threading.Event() for _ in range(4)]
        full = frame(0, 0, 1, bytes(16384))
        def pieces(number):
            # The windows are those of the server's settings when these are acknowledged.
            yield PREFACE + frame(4, 1, 0, b"") + b"".join(connect(2 * n + 1) for n in range(100))
            for _ in range(64):
                for n in range(100): yield full[:5] + struct.pack(">I", 2 * n + 1) + full[9:]
            written[number].set()
        def stuff(number):
            try:
                for kind, stream, payload in frames(Feeding(tls(), pieces(number))):
                    if kind == 3: ends[number].add(stream)
            except OSError: pass
            written[number].set()
        for number in range(4): threading.Thread(target=stuff, args=(number,), daemon=True).start()
        print("on", flush=True)
        for line in sys.stdin:
            for one in written: one.wait()
            time.sleep(0.5)
            print(sum(map(len, ends)), flush=True)
    elif kind == "posts":
        # Two hundred tunnels with HTTP/2 in them, four requests each, of whose bodies comes what the windows
        # take, and at most as much as the tunnel does; prints how much.
        post = b"\x83\x86\x84\x01" + text("web")
        inner = PREFACE + b"".join(frame(1, 4, number, post) for number in (1, 3, 5, 7))
        kept, sent = [], 0
        for _ in range(2):
            one = tls(); kept.append(one)
            one.sendall(PREFACE + frame(4, 1, 0, b"") + b"".join(connect(2 * n + 1) for n in range(100)))
            for n in range(100): one.sendall(frame(0, 0, 2 * n + 1, inner))
            said = {2 * n + 1: b"" for n in range(100)}
            one.settimeout(3)
            try:
                for number, stream, payload in frames(one):
                    if number == 0: said[stream] += payload
            except TimeoutError: one.settimeout(60)
            for stream, data in said.items():
                whole = every = 65535
                while len(data) >= 9:
                    length = int.from_bytes(data[:3], "big"); payload = data[9:9 + length]
                    if data[3] == 8 and data[5:9] == bytes(4): whole += int.from_bytes(payload, "big")
                    for at in range(0, length if data[3] == 4 else 0, 6):
                        if payload[at:at + 2] == b"\0\x04": every = int.from_bytes(payload[at + 2:at + 6], "big")
                    data = data[9 + length:]
                left = min(whole, 4 * every, 3 << 19)
                for number in (1, 3, 5, 7):
                    of_this = min(left, every)
                    left -= of_this; sent += of_this
                    while of_this:
                        part = min(of_this, 16384); of_this -= part
                        one.sendall(frame(0, 0, stream, frame(0, 0, number, bytes(part))))
        time.sleep(2)
        print(sent)
    elif kind == "resets":
        connection = tls(); connection.sendall(PREFACE)
        reset = lambda stream: frame(3, 0, stream, struct.pack(">I", 8))
        for batch in range(400):
            connection.sendall(b"".join(connect(s) + reset(s) for s in range(200 * batch + 1, 200 * batch + 201, 2)))
        print(status(connection))
    elif kind in ("zero", "unread"):
        # Tunnels to a server that sends without end: no window is given, or all of it and nothing is read.
        size = 0 if kind == "zero" else (1 << 31) - 1
        ask = PREFACE[:24] + frame(4, 0, 0, struct.pack(">HI", 4, size))
        if size: ask += frame(8, 0, 0, struct.pack(">I", size - 65535))
        floods = [tls() for _ in range(4)]
        for one in floods: one.sendall(ask + b"".join(connect(2 * n + 1) for n in range(100)))
        time.sleep(4)
        authority = authority.replace(":9090", ":9080")
        connection = tls(); connection.sendall(PREFACE + connect(1)); print(status(connection))
    elif kind in ("pings", "windows"):
        # Frames without end, on more connections than the agent has threads; the answers are read.
        window = lambda stream: frame(8, 0, stream, struct.pack(">I", 1))
        pair = frame(6, 0, 0, bytes(8)) + frame(4, 0, 0, b"") if kind == "pings" else window(0) + window(1)
        stop, flood = threading.Event(), pair * 4000
        first = PREFACE if kind == "pings" else PREFACE + connect(1)
        def pour(one):
            both = Feeding(one, itertools.chain([first], itertools.repeat(flood)))
            while not stop.is_set(): both.recv(1 << 20)
        floods = [tls() for _ in range(4)]
        for one in floods: threading.Thread(target=pour, args=(one,), daemon=True).start()
        time.sleep(1)
        waits = []
        for _ in range(5):
            began = time.time()
            connection = tls(); connection.settimeout(30); connection.sendall(PREFACE + connect(1)); good = status(connection)
            waits.append(time.time() - began)
            if good != "88": break
        stop.set()
        print(good, " ".join("%.2f" % wait for wait in waits), flush=True)
        import os; os._exit(0)
except (ConnectionError, ssl.SSLError) as error:
    print(getattr(error, "reason", None) or type(error).__name__)
"#;

#[test]
fn certificates_that_prove_nothing_are_refused_and_the_reason_is_told() {
    let stage = Stage::start();
    let ca = stage.lab.ca().display().to_string();
    let other = stage.lab.folder().join("other-ca");
    std::fs::create_dir(&other).expect("a folder");
    let other = other.display().to_string();
    let make = format!(
        "cd {other} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca-key.pem \
         -out ca-cert.pem -days 30 -subj /O=other/CN=root -addext basicConstraints=critical,CA:true 2>&1"
    );
    stage.outside.run("sh", &["-c", &make]).success();
    let identity = "URI:spiffe://cluster.local/ns/default/sa/client";
    let good = stage.certificate("good", &ca, "-days 1", identity);
    assert_eq!(stage.peer("good", &good), "88");

    for (name, ca, days, names, alerts) in [
        ("other", &other, "-days 1", identity, &["UNKNOWN_CA"][..]),
        (
            "expired",
            &ca,
            "-days 0",
            identity,
            &["CERTIFICATE_EXPIRED"],
        ),
        (
            "dns",
            &ca,
            "-days 1",
            "DNS:client.default",
            &["CERTIFICATE"],
        ),
        (
            "two",
            &ca,
            "-days 1",
            "URI:spiffe://cluster.local/ns/default/sa/client,URI:spiffe://cluster.local/ns/default/sa/web",
            &["CERTIFICATE"],
        ),
        (
            "foreign",
            &ca,
            "-days 1",
            "URI:https://cluster.local/ns/default/sa/client",
            &["CERTIFICATE"],
        ),
        (
            "elsewhere",
            &ca,
            "-days 1",
            "URI:spiffe://elsewhere.example/ns/default/sa/client",
            &["CERTIFICATE"],
        ),
    ] {
        let certificate = stage.certificate(name, ca, days, names);
        if days == "-days 0" {
            // It ends in the second in which it was made.
            std::thread::sleep(Duration::from_secs(2));
        }
        let said = stage.peer("good", &certificate);
        assert!(
            alerts.iter().any(|alert| said.contains(alert)),
            "{name}: {said}"
        );
    }
    // One that begins next century.
    let made = stage.certificate("future", &ca, "-days 1", identity);
    let folder = stage.lab.folder().display().to_string();
    let script = format!(
        "set -e; cd {folder}; touch index.txt; printf '[ca]\\ndefault_ca=own\\n[own]\\ndatabase=index.txt\\n\
         new_certs_dir=.\\nrand_serial=yes\\ndefault_md=sha256\\npolicy=any\\n[any]\\n' > settings\n\
         openssl ca -batch -notext -config settings -in future.csr -subj /CN=future -extfile future.ext \
           -startdate 21000101000000Z -enddate 21010101000000Z \
           -cert {ca}/ca-cert.pem -keyfile {ca}/ca-key.pem -out future.crt\n\
         cat {ca}/ca-cert.pem >> future.crt"
    );
    let signed = stage.outside.run("sh", &["-c", &script]);
    assert_eq!(signed.code, 0, "{signed:?}");
    let said = stage.peer("good", &made);
    assert!(
        said.contains("CERTIFICATE_EXPIRED"),
        "not yet valid: {said}"
    );
    let none = ("-".to_owned(), "-".to_owned());
    let said = stage.peer("good", &none);
    assert!(said.contains("CERTIFICATE_REQUIRED"), "{said}");
    assert_eq!(stage.peer("good", &good), "88", "the others do not matter");
}

#[test]
fn a_client_of_another_trust_domain_is_nobody_unless_it_is_an_alias() {
    let mut stage = Stage::start();
    let ca = stage.lab.ca().display().to_string();
    // The same authority: several meshes may have one root.
    let [own, renamed, foreign] = ["cluster.local", "old.example", "elsewhere.example"]
        .map(|domain| format!("URI:spiffe://{domain}/ns/default/sa/client"))
        .map(|name| stage.certificate(&name[13..20], &ca, "-days 1", &name));
    assert_eq!(stage.peer("good", &own), "88");
    for certificate in [&renamed, &foreign] {
        let said = stage.peer("good", certificate);
        assert!(said.contains("CERTIFICATE"), "{said}");
    }
    stage.agent.stop();
    stage.agent = Agent::start_with(
        &stage.lab,
        Node::A,
        &["--trust-domain-alias", "old.example"],
    );
    assert_eq!(stage.peer("good", &own), "88");
    assert_eq!(stage.peer("good", &renamed), "88");
    let said = stage.peer("good", &foreign);
    assert!(said.contains("CERTIFICATE"), "{said}");
}

#[test]
fn floods_and_slow_handshakes_are_bounded_and_others_are_served() {
    let stage = Stage::start();
    let (chain, key) = stage.lab.certificate("client", &stage.outside);
    let own = (chain.display().to_string(), key.display().to_string());
    assert_eq!(stage.peer("good", &own), "88");
    let before = stage.agent.resident_kib();
    for (kind, expected) in [
        ("garbage", &["closed", "Connection"][..]),
        ("silent", &["88 cut"]),
        ("slow", &["88 cut"]),
        // 431, or the end of the stream or of the connection.
        (
            "headers",
            &["reset", "goaway", "closed", "Connection", "08", "48"],
        ),
        (
            "continuation",
            &["goaway", "closed", "Connection", "Broken", "EOF"],
        ),
        ("streams", &["100 900"]),
        (
            "resets",
            &["goaway", "closed", "Connection", "Broken", "EOF"],
        ),
    ] {
        let said = stage.peer(kind, &own);
        assert!(
            expected.iter().any(|one| said.contains(one)),
            "{kind}: {said}"
        );
        assert_eq!(stage.peer("good", &own), "88", "after {kind}");
    }
    let log = stage.agent.log();
    assert!(!log.contains("panicked"), "{log}");
    eventually(Duration::from_secs(10), "the memory is given back", || {
        let grown = stage.agent.resident_kib().saturating_sub(before);
        // Debug builds; a flood that was kept would be hundreds of MiB.
        if grown < 64 * 1024 {
            Ok(())
        } else {
            Err(format!("{grown} KiB more than {before} KiB"))
        }
    });
}

#[test]
fn floods_of_frames_on_more_connections_than_threads_hold_up_nobody() {
    let stage = Stage::start();
    let (chain, key) = stage.lab.certificate("client", &stage.outside);
    let own = (chain.display().to_string(), key.display().to_string());
    for kind in ["pings", "windows"] {
        let said = stage.peer(kind, &own);
        let (status, waits) = said.split_once(' ').expect("a status, and times");
        assert_eq!(status, "88", "{kind}: {said}");
        let waits: Vec<f64> = waits
            .split(' ')
            .filter_map(|one| one.parse().ok())
            .collect();
        assert_eq!(waits.len(), 5, "{kind}: {said}");
        // Some hundredths; four seconds where a flood keeps the thread.
        assert!(waits.iter().all(|wait| *wait < 2.0), "{kind}: {said}");
    }
}

#[test]
fn a_client_that_opens_connections_without_end_is_stopped_and_others_are_served() {
    let mut stage = Stage::start();
    stage.agent.stop();
    let metrics = free_address();
    let flags = [
        "--max-client-connections",
        "20",
        "--metrics-address",
        &metrics,
    ];
    stage.agent = Agent::start_with(&stage.lab, Node::A, &flags);
    let certificate = |name: &str| {
        let (chain, key) = stage.lab.certificate(name, &stage.outside);
        (chain.display().to_string(), key.display().to_string())
    };
    let (own, other) = (certificate("client"), certificate("other"));
    let (host, authority) = (stage.web.v4.to_string(), format!("{}:9080", stage.web.v4));
    let mut python = stage.outside.command("/usr/bin/python3");
    let arguments = ["-c", PEER, "many", &host, &own.0, &own.1, &authority];
    let mut many = Conversation::start(python.args(arguments));
    assert_eq!(many.ask("15"), "15");
    assert_eq!(many.ask("15"), "20");
    assert_eq!(many.ask("15"), "20");
    assert_eq!(stage.peer("good", &other), "88", "somebody else");
    let text = curl(&[&format!("http://{metrics}/metrics")]);
    let counted = "\nundermesh_client_connections_refused_total 25\n";
    assert!(text.contains(counted), "{text}");
    let log = stage.agent.log();
    let told = log
        .lines()
        .filter(|line| line.contains("too many connections"));
    assert_eq!(told.count(), 1, "one line for 25 refusals: {log}");
    assert!(log.contains("ns/default/sa/client"), "{log}");

    assert_eq!(many.ask("0"), "0");
    eventually(
        Duration::from_secs(10),
        "there is room again",
        || match &*many.ask("1") {
            "1" => Ok(()),
            said => Err(said.to_owned()),
        },
    );
}

/// Sends to whoever connects for as long as it takes.
pub const ENDLESS: &str = r#"
import socket, threading
def send(one):
    try:
        while True: one.sendall(bytes(1 << 16))
    except OSError: pass
listener = socket.create_server(("", 9090), backlog=1000)
while True: threading.Thread(target=send, args=(listener.accept()[0],), daemon=True).start()
"#;

#[test]
fn peers_that_read_nothing_of_what_they_asked_for_fill_no_memory() {
    let stage = Stage::start();
    let _endless = stage.web.serve(9090, "/usr/bin/python3", &["-c", ENDLESS]);
    let (chain, key) = stage.lab.certificate("client", &stage.outside);
    let own = (chain.display().to_string(), key.display().to_string());
    assert_eq!(stage.peer("good", &own), "88");
    let before = stage.agent.resident_kib();
    for kind in ["zero", "unread"] {
        stage.agent.forget_peak();
        assert_eq!(stage.peer_of(9090, kind, &own), "88", "{kind}");
        let grown = stage.agent.peak_kib().saturating_sub(before);
        // 256 KiB for each of four hundred tunnels, and what they cost otherwise.
        assert!(grown < 160 * 1024, "{kind}: {grown} KiB more than {before}");
        assert_eq!(stage.peer("good", &own), "88", "after {kind}");
        eventually(Duration::from_secs(10), "the memory is given back", || {
            let kept = stage.agent.resident_kib().saturating_sub(before);
            if kept < 16 * 1024 {
                Ok(())
            } else {
                Err(format!("{kind}: {kept} KiB more than {before} KiB"))
            }
        });
    }
}

/// Lets everybody connect, and reads nothing.
const DEAF: &str = r#"
import socket, threading
listener = socket.create_server(("", 9090), backlog=1000)
kept = []
while True: kept.append(listener.accept()[0])
"#;

#[test]
fn what_applications_do_not_read_fills_no_more_memory_than_the_operator_allows() {
    const MAX_MIB: u64 = 32;
    let mut stage = Stage::start();
    stage.agent.stop();
    let metrics = free_address();
    let max = MAX_MIB.to_string();
    let flags = ["--max-tunnel-memory", &max, "--metrics-address", &metrics];
    stage.agent = Agent::start_with(&stage.lab, Node::A, &flags);
    // The kernel would take more than a tunnel's window for an application that reads nothing.
    let small =
        "echo 4096 16384 65536 | tee /proc/sys/net/ipv4/tcp_wmem /proc/sys/net/ipv4/tcp_rmem";
    stage.web.run("sh", &["-c", small]).success();
    let _deaf = stage.web.serve(9090, "/usr/bin/python3", &["-c", DEAF]);
    let certificate = |name: &str| {
        let (chain, key) = stage.lab.certificate(name, &stage.outside);
        (chain.display().to_string(), key.display().to_string())
    };
    let (own, other) = (certificate("client"), certificate("other"));
    assert_eq!(stage.peer("good", &own), "88");
    let before = stage.agent.resident_kib();
    // The peak counts from here (proc(5)).
    let path = format!("/proc/{}/clear_refs", stage.agent.id());
    std::fs::write(&path, "5").expect("written");

    let (host, authority) = (stage.web.v4.to_string(), format!("{}:9090", stage.web.v4));
    let mut python = stage.outside.command("/usr/bin/python3");
    let arguments = ["-c", PEER, "stuffing", &host, &own.0, &own.1, &authority];
    let mut hostile = Conversation::start(python.args(arguments));
    assert_eq!(hostile.answer(), "on");
    for _ in 0..10 {
        assert_eq!(stage.peer("good", &other), "88", "somebody else meanwhile");
    }
    let reset: u64 = hostile.ask("how many?").parse().expect("a number");
    assert_eq!(stage.peer("good", &other), "88", "somebody else");
    let grown = stage.agent.memory_kib("VmHWM").saturating_sub(before);
    // What four hundred tunnels cost beside it is as much as in the test above; without a bound they hold 400 MiB.
    let allowed = (MAX_MIB + MAX_MIB / 16) * 1024 + 64 * 1024;
    assert!(grown < allowed, "{grown} KiB more than {before} KiB");
    // Whoever goes on writing to what was reset may lose the connection, before all of it is told.
    assert!(reset > 100, "{reset} tunnels were reset");
    let text = curl(&[&format!("http://{metrics}/metrics")]);
    let counted = (text.lines())
        .find_map(|line| line.strip_prefix("undermesh_tunnels_reset_total "))
        .and_then(|count| count.parse::<u64>().ok());
    assert!(counted >= Some(reset), "{reset}: {counted:?}");
    let log = stage.agent.log();
    let told = (log.lines()).filter(|line| line.contains("tunnels hold too much"));
    assert!((1..5).contains(&told.count()), "{log}");
    assert!(log.contains("ns/default/sa/client"), "{log}");
    assert!(!log.contains("ns/default/sa/other"), "{log}");
}
