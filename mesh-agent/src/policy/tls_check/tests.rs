use super::*;
use crate::registry::Tunnel;
use crate::registry::samples::{self, service, workload};

fn one_row(
    modes: &[(MtlsMode, Option<&'static str>)],
    tls: Option<DestinationTls>,
    client_tunnel: Tunnel,
) -> TlsCheckRow {
    let mut sleep = workload("sleep", "default", &["10.0.0.1"]);
    sleep.tunnel = client_tunnel;
    let mut servers = Vec::new();
    for number in 0..modes.len() {
        servers.push(Arc::new(workload(
            &format!("reviews-{number}"),
            "default",
            &[&format!("10.0.1.{number}")],
        )));
    }
    let reviews = service(
        "reviews",
        "default",
        &["10.96.0.1"],
        &[(8080, 80)],
        &servers,
    );
    let side = ServerSide::of(
        &reviews,
        &reviews.ports[0],
        "istio-system",
        |server, port| {
            assert_eq!(port, 80, "the workload's port decides, not the service's");
            let number: usize = server
                .name
                .name
                .trim_start_matches("reviews-")
                .parse()
                .unwrap();
            modes[number]
        },
    );
    let rule = tls.map(|tls| DestinationRule {
        name: "reviews/default".to_owned(),
        tls,
        subsets: Vec::new(),
    });
    rows_of(&sleep, &reviews, &reviews.ports[0], &side, rule.as_ref()).remove(0)
}

const MESH: Option<&str> = Some("default/istio-system");
const STRICT: (MtlsMode, Option<&str>) = (MtlsMode::Strict, MESH);
const PERMISSIVE: (MtlsMode, Option<&str>) = (MtlsMode::Permissive, None);
const DISABLE: (MtlsMode, Option<&str>) = (MtlsMode::Disable, Some("off/default"));

fn cells(row: &TlsCheckRow) -> (TlsCheckStatus, &str, &str, &str, &str) {
    (
        row.status,
        &row.server,
        &row.client,
        &row.authn_policy,
        &row.destination_rule,
    )
}

#[test]
fn the_guides_row() {
    let row = one_row(&[STRICT], Some(DestinationTls::Auto), Tunnel::Hbone);
    assert_eq!(row.host, "reviews.default.svc.cluster.local");
    assert_eq!(row.port, 8080);
    assert_eq!(
        cells(&row),
        (
            TlsCheckStatus::Strict,
            "mTLS",
            "mTLS",
            "default/",
            "reviews/default"
        )
    );
    assert!(row.auto_mtls);
}

#[test]
fn modes_against_rules() {
    use DestinationTls::*;
    use TlsCheckStatus as S;
    for (modes, tls, status, server, client) in [
        (&[PERMISSIVE][..], None, S::Permissive, "mTLS/HTTP", "mTLS"),
        (
            &[PERMISSIVE],
            Some(Disable),
            S::Permissive,
            "mTLS/HTTP",
            "HTTP",
        ),
        (&[STRICT], Some(Disable), S::Conflict, "mTLS", "HTTP"),
        (&[STRICT], Some(Originate), S::Conflict, "mTLS", "TLS"),
        (&[STRICT], Some(IstioMutual), S::Strict, "mTLS", "mTLS"),
        (&[DISABLE], Some(IstioMutual), S::Conflict, "HTTP", "mTLS"),
        (&[DISABLE], None, S::Disable, "HTTP", "HTTP"),
        (&[STRICT, DISABLE], None, S::Permissive, "mTLS/HTTP", "mTLS"),
        (
            &[STRICT, DISABLE],
            Some(Disable),
            S::Conflict,
            "mTLS/HTTP",
            "HTTP",
        ),
        (
            &[STRICT, DISABLE],
            Some(IstioMutual),
            S::Conflict,
            "mTLS/HTTP",
            "mTLS",
        ),
        (&[], None, S::Unknown, "-", "HTTP"),
    ] {
        let row = one_row(modes, tls, Tunnel::Hbone);
        assert_eq!(
            (row.status, row.server.as_str(), row.client.as_str()),
            (status, server, client),
            "{modes:?} {tls:?}"
        );
    }
}

#[test]
fn a_client_outside_the_mesh_conflicts_with_strict() {
    let row = one_row(&[STRICT], Some(DestinationTls::IstioMutual), Tunnel::None);
    assert_eq!(row.status, TlsCheckStatus::Conflict);
    assert_eq!(row.client, "HTTP");
    let row = one_row(&[PERMISSIVE], None, Tunnel::None);
    assert_eq!(row.status, TlsCheckStatus::Permissive);
}

#[test]
fn differing_policies_are_all_named() {
    let row = one_row(&[STRICT, DISABLE], None, Tunnel::Hbone);
    assert_eq!(row.authn_policy, "default/,off/default");
}

#[test]
fn rows_are_sorted_and_subsets_follow_their_host() {
    let registry = samples::bookinfo();
    let peer_authentication = PeerAuthentications::default();
    let of = TlsCheck {
        registry: &registry,
        peer_authentication: &peer_authentication,
        root_namespace: "istio-system",
    };
    let rule_of = |service: &Service, _| {
        (service.name == "reviews").then(|| DestinationRule {
            name: "reviews/default".to_owned(),
            tls: DestinationTls::Auto,
            subsets: vec![
                ("v1".to_owned(), DestinationTls::Auto),
                ("v2".to_owned(), DestinationTls::Disable),
            ],
        })
    };
    let hosts = |rows: Vec<TlsCheckRow>| -> Vec<String> {
        rows.iter()
            .map(|row| format!("{}:{}", row.host, row.port))
            .collect()
    };
    let all = hosts(tls_check(&of, "sleep", None, rule_of).unwrap());
    let mut sorted = all.clone();
    sorted.sort();
    assert_eq!(all, sorted);
    for form in [
        "reviews",
        "reviews.default",
        "REVIEWS.default.svc.cluster.local.",
    ] {
        assert_eq!(
            hosts(tls_check(&of, "sleep.default", Some(form), rule_of).unwrap()),
            [
                "reviews.default.svc.cluster.local:80",
                "reviews.default.svc.cluster.local|v1:80",
                "reviews.default.svc.cluster.local|v2:80",
            ],
            "{form}"
        );
    }
}

#[test]
fn unknown_names_are_errors_that_help() {
    let registry = samples::bookinfo();
    let peer_authentication = PeerAuthentications::default();
    let of = TlsCheck {
        registry: &registry,
        peer_authentication: &peer_authentication,
        root_namespace: "istio-system",
    };
    let error = tls_check(&of, "slep", None, |_, _| None).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("no workload slep.default; known are: sleep.default")
    );
    let error = tls_check(&of, "sleep", Some("nope"), |_, _| None).unwrap_err();
    assert_eq!(error, TlsCheckError::NoService("nope".to_owned()));
}
