//! What a VirtualService promises beside plain routes: copies, other origins,
//! delegated rules, TLS by server name; and what meshctl tells of it.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};

const CANARY_ROLLOUT: &str = include_str!("../../data/guide/canary-rollout.yaml");

const RULES: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: shop
spec:
  hosts: [shop]
  http:
    - match:
        - uri: {prefix: /mirrored}
      route:
        - destination: {host: shop}
      mirror: {host: shadow}
    - name: browser
      match:
        - uri: {prefix: /shared}
      route:
        - destination: {host: shop}
      corsPolicy:
        allowOrigins: [{exact: https://a.example}]
        allowMethods: [GET, PUT]
        maxAge: 1h
    - name: root
      match:
        - uri: {prefix: /team}
      delegate: {name: team, namespace: other}
    - route:
        - destination: {host: shop}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: team
  namespace: other
spec:
  http:
    - name: teapot
      match:
        - uri: {exact: /team/pot}
      directResponse: {status: 418}
    - route:
        - destination: {host: shadow.default.svc.cluster.local}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: front
spec:
  hosts: [front, blue.example.org, green.example.org]
  tls:
    - match: [{sniHosts: [blue.example.org]}]
      route: [{destination: {host: blue}}]
    - match: [{sniHosts: [green.example.org]}]
      route: [{destination: {host: green}}]
";

struct Mesh {
    agents: [Agent; 2],
    _servers: Vec<Process>,
    client: Workload,
    lab: Lab,
}

fn start() -> Mesh {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let apps = ["shop", "shadow", "blue", "green"]
        .map(|name| lab.workload(Node::B, name, &[("app", name)]));
    let front = lab.workload(Node::B, "front", &[("app", "front")]);
    let mut servers: Vec<_> = apps[..2]
        .iter()
        .map(|app| {
            let arguments = ["backend", "--version", &app.name, "--listen", "[::]:8080"];
            app.serve(8080, "bookinfo", &arguments)
        })
        .collect();
    for app in apps[2..].iter().chain([&front]) {
        let (key, certificate) = (app.file("key.pem", ""), app.file("cert.pem", ""));
        let (key, certificate) = (key.to_string_lossy(), certificate.to_string_lossy());
        let subject = format!("/CN={}", app.name);
        app.run(
            "openssl",
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                &subject,
                "-keyout",
                &key,
                "-out",
                &certificate,
            ],
        )
        .success();
        let arguments = [
            "s_server",
            "-www",
            "-accept",
            "8443",
            "-key",
            &key,
            "-cert",
            &certificate,
        ];
        servers.push(app.serve(8443, "openssl", &arguments));
    }
    let mut workloads = vec![&client, &front];
    workloads.extend(&apps);
    lab.configure("workloads.yaml", &workload_entries(&workloads));
    let port = |name, port, target| ServicePort { name, port, target };
    let services = [
        service("shop", 50, &[port("http", 80, 8080)]),
        service("shadow", 51, &[port("http", 80, 8080)]),
        service("front", 52, &[port("tls", 443, 8443)]),
        service("blue", 53, &[port("tls", 443, 8443)]),
        service("green", 54, &[port("tls", 443, 8443)]),
    ];
    lab.configure("services.yaml", &services.concat());
    lab.configure("rules.yaml", RULES);
    let agents = [Agent::start(&lab, Node::A), Agent::start(&lab, Node::B)];
    let mesh = Mesh {
        agents,
        _servers: servers,
        client,
        lab,
    };
    eventually(Duration::from_secs(10), "the mesh answers", || {
        let reply = mesh.client.curl(&["http://shop/"]);
        if reply.status == 200 {
            Ok(())
        } else {
            Err(format!("{reply:?}"))
        }
    });
    mesh
}

/// How many requests a backend has had, this one included.
fn requests(mesh: &Mesh, host: &str) -> usize {
    let reply = mesh.client.curl(&[&format!("http://{host}/")]);
    let mut words = reply.body.split_whitespace();
    let count = words.find_map(|word| word.strip_prefix("requests="));
    let count = count.and_then(|count| count.parse().ok());
    count.unwrap_or_else(|| panic!("{reply:?}"))
}

#[test]
fn copies_browsers_delegates_and_server_names() {
    let mesh = start();
    let before = requests(&mesh, "shadow");
    for _ in 0..20 {
        let reply = mesh.client.curl(&["http://shop/mirrored"]);
        assert!(reply.body.contains("version=shop"), "{reply:?}");
    }
    eventually(Duration::from_secs(5), "every request is copied", || {
        let since = requests(&mesh, "shadow") - before;
        // Each question counts as well.
        if since >= 21 {
            Ok(())
        } else {
            Err(format!("{since}"))
        }
    });

    let origin = "Origin: https://a.example";
    let question = [
        "-X",
        "OPTIONS",
        "-H",
        origin,
        "-H",
        "Access-Control-Request-Method: PUT",
        "http://shop/shared",
    ];
    let reply = mesh.client.curl(&question);
    assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{reply:?}");
    assert_eq!(
        reply.headers["access-control-allow-origin"],
        "https://a.example"
    );
    assert_eq!(reply.headers["access-control-allow-methods"], "GET,PUT");
    assert_eq!(reply.headers["access-control-max-age"], "3600");
    let reply = mesh.client.curl(&["-H", origin, "http://shop/shared"]);
    assert!(reply.body.contains("version=shop"), "{reply:?}");
    assert_eq!(
        reply.headers["access-control-allow-origin"],
        "https://a.example"
    );
    let reply = mesh
        .client
        .curl(&["-H", "Origin: https://b.example", "http://shop/shared"]);
    assert!(reply.body.contains("version=shop"), "{reply:?}");
    assert!(!reply.headers.contains_key("access-control-allow-origin"));

    assert_eq!(mesh.client.curl(&["http://shop/team/pot"]).status, 418);
    let reply = mesh.client.curl(&["http://shop/team/other"]);
    assert!(reply.body.contains("version=shadow"), "{reply:?}");

    for (name, server) in [
        ("blue.example.org", "blue"),
        ("green.example.org", "green"),
        ("other.example.org", "front"),
    ] {
        let arguments = [
            "s_client",
            "-connect",
            "10.96.0.52:443",
            "-servername",
            name,
        ];
        let outcome = mesh.client.run("openssl", &arguments);
        assert!(
            outcome.stdout.contains(&format!("subject=CN = {server}"))
                || outcome.stdout.contains(&format!("subject=CN={server}")),
            "{name}: {outcome:?}"
        );
    }
}

#[test]
fn meshctl_tells_where_a_request_would_go_and_what_is_wrong() {
    let mesh = start();
    let agent = &mesh.agents[0];
    let text = agent
        .meshctl(&["routes", "client", "http://shop/team/pot"])
        .success();
    for line in [
        "rules of VirtualService default/shop:",
        "http[0]: no, uri is \"/team/pot\"",
        "(root-teapot): matches",
        "answered with 418",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let text = agent
        .meshctl(&["routes", "client", "shop/mirrored"])
        .success();
    assert!(
        text.contains("100 % copied  shadow.default.svc.cluster.local:80"),
        "{text}"
    );

    mesh.lab.configure(
        "myapp.yaml",
        &service(
            "myapp",
            55,
            &[ServicePort {
                name: "http",
                port: 80,
                target: 8080,
            }],
        ),
    );
    mesh.lab.configure("canary-rollout.yaml", CANARY_ROLLOUT);
    eventually(
        Duration::from_secs(10),
        "the guide's canary is told to be wrong",
        || {
            let outcome = agent.meshctl(&["analyze"]);
            let line = "Error [IST0101] (VirtualService default/canary-rollout canary-rollout.yaml:1) \
            spec.http[0].route[0].destination.subset: subset \"stable\" of myapp.default.svc.cluster.local: \
            no DestinationRule defines it";
            if outcome.code == 1 && outcome.stdout.contains(line) {
                Ok(())
            } else {
                Err(format!("{outcome:?}"))
            }
        },
    );
    // The same on the files, without any agent.
    let folder = mesh.lab.config().to_string_lossy().into_owned();
    let outcome = agent.meshctl(&["analyze", &folder]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stdout.contains("[IST0101]"), "{outcome:?}");
}
