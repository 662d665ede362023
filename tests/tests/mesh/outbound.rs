//! What a workload may call, and what it sees of the mesh: outboundTrafficPolicy,
//! Sidecars and exportTo.

use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, Process, Workload, eventually, workload_entries};

/// A change of the configuration is live within a second; a loaded machine takes longer.
const LIVE: Duration = Duration::from_secs(10);

/// Speaks to a TCP server; prints what comes back, or the error. Arguments: address, port, what to say.
const TALK: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
try:
    s.sendall(sys.argv[3].encode())
    print(s.recv(100).decode(), end="")
except OSError as error:
    print(type(error).__name__, end="")
"#;

/// Answers with what it is told, whatever it is asked.
const ECHO: &str = r#"
import socket, sys, threading
def serve(c):
    while (data := c.recv(100)):
        c.sendall(data)
    c.close()
l = socket.create_server(("0.0.0.0", int(sys.argv[1])))
while True:
    threading.Thread(target=serve, args=(l.accept()[0],)).start()
"#;

struct Mesh {
    agent: Agent,
    _servers: Vec<Process>,
    client: Workload,
    stranger: Workload,
    lab: Lab,
}

/// A client, and somebody outside of the mesh who answers on port 80 (HTTP) and 7000 (echo).
fn start(policy: &str) -> Mesh {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[("app", "client")]);
    let stranger = lab.workload(Node::Outside, "stranger", &[]);
    let servers = vec![
        stranger.serve(
            80,
            "bookinfo",
            &["reviews", "--version", "v1", "--listen", "0.0.0.0:80"],
        ),
        stranger.serve(7000, "python3", &["-c", ECHO, "7000"]),
    ];
    lab.configure("workloads.yaml", &workload_entries(&[&client]));
    let agent = Agent::start_with(&lab, Node::A, &["--outbound-traffic-policy", policy]);
    Mesh {
        agent,
        _servers: servers,
        client,
        stranger,
        lab,
    }
}

impl Mesh {
    fn get(&self, host: &str) -> u16 {
        let to = format!("{host}:80:{}", self.stranger.v4);
        let url = format!("http://{host}/");
        self.client.curl(&["--resolve", &to, &url]).status
    }

    fn talk(&self, port: &str) -> String {
        let to = self.stranger.v4.to_string();
        let outcome = self
            .client
            .run("python3", &["-c", TALK, &to, port, "hello"]);
        outcome.stdout + outcome.stderr.lines().last().unwrap_or_default()
    }

    /// Verdict and service of the last flows to a port of the stranger.
    fn flows(&self, port: u16) -> Vec<(String, String)> {
        let flows = self.agent.meshctl_json(&["flows"]);
        let to = format!("{}:{port}", self.stranger.v4);
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        (flows.as_array().into_iter().flatten())
            .filter(|flow| flow["destination"] == to.as_str())
            .map(|flow| (text(&flow["verdict"]), text(&flow["service"])))
            .collect()
    }
}

fn service_entry(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

fn sidecar(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: default, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

#[test]
fn registry_only_lets_nothing_pass_but_services() {
    let mesh = start("REGISTRY_ONLY");
    let blocked = ("deny".to_owned(), "BlackHoleCluster".to_owned());
    assert_eq!(mesh.get("stranger.example"), 502);
    assert!(mesh.flows(80).contains(&blocked), "{:?}", mesh.flows(80));
    assert_eq!(mesh.talk("7000"), "ConnectionResetError");
    assert!(
        mesh.flows(7000).contains(&blocked),
        "{:?}",
        mesh.flows(7000)
    );

    // A name that is in the registry is known by what the client says, whatever the address.
    mesh.lab.configure(
        "entries.yaml",
        &[
            service_entry(
                "stranger",
                "{hosts: [stranger.example], ports: [{number: 80, name: http, protocol: HTTP}]}",
            ),
            service_entry(
                "echo",
                "{hosts: [echo.example], ports: [{number: 7000, name: tcp, protocol: TCP}]}",
            ),
        ]
        .concat(),
    );
    eventually(LIVE, "the entry's host answers", || {
        match mesh.get("stranger.example") {
            200 => Ok(()),
            other => Err(other.to_string()),
        }
    });
    assert_eq!(mesh.get("other.example"), 502);
    assert_eq!(mesh.talk("7000"), "hello");
}

#[test]
fn a_sidecar_says_otherwise_than_the_mesh_without_a_restart() {
    let mesh = start("ALLOW_ANY");
    assert_eq!(mesh.get("stranger.example"), 200);
    assert_eq!(mesh.talk("7000"), "hello");
    let get = |what: &str, expected: u16| {
        eventually(LIVE, what, || match mesh.get("stranger.example") {
            status if status == expected => Ok(()),
            other => Err(other.to_string()),
        });
    };
    let only =
        "{workloadSelector: {labels: {app: client}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}}";
    mesh.lab
        .configure("sidecar.yaml", &sidecar("default", only));
    get("the Sidecar forbids", 502);
    assert_eq!(mesh.talk("7000"), "ConnectionResetError");
    mesh.lab.unconfigure("sidecar.yaml");
    get("without it everything is allowed", 200);
    // The root namespace's is for namespaces that have none.
    let root = sidecar(
        "istio-system",
        "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}",
    );
    mesh.lab.configure("sidecar.yaml", &root);
    get("the root namespace's Sidecar forbids", 502);
    let own = sidecar("default", "{outboundTrafficPolicy: {mode: ALLOW_ANY}}");
    mesh.lab.configure("sidecar.yaml", &(root + &own));
    get("the namespace's own allows", 200);
}

#[test]
fn unknown_traffic_goes_to_the_egress_proxy() {
    let mesh = start("ALLOW_ANY");
    // Whoever asks the stranger's port 7000 gets its echo; the proxy answers for it.
    let proxy = mesh.lab.workload(Node::Outside, "proxy", &[]);
    let answers = ECHO.replace("c.sendall(data)", "c.sendall(b'proxy: ' + data)");
    let _server = proxy.serve(7001, "python3", &["-c", &answers, "7001"]);
    let entry = format!(
        "{{hosts: [proxy.example], ports: [{{number: 3128, name: tcp, protocol: TCP, targetPort: 7001}}], \
         resolution: STATIC, endpoints: [{{address: {}}}]}}",
        proxy.v4
    );
    mesh.lab
        .configure("entry.yaml", &service_entry("proxy", &entry));
    let sidecar = |hosts: &str| {
        sidecar(
            "default",
            &format!(
                "{{egress: [{{hosts: ['{hosts}']}}], outboundTrafficPolicy: {{mode: ALLOW_ANY, \
                 egressProxy: {{host: proxy.example, port: {{number: 3128}}}}}}}}"
            ),
        )
    };
    let says = |what: &str, expected: &str| {
        eventually(LIVE, what, || match mesh.talk("7000") {
            said if said == expected => Ok(()),
            other => Err(other),
        });
    };
    says("without a Sidecar the stranger answers", "hello");
    mesh.lab.configure("sidecar.yaml", &sidecar("*/*"));
    says("the proxy answers", "proxy: hello");
    // As in Istio, the Sidecar has to see the proxy.
    mesh.lab
        .configure("sidecar.yaml", &sidecar("istio-system/*"));
    says("nobody answers", "ConnectionResetError");
}

#[test]
fn names_of_tls_connections_are_known_by_their_server_name() {
    let mesh = start("REGISTRY_ONLY");
    let stranger = &mesh.stranger;
    let [key, certificate] = ["key.pem", "cert.pem"].map(|name| {
        let path = stranger.file(name, "");
        path.to_string_lossy().into_owned()
    });
    let request = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=x",
        "-keyout",
        &key,
        "-out",
        &certificate,
    ];
    stranger.run("openssl", &request).success();
    let server = [
        "s_server",
        "-www",
        "-accept",
        "8443",
        "-cert",
        &certificate,
        "-key",
        &key,
    ];
    let _server = stranger.serve(8443, "openssl", &server);
    mesh.lab.configure(
        "entries.yaml",
        &service_entry(
            "wild",
            "{hosts: ['*.example.org'], ports: [{number: 8443, name: tls, protocol: TLS}]}",
        ),
    );
    let ask = |name: &str| {
        let to = format!("{name}:8443:{}", stranger.v4);
        let url = format!("https://{name}:8443/");
        mesh.client
            .curl(&["--insecure", "--resolve", &to, &url])
            .status
    };
    eventually(
        LIVE,
        "a name below the wildcard is let through",
        || match ask("a.example.org") {
            200 => Ok(()),
            other => Err(other.to_string()),
        },
    );
    assert_eq!(ask("a.example.com"), 0);
}

/// A rule for all names below a wildcard sends requests where they were going.
#[test]
fn a_rule_leads_to_a_service_that_is_a_wildcard_itself() {
    let mesh = start("REGISTRY_ONLY");
    let entry = service_entry(
        "wild",
        "{hosts: ['*.example.org'], ports: [{number: 80, name: http, protocol: HTTP}]}",
    );
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: wild}\n\
        spec: {hosts: ['*.example.org'], http: [{match: [{uri: {prefix: /forbidden}}], directResponse: {status: 418}}, \
        {route: [{destination: {host: '*.example.org'}}], headers: {response: {set: {x-by: the-rule}}}}]}\n";
    mesh.lab
        .configure("entries.yaml", &format!("{entry}{rule}"));
    let ask = |path: &str| {
        let to = format!("a.example.org:80:{}", mesh.stranger.v4);
        let url = format!("http://a.example.org{path}");
        let reply = mesh.client.curl(&["--resolve", &to, &url]);
        (reply.status, reply.headers.get("x-by").cloned())
    };
    eventually(LIVE, "the rule acts", || match ask("/forbidden") {
        (418, None) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(ask("/"), (200, Some("the-rule".to_owned())));
}

/// Two namespaces with an entry each for one host, exported to nobody else.
#[test]
fn every_namespace_sees_what_is_exported_to_it() {
    let lab = Lab::new();
    let namespaces = ["red", "blue"];
    let clients = namespaces.map(|namespace| {
        let name = format!("client-{namespace}");
        lab.workload(Node::A, &name, &[]).in_namespace(namespace)
    });
    let servers = namespaces.map(|name| lab.workload(Node::Outside, name, &[]));
    let _serving: Vec<Process> = servers
        .iter()
        .map(|server| {
            let version = [
                "reviews",
                "--version",
                &server.name,
                "--listen",
                "0.0.0.0:9080",
            ];
            server.serve(9080, "bookinfo", &version)
        })
        .collect();
    lab.configure(
        "workloads.yaml",
        &workload_entries(&[&clients[0], &clients[1]]),
    );
    let entries: String = servers
        .iter()
        .map(|server| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                 metadata: {{name: api, namespace: {}}}\n\
                 spec: {{hosts: [api.example.com], exportTo: ['.'], resolution: STATIC, \
                 ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 9080}}], \
                 endpoints: [{{address: {}}}]}}\n",
                server.name, server.v4
            )
        })
        .collect();
    lab.configure("entries.yaml", &entries);
    let _agent = Agent::start(&lab, Node::A);
    for (client, server) in clients.iter().zip(&servers) {
        let reply = client.curl(&["http://api.example.com/"]);
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(
            reply.body.contains(&format!("\"id\": \"{}\"", server.name)),
            "{reply:?}"
        );
    }
}

#[test]
fn a_sidecar_decides_which_services_a_workload_sees() {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let web = lab
        .workload(Node::A, "web", &[("app", "web")])
        .in_namespace("shop");
    let _server = web.serve(9080, "bookinfo", &["reviews", "--version", "v1"]);
    lab.configure("workloads.yaml", &workload_entries(&[&client, &web]));
    lab.configure(
        "web.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
         spec: {clusterIP: 10.96.0.7, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 9080}]}\n",
    );
    let agent = Agent::start(&lab, Node::A);
    let expect = |what: &str, expected: u16| {
        eventually(LIVE, what, || {
            match client.curl(&["http://web.shop/"]).status {
                status if status == expected => Ok(()),
                other => Err(other.to_string()),
            }
        });
    };
    expect("without a Sidecar everything is seen", 200);
    let only = |hosts: &str| {
        let spec = format!(
            "{{egress: [{{hosts: [{hosts}]}}], outboundTrafficPolicy: {{mode: REGISTRY_ONLY}}}}"
        );
        lab.configure("sidecar.yaml", &sidecar("default", &spec));
    };
    only("'./*'");
    expect("a service of another namespace is not seen", 502);
    let said = agent.meshctl(&["routes", "client", "http://web.shop/"]);
    assert!(
        said.stderr.contains("does not see port 80 of web.shop"),
        "{said:?}"
    );
    only("'./*', shop/web.shop.svc.cluster.local");
    expect("one that is listed is", 200);
    only("'*/*', '~shop/*'");
    expect("one that is excepted is not", 502);
}
