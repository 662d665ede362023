//! What Istio makes of policies for Envoy.

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
        "trustDomains" | "source.trustDomain" => {
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

/// The policies as they are for a TCP port, which has no attributes of HTTP: a rule that would
/// allow by one is left out, and where one would deny the attribute is.
pub fn without_http(policies: &[Value]) -> Vec<Value> {
    policies.iter().map(policy_without_http).collect()
}

fn is_http(attribute: &str) -> bool {
    let names = [
        "hosts",
        "notHosts",
        "methods",
        "notMethods",
        "paths",
        "notPaths",
    ];
    names.contains(&attribute) || attribute.starts_with("request.")
}

fn policy_without_http(policy: &Value) -> Value {
    let mut policy = policy.clone();
    let allows = policy["action"] == "ALLOW";
    let Some(rules) = policy["rules"].as_array_mut() else {
        return policy;
    };
    rules.retain_mut(|rule| {
        let mut used = false;
        for to in rule["to"].as_array_mut().into_iter().flatten() {
            let operation = to["operation"].as_object_mut().expect("an operation");
            operation.retain(|name, _| {
                used |= is_http(name);
                !is_http(name)
            });
        }
        if let Some(conditions) = rule["when"].as_array_mut() {
            conditions.retain(|condition| {
                let key = condition["key"].as_str().expect("a key");
                used |= is_http(key);
                !is_http(key)
            });
        }
        !(allows && used)
    });
    policy
}
