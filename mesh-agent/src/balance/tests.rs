mod service;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::outlier::Cause;
use super::*;
use crate::identity::Identity;
use crate::registry::{
    Distribution, Endpoint, Location, Protocol, Resolution, Service, ServicePort, Tunnel, Workload,
    WorkloadName,
};
use crate::route::fixture;
use crate::route::{ClientView, Routes, UpstreamPolicy};

#[derive(Debug, Default)]
struct NoPool;

impl EndpointPool for NoPool {
    fn renew(&self) {}
}

/// Endpoints as (address, weight, locality); the label `version` is `v` and the last digit of the address.
fn service(endpoints: &[(&str, u32, &str)]) -> Arc<Service> {
    let endpoint = |(address, weight, locality): &(&str, u32, &str)| {
        Arc::new(Endpoint {
            address: Some(address.parse().expect("an address")),
            labels: Arc::new(
                [(
                    "version".to_owned(),
                    format!("v{}", &address[address.len() - 1..]),
                )]
                .into(),
            ),
            weight: *weight,
            locality: (*locality).to_owned(),
            ..Endpoint::unknown(80, 8080)
        })
    };
    Arc::new(Service {
        host: "reviews.default.svc.cluster.local".into(),
        name: "reviews".into(),
        namespace: "default".into(),
        vips: Vec::new(),
        headless: false,
        ports: vec![ServicePort {
            name: "http".into(),
            number: 80,
            protocol: Protocol::Http,
        }],
        endpoints: endpoints.iter().map(endpoint).collect(),
        location: Location::MeshInternal,
        resolution: Resolution::Static,
        subject_alt_names: Vec::new(),
        distribution: Default::default(),
        external_ips: Vec::new(),
        session_affinity: None,
        visibility: Default::default(),
        origin: String::new(),
    })
}

fn client(locality: &str) -> Arc<Workload> {
    Arc::new(Workload {
        name: WorkloadName {
            name: "sleep".into(),
            namespace: "default".into(),
        },
        labels: Arc::new([("network".to_owned(), "one".to_owned())].into()),
        identity: Identity {
            trust_domain: "cluster.local".into(),
            namespace: "default".into(),
            service_account: "sleep".into(),
        },
        addresses: Vec::new(),
        ports: Default::default(),
        node: None,
        placement: None,
        tunnel: Tunnel::None,
        locality: locality.to_owned(),
        when_agent_is_down: None,
        direct: false,
        short_circuit: None,
        same_node: None,
        weight: 1,
        origin: String::new(),
    })
}

/// A client with the policy (and subset) of a DestinationRule.
struct Mesh {
    client: Arc<Workload>,
    service: Arc<Service>,
    routes: Routes,
    subset: Option<&'static str>,
    clusters: Clusters<NoPool>,
    random: StdRng,
    begin: Instant,
}

const PLAIN: &str = "{host: reviews}";

impl Mesh {
    fn new(endpoints: &[(&str, u32, &str)], rule: &str) -> Self {
        let service = service(endpoints);
        let registry = fixture::registry(vec![service.clone()]);
        let (routes, _) = fixture::routes(&registry, &[], &[("default/reviews", rule)]);
        Self {
            client: client("eu/west/a"),
            service,
            routes,
            subset: None,
            clusters: Clusters::default(),
            random: StdRng::seed_from_u64(1),
            begin: Instant::now(),
        }
    }

    fn policy(policy: &str, endpoints: &[(&str, u32, &str)]) -> Self {
        Self::new(
            endpoints,
            &format!("{{host: reviews, trafficPolicy: {policy}}}"),
        )
    }

    fn at(&self, seconds: u64) -> Instant {
        self.begin + Duration::from_secs(seconds)
    }

    fn cluster_at(&self, now: Instant) -> Arc<Cluster<NoPool>> {
        let view = ClientView {
            node: None,
            namespace: "default",
            labels: &self.client.labels,
        };
        let rule = self.routes.destination_rule(&view, &self.service);
        let rule = rule.expect("a rule");
        let subset = self.subset.map(|name| {
            let mut subsets = rule.subsets();
            subsets.find(|one| one.name == name).expect("a subset")
        });
        let policy: &Arc<UpstreamPolicy> = subset.map_or(rule.policy(80), |one| one.policy(80));
        let destination = Destination {
            client: &self.client,
            service: &self.service,
            port: 80,
            subset,
            policy,
            version: Version::default(),
        };
        self.clusters.get(&destination, now)
    }

    fn cluster(&self) -> Arc<Cluster<NoPool>> {
        self.cluster_at(self.begin)
    }

    fn choose_at(&mut self, choice: &Choice<'_>, now: Instant) -> Option<Arc<Member<NoPool>>> {
        self.cluster_at(now).choose(choice, now, &mut self.random)
    }

    fn choose(&mut self, choice: &Choice<'_>) -> Option<Arc<Member<NoPool>>> {
        self.choose_at(choice, self.begin)
    }

    fn counts_of(&mut self, choice: &Choice<'_>, now: Instant, choices: u32) -> Counts {
        let mut counts = HashMap::new();
        for _ in 0..choices {
            let member = self.choose_at(choice, now).expect("an endpoint");
            let ip = member.endpoint.address.expect("an address").to_string();
            *counts.entry(ip).or_default() += 1;
        }
        Counts(counts)
    }

    fn counts(&mut self, choices: u32) -> Counts {
        self.counts_of(&Choice::default(), self.begin, choices)
    }

    fn member(&self, index: usize) -> Arc<Member<NoPool>> {
        self.cluster().members()[index].0.clone()
    }

    /// Lets an endpoint fail until it is out of service, if it may be.
    fn fail(&self, index: usize, now: Instant) -> Option<Cause> {
        let member = self.member(index);
        let cluster = self.cluster_at(now);
        (0..5).find_map(|_| cluster.report(&member, Report::Status(503), || now))
    }
}

#[derive(Debug, PartialEq)]
struct Counts(HashMap<String, u32>);

impl Counts {
    fn of(&self, address: &str) -> u32 {
        self.0.get(address).copied().unwrap_or(0)
    }

    fn is_near(&self, address: &str, expected: u32) {
        let found = self.of(address);
        assert!(
            found.abs_diff(expected) <= expected / 5 + 20,
            "{address} was chosen {found} times, not {expected}: {self:?}"
        );
    }
}

const THREE: [(&str, u32, &str); 3] = [
    ("10.0.0.1", 1, ""),
    ("10.0.0.2", 2, ""),
    ("10.0.0.3", 1, ""),
];

#[test]
fn a_subset_bounds_the_choice() {
    let rule = "{host: reviews, subsets: [{name: v2, labels: {version: v2}}, {name: v9, labels: {version: v9}}]}";
    let mut mesh = Mesh::new(&THREE, rule);
    mesh.subset = Some("v2");
    assert_eq!(mesh.counts(50).of("10.0.0.2"), 50);
    mesh.subset = Some("v9");
    assert!(mesh.choose(&Choice::default()).is_none());
}

#[test]
fn round_robin_takes_turns() {
    let mut mesh = Mesh::policy("{loadBalancer: {simple: ROUND_ROBIN}}", &THREE);
    let counts = mesh.counts(400);
    let taken = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|address| counts.of(address));
    assert_eq!(taken, [100, 200, 100]);
}

#[test]
fn random_follows_weights() {
    let mut mesh = Mesh::policy("{loadBalancer: {simple: RANDOM}}", &THREE);
    let counts = mesh.counts(4000);
    counts.is_near("10.0.0.1", 1000);
    counts.is_near("10.0.0.2", 2000);
}

#[test]
fn the_less_loaded_of_two_is_chosen() {
    let endpoints = [("10.0.0.1", 1, ""), ("10.0.0.2", 1, "")];
    let mut mesh = Mesh::new(&endpoints, PLAIN);
    let busy = mesh.member(0);
    let active = mesh.cluster().begin(&busy).expect("no bound");
    assert_eq!(busy.host.in_flight(), 1);
    assert_eq!(mesh.counts(100).of("10.0.0.2"), 100);
    drop(active);
    assert_eq!((busy.host.in_flight(), busy.host.served()), (0, 1));
    mesh.counts(1000).is_near("10.0.0.1", 500);
}

#[test]
fn load_is_weighed() {
    let endpoints = [("10.0.0.1", 1, ""), ("10.0.0.2", 9, "")];
    let mut mesh = Mesh::new(&endpoints, PLAIN);
    let cluster = mesh.cluster();
    let heavy = mesh.member(1);
    let _active: Vec<_> = (0..3)
        .map(|_| cluster.begin(&heavy).expect("no bound"))
        .collect();
    assert_eq!(mesh.counts(50).of("10.0.0.2"), 50);
}

#[test]
fn endpoints_that_were_tried_are_avoided_while_there_are_others() {
    let mut mesh = Mesh::new(&THREE, PLAIN);
    let address = |mesh: &Mesh, i| mesh.member(i).host.address.clone();
    let two = [address(&mesh, 0), address(&mesh, 1)];
    let choice = Choice {
        avoid: &two,
        ..Choice::default()
    };
    let begin = mesh.begin;
    assert_eq!(mesh.counts_of(&choice, begin, 50).of("10.0.0.3"), 50);
    let all = [address(&mesh, 0), address(&mesh, 1), address(&mesh, 2)];
    let choice = Choice {
        avoid: &all,
        ..Choice::default()
    };
    assert!(mesh.choose(&choice).is_some());
}

#[test]
fn the_clients_address_family_comes_first() {
    let endpoints = [("10.0.0.1", 1, ""), ("fd00::1", 1, "")];
    let mut mesh = Mesh::new(&endpoints, PLAIN);
    let choice = Choice {
        like: Some([0u16; 8].into()),
        ..Choice::default()
    };
    let begin = mesh.begin;
    assert_eq!(mesh.counts_of(&choice, begin, 50).of("fd00::1"), 50);
    // A server that listens in the other family only is found at the second try.
    let tried = [mesh.member(1).host.address.clone()];
    let second = Choice {
        avoid: &tried,
        ..choice
    };
    assert_eq!(mesh.counts_of(&second, begin, 50).of("10.0.0.1"), 50);
    let mut mesh = Mesh::new(&endpoints[..1], PLAIN);
    assert!(mesh.choose(&choice).is_some());
}

#[test]
fn a_hash_always_leads_to_the_same_endpoint() {
    for table in [
        "ringHash: {minimumRingSize: 64}",
        "maglev: {tableSize: 101}",
    ] {
        let policy =
            format!("{{loadBalancer: {{consistentHash: {{httpHeaderName: x-user, {table}}}}}}}");
        let mut mesh = Mesh::policy(&policy, &THREE);
        let mut seen = HashMap::new();
        for round in 0..300u32 {
            let user = round % 30;
            let choice = Choice {
                hash: Some(hash_of(&user.to_le_bytes())),
                ..Choice::default()
            };
            let address = mesh
                .choose(&choice)
                .expect("an endpoint")
                .host
                .address
                .clone();
            let first = seen.entry(user).or_insert_with(|| address.clone());
            assert_eq!(*first, address, "{table}, user {user}");
        }
        let used: std::collections::HashSet<_> = seen.values().collect();
        assert_eq!(used.len(), 3, "{table}");
        // A request without the property goes anywhere.
        assert_eq!(mesh.counts(100).0.len(), 3);
    }
}

#[test]
fn an_ejected_endpoint_comes_back_at_a_sweep() {
    let policy =
        "{outlierDetection: {interval: 30s, baseEjectionTime: 60s, maxEjectionPercent: 50}}";
    let mut mesh = Mesh::policy(policy, &[("10.0.0.1", 1, ""), ("10.0.0.2", 1, "")]);
    mesh.cluster();
    let now = mesh.at(10);
    assert_eq!(mesh.fail(0, now), Some(Cause::Consecutive5xx(5)));
    let choice = Choice::default();
    assert_eq!(mesh.counts_of(&choice, now, 50).of("10.0.0.2"), 50);
    let ejection = mesh.cluster_at(now).members()[0].1.expect("out");
    assert_eq!((ejection.since, ejection.until), (now, mesh.at(90)));
    // The other may not go as well.
    assert_eq!(mesh.fail(1, now), None);
    assert_eq!(mesh.cluster().refused_ejections(), 1);
    let before = mesh.at(89);
    assert_eq!(mesh.counts_of(&choice, before, 50).of("10.0.0.1"), 0);
    let after = mesh.at(90);
    assert!(mesh.counts_of(&choice, after, 50).of("10.0.0.1") > 0);
}

#[test]
fn where_all_are_out_none_is_used_unless_min_health_says_so() {
    let out = "interval: 30s, maxEjectionPercent: 100";
    let endpoints = [("10.0.0.1", 1, ""), ("10.0.0.2", 1, "")];
    for (health, used) in [("", false), (", minHealthPercent: 50", true)] {
        let policy = format!("{{outlierDetection: {{{out}{health}}}}}");
        let mut mesh = Mesh::policy(&policy, &endpoints);
        let now = mesh.at(1);
        mesh.cluster();
        assert!(mesh.fail(0, now).is_some() && mesh.fail(1, now).is_some());
        assert_eq!(
            mesh.choose_at(&Choice::default(), now).is_some(),
            used,
            "{policy}"
        );
    }
}

const REGIONS: [(&str, u32, &str); 4] = [
    ("10.0.0.1", 1, "eu/west/a"),
    ("10.0.0.2", 1, "eu/east/a"),
    ("10.0.0.3", 1, "us/west/a"),
    ("10.0.0.4", 1, "as/east/a"),
];

#[test]
fn near_endpoints_come_first_where_failures_are_noticed() {
    let mut mesh = Mesh::policy("{outlierDetection: {maxEjectionPercent: 100}}", &REGIONS);
    assert_eq!(mesh.counts(50).of("10.0.0.1"), 50);
    let now = mesh.at(1);
    mesh.fail(0, now).expect("out");
    let choice = Choice::default();
    assert_eq!(mesh.counts_of(&choice, now, 50).of("10.0.0.2"), 50);
    mesh.fail(1, now).expect("out");
    assert_eq!(mesh.counts_of(&choice, now, 50).0.len(), 2);
    // Without outlier detection nobody would notice: all are equally near, as in Istio.
    let mut mesh = Mesh::new(&REGIONS, PLAIN);
    assert_eq!(mesh.counts(200).0.len(), 4);
}

#[test]
fn a_service_can_prefer_near_endpoints_itself() {
    let prefer = |mesh: &mut Mesh, distribution| {
        let plain = (*mesh.service).clone();
        mesh.service = Arc::new(Service {
            distribution,
            ..plain
        });
    };
    let mut mesh = Mesh::new(&REGIONS, PLAIN);
    prefer(&mut mesh, Distribution::SameZone);
    assert_eq!(mesh.counts(50).of("10.0.0.1"), 50);
    // A DestinationRule counts more.
    let off = "{loadBalancer: {localityLbSetting: {enabled: false}}}";
    let mut mesh = Mesh::policy(off, &REGIONS);
    prefer(&mut mesh, Distribution::SameZone);
    assert_eq!(mesh.counts(200).0.len(), 4);

    let here = [
        ("10.0.0.1", 1, "eu/west/a"),
        ("10.0.0.2", 1, "eu/west/a"),
        ("10.0.0.3", 1, "eu/west/b"),
    ];
    let on_node = |node: &str| {
        let workload = (*client("eu/west/a")).clone();
        Arc::new(Workload {
            node: Some(node.to_owned()),
            ..workload
        })
    };
    for (own, expected) in [("n2", 1), ("n9", 2)] {
        let mut mesh = Mesh::new(&here, PLAIN);
        let mut service = (*mesh.service).clone();
        for (number, endpoint) in service.endpoints.iter_mut().enumerate() {
            let plain = (**endpoint).clone();
            *endpoint = Arc::new(Endpoint {
                workload: Some(on_node(&format!("n{}", number + 1))),
                ..plain
            });
        }
        mesh.service = Arc::new(service);
        mesh.client = on_node(own);
        prefer(&mut mesh, Distribution::SameNode);
        let counts = mesh.counts(200);
        assert_eq!(counts.0.len(), expected, "{own}: {counts:?}");
        assert!(counts.of("10.0.0.2") > 0 && counts.of("10.0.0.3") == 0);
    }
}

#[test]
fn a_region_fails_over_to_the_one_that_is_named() {
    let policy = "{outlierDetection: {maxEjectionPercent: 100}, \
        loadBalancer: {localityLbSetting: {failover: [{from: eu, to: as}]}}}";
    let mut mesh = Mesh::policy(policy, &REGIONS);
    let now = mesh.at(1);
    mesh.cluster();
    for index in [0, 1] {
        mesh.fail(index, now).expect("out");
    }
    assert_eq!(
        mesh.counts_of(&Choice::default(), now, 50).of("10.0.0.4"),
        50
    );
}

#[test]
fn among_equals_by_label_a_named_region_comes_first() {
    let policy = "{outlierDetection: {maxEjectionPercent: 100}, loadBalancer: {localityLbSetting: \
        {failoverPriority: [tier=none], failover: [{from: eu, to: as}]}}}";
    let mut mesh = Mesh::policy(policy, &REGIONS);
    assert_eq!(mesh.counts(50).of("10.0.0.1"), 50);
    let now = mesh.at(1);
    for (index, next) in [(0, "10.0.0.2"), (1, "10.0.0.4"), (3, "10.0.0.3")] {
        mesh.fail(index, now).expect("out");
        let counts = mesh.counts_of(&Choice::default(), now, 50);
        assert_eq!(counts.of(next), 50, "{counts:?}");
    }
}

#[test]
fn labels_can_say_what_is_near() {
    let policy = "{outlierDetection: {maxEjectionPercent: 100}, loadBalancer: {localityLbSetting: \
        {failoverPriority: [version=v4, topology.kubernetes.io/region]}}}";
    let mut mesh = Mesh::policy(policy, &REGIONS);
    let now = mesh.at(1);
    assert_eq!(mesh.counts(50).of("10.0.0.4"), 50);
    mesh.fail(3, now).expect("out");
    // None of the others has the first label: the second does not count.
    assert_eq!(mesh.counts_of(&Choice::default(), now, 100).0.len(), 3);
}

#[test]
fn traffic_is_distributed_over_localities() {
    let policy = "{loadBalancer: {localityLbSetting: {distribute: [\
        {from: us/*, to: {us: 100}}, {from: eu/west/*, to: {'eu/west/*': 70, 'us/*': 30}}]}}}";
    let mut mesh = Mesh::policy(policy, &REGIONS);
    let counts = mesh.counts(2000);
    counts.is_near("10.0.0.1", 1400);
    counts.is_near("10.0.0.3", 600);
    assert_eq!(counts.0.len(), 2, "{counts:?}");
}

#[test]
fn a_new_endpoint_warms_up() {
    let policy = "{loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 100s}}}";
    let mut mesh = Mesh::policy(policy, &THREE[..1]);
    mesh.cluster();
    // The second appears long after the first.
    mesh.service = service(&[("10.0.0.1", 1, ""), ("10.0.0.2", 1, "")]);
    let mut share = |seconds| {
        let now = mesh.at(seconds);
        mesh.counts_of(&Choice::default(), now, 1000).of("10.0.0.2")
    };
    let (at_first, half, warm) = (share(1000), share(1050), share(1100));
    assert!((80..100).contains(&at_first), "{at_first}");
    assert!((320..345).contains(&half), "{half}");
    assert_eq!(warm, 500);
}

#[test]
fn what_is_known_of_an_endpoint_outlives_a_change() {
    let mut mesh = Mesh::policy("{outlierDetection: {maxEjectionPercent: 50}}", &THREE);
    let now = mesh.at(1);
    mesh.cluster();
    mesh.fail(0, now).expect("out");
    mesh.service = service(&THREE[..2]);
    let members = mesh.cluster_at(now).members();
    assert_eq!(members.len(), 2);
    assert!(members[0].1.is_some() && members[1].1.is_none());
}

#[test]
fn another_outlier_detection_or_none_begins_anew() {
    let out = "{outlierDetection: {baseEjectionTime: 3m, maxEjectionPercent: 100}}";
    for then in ["{}", "{outlierDetection: {maxEjectionPercent: 50}}"] {
        let mut mesh = Mesh::policy(out, &[("10.0.0.1", 1, ""), ("10.0.0.2", 1, "")]);
        mesh.cluster();
        let now = mesh.at(1);
        assert_eq!(mesh.fail(0, now), Some(Cause::Consecutive5xx(5)));
        mesh.fail(1, now).expect("out");
        assert!(mesh.choose_at(&Choice::default(), now).is_none());
        mesh.routes = Mesh::policy(then, &[]).routes;
        let counts = mesh.counts_of(&Choice::default(), now, 50);
        assert!(
            counts.of("10.0.0.1") > 0 && counts.of("10.0.0.2") > 0,
            "{then}"
        );
        let cluster = mesh.cluster_at(now);
        assert!(
            cluster
                .members()
                .iter()
                .all(|(_, ejection)| ejection.is_none())
        );
    }
}

#[test]
fn circuit_breakers_count_what_is_open() {
    let policy = "{connectionPool: {tcp: {maxConnections: 1}, \
        http: {http1MaxPendingRequests: 2, http2MaxRequests: 1, maxRetries: 1}}}";
    let mesh = Mesh::policy(policy, &THREE);
    let (cluster, member) = (mesh.cluster(), mesh.member(0));
    let slot = cluster.slot();
    assert!(slot.is_some() && cluster.slot().is_none());
    drop(slot);
    assert!(cluster.slot().is_some());
    let _pending = [cluster.pend(), cluster.pend()];
    assert!(cluster.pend().is_err());
    let _active = cluster.begin(&member).expect("the first");
    assert!(cluster.begin(&member).is_err());
    let _retry = cluster.retry().expect("the first");
    assert!(cluster.retry().is_err());
    let refused = |gauge: &Gauge| gauge.refused();
    let gauges = &cluster.gauges;
    assert_eq!(
        [
            &gauges.connections,
            &gauges.pending,
            &gauges.requests,
            &gauges.retries
        ]
        .map(refused),
        [1, 1, 1, 1]
    );
}

#[test]
fn a_retry_budget_is_a_share_of_what_is_active() {
    let policy = "{retryBudget: {percent: {value: 50}, minRetryConcurrency: 1}}";
    let mesh = Mesh::policy(policy, &THREE);
    let (cluster, member) = (mesh.cluster(), mesh.member(0));
    let first = cluster.retry().expect("the least that is allowed");
    assert!(cluster.retry().is_err());
    let _active: Vec<_> = (0..4)
        .map(|_| cluster.begin(&member).expect("no bound"))
        .collect();
    let second = cluster.retry().expect("2 of 4");
    assert!(cluster.retry().is_err());
    drop((first, second));
}

#[test]
fn a_retry_budget_can_be_a_share_of_what_began_within_a_time() {
    let policy =
        "{retryBudget: {percent: {value: 50}, minRetryConcurrency: 1, budgetInterval: 10s}}";
    let mesh = Mesh::policy(policy, &THREE);
    for second in 0..4 {
        mesh.cluster_at(mesh.at(second));
    }
    assert_eq!(mesh.cluster_at(mesh.at(5)).max_retries(), Some(2));
    let cluster = mesh.cluster_at(mesh.at(30));
    assert_eq!(cluster.max_retries(), Some(1));
}

#[test]
fn retries_can_leave_a_locality_whose_endpoints_fail() {
    let policy = "{outlierDetection: {maxEjectionPercent: 100}}";
    let mut mesh = Mesh::policy(policy, &REGIONS);
    let begin = mesh.begin;
    let near = mesh.counts(50);
    let address = |ip: &str| {
        (0..4)
            .map(|index| mesh.member(index).host.address.clone())
            .find(|address| address.to_string().starts_with(ip))
            .expect("an endpoint")
    };
    let [first, second] = ["10.0.0.1:", "10.0.0.2:"].map(address);
    assert!(near.of("10.0.0.1") > 0, "{near:?}");
    let (once, twice) = ([first.clone()], [first, second]);
    let choice = |avoid, remote| Choice {
        avoid,
        remote,
        ..Choice::default()
    };
    // The first of each pair of tries may repeat the locality; then another is next.
    for (avoid, remote, expected) in [
        (&once[..], false, "10.0.0.1"),
        (&once, true, "10.0.0.1"),
        (&twice, false, "10.0.0.1"),
        (&twice, true, "10.0.0.3"),
    ] {
        let counts = mesh.counts_of(&choice(avoid, remote), begin, 50);
        assert!(counts.of(expected) > 0, "{avoid:?} {remote}: {counts:?}");
        if expected != "10.0.0.1" {
            assert_eq!(counts.0.get("10.0.0.1"), None, "{counts:?}");
        }
    }
}

#[tokio::test]
async fn whoever_waits_gets_the_next_place() {
    let mesh = Mesh::policy("{connectionPool: {tcp: {maxConnections: 1}}}", &THREE);
    let cluster = mesh.cluster();
    let slot = cluster.slot().expect("a place");
    let waiter = |cluster: Arc<Cluster<NoPool>>| {
        tokio::spawn(async move {
            let slot = cluster.wait_for(|| cluster.slot()).await;
            drop(slot);
        })
    };
    let waiters: Vec<_> = (0..10).map(|_| waiter(Arc::clone(&cluster))).collect();
    // One of them gives up while it waits.
    let gone = waiter(Arc::clone(&cluster));
    tokio::task::yield_now().await;
    assert!(cluster.has_queue());
    gone.abort();
    drop(slot);
    for waiter in waiters {
        let waited = tokio::time::timeout(Duration::from_secs(5), waiter).await;
        waited.expect("a place in time").expect("no panic");
    }
    assert_eq!(cluster.gauges.connections.now(), 0);
}

#[test]
fn the_addresses_of_a_workload_are_one_endpoint() {
    let policy = "{outlierDetection: {maxEjectionPercent: 50}}";
    let endpoints = [("10.0.0.1", 1, ""), ("10.0.0.2", 1, "")];
    let mut mesh = Mesh::policy(policy, &endpoints);
    let mut service = Service::clone(&mesh.service);
    let of_workload = |endpoint: &Arc<Endpoint>| {
        Arc::new(Endpoint {
            unhealthy: None,
            workload: Some(client("")),
            ..Endpoint::clone(endpoint)
        })
    };
    service.endpoints = service.endpoints.iter().map(of_workload).collect();
    mesh.service = Arc::new(service);
    let now = mesh.at(1);
    mesh.cluster();
    // One endpoint with two addresses: half of it cannot be out.
    assert_eq!(mesh.fail(0, now), None);
    assert_eq!(mesh.cluster().refused_ejections(), 1);
}
