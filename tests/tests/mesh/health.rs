//! Endpoints that are not well get no traffic: WorkloadGroups and their probes;
//! and endpoints that are names follow what DNS says.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};

const LIVE: Duration = Duration::from_secs(15);

/// Answers with its name; `/well` with 200 while a file is there, else with 503.
/// Arguments: port, name, file.
const SERVER: &str = r#"
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        well = self.path != "/well" or os.path.exists(sys.argv[3])
        body = sys.argv[2].encode()
        self.send_response(200 if well else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"#;

struct Mesh {
    agent: Agent,
    _servers: Vec<Process>,
    client: Workload,
    /// A file for each server, which is well while it is there.
    well: [PathBuf; 2],
    lab: Lab,
}

fn group(probe: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: web}}\n\
         spec: {{metadata: {{labels: {{app: web}}}}, \
         probe: {{periodSeconds: 1, failureThreshold: 2, {probe}}}}}\n"
    )
}

/// A client and two servers of one group, probed in this way, all on one node.
fn start(probe: impl Fn(&[PathBuf; 2]) -> String) -> Mesh {
    let lab = Lab::new();
    let client = lab.workload(Node::A, "client", &[]);
    let servers = ["one", "two"].map(|name| {
        lab.workload(Node::A, name, &[])
            .annotated("istio.io/autoRegistrationGroup", "web")
    });
    let well = [&servers[0], &servers[1]].map(|server| server.file("well", ""));
    let processes = servers
        .iter()
        .zip(&well)
        .map(|(server, well)| {
            let well = well.to_string_lossy();
            server.serve(
                8080,
                "python3",
                &["-c", SERVER, "8080", &server.name, &well],
            )
        })
        .collect();
    let entries = workload_entries(&[&client, &servers[0], &servers[1]]);
    lab.configure("workloads.yaml", &(entries + &group(&probe(&well))));
    let port = ServicePort {
        name: "http",
        port: 80,
        target: 8080,
    };
    lab.configure("web.yaml", &service("web", 10, &[port]));
    let agent = Agent::start(&lab, Node::A);
    Mesh {
        agent,
        _servers: processes,
        client,
        well,
        lab,
    }
}

impl Mesh {
    /// Who answers.
    fn answering(&self) -> BTreeSet<String> {
        (self
            .client
            .curl_many(30, "http://web/", &["-w", "\n"])
            .into_iter())
        .filter(|line| !line.is_empty())
        .collect()
    }

    fn expect(&self, what: &str, names: &[&str]) {
        let names: BTreeSet<String> = names.iter().map(|&name| name.to_owned()).collect();
        eventually(LIVE, what, || match self.answering() {
            answering if answering == names => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// Why the first server is not well.
    fn reason(&self) -> String {
        let clusters = self.agent.meshctl_json(&["endpoints", "web"]);
        let endpoints = clusters.as_array().into_iter().flatten();
        let mut endpoints = endpoints
            .flat_map(|cluster| cluster["endpoints"].as_array().cloned().unwrap_or_default());
        let first = endpoints.find(|endpoint| endpoint["workload"] == "one.default");
        let first = first.unwrap_or_default();
        first["unhealthy"].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn an_endpoint_that_fails_its_probe_gets_no_traffic() {
    let mesh = start(|_| "httpGet: {path: /well, port: 8080}".to_owned());
    mesh.expect("both pass their probe", &["one", "two"]);
    fs::remove_file(&mesh.well[0]).expect("removed");
    mesh.expect("only the other is called", &["two"]);
    assert_eq!(mesh.reason(), "GET /well is answered with 503");
    let table = mesh.agent.meshctl(&["endpoints", "web"]).success();
    assert!(
        table.contains("unhealthy: GET /well is answered with 503"),
        "{table}"
    );
    let metrics = mesh
        .agent
        .meshctl(&["endpoints", "web", "--metrics"])
        .success();
    let of_first = metrics.lines().find(|line| {
        line.starts_with("undermesh_cluster_endpoint_healthy{") && line.contains("\"one.default\"")
    });
    assert!(
        of_first.is_some_and(|line| line.ends_with("} 0")),
        "{metrics}"
    );
    fs::write(&mesh.well[0], "").expect("written");
    mesh.expect("it is called again", &["one", "two"]);
    // Nobody is well: clients are told at once.
    for well in &mesh.well {
        fs::remove_file(well).expect("removed");
    }
    eventually(LIVE, "nobody is called", || {
        match mesh.client.curl(&["http://web/"]).status {
            503 => Ok(()),
            other => Err(other.to_string()),
        }
    });
    // Another probe, on a port that only one of them opens.
    let text = fs::read_to_string(mesh.lab.config().join("workloads.yaml")).expect("readable");
    let probe = "httpGet: {path: /well, port: 8080}";
    mesh.lab.configure(
        "workloads.yaml",
        &text.replace(probe, "tcpSocket: {port: 8080}"),
    );
    mesh.expect("connecting is enough for the new probe", &["one", "two"]);
}

#[test]
fn a_command_can_tell_whether_a_workload_is_well() {
    // Only one of the two has the file of the first; the command runs in either's namespace.
    let mesh = start(|well| {
        format!(
            "exec: {{command: [sh, -c, 'ip -o addr | grep -q 10.77.1.3/ || test -e {}']}}",
            well[0].display()
        )
    });
    mesh.expect("both pass", &["one", "two"]);
    fs::remove_file(&mesh.well[0]).expect("removed");
    eventually(LIVE, "one of them fails", || {
        let answering = mesh.answering();
        if answering.len() == 1 {
            Ok(())
        } else {
            Err(format!("{answering:?}"))
        }
    });
}

/// A workload, and two servers that are none and answer with their names.
fn client_and_servers_outside(lab: &Lab) -> (Workload, [Workload; 2], Vec<Process>) {
    let client = lab.workload(Node::A, "client", &[]);
    let servers = ["one", "two"].map(|name| lab.workload(Node::Outside, name, &[]));
    let serving = servers
        .iter()
        .map(|server| server.serve(8080, "python3", &["-c", SERVER, "8080", &server.name, "/"]))
        .collect();
    lab.configure("workloads.yaml", &workload_entries(&[&client]));
    (client, servers, serving)
}

#[test]
fn endpoints_follow_what_dns_says() {
    let lab = Lab::new();
    let (client, servers, _serving) = client_and_servers_outside(&lab);
    lab.configure(
        "entry.yaml",
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: api}\n\
         spec: {hosts: [api.example.com], resolution: DNS, \
         endpoints: [{address: backends.example.com}], \
         ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]}\n",
    );
    let hosts = lab.folder().join("hosts");
    let name = |servers: &[&Workload]| {
        let lines = servers
            .iter()
            .map(|server| format!("{} backends.example.com\n", server.v4));
        // In place: a file that is mounted over another one cannot be replaced.
        fs::write(&hosts, lines.collect::<String>()).expect("written");
    };
    name(&[&servers[0]]);
    let files = vec![(hosts.clone(), "/etc/hosts")];
    let _agent = Agent::start_with_files(&lab, Node::A, files, &["--dns-refresh-rate", "1s"]);
    let expect = |what: &str, names: &[&str]| {
        let names: BTreeSet<String> = names.iter().map(|&name| name.to_owned()).collect();
        eventually(LIVE, what, || {
            let bodies = client.curl_many(30, "http://api.example.com/", &["-w", "\n"]);
            let answering: BTreeSet<_> =
                bodies.into_iter().filter(|line| !line.is_empty()).collect();
            if answering == names {
                Ok(())
            } else {
                Err(format!("{answering:?}"))
            }
        });
    };
    expect("the first address", &["one"]);
    name(&[&servers[0], &servers[1]]);
    expect("both addresses are endpoints", &["one", "two"]);
    name(&[&servers[1]]);
    expect("the first is gone", &["two"]);
    // Where nothing is answered, what was good last stays.
    name(&[]);
    std::thread::sleep(Duration::from_secs(3));
    expect("the last good answer holds", &["two"]);
}

/// A name server for the name in a file's first line, with the addresses in the others and a
/// time to live of a second. Arguments: its address, the file.
const NAME_SERVER: &str = r#"
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 53))
open(sys.argv[2] + ".ready", "w").close()
while True:
    question, client = s.recvfrom(512)
    name, *addresses = open(sys.argv[2]).read().split()
    wanted = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    end = question.index(b"\0", 12) + 5
    is_ours = question[12:end] == wanted + struct.pack("!2H", 1, 1)
    records = [struct.pack("!3HIH", 0xc00c, 1, 1, 1, 4) + socket.inet_aton(a) for a in addresses if is_ours]
    s.sendto(question[:2] + struct.pack("!5H", 0x8180, 1, len(records), 0, 0) + question[12:end] + b"".join(records), client)
"#;

#[test]
fn endpoints_follow_dns_as_often_as_it_says() {
    /// Nobody else's.
    const ADDRESS: &str = "127.0.53.77";
    let lab = Lab::new();
    let (client, servers, _serving) = client_and_servers_outside(&lab);
    lab.configure(
        "entry.yaml",
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: api}\n\
         spec: {hosts: [api.example.com], resolution: DNS, \
         ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]}\n",
    );
    let [zone, settings] = ["zone", "agents-resolv.conf"].map(|name| lab.folder().join(name));
    let name = |server: &Workload| {
        fs::write(&zone, format!("api.example.com {}\n", server.v4)).expect("written");
    };
    name(&servers[0]);
    fs::write(&settings, format!("nameserver {ADDRESS}\n")).expect("written");
    let path = zone.to_string_lossy();
    let mut command = Command::new("python3");
    command.args(["-c", NAME_SERVER, ADDRESS, &path]);
    let log = lab.folder().join("name-server.log");
    let _name_server = Process::spawn(&mut command, log).expect("a name server");
    eventually(LIVE, "the name server", || {
        let ready = format!("{path}.ready");
        fs::metadata(&ready)
            .map(drop)
            .map_err(|error| format!("{ready}: {error}"))
    });
    let files = vec![(settings, "/etc/resolv.conf")];
    // The default is a minute.
    let _agent = Agent::start_with_files(&lab, Node::A, files, &[]);
    for server in &servers {
        name(server);
        eventually(LIVE, &server.name, || {
            let reply = client.curl(&["http://api.example.com/"]);
            if reply.body.contains(&server.name) {
                Ok(())
            } else {
                Err(format!("{reply:?}"))
            }
        });
    }
}

#[test]
fn a_wildcard_leads_to_whatever_name_the_client_says() {
    let lab = Lab::new();
    let (client, servers, _serving) = client_and_servers_outside(&lab);
    lab.configure(
        "entry.yaml",
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: wild}\n\
         spec: {hosts: ['*.example.com'], resolution: DYNAMIC_DNS, \
         ports: [{number: 8080, name: http, protocol: HTTP}]}\n",
    );
    let hosts = lab.folder().join("hosts");
    let lines = servers
        .each_ref()
        .map(|server| format!("{} {}.example.com\n", server.v4, server.name));
    fs::write(&hosts, lines.concat()).expect("written");
    let files = vec![(hosts, "/etc/hosts")];
    let _agent = Agent::start_with_files(&lab, Node::A, files, &[]);
    // The client connects to an address where nobody is: its words count.
    for name in ["one", "two"] {
        let (to, url) = (
            format!("{name}.example.com:8080:203.0.113.9"),
            format!("http://{name}.example.com:8080/"),
        );
        let reply = client.curl(&["--resolve", &to, &url]);
        assert_eq!(
            (reply.status, reply.body.as_str()),
            (200, name),
            "{reply:?}"
        );
    }
}
