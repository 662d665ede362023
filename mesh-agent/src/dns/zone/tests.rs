use super::*;
use crate::registry::samples;

const V4: [&str; 1] = ["10.96.0.1"];
const V6: [&str; 1] = ["fd00:96::1"];

fn ask_from(namespace: &str, rotation: usize, name: &str, record_type: RecordType) -> Answer {
    let registry = samples::bookinfo();
    let zone = Zone {
        sees: &|_| true,
        registry: &registry,
        namespace,
        rotation,
    };
    zone.answer(&Name::from_ascii(name).unwrap(), record_type)
}

fn ask(name: &str, record_type: RecordType) -> Answer {
    ask_from("default", 0, name, record_type)
}

fn addresses(list: &[&str]) -> Answer {
    let records = list.iter().map(|text| match text.parse().unwrap() {
        IpAddr::V4(address) => RData::A(address.into()),
        IpAddr::V6(address) => RData::AAAA(address.into()),
    });
    Answer::Records(records.collect())
}

#[test]
fn every_form_of_a_services_name() {
    for name in [
        "reviews.",
        "reviews.default.",
        "reviews.default.svc.",
        "reviews.default.svc.cluster.local.",
        "ReViEwS.Default.SVC.cluster.LOCAL.",
    ] {
        assert_eq!(ask(name, RecordType::A), addresses(&V4), "{name}");
        assert_eq!(ask(name, RecordType::AAAA), addresses(&V6), "{name}");
        assert_eq!(ask(name, RecordType::HTTPS), Answer::NoData, "{name}");
        assert_eq!(ask(name, RecordType::MX), Answer::NoData, "{name}");
    }
}

#[test]
fn a_bare_name_belongs_to_the_clients_namespace() {
    assert_eq!(
        ask_from("other", 0, "reviews.", RecordType::A),
        Answer::NotOurs
    );
    assert_eq!(
        ask_from("other", 0, "ratings.", RecordType::A),
        addresses(&["10.96.0.2"])
    );
    assert_eq!(
        ask_from("other", 0, "reviews.default.", RecordType::A),
        addresses(&V4)
    );
    // One family only: the other is empty, not foreign.
    assert_eq!(
        ask_from("other", 0, "ratings.", RecordType::AAAA),
        Answer::NoData
    );
}

#[test]
fn headless_services_answer_their_endpoints_in_turn() {
    let db = |rotation, record_type| {
        ask_from(
            "default",
            rotation,
            "db.data.svc.cluster.local.",
            record_type,
        )
    };
    assert_eq!(db(0, RecordType::A), addresses(&["10.0.0.4", "10.0.0.5"]));
    assert_eq!(db(1, RecordType::A), addresses(&["10.0.0.5", "10.0.0.4"]));
    assert_eq!(db(0, RecordType::AAAA), addresses(&["fd00::4", "fd00::5"]));
    assert_eq!(
        ask("db-0.db.data.svc.cluster.local.", RecordType::A),
        addresses(&["10.0.0.4"])
    );
    assert_eq!(
        ask("db-0.db.data.", RecordType::A),
        addresses(&["10.0.0.4"])
    );
    assert_eq!(
        ask("10-0-0-5.db.data.svc.cluster.local.", RecordType::A),
        addresses(&["10.0.0.5"])
    );
    assert_eq!(
        ask("fd00--5.db.data.svc.cluster.local.", RecordType::AAAA),
        addresses(&["fd00::5"])
    );
}

#[test]
fn the_domain_is_ours_alone() {
    for name in [
        "nope.default.svc.cluster.local.",
        "www.example.com.default.svc.cluster.local.",
        "nope.svc.cluster.local.",
        "a.reviews.default.svc.cluster.local.",
        "_http._tcp.reviews.default.svc.cluster.local.",
    ] {
        assert_eq!(ask(name, RecordType::A), Answer::NoSuchName, "{name}");
    }
    for name in ["svc.cluster.local.", "default.svc.cluster.local."] {
        assert_eq!(ask(name, RecordType::A), Answer::NoData, "{name}");
    }
    for name in [
        ".",
        "cluster.local.",
        "mysvc.cluster.local.",
        "example.com.",
        "nope.",
        "nope.default.",
        "default.svc.",
        "svc.",
    ] {
        assert_eq!(ask(name, RecordType::A), Answer::NotOurs, "{name}");
    }
}

#[test]
fn hosts_of_service_entries() {
    assert_eq!(
        ask("API.example.com.", RecordType::A),
        addresses(&["240.240.0.1"])
    );
    assert_eq!(ask("api.example.com.", RecordType::AAAA), Answer::NoData);
    for name in ["a.wild.example.com.", "a.b.wild.example.com."] {
        assert_eq!(
            ask(name, RecordType::A),
            addresses(&["240.240.0.2"]),
            "{name}"
        );
    }
    assert_eq!(ask("wild.example.com.", RecordType::A), Answer::NotOurs);
    // No address of the mesh: the world's is right.
    assert_eq!(ask("plain.example.org.", RecordType::A), Answer::NotOurs);
}

#[test]
fn srv_records_name_port_and_target() {
    let srv = |name: &str| match ask(name, RecordType::SRV) {
        Answer::Records(records) => records
            .iter()
            .map(|record| match record {
                RData::SRV(srv) => format!("{} {}", srv.port, srv.target),
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        srv("_http-80._tcp.reviews.default.svc.cluster.local."),
        ["80 reviews.default.svc.cluster.local."]
    );
    let headless = srv("_http-5432._tcp.db.data.svc.cluster.local.");
    assert_eq!(headless.len(), 4);
    assert_eq!(headless[0], "5432 10-0-0-4.db.data.svc.cluster.local.");
    assert_eq!(
        ask(
            "_http-80._udp.reviews.default.svc.cluster.local.",
            RecordType::SRV
        ),
        Answer::NoSuchName
    );
    assert_eq!(
        ask(
            "_http-80._tcp.reviews.default.svc.cluster.local.",
            RecordType::A
        ),
        Answer::NoData
    );
}

#[test]
fn addresses_of_services_have_names() {
    let name = Name::from_ascii("reviews.default.svc.cluster.local.").unwrap();
    for reverse in [
        "1.0.96.10.in-addr.arpa.",
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.",
    ] {
        assert_eq!(
            ask(reverse, RecordType::PTR),
            Answer::Records(vec![RData::PTR(PTR(name.clone()))])
        );
    }
    for reverse in [
        "96.10.in-addr.arpa.",
        "2.0.240.240.in-addr.arpa.",
        "reviews.",
    ] {
        assert_eq!(ask(reverse, RecordType::PTR), Answer::NotOurs, "{reverse}");
    }
}
