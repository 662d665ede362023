//! `mesh-agent ca` with tokens of Kubernetes service accounts: an API server is asked whose they are.

use std::fs;

use mesh_tests::{Lab, Node, Process, Workload};

use crate::ca::Authority;

const PORT: u16 = 6443;

/// What `mesh-agent ca` asks of an API server, as its documentation has it: TokenReview with
/// audiences, a pod, and pods by field selector. Prints each question.
const API_SERVER: &str = r#"
import http.server, json, ssl, sys, urllib.parse
address, port, folder = sys.argv[1:]
AGENT = {"authentication.kubernetes.io/pod-name": ["agent-1"], "authentication.kubernetes.io/pod-uid": ["uid-1"]}
USERS = {
    "token-of-web": ("shop:web", {}, ["istio-ca"]),
    "token-of-agent": ("istio-system:agent", AGENT, ["istio-ca"]),
    "token-of-agent-with-node": ("istio-system:agent",
        dict(AGENT, **{"authentication.kubernetes.io/node-name": ["node-b"]}), ["istio-ca"]),
    "token-of-former-agent": ("istio-system:agent",
        dict(AGENT, **{"authentication.kubernetes.io/pod-uid": ["uid-0"]}), ["istio-ca"]),
    "token-for-others": ("shop:web", {}, ["https://kubernetes.default.svc"]),
}
# Node, service account.
PODS = {"shop": [("node-a", "web"), ("node-b", "db")]}
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def allowed(self):
        print(self.command, self.path, flush=True)
        if self.headers["Authorization"] == "Bearer token-of-the-authority": return True
        self.answer(401, {"kind": "Status", "code": 401})
    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed(): return
        assert self.path == "/apis/authentication.k8s.io/v1/tokenreviews", self.path
        assert (review["apiVersion"], review["kind"]) == ("authentication.k8s.io/v1", "TokenReview")
        name, extra, audiences = USERS.get(review["spec"]["token"], (None, None, []))
        shared = [one for one in audiences if one in review["spec"]["audiences"]]
        if shared:
            review["status"] = {"authenticated": True, "audiences": shared, "user": {
                "username": "system:serviceaccount:" + name, "uid": "u", "extra": extra,
                "groups": ["system:serviceaccounts", "system:authenticated"]}}
        else:
            review["status"] = {"user": {}, "error": "[invalid bearer token]"}
        self.answer(201, review)
    def do_GET(self):
        if not self.allowed(): return
        url = urllib.parse.urlsplit(self.path)
        parts = url.path.split("/")
        assert parts[:4] == ["", "api", "v1", "namespaces"] and parts[5] == "pods", self.path
        if len(parts) == 7:
            return self.answer(200, {"kind": "Pod", "metadata": {"name": parts[6], "uid": "uid-1"},
                "spec": {"nodeName": "node-a"}})
        selector = urllib.parse.parse_qs(url.query)["fieldSelector"][0].split(",")
        assert {"status.phase!=Succeeded", "status.phase!=Failed"} < set(selector), selector
        found = [pod for pod in PODS.get(parts[4], [])
            if "spec.nodeName=" + pod[0] in selector and "spec.serviceAccountName=" + pod[1] in selector]
        self.answer(200, {"kind": "PodList", "items": [{"spec": {"nodeName": pod[0]}} for pod in found]})
    def log_message(self, *arguments): pass
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(folder + "/api.pem", folder + "/api.key")
server = http.server.ThreadingHTTPServer((address, int(port)), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

fn api_server(lab: &Lab, place: &Workload) -> Process {
    let folder = lab.folder().join("api");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("token"), "token-of-the-authority").expect("written");
    let make = format!(
        "cd {} && openssl req -x509 -newkey rsa:2048 -nodes -keyout api.key -out api.pem -days 1 -subj /CN=api \
         -addext subjectAltName=IP:{} -addext basicConstraints=critical,CA:FALSE 2>&1",
        folder.display(),
        place.v4
    );
    place.run("sh", &["-c", &make]).success();
    let (address, port) = (place.v4.to_string(), PORT.to_string());
    let folder = folder.to_string_lossy();
    place.serve(
        PORT,
        "/usr/bin/python3",
        &["-c", API_SERVER, &address, &port, &folder],
    )
}

#[test]
fn service_accounts_get_their_own_identity_and_node_agents_those_of_their_node() {
    let lab = Lab::new();
    let place = lab.workload(Node::Outside, "ca", &[]);
    let api = api_server(&lab, &place);
    let (url, folder) = (
        format!("https://{}:{PORT}", place.v4),
        lab.folder().join("api"),
    );
    let (roots, token) = (folder.join("api.pem"), folder.join("token"));
    let flags = [
        "--kube-api",
        &url,
        "--kube-ca",
        &roots.to_string_lossy(),
        "--kube-token",
        &token.to_string_lossy(),
        "--node-account",
        "istio-system/agent",
    ];
    let authority = Authority::start_in(lab, &place, &flags);
    let identity = |account: &str| format!("spiffe://cluster.local/ns/{account}");
    let (web, db) = (identity("shop/sa/web"), identity("shop/sa/db"));

    for (token, wanted, given) in [
        ("token-of-web", "-", &web),
        ("token-of-web", &web, &web),
        ("token-of-agent", "-", &identity("istio-system/sa/agent")),
        ("token-of-agent", &web, &web),
        ("token-of-agent-with-node", &db, &db),
    ] {
        let names = authority.names(&authority.ask(token, wanted, None));
        assert!(names.contains(given.as_str()), "{token} {wanted}: {names}");
    }
    let elsewhere = web.replace("cluster.local", "elsewhere");
    for (token, wanted, code) in [
        ("token-of-web", &db, "PERMISSION_DENIED"),
        // Its pod is on the other node.
        ("token-of-agent", &db, "PERMISSION_DENIED"),
        (
            "token-of-agent",
            &identity("other/sa/web"),
            "PERMISSION_DENIED",
        ),
        ("token-of-agent", &elsewhere, "PERMISSION_DENIED"),
        // A pod of that name is there, but it is not the one that had the token.
        ("token-of-former-agent", &web, "PERMISSION_DENIED"),
        ("token-for-others", &web, "UNAUTHENTICATED"),
        ("no-token-of-anybody", &web, "UNAUTHENTICATED"),
    ] {
        let refused = authority.ask(token, wanted, None);
        assert!(
            refused.code == 1 && refused.stdout.starts_with(code),
            "{token} {wanted}: {refused:?}\n{}",
            api.log()
        );
    }

    // Ours is read anew for each question; where it is not accepted, nobody gets anything.
    fs::write(&token, "expired").expect("written");
    let refused = authority.ask("token-of-web", "-", None);
    assert!(
        refused.stdout.starts_with("UNAVAILABLE") && refused.stdout.contains("401"),
        "{refused:?}"
    );
    drop(api);
    let refused = authority.ask("token-of-web", "-", None);
    assert!(refused.stdout.starts_with("UNAVAILABLE"), "{refused:?}");
}
