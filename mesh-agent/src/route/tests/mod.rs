mod action;
mod condition;
mod cors;
mod delegate;
mod destination;
mod explain;
mod tls;

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::fixture::{registry, routes, service};
use super::*;
use crate::registry::{Protocol, Registry};

/// A mesh with `reviews`, `ratings`, `myapp` (ports 80 and 9080) in `default`, and `reviews` in `other`.
struct Mesh {
    registry: Registry,
    routes: Routes,
    findings: Vec<crate::resource::Finding>,
    random: StdRng,
}

/// A request in one line: `METHOD authority/path name:value name:value`.
#[derive(Clone)]
struct Client<'a> {
    namespace: &'a str,
    labels: &'a [(&'a str, &'a str)],
    service: &'a str,
    port: u16,
}

const CLIENT: Client<'_> = Client {
    namespace: "default",
    labels: &[("app", "sleep")],
    service: "reviews.default.svc.cluster.local",
    port: 80,
};

/// A request, read.
struct Asked<'a> {
    method: Method,
    authority: &'a str,
    path: &'a str,
    headers: HeaderMap,
    labels: BTreeMap<String, String>,
}

impl<'a> Asked<'a> {
    fn new(client: &Client<'_>, request: &'a str) -> Self {
        let mut words = request.split(' ');
        let method = words.next().expect("a method").parse().expect("a method");
        let target = words.next().expect("a target");
        let (authority, _) = target.split_once('/').expect("a path");
        let mut headers = HeaderMap::new();
        for word in words {
            let (name, value) = word.split_once(':').expect("name:value");
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).expect("a header name"),
                HeaderValue::from_str(value).expect("a header value"),
            );
        }
        let labels = client.labels.iter();
        Self {
            method,
            authority,
            path: &target[authority.len()..],
            headers,
            labels: labels
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    fn request(&self) -> RequestView<'_> {
        RequestView {
            authority: self.authority,
            method: &self.method,
            path_and_query: self.path,
            scheme: "http",
            headers: &self.headers,
            facts: Facts {
                client: ([127, 0, 0, 1], 40_000).into(),
                destination: ([10, 96, 0, 1], 80).into(),
                version: http::Version::HTTP_11,
                now: std::time::SystemTime::now,
            },
        }
    }

    fn client<'s>(&'s self, client: &'s Client<'_>) -> ClientView<'s> {
        ClientView {
            namespace: client.namespace,
            labels: &self.labels,
            node: None,
        }
    }
}

impl Mesh {
    fn new(virtual_services: &[(&str, &str)], destination_rules: &[(&str, &str)]) -> Self {
        let endpoint = |last: u8, version| (([10, 0, 0, last], 8080).into(), version);
        let registry = registry(vec![
            service(
                "reviews.default",
                &[(80, Protocol::Http)],
                &[endpoint(1, "v1"), endpoint(2, "v2")],
            ),
            service(
                "ratings.default",
                &[(80, Protocol::Http)],
                &[endpoint(3, "v1")],
            ),
            service(
                "myapp.default",
                &[(80, Protocol::Http), (9080, Protocol::Http)],
                &[endpoint(4, "stable"), endpoint(5, "canary")],
            ),
            service(
                "reviews.other",
                &[(80, Protocol::Http)],
                &[endpoint(6, "v1")],
            ),
        ]);
        let (routes, findings) = routes(&registry, virtual_services, destination_rules);
        Self {
            registry,
            routes,
            findings,
            random: StdRng::seed_from_u64(7),
        }
    }

    fn decide(&mut self, client: &Client<'_>, request: &str) -> Decision<'_> {
        let asked = Asked::new(client, request);
        self.routes.decide(
            &asked.request(),
            &asked.client(client),
            &self.registry.by_host[client.service],
            client.port,
            &self.registry,
            &mut self.random,
        )
    }

    fn explain(&self, client: &Client<'_>, request: &str) -> Explanation {
        let asked = Asked::new(client, request);
        self.routes.explain(
            &asked.request(),
            &asked.client(client),
            &self.registry.by_host[client.service],
            client.port,
            &self.registry,
        )
    }

    /// What a request comes to, in a word or two.
    fn outcome(&mut self, client: &Client<'_>, request: &str) -> String {
        match self.decide(client, request).outcome {
            Outcome::Forward(plan) => {
                let subset = plan
                    .subset
                    .map(|subset| format!(" {}", subset.name))
                    .unwrap_or_default();
                format!(
                    "{}.{}:{}{subset}",
                    plan.service.name, plan.service.namespace, plan.port
                )
            }
            Outcome::Redirect(redirection) => {
                format!("{} {}", redirection.status.as_u16(), redirection.location)
            }
            Outcome::Direct(answer) => format!("direct {}", answer.status.as_u16()),
            Outcome::Preflight(_) => "preflight".to_owned(),
            Outcome::Abort(abort) => format!("{abort:?}"),
            Outcome::Unroutable(unroutable) => format!(
                "{} {} {}",
                unroutable.status.as_u16(),
                unroutable.flags,
                unroutable.reason
            ),
        }
    }

    fn expect(&mut self, cases: &[(&str, &str)]) {
        for (request, expected) in cases {
            assert_eq!(self.outcome(&CLIENT, request), *expected, "{request}");
        }
    }

    fn plan(&mut self, request: &str) -> Plan<'_> {
        match self.decide(&CLIENT, request).outcome {
            Outcome::Forward(plan) => plan,
            other => panic!("{request}: {other:?}"),
        }
    }
}

const VERSIONS: &str = "{host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}";
