mod one_by_one;

use one_by_one::OneByOne;
use proptest::prelude::*;

use super::*;
use crate::datapath::Tier;
use crate::resource::parse;
use crate::snapshot::Options;

const MESH: &str = r#"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: sleep
  annotations: {undermesh.io/netns: sleep, undermesh.io/direct: "true", undermesh.io/short-circuit: "on"}
spec: {address: 10.0.0.1}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: web-1
  annotations: {undermesh.io/netns: web-1, undermesh.io/short-circuit: "on"}
spec: {address: 10.0.0.2, weight: 3, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: web-2
  annotations: {undermesh.io/netns: web-2}
spec: {address: 10.0.0.3, labels: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports: [{name: tcp, port: 80, targetPort: 8080}]
"#;

fn snapshot(more: &str) -> Snapshot {
    let text = format!("{MESH}{more}");
    let resources = parse([("mesh.yaml", text.as_str())]).expect("valid resources");
    Snapshot::compile(1, &resources, &Options::default()).expect("a valid configuration")
}

fn verdicts(snapshot: &Snapshot, here: &[&str]) -> Vec<WorkloadVerdict> {
    verdicts_where(true, snapshot, here)
}

fn verdicts_where(
    ends_connections: bool,
    snapshot: &Snapshot,
    here: &[&str],
) -> Vec<WorkloadVerdict> {
    let locals: Vec<LocalWorkload> = (snapshot.registry.workloads.iter().enumerate())
        .filter(|(_, workload)| here.contains(&&*workload.name.name))
        .map(|(number, workload)| LocalWorkload {
            workload: workload.clone(),
            netns_cookie: number as u64 + 1,
        })
        .collect();
    let reason = String::new();
    let tiers = Tiers {
        to_agent: Tier::Automatic,
        to_application: Tier::OptIn { reason },
    };
    let verdicts = || Verdicts {
        snapshot,
        locals: &locals,
        tiers: &tiers,
        ends_connections,
        short_circuit: ShortCircuit::Auto,
    };
    let all = verdicts().all();
    assert_eq!(all, OneByOne(verdicts()).all());
    all
}

/// What may be there besides.
const PARTS: [&str; 11] = [
    // An endpoint that is not of this node.
    "---\n{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: far}, spec: {address: 10.0.0.9, labels: {app: web}}}\n",
    "---\n{apiVersion: v1, kind: Service, metadata: {name: both}, spec: {clusterIP: 10.96.0.2, selector: {tier: any}, ports: [{name: http, port: 80}, {name: tcp-2, port: 81, targetPort: 8080}]}}\n",
    "---\n{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: web-3, annotations: {undermesh.io/netns: web-3, undermesh.io/direct: 'true', undermesh.io/same-node: encrypt}}, spec: {address: 10.0.0.4, labels: {app: web, tier: any}}}\n",
    "---\n{apiVersion: v1, kind: Service, metadata: {name: headless}, spec: {clusterIP: None, selector: {app: web}, ports: [{name: tcp, port: 8080}]}}\n",
    "---\n{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: deny}, spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.1, 10.0.0.2]}}]}]}}\n",
    "---\n{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: allow}, spec: {action: ALLOW, rules: [{to: [{operation: {ports: ['8080']}}]}]}}\n",
    "---\n{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: audit}, spec: {selector: {matchLabels: {tier: any}}, action: AUDIT, rules: [{}]}}\n",
    "---\n{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p}, spec: {selector: {matchLabels: {tier: any}}, mtls: {mode: DISABLE}}}\n",
    "---\n{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: r}, spec: {host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}}}\n",
    "---\n{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: v}, spec: {hosts: [both], http: [{route: [{destination: {host: both}}]}]}}\n",
    "---\n{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: s}, spec: {egress: [{hosts: [\"./web.default.svc.cluster.local\"]}]}}\n",
];

proptest! {
    #[test]
    fn what_clients_have_in_common_is_worked_out_once(
        here in prop::sample::subsequence(vec!["sleep", "web-1", "web-2", "web-3"], 0..=4),
        parts in prop::sample::subsequence(PARTS.to_vec(), 0..=PARTS.len()),
        ends_connections in any::<bool>(),
    ) {
        // Compares with each verdict by itself.
        verdicts_where(ends_connections, &snapshot(&parts.concat()), &here);
    }
}

const ALL: [&str; 3] = ["sleep", "web-1", "web-2"];

#[test]
fn a_service_whose_endpoints_are_all_here_is_reached_without_the_agent() {
    let all = verdicts(&snapshot(""), &ALL);
    let destinations: Vec<String> = all
        .iter()
        .map(|verdict| verdict.destination.to_string())
        .collect();
    assert_eq!(
        destinations,
        ["10.96.0.1:80", "10.0.0.2:8080", "10.0.0.3:8080"]
    );
    assert!(all.iter().all(|verdict| verdict.netns_cookie == 1));
    let Decision::Direct {
        algorithm,
        endpoints,
    } = &all[0].decision
    else {
        panic!("{all:?}");
    };
    assert_eq!(*algorithm, KernelAlgorithm::LeastRequest);
    let seen: Vec<_> = (endpoints.iter())
        .map(|e| {
            (
                e.netns_cookie,
                e.address.to_string(),
                e.weight,
                e.short_circuit,
            )
        })
        .collect();
    // Only one of the two has opted in to the short-circuit.
    assert_eq!(
        seen,
        [
            (2, "10.0.0.2:8080".to_owned(), 3, true),
            (3, "10.0.0.3:8080".to_owned(), 1, false)
        ]
    );
}

#[test]
fn one_endpoint_elsewhere_and_the_agent_chooses() {
    assert_eq!(verdicts(&snapshot(""), &["sleep", "web-1"]), []);
}

#[test]
fn rules_and_policies_that_the_kernel_does_not_know_need_the_agent() {
    for rule in [
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r}\n\
         spec: {hosts: [web], tcp: [{route: [{destination: {host: web}}]}]}\n",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r}\n\
         spec: {host: web, trafficPolicy: {outlierDetection: {}}}\n",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\n\
         spec: {mtls: {mode: DISABLE}}\n",
    ] {
        let snapshot = snapshot(&format!("---\n{rule}"));
        assert_eq!(verdicts(&snapshot, &ALL), [], "{rule}");
    }
}

fn authorization(action: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\n\
         spec: {{selector: {{matchLabels: {{app: web}}}}, action: {action}, rules: {rules}}}\n"
    )
}

#[test]
fn what_the_policies_refuse_is_refused_by_the_kernel_for_everybody() {
    let deny = authorization("DENY", "[{from: [{source: {namespaces: [default]}}]}]");
    let all = verdicts(&snapshot(&deny), &ALL);
    assert!(
        all.iter().all(|verdict| verdict.decision == Decision::Deny),
        "{all:?}"
    );
    // Three clients, of which two have not opted in to anything; three destinations each.
    assert_eq!(all.len(), 9);
}

#[test]
fn what_only_a_request_can_tell_needs_the_agent() {
    let http = MESH.replace("{name: tcp, port", "{name: http, port");
    let policy = authorization("ALLOW", "[{to: [{operation: {methods: [GET]}}]}]");
    let resources = format!("{http}{policy}");
    let resources = parse([("mesh.yaml", resources.as_str())]).expect("valid resources");
    let snapshot = Snapshot::compile(1, &resources, &Options::default()).expect("valid");
    assert_eq!(verdicts(&snapshot, &ALL), []);
}

#[test]
fn what_the_policies_allow_at_l4_is_still_direct() {
    let allow = authorization("ALLOW", "[{from: [{source: {namespaces: [default]}}]}]");
    let all = verdicts(&snapshot(&allow), &ALL);
    assert_eq!(all.len(), 3);
    assert!(
        all.iter().all(|verdict| verdict.netns_cookie == 1),
        "{all:?}"
    );
}

#[test]
fn where_the_kernel_cannot_end_connections_none_goes_past_the_agent() {
    assert_eq!(verdicts_where(false, &snapshot(""), &ALL), []);
    // What is refused from the beginning has not to be ended.
    let deny = authorization("DENY", "[{from: [{source: {namespaces: [default]}}]}]");
    assert_eq!(verdicts_where(false, &snapshot(&deny), &ALL).len(), 9);
}

#[test]
fn workloads_that_have_not_opted_in_have_no_verdicts() {
    assert_eq!(verdicts(&snapshot(""), &["web-1", "web-2"]), []);
}
