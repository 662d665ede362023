//! Agents that take their certificates from an authority elsewhere, by Istio's API.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};

const PORT: u16 = 15012;
const TOKEN: &str = "a-token-of-some-length";
const NAME: &str = "istiod.istio-system.svc";
pub const PATIENCE: Duration = Duration::from_secs(20);

/// `sleep` on node a, `far` on node b; the authority and both agents run in the
/// namespace of `host`.
pub struct Stage {
    pub lab: Lab,
    pub host: Workload,
    pub sleep: Workload,
    pub far: Workload,
    _server: Process,
    pub token: String,
    address: String,
}

impl Stage {
    pub fn new() -> Self {
        let lab = Lab::new();
        let host = lab.workload(Node::Outside, "host", &[]);
        let sleep = lab.workload(Node::A, "sleep", &[("app", "sleep")]);
        let far = lab.workload(Node::B, "far", &[("app", "far")]);
        let server = far.serve(9080, "bookinfo", &["details"]);
        lab.configure("workloads.yaml", &workload_entries(&[&sleep, &far]));
        let port = ServicePort {
            // A tunnel for each connection: an open one goes on when certificates end.
            name: "tcp",
            port: 80,
            target: 9080,
        };
        lab.configure("far.yaml", &service("far", 41, &[port]));
        let token = host.file("token", TOKEN).to_string_lossy().into_owned();
        Self {
            address: format!("{}:{PORT}", host.v4),
            lab,
            host,
            sleep,
            far,
            _server: server,
            token,
        }
    }

    pub fn authority(&self) -> Process {
        let identities =
            ["sleep", "far"].map(|name| format!("spiffe://cluster.local/ns/default/sa/{name}"));
        let tokens = self
            .host
            .file("tokens", &format!("{TOKEN} {}\n", identities.join(" ")));
        fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).expect("a mode");
        let (ca, tokens) = (self.lab.ca(), tokens.to_string_lossy().into_owned());
        let ca = ca.to_string_lossy();
        let arguments = [
            "ca",
            "--listen",
            &self.address,
            "--ca",
            &ca,
            "--tokens",
            &tokens,
        ];
        self.host.serve(PORT, "mesh-agent", &arguments)
    }

    fn agent(&self, node: Node, lifetime: &str) -> Agent {
        let proof = ["--ca-token", &self.token, "--cert-lifetime", lifetime];
        self.agent_with(node, &proof)
    }

    /// An agent that asks the authority, and shows who it is by these flags.
    pub fn agent_with(&self, node: Node, proof: &[&str]) -> Agent {
        let root = self.lab.ca().join("root-cert.pem");
        let root = root.to_string_lossy();
        let flags = [
            "--ca-address",
            &self.address,
            "--ca-root-cert",
            &root,
            "--ca-server-name",
            NAME,
        ];
        let flags = [&flags, proof].concat();
        Agent::start_in(&self.lab, node, Some(&self.host), &flags).expect("an agent")
    }

    pub fn reaches(&self) {
        eventually(PATIENCE, "far is reached", || {
            let reply = self.sleep.curl(&["http://far/"]);
            if reply.status == 200 {
                Ok(())
            } else {
                Err(format!("{reply:?}"))
            }
        });
    }
}

/// Serial and issuer of the agent's leaf certificates.
pub fn leaves(agent: &Agent) -> Vec<(String, String)> {
    let all = agent.meshctl_json(&["certs"]);
    let leaves = all.as_array().expect("a list").iter();
    leaves
        .filter(|one| one["kind"] == "Leaf")
        .map(|one| (one["serial"].to_string(), one["chain"][0].to_string()))
        .collect()
}

/// What `meshctl check` says of the authority.
pub fn check(agent: &Agent) -> String {
    let said = agent.meshctl(&["check"]).stdout;
    let line = said
        .lines()
        .find(|line| line.contains("certificate authority answers"));
    line.unwrap_or_else(|| panic!("not checked: {said}"))
        .to_owned()
}

#[test]
fn certificates_come_from_an_authority_elsewhere_and_outlast_its_absence() {
    let stage = Stage::new();
    let mut authority = stage.authority();
    let a = stage.agent(Node::A, "12s");
    let _b = stage.agent(Node::B, "12s");
    stage.reaches();
    assert!(check(&a).starts_with('√'), "{}", check(&a));
    let first = leaves(&a);
    assert_eq!(first.len(), 1);
    assert!(first[0].1.contains("CN=Undermesh CA"), "{first:?}");
    // Keys are in memory: the authority's own are the only ones in a file.
    let written = stage.host.run(
        "sh",
        &[
            "-c",
            &format!(
                "grep -rl 'PRIVATE KEY' {} | grep -v /ca/",
                stage.lab.folder().display()
            ),
        ],
    );
    assert_eq!(written.stdout, "");
    eventually(PATIENCE, "the certificate is renewed", || {
        let now = leaves(&a);
        if now != first {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });
    stage.reaches();

    authority.kill();
    eventually(PATIENCE, "the absence is told", || {
        let said = check(&a);
        if said.starts_with('×') && said.contains("cannot be reached") {
            Ok(())
        } else {
            Err(said)
        }
    });
    // The last certificate is in use until its end.
    let reply = stage.sleep.curl(&["http://far/"]);
    assert_eq!(reply.status, 200, "{reply:?}");
    eventually(PATIENCE, "the certificate has ended", || {
        let reply = stage.sleep.curl(&["http://far/"]);
        if reply.exit != 0 {
            Ok(())
        } else {
            Err(format!("{reply:?}"))
        }
    });

    let _authority = stage.authority();
    stage.reaches();
    eventually(PATIENCE, "all is well again", || {
        let said = check(&a);
        if said.starts_with('√') {
            Ok(())
        } else {
            Err(said)
        }
    });
}

/// An authority that shares no code with ours: gRPC by its own library, PEM by
/// openssl. It says no to the first request, and prints each.
const AUTHORITY: &str = r#"
import concurrent.futures, grpc, os, subprocess, sys, tempfile, threading
address, folder = sys.argv[1:]
def fields(data):
    at, found = 0, {}
    def varint():
        nonlocal at
        number = shift = 0
        while True:
            byte = data[at]; at += 1
            number |= (byte & 127) << shift; shift += 7
            if byte < 128: return number
    while at < len(data):
        tag = varint()
        if tag & 7 == 0: found[tag >> 3] = varint()
        else:
            length = varint()
            found[tag >> 3] = data[at:at + length]; at += length
    return found
def text(data):
    size, out = len(data), b""
    while size > 127: out, size = out + bytes([size & 127 | 128]), size >> 7
    return b"\x0a" + out + bytes([size]) + data
refused, lock = False, threading.Lock()
def create(request, context):
    global refused
    asked = fields(request)
    entry = fields(fields(asked[4])[1])
    assert entry[1] == b"ImpersonatedIdentity"
    identity = fields(entry[2])[3].decode()
    token = dict(context.invocation_metadata()).get("authorization")
    with lock:
        first, refused = not refused, True
        print("asked", identity, asked[3], token, flush=True)
    if first: context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
    with tempfile.TemporaryDirectory() as place:
        csr, extensions, given = (os.path.join(place, name) for name in ("csr", "ext", "cert"))
        open(csr, "wb").write(asked[1])
        subprocess.run(["openssl", "req", "-in", csr, "-verify", "-noout"], check=True)
        open(extensions, "w").write("subjectAltName=critical,URI:" + identity +
            "\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature\n")
        subprocess.run(["openssl", "x509", "-req", "-in", csr, "-CA", folder + "/root.pem", "-CAkey",
            folder + "/root.key", "-set_serial", "0x" + os.urandom(8).hex(), "-days", "1",
            "-extfile", extensions, "-out", given], check=True)
        return text(open(given, "rb").read()) + text(open(folder + "/root.pem", "rb").read())
handler = grpc.method_handlers_generic_handler("istio.v1.auth.IstioCertificateService",
    {"CreateCertificate": grpc.unary_unary_rpc_method_handler(create)})
server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((handler,))
read = lambda name: open(os.path.join(folder, name), "rb").read()
server.add_secure_port(address, grpc.ssl_server_credentials([(read("server.key"), read("server.pem"))]))
server.start()
server.wait_for_termination()
"#;

#[test]
fn an_authority_of_another_make_is_asked_as_istio_asks() {
    let stage = Stage::new();
    let folder = stage.lab.folder().join("istiod");
    fs::create_dir(&folder).expect("a folder");
    let make = format!(
        "cd {} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout root.key \
           -out root.pem -days 30 -subj /O=another -addext basicConstraints=critical,CA:true 2>&1 && \
         openssl req -new -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj / 2>&1 && \
         printf 'subjectAltName=DNS:{NAME}\\n' > server.ext && \
         openssl x509 -req -in server.csr -CA root.pem -CAkey root.key -set_serial 1 -days 1 \
           -extfile server.ext -out server.pem 2>&1",
        folder.display()
    );
    stage.host.run("sh", &["-c", &make]).success();
    let folder_text = folder.to_string_lossy();
    let authority = stage.host.serve(
        PORT,
        "/usr/bin/python3",
        &["-c", AUTHORITY, &stage.address, &folder_text],
    );
    fs::copy(
        folder.join("root.pem"),
        stage.lab.ca().join("root-cert.pem"),
    )
    .expect("copied");
    let a = stage.agent(Node::A, "24h");
    let _b = stage.agent(Node::B, "24h");
    stage.reaches();
    assert!(leaves(&a)[0].1.contains("O=another"), "{:?}", leaves(&a));
    let log = authority.log();
    for name in ["sleep", "far"] {
        let line =
            format!("asked spiffe://cluster.local/ns/default/sa/{name} 86400 Bearer {TOKEN}");
        assert!(log.contains(&line), "{log}");
    }
    assert!(
        a.log().contains("not yet (gRPC status 14)")
            || _b.log().contains("not yet (gRPC status 14)")
    );

    // Kubernetes replaces tokens of service accounts: the file is read for each request.
    fs::write(&stage.token, "another-token-of-some-length\n").expect("written");
    let more = stage.lab.workload(Node::A, "more", &[("app", "more")]);
    stage.lab.configure(
        "workloads.yaml",
        &workload_entries(&[&stage.sleep, &stage.far, &more]),
    );
    eventually(PATIENCE, "a workload that came later has its own", || {
        let log = authority.log();
        let line = "sa/more 86400 Bearer another-token-of-some-length";
        if log.contains(line) && leaves(&a).len() == 2 {
            Ok(())
        } else {
            Err(log)
        }
    });
}

#[test]
fn an_agent_says_what_keeps_it_from_asking() {
    let lab = Lab::new();
    for (flags, reason) in [
        (vec!["--ca-address", "127.0.0.1:1"], "--ca-root-cert"),
        (
            vec!["--ca-address", "127.0.0.1:1", "--ca-root-cert", "/nowhere"],
            "--ca-token or --ca-client-cert",
        ),
        (
            vec![
                "--ca-address",
                "nowhere",
                "--ca-root-cert",
                "/nowhere",
                "--ca-token",
                "/nowhere",
            ],
            "not a host and a port",
        ),
        (
            vec![
                "--ca-address",
                "127.0.0.1:1",
                "--ca-root-cert",
                "/nowhere",
                "--ca-token",
                "/nowhere",
            ],
            "/nowhere: No such file",
        ),
        (
            vec![
                "--ca-address",
                "127.0.0.1:1",
                "--ca-root-cert",
                "/dev/zero",
                "--ca-token",
                "/nowhere",
            ],
            "/dev/zero: it is a device, not a regular file",
        ),
    ] {
        let error = match Agent::start_in(&lab, Node::A, None, &flags) {
            Ok(_) => panic!("{flags:?}: runs"),
            Err(error) => format!("{error:#}"),
        };
        assert!(error.contains(reason), "{flags:?}: {error}");
    }
}
