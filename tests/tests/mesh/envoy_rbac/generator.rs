//! Policies and requests, by dice.

use serde_json::{Value, json};

use super::DESTINATION;

/// SplitMix64: the same numbers on every machine.
pub struct Dice(pub u64);

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
pub fn policies(dice: &mut Dice) -> Vec<Value> {
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

pub fn request(dice: &mut Dice, set: usize) -> Value {
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
