//! An agent with something of everything, for the tests of the control socket and of `meshctl`.

use super::api::*;
use super::authz::*;
use super::metrics::Traffic;

/// An [`Agent`] that shows the samples of this module.
pub struct SampleAgent;

impl Agent for SampleAgent {
    fn version(&self) -> VersionView {
        version()
    }
    fn workloads(&self) -> Vec<WorkloadView> {
        workloads()
    }
    fn services(&self) -> Vec<ServiceView> {
        services()
    }
    fn endpoints(&self) -> Vec<ClusterView> {
        endpoints()
    }
    fn inbound(&self) -> Vec<InboundView> {
        inbound()
    }
    fn route(&self, question: &RouteQuestion) -> Result<RouteView, String> {
        if question.workload != "sleep" {
            return Err(format!("no workload {}", question.workload));
        }
        Ok(route())
    }
    fn flows(&self) -> Vec<FlowView> {
        flows()
    }
    fn tls_check(
        &self,
        workload: &str,
        service: Option<&str>,
    ) -> Result<Vec<TlsCheckRow>, TlsCheckError> {
        if !workload.starts_with("sleep") {
            return Err(TlsCheckError::NoWorkload {
                asked: workload.to_owned(),
                known: "sleep.default".to_owned(),
            });
        }
        let mut rows = tls_check();
        rows.retain(|row| service.is_none_or(|service| row.host.starts_with(service)));
        for row in rows.iter_mut().filter(|row| !row.host.contains('|')) {
            row.observed = Some(Observed::default());
        }
        Ok(rows)
    }
    fn checks(&self) -> Vec<CheckItem> {
        checks()
    }
    fn kernel_log(&self) -> KernelLogView {
        let level = "off".to_owned();
        KernelLogView { level }
    }
    fn set_kernel_log(&self, level: &str) -> Result<KernelLogView, String> {
        let level = level.parse::<crate::datapath::LogLevel>()?.to_string();
        Ok(KernelLogView { level })
    }
    fn config(&self) -> ConfigView {
        config()
    }
    fn counters(&self) -> CountersView {
        CountersView {
            connections: 12,
            flows_dropped: 0,
            events_dropped: 3,
            denied: 4,
            clients_refused: 5,
            tunnels_reset: 6,
            flows_opened: 20,
            flows_closed: 8,
            flows_evicted: 0,
            log_lines: 40,
            log_lines_dropped: 2,
            configurations_refused: 1,
        }
    }
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
    fn certificates(&self) -> Vec<CertificateView> {
        certificates()
    }
    fn authz_check(&self, _question: &AuthzQuestion) -> Result<AuthzAnswer, String> {
        Ok(authz_answer())
    }
    fn authz_report(&self) -> Vec<AuthzReport> {
        authz_reports()
    }
    fn plaintext(&self, _minutes: u32) -> Vec<PlaintextView> {
        plaintext()
    }

    fn answered(&self) {}
}

pub fn plaintext() -> Vec<PlaintextView> {
    let of = |namespace: &str, client: &str, mode: &str, authn_policy: &str| PlaintextView {
        workload: "reviews-v1".to_owned(),
        namespace: namespace.to_owned(),
        labels: [("app".to_owned(), "reviews".to_owned())].into(),
        port: 9080,
        mode: mode.to_owned(),
        authn_policy: authn_policy.to_owned(),
        client: client.to_owned(),
        connections: 12,
        last_seen_s: 65,
    };
    vec![
        of("default", "sleep.legacy", "PERMISSIVE", "-"),
        of("shop", "10.0.3.4", "DISABLE", "default/shop"),
    ]
}

pub fn authz_answer() -> AuthzAnswer {
    let opinion = |policy: &str, action: &str, dry_run, rule, depends| AuthzOpinion {
        policy: policy.to_owned(),
        action: action.to_owned(),
        dry_run,
        rule,
        depends,
    };
    AuthzAnswer {
        workload: "reviews-v1.default".to_owned(),
        port: 9080,
        source: Some("spiffe://cluster.local/ns/default/sa/sleep".to_owned()),
        source_ip: "10.0.1.2".parse().unwrap(),
        verdict: AuthzVerdict::Denied,
        reason: "explicitly denied by default/no-sleep, rule 0".to_owned(),
        policies: vec![
            opinion("default/no-sleep", "DENY", false, Some(0), false),
            opinion("istio-system/all", "DENY", true, None, false),
            opinion("default/get", "ALLOW", false, Some(1), true),
        ],
    }
}

pub fn authz_reports() -> Vec<AuthzReport> {
    let report = |event, source: &str, by: &str, count, last_seen_s| AuthzReport {
        event,
        workload: "reviews-v1.default".to_owned(),
        port: 9080,
        source: source.to_owned(),
        by: by.to_owned(),
        count,
        last_seen_s,
    };
    let sleep = "spiffe://cluster.local/ns/default/sa/sleep";
    vec![
        report(
            AuthzEvent::Denied,
            "10.0.9.9",
            "allow policies exist, but none allowed",
            3,
            5,
        ),
        report(
            AuthzEvent::WouldBeDenied,
            sleep,
            "explicitly denied by default/try, rule 0",
            120,
            0,
        ),
        report(AuthzEvent::Audited, sleep, "default/watch", 1, 3700),
    ]
}

pub fn version() -> VersionView {
    VersionView {
        version: "0.1.0".to_owned(),
        node: "n1".to_owned(),
        pid: 42,
        kernel: "6.18.0".to_owned(),
        uptime_s: 3725,
    }
}

pub fn workloads() -> Vec<WorkloadView> {
    let workload =
        |name: &str, namespace: &str, address: &str, placement: &str, state| WorkloadView {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            node: "n1".to_owned(),
            addresses: vec![address.parse().unwrap()],
            placement: placement.to_owned(),
            identity: format!("spiffe://cluster.local/ns/{namespace}/sa/{name}"),
            protocol: TunnelProtocol::Hbone,
            state,
        };
    let mut remote = workload(
        "reviews-v2",
        "default",
        "10.0.2.3",
        "",
        WorkloadState::Remote,
    );
    remote.node = "n2".to_owned();
    remote.addresses.push("fd00::3".parse().unwrap());
    vec![
        workload(
            "sleep",
            "default",
            "10.0.1.2",
            "netns/sleep",
            WorkloadState::Enrolled,
        ),
        remote,
        workload(
            "late",
            "other",
            "10.0.1.4",
            "pid/4711",
            WorkloadState::Waiting("no process 4711".to_owned()),
        ),
        workload(
            "broken",
            "other",
            "10.0.1.5",
            "netns/broken",
            WorkloadState::Failed("cannot attach sk_lookup: permission denied".to_owned()),
        ),
    ]
}

pub fn route() -> RouteView {
    let rule = |field: &str, name: &str, mismatch: Option<&str>| RuleView {
        field: field.to_owned(),
        name: name.to_owned(),
        mismatch: mismatch.map(str::to_owned),
    };
    let destination = |subset: &str, percent, problem: Option<&str>, mirror| RouteDestinationView {
        host: "reviews.default.svc.cluster.local".to_owned(),
        subset: Some(subset.to_owned()),
        port: Some(80),
        percent,
        destination_rule: Some("reviews/default".to_owned()),
        endpoints: usize::from(problem.is_none()),
        problem: problem.map(str::to_owned),
        mirror,
    };
    RouteView {
        service: "reviews.default.svc.cluster.local".to_owned(),
        port: 80,
        rules_of: Some("VirtualService default/reviews".to_owned()),
        rules: vec![
            rule("http[0]", "jason", Some("header end-user is missing")),
            rule("http[1]", "", None),
        ],
        outcome: "forwarded, timeout 3s, up to 2 retries".to_owned(),
        destinations: vec![
            destination("v1", 90.0, None, false),
            destination("v2", 10.0, Some("503 (UH): it has no endpoint"), false),
            destination("v3", 5.0, None, true),
        ],
    }
}

fn gauge(now: u32, limit: Option<u32>, refused: u64) -> GaugeView {
    GaugeView {
        now,
        limit,
        refused,
    }
}

/// Bounds of applications.
pub fn inbound() -> Vec<InboundView> {
    vec![
        InboundView {
            workload: "reviews-v2.default".to_owned(),
            port: 8080,
            connections: gauge(2, Some(2), 0),
            pending: gauge(1, Some(1), 3),
            requests: gauge(2, None, 0),
        },
        InboundView {
            workload: "ratings.default".to_owned(),
            port: 5432,
            connections: gauge(0, Some(10), 4),
            pending: gauge(0, None, 0),
            requests: gauge(0, Some(1), 1),
        },
    ]
}

pub fn endpoints() -> Vec<ClusterView> {
    let endpoint = |address: &str, workload: &str, active, total, ejected: Option<EjectionView>| {
        ClusterEndpointView {
            address: address.to_owned(),
            workload: Some(workload.to_owned()),
            active,
            total,
            unhealthy: None,
            ejections: if ejected.is_some() { 2 } else { 0 },
            ejected,
        }
    };
    let out = EjectionView {
        reason: "5 errors in a row".to_owned(),
        since_s: 12,
        until_s: 58,
        count: 2,
    };
    vec![ClusterView {
        client: "sleep.default".to_owned(),
        service: "reviews.default.svc.cluster.local".to_owned(),
        port: 80,
        subset: Some("v2".to_owned()),
        connections: gauge(100, Some(100), 7),
        pending: gauge(50, Some(50), 3),
        requests: gauge(100, None, 0),
        retries: gauge(0, None, 0),
        refused_ejections: 4,
        routes: vec![RouteGaugesView {
            route: "default/reviews/slow".to_owned(),
            requests: gauge(2, Some(2), 5),
            pending: gauge(0, None, 0),
            retries: gauge(0, None, 0),
            open_s: Some(12),
            broken: 3,
        }],
        endpoints: vec![
            endpoint("10.0.2.3:8080", "reviews-v2.default", 100, 4711, None),
            endpoint("10.0.2.4:8080", "reviews-v3.default", 0, 15, Some(out)),
        ],
    }]
}

pub fn services() -> Vec<ServiceView> {
    let endpoint = |address: &str, workload: Option<&str>, healthy| EndpointView {
        address: address.to_owned(),
        workload: workload.map(str::to_owned),
        healthy,
    };
    let port = |number, protocol: &str| PortView {
        number,
        protocol: protocol.to_owned(),
    };
    vec![
        ServiceView {
            host: "reviews.default.svc.cluster.local".to_owned(),
            vips: vec!["10.96.0.1".parse().unwrap(), "fd00:96::1".parse().unwrap()],
            ports: vec![port(80, "http"), port(9080, "grpc")],
            endpoints: vec![
                endpoint("10.0.2.3:8080", Some("reviews-v2.default"), true),
                endpoint("10.0.2.4:8080", Some("reviews-v3.default"), false),
            ],
        },
        ServiceView {
            host: "db.data.svc.cluster.local".to_owned(),
            vips: Vec::new(),
            ports: vec![port(5432, "tcp")],
            endpoints: Vec::new(),
        },
    ]
}

pub fn flows() -> Vec<FlowView> {
    let open = FlowView {
        id: 7001,
        workload: "sleep.default".to_owned(),
        direction: Direction::Outbound,
        source: "10.0.1.2:40312".parse().unwrap(),
        destination: "10.96.0.1:80".parse().unwrap(),
        endpoint: Some("10.0.2.3:8080".parse().unwrap()),
        service: Some("reviews.default.svc.cluster.local".to_owned()),
        protocol: "http".to_owned(),
        security: Security::MutualTls,
        source_identity: Some("spiffe://cluster.local/ns/default/sa/sleep".to_owned()),
        destination_identity: Some("spiffe://cluster.local/ns/default/sa/reviews".to_owned()),
        bytes_sent: 1_234,
        bytes_received: 5_678_901,
        short_circuit_sent: 1_000,
        short_circuit_received: 0,
        segments_sent: 12,
        segments_received: 3_456,
        rtt_us: 421,
        min_rtt_us: Some(98),
        retransmits: 2,
        connect_us: Some(310),
        age_ms: 65_400,
        state: FlowState::Open,
        verdict: "proxy".to_owned(),
    };
    let closed = FlowView {
        id: 7002,
        workload: "ratings.default".to_owned(),
        direction: Direction::Inbound,
        source: "[fd00::9]:5000".parse().unwrap(),
        destination: "[fd00::4]:9080".parse().unwrap(),
        endpoint: None,
        service: None,
        protocol: "-".to_owned(),
        security: Security::Unknown,
        source_identity: None,
        destination_identity: None,
        bytes_sent: 0,
        bytes_received: 0,
        short_circuit_sent: 0,
        short_circuit_received: 0,
        segments_sent: 1,
        segments_received: 1,
        rtt_us: 0,
        min_rtt_us: None,
        retransmits: 0,
        connect_us: None,
        age_ms: 12,
        state: FlowState::Closed("reset by the agent: plaintext under STRICT".to_owned()),
        verdict: "deny".to_owned(),
    };
    vec![open, closed]
}

pub fn tls_check() -> Vec<TlsCheckRow> {
    let row =
        |host: &str, status, server: &str, client: &str, policy: &str, rule: &str| TlsCheckRow {
            host: host.to_owned(),
            port: 8080,
            status,
            server: server.to_owned(),
            client: client.to_owned(),
            authn_policy: policy.to_owned(),
            destination_rule: rule.to_owned(),
            auto_mtls: rule == "-",
            observed: None,
        };
    vec![
        row(
            "legacy.default.svc.cluster.local",
            TlsCheckStatus::Conflict,
            "mTLS",
            "HTTP",
            "default/",
            "legacy/default",
        ),
        row(
            "ratings.default.svc.cluster.local",
            TlsCheckStatus::Permissive,
            "mTLS/HTTP",
            "mTLS",
            "-",
            "-",
        ),
        row(
            "reviews.default.svc.cluster.local",
            TlsCheckStatus::Strict,
            "mTLS",
            "mTLS",
            "default/",
            "reviews/default",
        ),
        row(
            "reviews.default.svc.cluster.local|v1",
            TlsCheckStatus::Strict,
            "mTLS",
            "mTLS",
            "default/",
            "reviews/default",
        ),
    ]
}

pub fn checks() -> Vec<CheckItem> {
    vec![
        CheckItem::ok(
            "data path",
            "programs are attached",
            "connect4 connect6 sk_lookup",
        ),
        CheckItem::warning(
            "data path",
            "maps have room",
            "flows: 60000 of 65536",
            "start the agent with a larger --max-flows",
        ),
        CheckItem::failed(
            "workloads",
            "workloads are enrolled",
            "3 enrolled, 0 waiting, 1 failed",
            "`meshctl workloads` gives the reason for each",
        ),
    ]
}

pub fn config() -> ConfigView {
    ConfigView {
        source: "/etc/undermesh".to_owned(),
        generation: 7,
        root_namespace: "istio-system".to_owned(),
        resources: 12,
        warnings: vec![FindingView {
            file: "reviews.yaml".to_owned(),
            document: 2,
            object: "VirtualService default/reviews".to_owned(),
            field: "spec.http[0].mirror".to_owned(),
            reason: "is not applied".to_owned(),
            code: None,
        }],
        refused: Some(RefusedView {
            age_s: 65,
            errors: vec![FindingView {
                file: "broken.yaml".to_owned(),
                document: 1,
                object: "Service default/x".to_owned(),
                field: String::new(),
                reason: "has no spec".to_owned(),
                code: None,
            }],
        }),
    }
}

pub fn certificates() -> Vec<CertificateView> {
    vec![
        CertificateView {
            identity: "O=cluster.local".to_owned(),
            kind: CertificateKind::Root,
            serial: "01".to_owned(),
            not_before: 1_700_000_000,
            not_after: 2_015_360_000,
            workloads: Vec::new(),
            chain: Vec::new(),
        },
        CertificateView {
            identity: "spiffe://cluster.local/ns/default/sa/sleep".to_owned(),
            kind: CertificateKind::Leaf,
            serial: "5f3a".to_owned(),
            not_before: 1_760_000_000,
            not_after: 1_760_086_400,
            workloads: vec!["sleep.default".to_owned()],
            chain: vec!["O=cluster.local".to_owned()],
        },
    ]
}
