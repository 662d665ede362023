//! AuthorizationPolicy, decided by our agent and by Envoy's RBAC filter as Istio configures it:
//! policies and requests come from a generator with a fixed seed, and every decision is the same.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, envoy, eventually, service, workload_entries,
};
use serde_json::{Value, json};

const PORT: u16 = 9080;
/// Sets of policies, and requests to each.
const SETS: usize = 24;
const REQUESTS: usize = 30;
/// Stands for the address that is asked, which is another one at Envoy.
const DESTINATION: &str = "DESTINATION";

/// SplitMix64: the same numbers on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).expect("a small number")
    }

    fn one_in(&mut self, number: usize) -> bool {
        self.below(number) == 0
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }

    /// One or two of them.
    fn some(&mut self, all: &[&str]) -> Value {
        let count = 1 + self.below(2);
        (0..count).map(|_| self.of(all)).collect()
    }
}

const SOURCES: [(&str, &[&str]); 6] = [
    (
        "rincipals",
        &[
            "cluster.local/ns/default/sa/alice",
            "cluster.local/ns/*",
            "*/sa/bob",
            "*",
            "other/ns/default/sa/alice",
        ],
    ),
    ("amespaces", &["default", "shop", "sh*", "*p", "*"]),
    ("erviceAccounts", &["default/alice", "shop/bob", "alice"]),
    (
        "pBlocks",
        &["10.77.0.0/16", "10.77.3.0/24", "fd77::/16", "0.0.0.0/0"],
    ),
    (
        "emoteIpBlocks",
        &["192.0.2.0/24", "10.77.0.0/16", "198.51.100.7"],
    ),
    ("rustDomains", &["cluster.local", "other", "*.local"]),
];
const FIRST_LETTERS: [&str; 6] = ["p", "n", "s", "i", "r", "t"];

const OPERATIONS: [(&str, &[&str]); 4] = [
    (
        "osts",
        &["web", "WEB", "*.example.com", "shop*", "web:9080", "*"],
    ),
    ("orts", &["9080", "9081"]),
    ("ethods", &["GET", "POST", "P*", "*E", "*", "get"]),
    (
        "aths",
        &[
            "/admin",
            "/admin*",
            "*/edit",
            "/a/*",
            "*",
            "/a",
            "*n",
            "/a/b",
            "/a/{*}",
            "/a/{*}/edit",
            "/a/{**}",
            "/{**}/edit",
            "/{*}",
        ],
    ),
];
const OPERATION_LETTERS: [&str; 4] = ["h", "p", "m", "p"];

const CONDITIONS: [(&str, &[&str]); 9] = [
    (
        "request.headers[x-role]",
        &["admin", "ad*", "*er", "*", "admin,user"],
    ),
    ("request.headers[X-Team]", &["red", "*"]),
    ("source.ip", &["10.77.1.0/24", "10.77.3.0/24"]),
    ("remote.ip", &["192.0.2.1", "10.77.0.0/16"]),
    ("source.namespace", &["default", "s*"]),
    (
        "source.principal",
        &["cluster.local/ns/shop/sa/bob", "*alice", "*"],
    ),
    ("source.serviceAccount", &["default/alice", "shop/bob"]),
    ("destination.port", &["9080", "80"]),
    ("destination.ip", &[DESTINATION, "203.0.113.0/24"]),
];

/// `field` or its twin that negates.
fn field(dice: &mut Dice, letter: &str, rest: &str) -> String {
    if dice.one_in(3) {
        format!("not{}{rest}", letter.to_uppercase())
    } else {
        format!("{letter}{rest}")
    }
}

fn source(dice: &mut Dice) -> Value {
    let mut fields = serde_json::Map::new();
    for _ in 0..=dice.below(2) {
        let at = dice.below(SOURCES.len());
        let (rest, values) = SOURCES[at];
        // They exclude others that say the same.
        let is_account = |name: &str| name.ends_with("erviceAccounts");
        if (is_account(rest) && !fields.is_empty()) || fields.keys().any(|name| is_account(name)) {
            continue;
        }
        let name = field(dice, FIRST_LETTERS[at], rest);
        fields.insert(name, dice.some(values));
    }
    json!({"source": fields})
}

fn operation(dice: &mut Dice) -> Value {
    let mut fields = serde_json::Map::new();
    for _ in 0..=dice.below(3) {
        // Paths are what most policies are about.
        let at = if dice.one_in(2) {
            3
        } else {
            dice.below(OPERATIONS.len())
        };
        let name = field(dice, OPERATION_LETTERS[at], OPERATIONS[at].0);
        fields.insert(name, dice.some(OPERATIONS[at].1));
    }
    json!({"operation": fields})
}

fn condition(dice: &mut Dice) -> Value {
    let (key, values) = CONDITIONS[dice.below(CONDITIONS.len())];
    let mut condition = json!({"key": key});
    let negated = dice.one_in(3);
    if negated {
        condition["notValues"] = dice.some(values);
    }
    if !negated || dice.one_in(3) {
        condition["values"] = dice.some(values);
    }
    condition
}

fn rule(dice: &mut Dice) -> Value {
    let mut rule = json!({});
    if dice.one_in(2) {
        rule["from"] = (0..=dice.below(2)).map(|_| source(dice)).collect();
    }
    if !dice.one_in(3) {
        rule["to"] = (0..=dice.below(2)).map(|_| operation(dice)).collect();
    }
    if dice.one_in(2) {
        rule["when"] = (0..=dice.below(2)).map(|_| condition(dice)).collect();
    }
    rule
}

/// `spec` of up to three policies for `web`.
fn policies(dice: &mut Dice) -> Vec<Value> {
    (0..=dice.below(3))
        .map(|_| {
            let action = dice.of(&["ALLOW", "ALLOW", "DENY"]);
            // Istio takes an ALLOW policy without rules for one that allows nothing.
            let rules = if action == "ALLOW" && dice.one_in(12) {
                0
            } else {
                1 + dice.below(2)
            };
            json!({
                "selector": {"matchLabels": {"app": "web"}},
                "action": action,
                "rules": (0..rules).map(|_| rule(dice)).collect::<Vec<_>>(),
            })
        })
        .collect()
}

fn request(dice: &mut Dice, set: usize) -> Value {
    let mut headers = vec![("x-set", set.to_string())];
    for (name, values) in [
        ("x-role", &["admin", "user", "", "Admin", "admin"][..]),
        ("x-role", &["user"]),
        ("x-team", &["red", "blue"]),
        (
            "x-forwarded-for",
            &["192.0.2.1", "192.0.2.1, 198.51.100.7", "nobody"],
        ),
    ] {
        if dice.one_in(2) {
            headers.push((name, dice.of(values).to_owned()));
        }
    }
    json!({
        "client": dice.of(&["alice", "bob", "nobody"]),
        "method": dice.of(&["GET", "GET", "POST", "PUT", "DELETE", "PURGE"]),
        "path": dice.of(&[
            "/", "/a", "/a/", "/a/b", "/a/b/c", "/admin", "/ADMIN", "/admin/", "/admin?x=/a/b", "/a/../admin",
            "/%61dmin", "/a/./b", "//admin", "/a//b", "/admin%2Fx", "/admin%2fx/edit", "/a\\..\\admin",
            "/admin;x=1", "/a/b/edit", "/a/x%20y/edit", "/a/~me/edit", "/a/x|y/edit", "/%2e%2e/admin", "/.%2e/admin",
            "/a%5c..%5cadmin", "/a/b%00c", "/a/b?c=%2e%2e/admin", "/edit", "/x/y/edit?z", "/a/edit", "/a//edit",
            "/administrator", "/a/%zz", "/...", "/a/..", "/a/b/", "/a/@x:1,2!$&'()+=-_.", "/a/*",
        ]),
        "host": dice.of(&["web", "Web", "web:9080", "shop.example.com", "A.EXAMPLE.COM", "example.com", "shop"]),
        "headers": headers,
    })
}

/// Asks each of the requests of a file by a connection of its own; prints
/// `allow`, `deny` (403, or an end without an answer) or the status.
const CLIENT: &str = r#"
import json, socket, ssl, sys
host, port, file, chain, key = sys.argv[1:]
context = None
if chain != "plain":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if chain != "-": context.load_cert_chain(chain, key)
for request in json.load(open(file)):
    lines = [request["method"] + " " + request["path"] + " HTTP/1.1", "Host: " + request["host"], "Connection: close"]
    lines += [name + ": " + value for name, value in request["headers"]]
    answer = b""
    try:
        connection = socket.create_connection((host, int(port)), 10)
        if context: connection = context.wrap_socket(connection)
        connection.settimeout(10)
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while b"\r\n\r\n" not in answer and (data := connection.recv(65536)): answer += data
        connection.close()
    except ConnectionError: pass
    status = answer.split(b" ")[1].decode() if answer else "403"
    print({"200": "allow", "404": "allow", "405": "allow", "403": "deny"}.get(status, status), flush=True)
"#;

/// What Istio makes of policies for Envoy.
mod translate {
    use serde_json::{Value, json};

    fn strings(values: &Value) -> Vec<&str> {
        let all = values.as_array().into_iter().flatten();
        all.filter_map(Value::as_str).collect()
    }

    /// A text with `*` at one end, after `before`.
    fn text(value: &str, before: &str) -> Value {
        if value == "*" {
            json!({"safe_regex": {"regex": ".+"}})
        } else if let Some(end) = value.strip_prefix('*') {
            if before.is_empty() {
                json!({"suffix": end})
            } else {
                json!({"safe_regex": {"regex": format!("{before}.*{}", end.replace('.', "\\."))}})
            }
        } else if let Some(beginning) = value.strip_suffix('*') {
            json!({"prefix": format!("{before}{beginning}")})
        } else {
            json!({"exact": format!("{before}{value}")})
        }
    }

    fn header(name: &str, value: &str, ignore_case: bool) -> Value {
        if value == "*" {
            return json!({"header": {"name": name, "present_match": true}});
        }
        let mut matcher = text(value, "");
        matcher["ignore_case"] = ignore_case.into();
        json!({"header": {"name": name, "string_match": matcher}})
    }

    fn principal(matcher: Value) -> Value {
        json!({"authenticated": {"principal_name": matcher}})
    }

    fn regex(pattern: String) -> Value {
        principal(json!({"safe_regex": {"regex": pattern}}))
    }

    fn network(value: &str) -> Value {
        let whole = if value.contains(':') { 128 } else { 32 };
        let (address, length) = match value.split_once('/') {
            Some((address, length)) => (address, length.parse().expect("a length")),
            None => (value, whole),
        };
        json!({"address_prefix": address, "prefix_len": length})
    }

    /// One value of an attribute; `None` where it belongs to the other of
    /// Envoy's halves (principals and permissions).
    fn value_of(attribute: &str, value: &str, of_source: bool) -> Option<Value> {
        let source = match attribute {
            "principals" | "source.principal" => Some(principal(text(value, "spiffe://"))),
            "namespaces" | "source.namespace" => {
                Some(regex(format!(".*/ns/{}/.*", value.replace('*', ".*"))))
            }
            "serviceAccounts" | "source.serviceAccount" => {
                let (namespace, account) = value.split_once('/').unwrap_or(("default", value));
                Some(regex(format!("spiffe://.+/ns/{namespace}/sa/{account}")))
            }
            "trustDomains" => {
                let domain = value.replace('.', "\\.").replace('*', ".*");
                Some(regex(format!("spiffe://{domain}/.*")))
            }
            "ipBlocks" | "source.ip" => Some(json!({"direct_remote_ip": network(value)})),
            "remoteIpBlocks" | "remote.ip" => Some(json!({"remote_ip": network(value)})),
            name => name
                .strip_prefix("request.headers[")
                .map(|name| header(name.trim_end_matches(']'), value, false)),
        };
        if of_source {
            return source;
        }
        match attribute {
            "hosts" => Some(header(":authority", value, true)),
            "methods" => Some(header(":method", value, false)),
            "ports" | "destination.port" => {
                Some(json!({"destination_port": value.parse::<u16>().expect("a port")}))
            }
            "destination.ip" => Some(json!({"destination_ip": network(value)})),
            "paths" if value.contains("{*") => {
                let template = value.replace("{*}", "*").replace("{**}", "**");
                let kind = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
                Some(json!({"uri_template": {
                    "name": "uri-template",
                    "typed_config": {"@type": kind, "path_template": template},
                }}))
            }
            "paths" => Some(json!({"url_path": {"path": text(value, "")}})),
            _ => None,
        }
    }

    /// Names of Envoy's "and", "or", "not" in this half.
    struct Half {
        of_source: bool,
        and: &'static str,
        or: &'static str,
        not: &'static str,
        list: &'static str,
    }

    const SOURCE: Half = Half {
        of_source: true,
        and: "and_ids",
        or: "or_ids",
        not: "not_id",
        list: "ids",
    };
    const OPERATION: Half = Half {
        of_source: false,
        and: "and_rules",
        or: "or_rules",
        not: "not_rule",
        list: "rules",
    };

    impl Half {
        fn any(&self, attribute: &str, values: &Value) -> Option<Value> {
            let all: Vec<_> = strings(values)
                .into_iter()
                .filter_map(|value| value_of(attribute, value, self.of_source))
                .collect();
            (!all.is_empty()).then(|| json!({ self.or: { self.list: all } }))
        }

        fn conditions(&self, rule: &Value) -> Vec<Value> {
            let all = rule["when"].as_array().into_iter().flatten();
            all.flat_map(|condition| {
                let key = condition["key"].as_str().expect("a key");
                let positive = self.any(key, &condition["values"]);
                let negative = self.any(key, &condition["notValues"]);
                positive
                    .into_iter()
                    .chain(negative.map(|any| json!({ self.not: any })))
            })
            .collect()
        }

        /// Any of the entries of `from` or `to`, each together with the conditions.
        fn alternatives(&self, rule: &Value, list: &str, entry: &str) -> Vec<Value> {
            let conditions = self.conditions(rule);
            let whole = |mut all: Vec<Value>| {
                all.extend(conditions.iter().cloned());
                if all.is_empty() {
                    return json!({"any": true});
                }
                json!({ self.and: { self.list: all } })
            };
            let Some(entries) = rule[list].as_array() else {
                return vec![whole(Vec::new())];
            };
            entries
                .iter()
                .map(|one| {
                    let fields = one[entry].as_object().into_iter().flatten();
                    whole(
                        fields
                            .filter_map(|(name, values)| match name.strip_prefix("not") {
                                Some(rest) => {
                                    let name = rest[..1].to_lowercase() + &rest[1..];
                                    self.any(&name, values).map(|any| json!({ self.not: any }))
                                }
                                None => self.any(name, values),
                            })
                            .collect(),
                    )
                })
                .collect()
        }
    }

    /// The RBAC filter of one action; `None` where there is no policy of it.
    pub fn filter(policies: &[Value], action: &str) -> Option<Value> {
        let mut rules = serde_json::Map::new();
        let mut is_there = false;
        for (number, policy) in policies.iter().enumerate() {
            if policy["action"] != action {
                continue;
            }
            is_there = true;
            for (index, rule) in policy["rules"].as_array().into_iter().flatten().enumerate() {
                rules.insert(
                    format!("policy[{number}]-rule[{index}]"),
                    json!({
                        "permissions": OPERATION.alternatives(rule, "to", "operation"),
                        "principals": SOURCE.alternatives(rule, "from", "source"),
                    }),
                );
            }
        }
        is_there.then(|| json!({"rules": {"action": action, "policies": rules}}))
    }
}

const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// How Envoy normalises paths, as Istio tells it to.
struct Normalization {
    flag: &'static str,
    merge_slashes: bool,
    escaped_slashes: &'static str,
}

fn envoy_configuration(
    lab: &Lab,
    place: &Workload,
    sets: &[Vec<Value>],
    how: &Normalization,
) -> String {
    let (chain, key) = lab.certificate("envoy", place);
    let filter = |name: &str| json!({"name": name, "typed_config": {"@type": format!("{HTTP}.rbac.v3.RBAC")}});
    let routes: Vec<Value> = sets
        .iter()
        .enumerate()
        .map(|(number, policies)| {
            let mut of_set = serde_json::Map::new();
            for action in ["DENY", "ALLOW"] {
                if let Some(rbac) = translate::filter(policies, action) {
                    let per_route = json!({"@type": format!("{HTTP}.rbac.v3.RBACPerRoute"), "rbac": rbac});
                    of_set.insert(action.to_owned(), per_route);
                }
            }
            json!({
                "match": {"prefix": "/", "headers": [{"name": "x-set", "string_match": {"exact": number.to_string()}}]},
                "direct_response": {"status": 200},
                "typed_per_filter_config": of_set,
            })
        })
        .collect();
    let configuration = json!({"static_resources": {"listeners": [{
        "name": "web",
        "address": {"socket_address": {"address": place.v4.to_string(), "port_value": PORT}},
        "filter_chains": [{
            "transport_socket": {"name": "tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "tls_certificates": [{"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}],
                    "validation_context": {"trusted_ca": {"filename": lab.ca().join("root-cert.pem")}},
                },
            }},
            "filters": [{"name": "http", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "web",
                "normalize_path": true,
                "merge_slashes": how.merge_slashes,
                "path_with_escaped_slashes_action": how.escaped_slashes,
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
                "http_filters": [filter("DENY"), filter("ALLOW"),
                    {"name": "router", "typed_config": {"@type": format!("{HTTP}.router.v3.Router")}}],
            }}],
        }],
    }]}});
    configuration
        .to_string()
        .replace(DESTINATION, &place.v4.to_string())
}

struct World {
    agent: Agent,
    web: Workload,
    clients: Vec<Workload>,
    _server: Process,
    lab: Lab,
}

impl World {
    fn start(how: &Normalization) -> Self {
        let lab = Lab::new();
        let web = lab.workload(Node::A, "web", &[("app", "web")]);
        let alice = lab.workload(Node::A, "alice", &[("app", "alice")]);
        let bob = lab
            .workload(Node::A, "bob", &[("app", "bob")])
            .in_namespace("shop");
        let nobody = lab.workload(Node::Outside, "nobody", &[]);
        let server = web.serve(PORT, "bookinfo", &["details"]);
        lab.configure("workloads.yaml", &workload_entries(&[&web, &alice, &bob]));
        let port = ServicePort {
            name: "http",
            port: 80,
            target: PORT,
        };
        lab.configure("web.yaml", &service("web", 40, &[port]));
        let agent = Agent::start_with(&lab, Node::A, &["--path-normalization", how.flag]);
        Self {
            agent,
            web,
            clients: vec![alice, bob, nobody],
            _server: server,
            lab,
        }
    }

    fn generation(&self) -> u64 {
        let config = self.agent.meshctl_json(&["config"]);
        assert!(config["refused"].is_null(), "{config}");
        config["generation"].as_u64().expect("a number")
    }

    /// Puts policies in force, and waits until they are.
    fn apply(&self, policies: &[Value]) {
        let before = self.generation();
        let documents: Vec<String> = policies
            .iter()
            .enumerate()
            .map(|(number, spec)| {
                let policy = json!({
                    "apiVersion": "security.istio.io/v1",
                    "kind": "AuthorizationPolicy",
                    "metadata": {"name": format!("policy-{number}")},
                    "spec": spec,
                });
                policy
                    .to_string()
                    .replace(DESTINATION, &self.web.v4.to_string())
            })
            .collect();
        self.lab
            .configure("policies.yaml", &(documents.join("\n---\n") + "\n"));
        eventually(
            Duration::from_secs(10),
            "the policies are in force",
            || match self.generation() {
                now if now > before => Ok(()),
                now => Err(now.to_string()),
            },
        );
    }

    /// What becomes of the requests, in their order.
    fn outcomes(
        &self,
        requests: &[Value],
        at: &Workload,
        proof: impl Fn(&Workload) -> [String; 2],
    ) -> Vec<String> {
        let mut outcomes = vec![String::new(); requests.len()];
        for client in &self.clients {
            let own: Vec<usize> = (0..requests.len())
                .filter(|at| requests[*at]["client"] == client.name)
                .collect();
            let list: Vec<&Value> = own.iter().map(|at| &requests[*at]).collect();
            let file = client.file("requests", &json!(list).to_string());
            let (file, [chain, key]) = (file.to_string_lossy(), proof(client));
            let (host, port) = (at.v4.to_string(), PORT.to_string());
            let said = client
                .run(
                    "/usr/bin/python3",
                    &["-c", CLIENT, &host, &port, &file, &chain, &key],
                )
                .success();
            let lines: Vec<&str> = said.lines().collect();
            assert_eq!(lines.len(), own.len(), "{said}");
            for (at, line) in own.into_iter().zip(lines) {
                outcomes[at] = line.to_owned();
            }
        }
        outcomes
    }
}

/// `UNDERMESH_RBAC_SEED` makes other policies and requests.
fn compare(seed: u64, how: &Normalization) {
    let Some(binary) = envoy() else { return };
    let other = std::env::var("UNDERMESH_RBAC_SEED").ok();
    let mut dice = Dice(other.map_or(seed, |text| text.parse().expect("a number")));
    let sets: Vec<Vec<Value>> = (0..SETS).map(|_| policies(&mut dice)).collect();
    let requests: Vec<Vec<Value>> = (0..SETS)
        .map(|set| (0..REQUESTS).map(|_| request(&mut dice, set)).collect())
        .collect();

    let world = World::start(how);
    let place = world.lab.workload(Node::Outside, "envoy", &[]);
    let configuration = envoy_configuration(&world.lab, &place, &sets, how);
    let _envoy = place.envoy(&binary, PORT, &configuration);
    let of_envoy = world.outcomes(&requests.concat(), &place, |client| {
        if client.name == "nobody" {
            return ["-", "-"].map(str::to_owned);
        }
        let (chain, key) = world
            .lab
            .certificate_in(&client.namespace, &client.name, client);
        [chain, key].map(|path| path.to_string_lossy().into_owned())
    });
    let count = |outcome: &str| of_envoy.iter().filter(|one| *one == outcome).count();
    let (allowed, denied) = (count("allow"), count("deny"));
    assert!(
        allowed > 100 && denied > 100,
        "{allowed} allowed, {denied} denied"
    );

    let mut differences = String::new();
    for (set, policies) in sets.iter().enumerate() {
        world.apply(policies);
        let ours = world.outcomes(&requests[set], &world.web, |_| {
            ["plain", "-"].map(str::to_owned)
        });
        for (at, ours) in ours.iter().enumerate() {
            let envoys = &of_envoy[set * REQUESTS + at];
            // A path with a NUL is refused before policies are asked.
            let is_refused = envoys == "400" && requests[set][at]["path"] == "/a/b%00c";
            if ours != envoys && !is_refused {
                differences += &format!(
                    "we {ours}, Envoy {envoys}: {} by {}\n",
                    requests[set][at],
                    json!(policies)
                );
            }
        }
    }
    assert!(differences.is_empty(), "{differences}");
    println!(
        "{allowed} allowed, {denied} denied, {} others",
        of_envoy.len() - allowed - denied
    );
}

#[test]
fn envoy_decides_the_same() {
    compare(
        4,
        &Normalization {
            flag: "BASE",
            merge_slashes: false,
            escaped_slashes: "KEEP_UNCHANGED",
        },
    );
}

#[test]
fn envoy_decides_the_same_where_slashes_are_decoded_and_merged() {
    compare(
        5,
        &Normalization {
            flag: "DECODE_AND_MERGE_SLASHES",
            merge_slashes: true,
            escaped_slashes: "UNESCAPE_AND_FORWARD",
        },
    );
}
