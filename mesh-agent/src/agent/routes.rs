//! What would become of a request, for people.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use crate::admin::api::{RouteDestinationView, RouteQuestion, RouteView, RuleView};
use crate::registry::Workload;
use crate::route::{ClientView, Explanation, Facts, RequestView};
use crate::snapshot::Snapshot;

/// Answers a question by the configuration in force.
pub(super) fn answer(snapshot: &Snapshot, question: &RouteQuestion) -> Result<RouteView, String> {
    let registry = &snapshot.registry;
    let client = workload(snapshot, &question.workload)?;
    let (host, port) = match question.authority.rsplit_once(':') {
        Some((host, port)) => match port.parse::<u16>() {
            Ok(port) => (host, Some(port)),
            Err(_) => (question.authority.as_str(), None),
        },
        None => (question.authority.as_str(), None),
    };
    let namespace = &client.name.namespace;
    let service = registry
        .resolve_host(host, namespace)
        .ok_or_else(|| format!("no service is called {host} by workloads of {namespace}"))?;
    let port = match (port, service.ports.as_slice()) {
        (Some(port), _) => port,
        (None, [only]) => only.number,
        (None, _) => 80,
    };
    if service.port(port).is_none() {
        return Err(format!("{} has no port {port}", service.host));
    }
    let view = ClientView::of(client);
    if !snapshot.routes.sees(&view, service, port) {
        return Err(format!(
            "{} does not see port {port} of {}: its Sidecar does not import it",
            client.name, service.host
        ));
    }
    let method: Method = question
        .method
        .parse()
        .map_err(|_| format!("{:?} is not a method", question.method))?;
    let mut headers = HeaderMap::new();
    for (name, value) in &question.headers {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("{name:?} is not a header name"))?;
        let value =
            HeaderValue::from_str(value).map_err(|_| format!("{value:?} is not a header value"))?;
        headers.append(name, value);
    }
    let normalization = snapshot.authorization.path_normalization;
    let path = normalization
        .apply(&question.path)
        .ok_or_else(|| format!("{:?} is a path that is always refused", question.path))?;
    let request = RequestView {
        authority: &question.authority,
        method: &method,
        path_and_query: &path,
        scheme: "http",
        headers: &headers,
        // Values of header fields are not shown.
        facts: Facts {
            client: ([0, 0, 0, 0], 0).into(),
            destination: ([0, 0, 0, 0], port).into(),
            version: Version::HTTP_11,
            now: SystemTime::now,
        },
    };
    let routes = &snapshot.routes;
    Ok(routes
        .explain(&request, &view, service, port, registry)
        .into())
}

fn workload<'s>(snapshot: &'s Snapshot, text: &str) -> Result<&'s Workload, String> {
    let found = snapshot.registry.workloads.iter().find(|workload| {
        let name = &workload.name;
        name.to_string() == text || (*name.name == *text && &*name.namespace == "default")
    });
    found
        .map(AsRef::as_ref)
        .ok_or_else(|| format!("no workload {text}: `meshctl workloads` lists them"))
}

impl From<Explanation> for RouteView {
    fn from(explanation: Explanation) -> Self {
        let rules = explanation.rules.into_iter().map(|rule| RuleView {
            field: rule.field,
            name: rule.name,
            mismatch: rule.mismatch,
        });
        let destinations = explanation.destinations.into_iter();
        Self {
            service: explanation.service,
            port: explanation.port,
            rules_of: explanation.rules_of,
            rules: rules.collect(),
            outcome: explanation.outcome,
            destinations: destinations
                .map(|to| RouteDestinationView {
                    host: to.host,
                    subset: to.subset,
                    port: to.port,
                    percent: to.percent,
                    destination_rule: to.destination_rule,
                    endpoints: to.endpoints,
                    problem: to.problem,
                    mirror: to.mirror,
                })
                .collect(),
        }
    }
}
