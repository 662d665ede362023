//! A table of policies and requests, each of which has to be decided as Envoy decides it: by
//! workloads of the server's node, of another node, and from outside of the mesh; over HTTP and
//! over TCP. What `meshctl authz check` answers is compared with what happens.

use mesh_tests::{Lab, Node, Workload, envoy};
use serde_json::{Value, json};

use super::world::{Normalization, World, envoy_configuration, tcp_listener};
use super::{PORT, TCP_PORT};

const POLICIES: &str = include_str!("../../../data/authorization/policies.jsonl");
const REQUESTS: &str = include_str!("../../../data/authorization/requests.jsonl");

/// One of so many requests is also asked of `meshctl authz check`.
const CHECKED: usize = 9;

/// Whether the two may differ in this request.
fn is_on_purpose(request: &Value, ours: &str, envoys: &str) -> bool {
    let text = request.to_string();
    // Envoy refuses the first two before it asks policies, and has no route for the third.
    let is_refused = envoys == "400" && matches!(ours, "400" | "deny");
    let has_no_route = request["path"] == "*";
    let is_method = envoys == "400" && request["method"] == "get";
    // An IPv4 address that comes mapped into IPv6 is that address for us.
    let is_mapped = text.contains("::ffff:");
    is_refused || is_method || has_no_route || is_mapped
}

/// Whether `meshctl authz check` can be asked of the request.
fn can_be_checked(request: &Value) -> bool {
    request["path"]
        .as_str()
        .is_some_and(|path| path.starts_with('/') || path == "*")
}

fn lines(text: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text.lines().map(parse).collect()
}

/// Policies as documents, and the `spec` of those that apply to `web`.
struct Case {
    name: String,
    documents: Vec<Value>,
    specs: Vec<Value>,
}

fn case(line: &Value) -> Case {
    let policies = line["policies"].as_array().expect("policies");
    let documents = policies.iter().enumerate().map(|(number, policy)| {
        let mut document = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {
                "name": format!("policy-{number}"),
                "namespace": policy["namespace"].as_str().unwrap_or("default"),
            },
            "spec": policy["spec"],
        });
        if let Some(dry_run) = policy["dryRun"].as_str() {
            document["metadata"]["annotations"] = json!({"istio.io/dry-run": dry_run});
        }
        document
    });
    let applied = policies.iter().filter(|policy| policy["applies"] != false);
    let specs = applied.map(|policy| {
        let mut spec = policy["spec"].clone();
        if spec["action"].is_null() {
            spec["action"] = "ALLOW".into();
        }
        spec
    });
    Case {
        name: line["name"].as_str().expect("a name").to_owned(),
        documents: documents.collect(),
        specs: specs.collect(),
    }
}

/// The client's certificate for Envoy, which has to see the identity that the mesh knows.
fn proof(lab: &Lab, client: &Workload) -> [String; 2] {
    if client.name == "nobody" {
        return ["-", "-"].map(str::to_owned);
    }
    let (chain, key) = lab.certificate_in(&client.namespace, &client.name, client);
    [chain, key].map(|path| path.to_string_lossy().into_owned())
}

fn plain(_: &Workload) -> [String; 2] {
    ["plain", "-"].map(str::to_owned)
}

/// What `meshctl authz check` says of a client's connection, or of its request.
fn checked(world: &World, client: &str, port: u16, request: &[(&str, String)]) -> String {
    let client = world.client(client);
    let from = match &*client.name {
        "nobody" => client.v4.to_string(),
        name => format!("{name}.{}", client.namespace),
    };
    let port = port.to_string();
    let mut words = vec!["authz", "check", "web", "--from", &from, "--port", &port];
    words.extend(request.iter().flat_map(|(flag, value)| [*flag, value]));
    let said = world.agent.meshctl(&words);
    match said.code {
        0 => "allow".to_owned(),
        1 => "deny".to_owned(),
        _ => format!("{said:?}"),
    }
}

fn flags(request: &Value) -> Vec<(&str, String)> {
    let text = |name: &str| request[name].as_str().expect("text").to_owned();
    let mut flags = vec![
        ("--method", text("method")),
        ("--path", text("path")),
        ("--host", text("host")),
    ];
    for field in request["headers"].as_array().into_iter().flatten() {
        let [name, value] = [0, 1].map(|at| field[at].as_str().expect("text"));
        flags.push(("--header", format!("{name}: {value}")));
    }
    flags
}

#[test]
fn every_policy_of_a_table_decides_as_in_envoy() {
    let Some(binary) = envoy() else { return };
    let cases: Vec<Case> = lines(POLICIES).iter().map(case).collect();
    let requests = lines(REQUESTS);
    let how = Normalization {
        flag: "BASE",
        merge_slashes: false,
        escaped_slashes: "KEEP_UNCHANGED",
    };
    let world = World::start(&how);
    let place = world.lab.workload(Node::Outside, "envoy", &[]);
    let specs: Vec<Vec<Value>> = cases.iter().map(|case| case.specs.clone()).collect();
    let mut configuration: Value =
        serde_json::from_str(&envoy_configuration(&world.lab, &place, &specs, &how)).unwrap();
    let listeners = configuration["static_resources"]["listeners"]
        .as_array_mut()
        .unwrap();
    let address = |set: usize| format!("10.77.200.{}", set + 1);
    for (set, specs) in specs.iter().enumerate() {
        let device = [
            "addr",
            "add",
            &format!("{}/32", address(set)),
            "dev",
            "eth0",
        ];
        place.run("ip", &device).success();
        listeners.push(tcp_listener(&world.lab, &place, &address(set), specs));
    }
    let _envoy = place.envoy(&binary, PORT, &configuration.to_string());

    let with_set = |set: usize| -> Vec<Value> {
        let of_set = requests.iter().cloned().map(|mut request| {
            let headers = request["headers"].as_array_mut().expect("headers");
            headers.insert(0, json!(["x-set", set.to_string()]));
            request
        });
        of_set.collect()
    };
    let all: Vec<Value> = (0..cases.len()).flat_map(with_set).collect();
    let of_envoy = world.outcomes(&all, &place, |client| proof(&world.lab, client));
    let addresses: Vec<String> = (0..cases.len()).map(address).collect();
    let tcp_of_envoy = world.tcp_outcomes(&addresses, |client| proof(&world.lab, client));

    let (mut differences, mut counts) = (String::new(), [0, 0, 0, 0]);
    for (set, case) in cases.iter().enumerate() {
        world.apply_documents(&case.documents);
        let asked = with_set(set);
        let ours = world.outcomes(&asked, &world.web, plain);
        for (at, ours) in ours.iter().enumerate() {
            let (request, envoys) = (&requests[at], &of_envoy[set * requests.len() + at]);
            if !is_on_purpose(request, ours, envoys) {
                counts[usize::from(ours == "deny")] += 1;
                if ours != envoys {
                    differences +=
                        &format!("{}: we {ours}, Envoy {envoys}: {request}\n", case.name);
                }
            }
            if (set + at) % CHECKED == 0 && can_be_checked(request) {
                let client = request["client"].as_str().expect("a client");
                let said = checked(&world, client, PORT, &flags(&asked[at]));
                if said != *ours {
                    let name = &case.name;
                    differences += &format!("{name}: we {ours}, authz check {said}: {request}\n");
                }
            }
        }
        let ours = world.tcp_outcomes(&[world.web.v4.to_string()], plain);
        for (at, ours) in ours.iter().enumerate() {
            let (client, name) = (&world.clients[at].name, &case.name);
            let envoys = &tcp_of_envoy[at * cases.len() + set];
            // Also where somebody asks as if the port spoke HTTP.
            let get = [("--method", "GET".to_owned())];
            let said = checked(&world, client, TCP_PORT, &get[..set % 2]);
            counts[2 + usize::from(ours == "deny")] += 1;
            if ours != envoys || *ours != said {
                differences += &format!(
                    "{name}: TCP of {client}: we {ours}, Envoy {envoys}, authz check {said}\n"
                );
            }
        }
    }
    println!("allowed and denied over HTTP and over TCP: {counts:?}; on TCP port {TCP_PORT}");
    assert!(
        differences.is_empty(),
        "{}:\n{differences}",
        differences.lines().count()
    );
    assert!(counts[..2].iter().all(|count| *count > 1000), "{counts:?}");
}
