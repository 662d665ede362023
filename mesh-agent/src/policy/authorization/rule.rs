//! One policy, compiled, and what it says about a connection or a request.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use ipnet::IpNet;
use regex::Regex;

use super::pattern::{self, PathPattern, Pattern};
use super::{Connection, Payload, Request};
use crate::identity::Identity;
use crate::registry::{Workload, WorkloadName};
use crate::resource::authorization_policy::Action;

/// Whether something holds, as far as it can be known (ordered, so that "and"
/// is the minimum, "or" the maximum).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truth {
    /// It does not.
    No,
    /// It depends on what an HTTP request says.
    Unknown,
    /// It does.
    Yes,
}

impl Truth {
    fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
            Self::Yes => Self::No,
        }
    }

    fn any(truths: impl Iterator<Item = Self>) -> Self {
        let mut all = Self::No;
        for truth in truths {
            all = all.max(truth);
            if all == Self::Yes {
                break;
            }
        }
        all
    }

    fn all(truths: impl Iterator<Item = Self>) -> Self {
        let mut all = Self::Yes;
        for truth in truths {
            all = all.min(truth);
            if all == Self::No {
                break;
            }
        }
        all
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// A policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// `<namespace>/<name>`.
    pub name: String,
    pub action: Action,
    /// Reports what it would do instead of doing it.
    pub dry_run: bool,
    pub scope: Scope,
    pub rules: Arc<[Rule]>,
}

/// The workloads that a policy applies to, of its namespace, or of the mesh in
/// the root namespace.
#[derive(Clone, Debug)]
pub enum Scope {
    /// All.
    All,
    /// Those with these labels.
    Labels(BTreeMap<String, String>),
    /// Those behind the services of `targetRefs`.
    Workloads(BTreeSet<WorkloadName>),
}

/// A rule: any of `from`, any of `to`, and `when`. An empty list is anything.
#[derive(Clone, Debug)]
pub struct Rule {
    pub from: Vec<Clauses>,
    pub to: Vec<Clauses>,
    pub when: Clauses,
    /// Whether anything in it asks for an attribute of HTTP.
    pub uses_http: bool,
}

/// What has to hold together.
#[derive(Clone, Debug)]
pub enum Clauses {
    /// Something is asked for that this version cannot tell.
    Never,
    /// All of these.
    All(Vec<Clause>),
}

/// Values of one attribute, and values that it must not have.
#[derive(Clone, Debug)]
pub struct Clause {
    pub is_http: bool,
    pub any: Vec<Test>,
    pub none: Vec<Test>,
}

/// One value to compare with.
#[derive(Clone, Debug)]
pub enum Test {
    Principal(Pattern),
    Namespace(Regex),
    ServiceAccount { namespace: String, account: String },
    TrustDomain(Pattern),
    SourceIp(IpNet),
    RemoteIp(IpNet),
    DestinationIp(IpNet),
    DestinationPort(u16),
    Host(Pattern),
    Method(Pattern),
    Path(PathPattern),
    Header(String, Pattern),
}

impl Policy {
    pub fn applies_to(&self, workload: &Workload) -> bool {
        match &self.scope {
            Scope::All => true,
            Scope::Labels(labels) => labels
                .iter()
                .all(|(key, value)| workload.labels.get(key) == Some(value)),
            Scope::Workloads(names) => names.contains(&workload.name),
        }
    }

    /// Whether a rule matches, and which: the first that does, else the first that may.
    pub fn matches(&self, connection: &Connection<'_>, payload: Payload<'_>) -> (Truth, usize) {
        let mut may = None;
        for (index, rule) in self.rules.iter().enumerate() {
            match rule.matches(self.action, connection, payload) {
                Truth::Yes => return (Truth::Yes, index),
                Truth::Unknown => may = may.or(Some(index)),
                Truth::No => {}
            }
        }
        match may {
            Some(index) => (Truth::Unknown, index),
            None => (Truth::No, 0),
        }
    }
}

impl Rule {
    fn matches(&self, action: Action, connection: &Connection<'_>, payload: Payload<'_>) -> Truth {
        // What is not HTTP has none of its attributes. A rule that allows by one of them
        // allows nothing then; for the others `Clause` leaves out what cannot be asked.
        if matches!(payload, Payload::Tcp) && action == Action::Allow && self.uses_http {
            return Truth::No;
        }
        let any = |alternatives: &[Clauses]| {
            if alternatives.is_empty() {
                return Truth::Yes;
            }
            Truth::any(
                alternatives
                    .iter()
                    .map(|clauses| clauses.hold(connection, payload)),
            )
        };
        any(&self.from)
            .min(any(&self.to))
            .min(self.when.hold(connection, payload))
    }
}

impl Clauses {
    fn hold(&self, connection: &Connection<'_>, payload: Payload<'_>) -> Truth {
        match self {
            Self::Never => Truth::No,
            Self::All(clauses) => Truth::all(
                clauses
                    .iter()
                    .map(|clause| clause.holds(connection, payload)),
            ),
        }
    }
}

impl Clause {
    fn holds(&self, connection: &Connection<'_>, payload: Payload<'_>) -> Truth {
        if self.is_http && matches!(payload, Payload::Tcp) {
            return Truth::Yes;
        }
        let of =
            |tests: &[Test]| Truth::any(tests.iter().map(|test| test.holds(connection, payload)));
        let any = if self.any.is_empty() {
            Truth::Yes
        } else {
            of(&self.any)
        };
        any.min(of(&self.none).not())
    }
}

impl Test {
    fn holds(&self, connection: &Connection<'_>, payload: Payload<'_>) -> Truth {
        let by_identity = |test: &dyn Fn(&Identity) -> bool| connection.source.is_some_and(test);
        let of_request = |test: &dyn Fn(&Request<'_>) -> bool| match payload {
            Payload::Http(request) => test(request).into(),
            Payload::Unknown => Truth::Unknown,
            Payload::Tcp => Truth::No,
        };
        match self {
            Self::Principal(pattern) => by_identity(&|identity| {
                let text = identity.to_string();
                let principal = text.strip_prefix("spiffe://").unwrap_or(&text);
                pattern.matches(principal.as_bytes())
            })
            .into(),
            Self::Namespace(namespace) => {
                by_identity(&|identity| namespace.is_match(&identity.namespace)).into()
            }
            Self::ServiceAccount { namespace, account } => by_identity(&|identity| {
                *identity.namespace == **namespace && *identity.service_account == **account
            })
            .into(),
            Self::TrustDomain(pattern) => {
                by_identity(&|identity| pattern.matches(identity.trust_domain.as_bytes())).into()
            }
            Self::SourceIp(network) => pattern::contains(network, connection.source_ip).into(),
            Self::RemoteIp(network) => match payload {
                Payload::Http(request) => pattern::contains(network, request.remote_ip).into(),
                Payload::Tcp => pattern::contains(network, connection.source_ip).into(),
                Payload::Unknown => Truth::Unknown,
            },
            Self::DestinationIp(network) => {
                pattern::contains(network, connection.destination.ip()).into()
            }
            Self::DestinationPort(port) => (connection.destination.port() == *port).into(),
            Self::Host(pattern) => {
                of_request(&|request| pattern.matches(request.authority.as_bytes()))
            }
            Self::Method(pattern) => {
                of_request(&|request| pattern.matches(request.method.as_bytes()))
            }
            Self::Path(pattern) => of_request(&|request| pattern.matches(request.path())),
            Self::Header(name, pattern) => {
                of_request(&|request| header(request, name, |value| pattern.matches(value)))
            }
        }
    }
}

/// Where there are several fields of a name, one of them that matches is enough: joined, a field
/// beside it would hide a value from a rule that denies it. A field that is not there matches
/// nothing.
fn header(request: &Request<'_>, name: &str, matches: impl Fn(&[u8]) -> bool) -> bool {
    match name {
        ":authority" | "host" => return matches(request.authority.as_bytes()),
        ":method" => return matches(request.method.as_bytes()),
        ":path" => return matches(request.path_and_query.as_bytes()),
        _ => {}
    }
    let values = || request.headers.get_all(name).iter();
    // HTTP/2 splits cookies into fields, which are one field all the same (RFC 9113, section 8.2.3).
    if name == "cookie" && values().nth(1).is_some() {
        let crumbs: Vec<&[u8]> = values().map(http::HeaderValue::as_bytes).collect();
        if matches(&crumbs.join(&b"; "[..])) {
            return true;
        }
    }
    values().any(|value| matches(value.as_bytes()))
}

/// The client of an HTTP request: the last address of `x-forwarded-for`, as a
/// proxy without trusted hops before it takes it; the peer where there is none.
pub fn remote_ip(headers: &HeaderMap, peer: IpAddr) -> IpAddr {
    let mut all = headers.get_all("x-forwarded-for").iter();
    all.next_back()
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.rsplit(',').next())
        .and_then(|last| last.trim().parse().ok())
        .unwrap_or(peer)
}
