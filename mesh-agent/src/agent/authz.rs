//! Answers to `meshctl authz`.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Agent;
use crate::admin::authz::{
    AuthzAnswer, AuthzEvent, AuthzOpinion, AuthzQuestion, AuthzReport, AuthzVerdict,
};
use crate::identity::{Identity, ParseIdentityError};
use crate::policy::MtlsMode;
use crate::policy::authorization::{Connection, Payload, Request, Verdict, remote_ip};
use crate::policy::tls_check::find_workload;
use crate::proxy::application::Event;
use crate::resource::authorization_policy::Action;
use crate::snapshot::Snapshot;

impl Agent {
    /// What the policies in force say to a connection or a request.
    pub(super) fn authorization(&self, question: &AuthzQuestion) -> Result<AuthzAnswer, String> {
        answer(&self.node.snapshot.load(), question)
    }

    /// Who was denied, would be, and was to be audited.
    pub(super) fn authorization_reports(&self) -> Vec<AuthzReport> {
        let reports = self.node.reports.all().into_iter();
        reports
            .map(|report| AuthzReport {
                event: match report.event {
                    Event::Denied => AuthzEvent::Denied,
                    Event::WouldBeDenied => AuthzEvent::WouldBeDenied,
                    Event::Audited => AuthzEvent::Audited,
                },
                workload: report.workload,
                port: report.port,
                source: report.source,
                by: report.by,
                count: report.count,
                last_seen_s: report.last_seen_s,
            })
            .collect()
    }
}

fn answer(snapshot: &Snapshot, question: &AuthzQuestion) -> Result<AuthzAnswer, String> {
    let registry = &snapshot.registry;
    let workload =
        find_workload(registry, &question.workload).map_err(|error| error.to_string())?;
    let (identity, address) = source(snapshot, question)?;
    let source_ip = question
        .from_ip
        .or(address)
        .ok_or("say from which address, by --from-ip")?;
    let own = workload.address_like(source_ip);
    let own = own.or(workload.addresses.first().copied());
    let own = own.ok_or_else(|| format!("{} has no address", workload.name))?;
    let (mode, by) = (snapshot.peer_authentication).mode(workload, question.port);
    // A server that takes plaintext only sees nobody's identity.
    let is_plaintext = question.plaintext || mode == MtlsMode::Disable;
    let identity = identity.filter(|_| !is_plaintext);
    let connection = Connection {
        source: identity.as_ref(),
        source_ip,
        destination: SocketAddr::new(own, question.port),
    };
    let headers = headers(&question.headers)?;
    let is_request = question.method.is_some();
    if is_request && !question.path.starts_with('/') && question.path != "*" {
        return Err(format!(
            "the path {:?} does not begin with /",
            question.path
        ));
    }
    let normalization = snapshot.authorization.path_normalization;
    let path = normalization
        .apply(&question.path)
        .ok_or("the path holds a NUL")?;
    let request = question.method.as_deref().map(|method| Request {
        authority: &question.host,
        method,
        path_and_query: &path,
        headers: &headers,
        remote_ip: remote_ip(&headers, source_ip),
    });
    let authorization = &snapshot.authorization;
    let (decision, payload) = match &request {
        // Where a port declares another protocol, nobody looks for requests.
        Some(_) if authorization.is_opaque(workload, question.port) => {
            let decision = authorization.connection(workload, &connection);
            (decision, Payload::Tcp)
        }
        Some(request) => {
            let payload = Payload::Http(request);
            let decision = authorization.decide(workload, &connection, payload);
            (decision, payload)
        }
        None => {
            let decision = authorization.connection(workload, &connection);
            (decision, Payload::Unknown)
        }
    };
    let (verdict, reason) = if identity.is_none() && mode == MtlsMode::Strict {
        let by = by.map_or(String::new(), |name| format!(" {name}"));
        let reason = format!("PeerAuthentication{by} takes mutual TLS only, this is plaintext");
        (AuthzVerdict::Denied, reason)
    } else {
        let verdict = match decision.verdict {
            Verdict::Allow => AuthzVerdict::Allowed,
            Verdict::Deny => AuthzVerdict::Denied,
            Verdict::NeedsHttp => AuthzVerdict::DependsOnRequests,
        };
        (verdict, decision.reason.to_string())
    };
    let opinions = authorization.explain(workload, &connection, payload);
    Ok(AuthzAnswer {
        workload: workload.name.to_string(),
        port: question.port,
        source: identity.as_ref().map(Identity::to_string),
        source_ip,
        verdict,
        reason,
        policies: opinions
            .into_iter()
            .map(|opinion| AuthzOpinion {
                policy: opinion.policy,
                action: match opinion.action {
                    Action::Allow => "ALLOW",
                    Action::Deny => "DENY",
                    Action::Audit => "AUDIT",
                    Action::Custom => "CUSTOM",
                }
                .to_owned(),
                dry_run: opinion.dry_run,
                rule: opinion.rule,
                depends: opinion.needs_http,
            })
            .collect(),
    })
}

/// Identity and address of who asks.
fn source(
    snapshot: &Snapshot,
    question: &AuthzQuestion,
) -> Result<(Option<Identity>, Option<IpAddr>), String> {
    let from = question.from.as_str();
    let identity: Option<Identity> = if from.starts_with("spiffe://") {
        Some(
            from.parse()
                .map_err(|error: ParseIdentityError| error.to_string())?,
        )
    } else {
        // As policies write principals.
        format!("spiffe://{from}").parse().ok()
    };
    if let Some(identity) = identity {
        let mut workloads = snapshot.registry.workloads.iter();
        let its = workloads.find(|workload| workload.identity == identity);
        let address = its.and_then(|workload| workload.addresses.first().copied());
        let unknown = IpAddr::from([0, 0, 0, 0]);
        return Ok((Some(identity), Some(address.unwrap_or(unknown))));
    }
    if let Ok(address) = from.parse::<IpAddr>() {
        // An address that is a workload's is that workload.
        let workload = snapshot.registry.workload_at(address.to_canonical());
        let identity = workload
            .filter(|workload| workload.is_meshed())
            .map(|workload| workload.identity.clone());
        return Ok((identity, Some(address)));
    }
    let workload = find_workload(&snapshot.registry, from).map_err(|error| error.to_string())?;
    let identity = workload.is_meshed().then(|| workload.identity.clone());
    Ok((identity, workload.addresses.first().copied()))
}

fn headers(fields: &[String]) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for field in fields {
        let wrong = || format!("{field:?} is not a header field of the form name: value");
        let (name, value) = field.split_once(':').ok_or_else(wrong)?;
        let name: HeaderName = name.trim().parse().map_err(|_| wrong())?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::parse;
    use crate::snapshot::Options;

    const MESH: &str = "
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: web, annotations: {undermesh.io/netns: web}}, spec: {address: 10.0.0.1, serviceAccount: web, labels: {app: web}}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: sleep, annotations: {undermesh.io/netns: sleep}}, spec: {address: 10.0.0.2, serviceAccount: sleep}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict}, spec: {mtls: {mode: STRICT}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  rules:
  - {from: [{source: {serviceAccounts: [admin]}}]}
  - {from: [{source: {serviceAccounts: [sleep]}}], to: [{operation: {methods: [GET], notPaths: [/admin]}}]}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: dry, annotations: {istio.io/dry-run: 'true'}}, spec: {action: DENY, rules: [{}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: tcp, port: 90}]}
";

    fn ask(question: AuthzQuestion) -> Result<AuthzAnswer, String> {
        ask_at(80, question)
    }

    fn ask_at(port: u16, question: AuthzQuestion) -> Result<AuthzAnswer, String> {
        let set = parse([("a.yaml", MESH)]).unwrap();
        let snapshot = Snapshot::compile(1, &set, &Options::default()).unwrap();
        answer(
            &snapshot,
            &AuthzQuestion {
                workload: "web".to_owned(),
                port,
                ..question
            },
        )
    }

    fn question(from: &str, request: Option<(&str, &str)>) -> AuthzQuestion {
        AuthzQuestion {
            from: from.to_owned(),
            method: request.map(|(method, _)| method.to_owned()),
            path: request.map_or("", |(_, path)| path).to_owned(),
            host: "web".to_owned(),
            ..AuthzQuestion::default()
        }
    }

    #[test]
    fn the_rule_that_decides_is_named() {
        let of = |from: &str, request| {
            let answer = ask(question(from, request)).unwrap();
            (answer.verdict, answer.reason)
        };
        let admin = "spiffe://cluster.local/ns/default/sa/admin";
        let (verdict, reason) = of(admin, None);
        assert_eq!(verdict, AuthzVerdict::Allowed);
        assert_eq!(reason, "allowed by default/readers, rule 0");
        let (verdict, reason) = of("sleep", None);
        assert_eq!(verdict, AuthzVerdict::DependsOnRequests);
        assert!(reason.contains("default/readers, rule 1"), "{reason}");
        assert_eq!(of("sleep", Some(("GET", "/"))).0, AuthzVerdict::Allowed);
        let (verdict, reason) = of("sleep", Some(("GET", "/x/../admin")));
        assert_eq!(verdict, AuthzVerdict::Denied);
        assert_eq!(reason, "allow policies exist, but none allowed");
        let (verdict, reason) = of("192.168.0.1", Some(("GET", "/")));
        assert_eq!(verdict, AuthzVerdict::Denied);
        assert!(
            reason.contains("strict/default takes mutual TLS only"),
            "{reason}"
        );
    }

    #[test]
    fn in_the_clear_a_workload_is_nobody_at_its_address() {
        let in_the_clear = |mesh: &str, from: &str| {
            let set = parse([("a.yaml", mesh)]).unwrap();
            let snapshot = Snapshot::compile(1, &set, &Options::default()).unwrap();
            let question = AuthzQuestion {
                workload: "web".to_owned(),
                port: 80,
                plaintext: true,
                ..question(from, Some(("GET", "/")))
            };
            answer(&snapshot, &question).unwrap()
        };
        let strict = in_the_clear(MESH, "sleep");
        assert_eq!(strict.verdict, AuthzVerdict::Denied);
        assert!(strict.reason.contains("this is plaintext"), "{strict:?}");
        // Without STRICT the policies decide, by the address alone.
        let permissive = MESH.replace("mode: STRICT", "mode: PERMISSIVE");
        for from in ["sleep", "10.0.0.2", "cluster.local/ns/default/sa/sleep"] {
            let answer = in_the_clear(&permissive, from);
            assert_eq!(
                (answer.verdict, answer.source),
                (AuthzVerdict::Denied, None)
            );
            assert_eq!(answer.reason, "allow policies exist, but none allowed");
            assert_eq!(answer.source_ip, IpAddr::from([10, 0, 0, 2]));
        }
        let by_address = "serviceAccounts: [sleep]";
        let by_address = permissive.replace(by_address, "ipBlocks: [10.0.0.2]");
        let answer = in_the_clear(&by_address, "sleep");
        assert_eq!(answer.verdict, AuthzVerdict::Allowed, "{answer:?}");
    }

    #[test]
    fn an_identity_may_be_written_as_policies_do_and_has_its_workloads_address() {
        let sleep = "cluster.local/ns/default/sa/sleep";
        for from in [sleep, &format!("spiffe://{sleep}")] {
            let answer = ask(question(from, Some(("GET", "/")))).unwrap();
            assert_eq!(answer.verdict, AuthzVerdict::Allowed, "{from}");
            assert_eq!(answer.source, Some(format!("spiffe://{sleep}")));
            assert_eq!(answer.source_ip, IpAddr::from([10, 0, 0, 2]));
        }
        let nobody = ask(question("cluster.local/ns/default/sa/nobody", None)).unwrap();
        assert_eq!(nobody.source_ip, IpAddr::from([0, 0, 0, 0]));
    }

    #[test]
    fn a_request_to_a_port_of_another_protocol_is_no_request() {
        let get = || question("sleep", Some(("GET", "/")));
        assert_eq!(ask(get()).unwrap().verdict, AuthzVerdict::Allowed);
        let answer = ask_at(90, get()).unwrap();
        assert_eq!(answer.verdict, AuthzVerdict::Denied);
        assert_eq!(answer.reason, "allow policies exist, but none allowed");
        assert_eq!(answer.policies[1].rule, None);
    }

    #[test]
    fn all_policies_that_apply_are_listed() {
        let answer = ask(question("10.0.0.2", Some(("PUT", "/")))).unwrap();
        let source = answer.source.as_deref();
        assert_eq!(source, Some("spiffe://cluster.local/ns/default/sa/sleep"));
        let listed: Vec<_> = (answer.policies.iter())
            .map(|opinion| (opinion.policy.as_str(), opinion.dry_run, opinion.rule))
            .collect();
        assert_eq!(
            listed,
            [
                ("default/dry", true, Some(0)),
                ("default/readers", false, None)
            ]
        );
    }

    #[test]
    fn what_cannot_be_asked_is_said() {
        assert!(
            ask(question("nobody", None))
                .unwrap_err()
                .contains("no workload")
        );
        assert!(ask(question("spiffe://x", None)).is_err());
        let bad = AuthzQuestion {
            headers: vec!["no colon".to_owned()],
            ..question("sleep", None)
        };
        assert!(ask(bad).unwrap_err().contains("name: value"));
        let url = ask(question("sleep", Some(("GET", "http://web/"))));
        assert!(url.unwrap_err().contains("does not begin with /"));
    }
}
