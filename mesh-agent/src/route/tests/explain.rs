//! What is told of a request is what becomes of it.

use proptest::prelude::*;

use super::*;

/// Conditions of which some hold for some of the requests below.
const CONDITIONS: [&str; 14] = [
    "{uri: {prefix: /a}}",
    "{uri: {exact: /a/b}}",
    "{uri: {regex: '/a/.*'}}",
    "{uri: {prefix: /A}, ignoreUriCase: true}",
    "{method: {exact: POST}}",
    "{headers: {user: {exact: jason}}}",
    "{headers: {user: {}}}",
    "{withoutHeaders: {user: {exact: jason}}}",
    "{withoutHeaders: {user: {}}}",
    "{queryParams: {q: {exact: ''}}}",
    "{port: 80}",
    "{port: 81, uri: {prefix: /}}",
    "{sourceLabels: {app: sleep}}",
    "{sourceNamespace: other}",
];

const ACTIONS: [&str; 9] = [
    "route: [{destination: {host: reviews, subset: v1}}]",
    "route: [{destination: {host: reviews, subset: v1}, weight: 1}, {destination: {host: ratings}, weight: 3}]",
    "route: [{destination: {host: reviews, subset: v9}}]",
    "route: [{destination: {host: nowhere}}]",
    "route: [{destination: {host: myapp, port: {number: 9080}}}]",
    "redirect: {uri: /elsewhere}",
    "directResponse: {status: 418}",
    "fault: {abort: {httpStatus: 503, percentage: {value: 100}}}, route: [{destination: {host: ratings}}]",
    "rewrite: {uri: /}, retries: {attempts: 0}, route: [{destination: {host: ratings, port: {number: 81}}}]",
];

const REQUESTS: [&str; 8] = [
    "GET reviews/",
    "GET reviews/a/b user:jason",
    "POST reviews.default/a/c user:other",
    "GET reviews/A?q",
    "GET reviews:80/x?q=1 user:jason",
    "PUT other.example.com/a/b",
    "GET ratings/a",
    "POST reviews.other/a",
];

/// What the explanation says would happen, in the words of [`Mesh::outcome`], all that may be.
fn told(mesh: &Mesh, request: &str) -> Vec<String> {
    let explanation = mesh.explain(&CLIENT, request);
    let words = explanation.outcome.as_str();
    let after = |start: &str| words.strip_prefix(start).map(str::to_owned);
    if let Some(rest) = after("aborted with ") {
        let status = rest.split(' ').next().unwrap_or_default().to_owned();
        return vec![format!("abort {status}")];
    }
    if let Some(status) = after("answered with ") {
        let word = status.split([' ', ',']).next().unwrap_or_default();
        return vec![if word == "a" {
            "redirect".to_owned()
        } else {
            format!("answer {word}")
        }];
    }
    let destinations = explanation
        .destinations
        .iter()
        .filter(|to| to.percent > 0.0 && !to.mirror);
    let told = destinations.map(|to| match &to.problem {
        Some(problem) => format!("answer {}", &problem[..3]),
        None => format!(
            "to {} {} {}",
            to.host,
            to.port.unwrap_or(0),
            to.subset.as_deref().unwrap_or("-")
        ),
    });
    told.collect()
}

fn done(mesh: &mut Mesh, request: &str) -> String {
    match mesh.decide(&CLIENT, request).outcome {
        Outcome::Forward(plan) => format!(
            "to {} {} {}",
            plan.service.host,
            plan.port,
            plan.subset.map_or("-", |subset| &subset.name)
        ),
        Outcome::Redirect(_) => "redirect".to_owned(),
        Outcome::Direct(answer) => format!("answer {}", answer.status.as_u16()),
        Outcome::Abort(Abort::Http(status)) => format!("abort {}", status.as_u16()),
        Outcome::Unroutable(unroutable) => format!("answer {}", unroutable.status.as_u16()),
        other => panic!("{request}: {other:?}"),
    }
}

proptest! {
    #[test]
    fn what_is_told_is_what_happens(
        rules in prop::collection::vec(
            (prop::collection::vec(0..CONDITIONS.len(), 0..3), 0..ACTIONS.len()),
            1..5,
        ),
        host in prop::sample::select(vec!["reviews", "'*.default.svc.cluster.local'", "other.example.com"]),
    ) {
        let rules: Vec<String> = rules
            .iter()
            .map(|(conditions, action)| {
                let conditions: Vec<_> = conditions.iter().map(|index| CONDITIONS[*index]).collect();
                format!("{{match: [{}], {}}}", conditions.join(", "), ACTIONS[*action])
            })
            .collect();
        let spec = format!("{{hosts: [{host}], http: [{}]}}", rules.join(", "));
        let mut mesh = Mesh::new(&[("default/v", &spec)], &[("default/d", VERSIONS)]);
        for request in REQUESTS {
            let told = told(&mesh, request);
            for _ in 0..3 {
                let done = done(&mut mesh, request);
                prop_assert!(told.contains(&done), "{request} in {spec}\ntold: {told:?}\ndone: {done}");
            }
        }
    }
}
