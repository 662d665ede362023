//! `mesh-agent ca`: certificates by Istio's API, for a client that only knows gRPC.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_tests::{Conversation, Lab, Node, Outcome, Process, Workload, eventually};

use crate::trust::revocation_list;

const TOKEN: &str = "a-token-of-some-length";
const A: &str = "spiffe://cluster.local/ns/default/sa/a";
const B: &str = "spiffe://cluster.local/ns/default/sa/b";

const PATIENCE: Duration = Duration::from_secs(20);

fn mode(file: &Path, bits: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(bits)).expect("a mode");
}

/// Asks for a certificate: address, root, CSR, token or `-`, wanted identity
/// or `-`, then client certificate and key or `-`. Prints the chain, or the
/// status code and its text.
const CLIENT: &str = r#"
import grpc, sys
address, root, csr, token, wanted, chain, key = sys.argv[1:]
read = lambda name: open(name, "rb").read()
def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])
def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data
request = field(1, read(csr)) + varint(3 << 3) + varint(600)
if wanted != "-":
    value = field(3, wanted.encode())
    entry = field(1, b"ImpersonatedIdentity") + field(2, value)
    request += field(4, field(1, entry))
own = (None, None) if chain == "-" else (read(key), read(chain))
credentials = grpc.ssl_channel_credentials(read(root), *own)
options = [("grpc.ssl_target_name_override", "istiod.istio-system.svc")]
channel = grpc.secure_channel(address, credentials, options)
method = channel.unary_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate")
metadata = [] if token == "-" else [("authorization", "Bearer " + token)]
try:
    answer = method(request, metadata=metadata, timeout=10)
except grpc.RpcError as error:
    print(error.code().name, error.details())
    sys.exit(1)
while answer:
    length = shift = 0
    at = 1
    while True:
        length |= (answer[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if answer[at - 1] < 128:
            break
    print(answer[at:at + length].decode(), end="")
    answer = answer[at + length:]
"#;

/// `mesh-agent ca`, and a client that has a request.
pub(super) struct Authority {
    pub(super) lab: Lab,
    pub(super) client: Workload,
    address: String,
    csr: String,
    tokens: PathBuf,
    ca: Process,
}

impl Authority {
    fn start() -> Self {
        let lab = Lab::new();
        let place = lab.workload(Node::Outside, "ca", &[]);
        Self::start_in(lab, &place, &[])
    }

    /// With more arguments, in a place of its own.
    pub(super) fn start_in(lab: Lab, place: &Workload, more: &[&str]) -> Self {
        let client = lab.workload(Node::Outside, "client", &[]);
        let tokens = place.file("tokens", &format!("{TOKEN} {A} {B}\n"));
        mode(&tokens, 0o600);
        let address = format!("{}:15012", place.v4);
        let (folder, file) = (lab.ca(), tokens.to_string_lossy());
        let folder = folder.to_string_lossy();
        let arguments = [
            "ca", "--listen", &address, "--ca", &folder, "--tokens", &file,
        ];
        let ca = place.serve(15012, "mesh-agent", &[&arguments, more].concat());
        let folder = lab.folder().display();
        // What the request says beside its key does not matter.
        let script = format!(
            "openssl req -new -newkey rsa:2048 -nodes -keyout {folder}/key.pem -out {folder}/csr.pem \
             -subj /CN=root -addext subjectAltName=URI:spiffe://cluster.local/ns/kube-system/sa/admin"
        );
        let made = client.run("sh", &["-c", &script]);
        assert_eq!(made.code, 0, "{made:?}");
        Self {
            csr: format!("{folder}/csr.pem"),
            address,
            client,
            lab,
            tokens,
            ca,
        }
    }

    pub(super) fn ask(&self, token: &str, wanted: &str, own: Option<(&str, &str)>) -> Outcome {
        let root = self.lab.ca().join("root-cert.pem");
        let (chain, key) = own.unwrap_or(("-", "-"));
        let root = root.to_string_lossy();
        let arguments = [
            "-c",
            CLIENT,
            &self.address,
            &root,
            &self.csr,
            token,
            wanted,
            chain,
            key,
        ];
        self.client.run("/usr/bin/python3", &arguments)
    }

    /// Names of the certificate that was given, which openssl verifies.
    pub(super) fn names(&self, given: &Outcome) -> String {
        assert_eq!(given.code, 0, "{given:?}");
        let chain = self.client.file("given.pem", &given.stdout);
        let script = format!(
            "openssl verify -CAfile {root} -untrusted {chain} {chain} && \
             openssl x509 -in {chain} -noout -ext subjectAltName -pubkey && \
             openssl pkey -in {folder}/key.pem -pubout",
            root = self.lab.ca().join("root-cert.pem").display(),
            chain = chain.display(),
            folder = self.lab.folder().display(),
        );
        self.client.run("sh", &["-c", &script]).success()
    }
}

#[test]
fn whoever_has_a_token_or_a_certificate_gets_one_for_what_it_may_be() {
    let authority = Authority::start();
    let said = authority.names(&authority.ask(TOKEN, "-", None));
    assert!(said.contains(&format!("URI:{A}")), "{said}");
    assert!(!said.contains("admin"), "{said}");
    let key = said.split("-----BEGIN PUBLIC KEY-----").nth(1);
    assert!(
        key.is_some_and(|key| said.matches(key.trim()).count() == 2),
        "the key of the request: {said}"
    );
    let given = authority.ask(TOKEN, B, None);
    assert!(authority.names(&given).contains(B));
    assert_eq!(
        given.stdout.matches("BEGIN CERTIFICATE").count(),
        3,
        "leaf, intermediate, root"
    );

    let (chain, key) = authority.lab.certificate("c", &authority.client);
    let own = (&*chain.to_string_lossy(), &*key.to_string_lossy());
    let said = authority.names(&authority.ask("-", "-", Some(own)));
    assert!(
        said.contains("spiffe://cluster.local/ns/default/sa/c"),
        "{said}"
    );

    for (token, wanted, own, code) in [
        ("-", "-", None, "UNAUTHENTICATED"),
        ("another-token-of-some-length", "-", None, "UNAUTHENTICATED"),
        (
            TOKEN,
            "spiffe://cluster.local/ns/default/sa/c",
            None,
            "PERMISSION_DENIED",
        ),
        ("-", B, Some(own), "PERMISSION_DENIED"),
    ] {
        let refused = authority.ask(token, wanted, own);
        assert!(
            refused.code == 1 && refused.stdout.starts_with(code),
            "{token} {wanted}: {refused:?}"
        );
    }
    fs::write(&authority.csr, "no request").expect("written");
    let refused = authority.ask(TOKEN, "-", None);
    assert!(
        refused.stdout.starts_with("INVALID_ARGUMENT"),
        "{refused:?}"
    );
}

#[test]
fn tokens_are_read_again_when_they_change_and_never_told() {
    let authority = Authority::start();
    let asks = |token: &str, wanted: &str, answer: &str| {
        let why = format!("{wanted} is asked for");
        eventually(PATIENCE, &why, || {
            let said = authority.ask(token, wanted, None);
            if said.stdout.starts_with(answer) {
                Ok(())
            } else {
                Err(format!("{said:?}"))
            }
        });
    };
    let says = |what: &str| {
        eventually(PATIENCE, what, || match authority.ca.log() {
            log if log.contains(what) => Ok(()),
            log => Err(log),
        });
    };
    let write = |text: &str, bits: u32| {
        let draft = authority.client.file("tokens", text);
        mode(&draft, bits);
        fs::rename(draft, &authority.tokens).expect("renamed");
    };
    let (given, unknown) = ("-----BEGIN CERTIFICATE", "UNAUTHENTICATED");
    asks(TOKEN, B, given);

    write(&format!("{TOKEN} {A}\n"), 0o600);
    asks(TOKEN, B, "PERMISSION_DENIED");
    asks(TOKEN, A, given);

    let other = "another-token-of-some-length";
    write(&format!("# the first is void\n{other} {A}\n"), 0o600);
    asks(TOKEN, A, unknown);
    asks(other, A, given);

    // Words that are swapped.
    write(&format!("\n{A} {other}\n"), 0o600);
    says("ca-tokens: line 2: after the token stand identities");
    asks(other, A, given);
    write(&format!("{TOKEN} {A}\n"), 0o640);
    says("others than its owner may read it");
    asks(TOKEN, A, unknown);
    mode(&authority.tokens, 0o600);
    asks(TOKEN, A, given);
    fs::remove_file(&authority.tokens).expect("removed");
    says("No such file");
    asks(TOKEN, A, given);
    write("", 0o600);
    asks(TOKEN, A, unknown);
    let log = authority.ca.log();
    assert!(!log.contains(TOKEN) && !log.contains(other), "{log}");
}

/// Gets a certificate for some seconds by its token, and asks with it on one connection: at once,
/// and for each word that comes. Arguments: address, root, CSR, its key, token, seconds.
const RETURNING: &str = r#"
import grpc, sys
address, root, csr, key, token, seconds = sys.argv[1:]
read = lambda name: open(name, "rb").read()
def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])
def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data
def certificates(answer):
    all = b""
    while answer:
        length = shift = 0
        at = 1
        while True:
            length |= (answer[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if answer[at - 1] < 128: break
        all, answer = all + answer[at:at + length], answer[at + length:]
    return all
def asker(*own):
    credentials = grpc.ssl_channel_credentials(read(root), *own)
    options = [("grpc.ssl_target_name_override", "istiod.istio-system.svc")]
    channel = grpc.secure_channel(address, credentials, options)
    return channel, channel.unary_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate")
request = field(1, read(csr)) + varint(3 << 3) + varint(int(seconds))
first, ask = asker()
chain = certificates(ask(request, metadata=[("authorization", "Bearer " + token)], timeout=10))
open(csr + ".crt", "wb").write(chain)
second, ask = asker(read(key), chain)
def again():
    try:
        ask(request, timeout=10)
        print("given", flush=True)
    except grpc.RpcError as error:
        print(error.code().name, error.details(), flush=True)
again()
for _ in sys.stdin: again()
"#;

impl Authority {
    /// `RETURNING`, whose certificate is good for so long.
    fn returning(&self, seconds: &str) -> Conversation {
        let root = self.lab.ca().join("root-cert.pem");
        let key = self.lab.folder().join("key.pem");
        let arguments = [
            "-c",
            RETURNING,
            &self.address,
            &root.to_string_lossy(),
            &self.csr,
            &key.to_string_lossy(),
            TOKEN,
            seconds,
        ];
        let mut python = self.client.command("/usr/bin/python3");
        Conversation::start(python.args(arguments))
    }
}

#[test]
fn a_certificate_proves_nothing_after_its_end_or_revocation_also_on_an_open_connection() {
    let authority = Authority::start();
    let mut client = authority.returning("4");
    assert_eq!(client.answer(), "given");
    eventually(PATIENCE, "its end", || match client.ask("again") {
        said if said.starts_with("UNAUTHENTICATED") && said.contains("expired") => Ok(()),
        said => {
            std::thread::sleep(Duration::from_millis(200));
            Err(said)
        }
    });
    let mut client = authority.returning("600");
    assert_eq!(client.answer(), "given");
    let script = format!("openssl x509 -in {}.crt -noout -serial", authority.csr);
    let serial = authority.client.run("sh", &["-c", &script]).success();
    let serial = serial.trim().trim_start_matches("serial=");
    let list = revocation_list(&authority.lab, &authority.client, &[serial]);
    fs::write(authority.lab.ca().join("crl.pem"), list).expect("written");
    eventually(PATIENCE, "its revocation", || match client.ask("again") {
        said if said.starts_with("UNAUTHENTICATED") && said.contains("evoked") => Ok(()),
        said => {
            std::thread::sleep(Duration::from_millis(200));
            Err(said)
        }
    });
}

#[test]
fn odd_requests_get_a_certificate_for_their_key_or_one_reason_why_not() {
    let authority = Authority::start();
    let make = |command: &str| {
        let script = format!(
            "set -e; cd {}; csr={}; pem() {{ echo '-----BEGIN CERTIFICATE REQUEST-----'; openssl base64; \
             echo '-----END CERTIFICATE REQUEST-----'; }}\n{command}",
            authority.lab.folder().display(),
            authority.csr
        );
        let made = authority.client.run("sh", &["-c", &script]);
        assert_eq!(made.code, 0, "{command}: {made:?}");
    };
    let request = |key: &str, more: &str| {
        format!(
            "openssl req -new -newkey {key} -nodes -keyout key.pem -out $csr -subj /CN=odd {more}"
        )
    };
    let p256 = "ec -pkeyopt ec_paramgen_curve:prime256v1";
    let p384 = "ec -pkeyopt ec_paramgen_curve:secp384r1";
    for (key, more) in [
        ("rsa:2048", ""),
        ("rsa:3072", "-sha512"),
        ("ed25519", ""),
        // A hash of another length than the key.
        (p384, "-sha256"),
        (p256, "-sha384"),
        (p256, "-addext basicConstraints=critical,CA:true"),
        (p256, "-addext keyUsage=keyCertSign"),
        (p256, "-addext tlsfeature=status_request"),
        (p256, "-addext 1.2.3.4=ASN1:UTF8String:x"),
        (
            p256,
            "-addext 'subjectAltName=otherName:1.2.3.4;UTF8:x,RID:1.2.3'",
        ),
    ] {
        make(&request(key, more));
        let said = authority.names(&authority.ask(TOKEN, "-", None));
        let (names, keys) = said.split_once("-----BEGIN").expect("a key");
        assert!(names.contains("URI:spiffe://cluster.local/ns/default/sa/a"));
        assert!(!names.contains("Registered"), "{key} {more}: {said}");
        let own = keys.rsplit("-----BEGIN").next().expect("a key");
        assert_eq!(keys.matches(own).count(), 2, "{key} {more}: {said}");
    }
    let kind = "another kind than RSA of 2048 to 8192 bits, ECDSA P-256 or P-384, or Ed25519";
    let by_others = "openssl req -in $csr -outform DER -out der";
    for (command, reason) in [
        (request("rsa:1024", ""), kind),
        (request("ec -pkeyopt ec_paramgen_curve:secp521r1", ""), kind),
        (request("ec -pkeyopt ec_paramgen_curve:secp256k1", ""), kind),
        (request("ed448", ""), kind),
        (
            format!(
                "{}; {by_others}; head -c -1 der > cut; printf x >> cut; pem < cut > $csr",
                request(p256, "")
            ),
            "not signed by its own key",
        ),
        (
            format!(
                "{}; {by_others}; head -c 100 der | pem > $csr",
                request(p256, "")
            ),
            "not of the form of PKCS #10",
        ),
        (
            format!(
                "{}; head -c 70000 /dev/zero | tr '\\0' '\\n' >> $csr",
                request(p256, "")
            ),
            "more than 65536 bytes",
        ),
        (
            format!(
                "{}; head -c 9000000 /dev/zero | tr '\\0' '\\n' >> $csr",
                request(p256, "")
            ),
            "more than 65536 bytes",
        ),
        (request(p256, "-outform DER"), "UTF-8"),
        (": > $csr".to_owned(), "not PEM"),
        ("cp key.pem $csr".to_owned(), "not of the form of PKCS #10"),
    ] {
        make(&command);
        let said = authority.ask(TOKEN, "-", None);
        let line = said.stdout.trim();
        assert!(
            said.code == 1
                && line.starts_with("INVALID_ARGUMENT ")
                && line.contains(reason)
                && line.lines().count() == 1,
            "{command}: {said:?}"
        );
    }
    make(&request(p256, ""));
    authority.names(&authority.ask(TOKEN, "-", None));
}
