use std::collections::HashMap;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::registry::{Location, Protocol, Resolution, ServicePort};

fn service(endpoints: &[(&str, u32, &str)]) -> Service {
    Service {
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
        endpoints: endpoints
            .iter()
            .map(|(address, weight, version)| {
                Arc::new(Endpoint {
                    address: Some(address.parse().expect("an address")),
                    host: None,
                    ports: [(80, 8080)].into(),
                    labels: [("version".to_owned(), (*version).to_owned())].into(),
                    weight: *weight,
                    workload: None,
                })
            })
            .collect(),
        location: Location::MeshInternal,
        resolution: Resolution::Static,
        subject_alt_names: Vec::new(),
        origin: String::new(),
    }
}

const ANY: Wanted<'_> = Wanted {
    port: 80,
    labels: None,
    algorithm: Algorithm::LeastRequest,
    avoid: &[],
    like: None,
};

fn count(
    service: &Service,
    wanted: &Wanted<'_>,
    load: &Load,
    choices: u32,
) -> HashMap<String, u32> {
    let mut random = StdRng::seed_from_u64(1);
    let mut counts = HashMap::new();
    for _ in 0..choices {
        let endpoint = choose(service, wanted, load, &mut random).expect("an endpoint");
        let address = endpoint.address.expect("an address").to_string();
        *counts.entry(address).or_default() += 1;
    }
    counts
}

#[test]
fn a_subset_and_a_port_bound_the_choice() {
    let service = service(&[
        ("10.0.0.1", 1, "v1"),
        ("10.0.0.2", 1, "v2"),
        ("10.0.0.3", 1, "v2"),
    ]);
    let labels = [("version".to_owned(), "v2".to_owned())].into();
    let wanted = Wanted {
        labels: Some(&labels),
        ..ANY
    };
    let counts = count(&service, &wanted, &Load::default(), 200);
    assert_eq!(counts.len(), 2);
    assert!(!counts.contains_key("10.0.0.1"));
    let other = Wanted { port: 81, ..ANY };
    assert!(
        choose(
            &service,
            &other,
            &Load::default(),
            &mut StdRng::seed_from_u64(1)
        )
        .is_none()
    );
    let none = [("version".to_owned(), "v3".to_owned())].into();
    let other = Wanted {
        labels: Some(&none),
        ..ANY
    };
    assert!(
        choose(
            &service,
            &other,
            &Load::default(),
            &mut StdRng::seed_from_u64(1)
        )
        .is_none()
    );
}

#[test]
fn round_robin_takes_turns() {
    let service = service(&[
        ("10.0.0.1", 1, "v1"),
        ("10.0.0.2", 2, "v1"),
        ("10.0.0.3", 1, "v1"),
    ]);
    let wanted = Wanted {
        algorithm: Algorithm::RoundRobin,
        ..ANY
    };
    let counts = count(&service, &wanted, &Load::default(), 400);
    assert_eq!(
        (counts["10.0.0.1"], counts["10.0.0.2"], counts["10.0.0.3"]),
        (100, 200, 100)
    );
}

#[test]
fn random_follows_weights() {
    let service = service(&[("10.0.0.1", 1, "v1"), ("10.0.0.2", 3, "v1")]);
    let wanted = Wanted {
        algorithm: Algorithm::Random,
        ..ANY
    };
    let counts = count(&service, &wanted, &Load::default(), 4000);
    assert!(counts["10.0.0.1"].abs_diff(1000) < 100, "{counts:?}");
}

#[test]
fn the_less_loaded_of_two_is_chosen() {
    let service = service(&[("10.0.0.1", 1, "v1"), ("10.0.0.2", 1, "v1")]);
    let load = Load::default();
    let busy = EndpointAddress::of(&service.endpoints[0], 80).expect("an address");
    let guard = load.begin(&busy);
    assert_eq!(load.in_flight(&busy), 1);
    assert_eq!(
        count(&service, &ANY, &load, 100),
        [("10.0.0.2".to_owned(), 100)].into()
    );
    drop(guard);
    assert_eq!(load.in_flight(&busy), 0);
    let counts = count(&service, &ANY, &load, 1000);
    assert!(counts["10.0.0.1"].abs_diff(500) < 100, "{counts:?}");
}

#[test]
fn endpoints_that_were_tried_are_avoided_while_there_are_others() {
    let service = service(&[("10.0.0.1", 1, "v1"), ("10.0.0.2", 1, "v1")]);
    let address = |i: usize| EndpointAddress::of(&service.endpoints[i], 80).expect("an address");
    let one = [address(0)];
    let wanted = Wanted { avoid: &one, ..ANY };
    assert_eq!(
        count(&service, &wanted, &Load::default(), 50),
        [("10.0.0.2".to_owned(), 50)].into()
    );
    let both = [address(0), address(1)];
    let wanted = Wanted {
        avoid: &both,
        ..ANY
    };
    assert_eq!(count(&service, &wanted, &Load::default(), 50).len(), 2);
}

#[test]
fn the_clients_address_family_comes_first() {
    let service = service(&[("10.0.0.1", 1, "v1"), ("fd00::1", 1, "v1")]);
    let wanted = Wanted {
        like: Some([0u16; 8].into()),
        ..ANY
    };
    assert_eq!(
        count(&service, &wanted, &Load::default(), 50),
        [("fd00::1".to_owned(), 50)].into()
    );

    // A server that listens in the other family only is found at the second try.
    let tried = [EndpointAddress::of(&service.endpoints[1], 80).expect("an address")];
    let wanted = Wanted {
        avoid: &tried,
        ..wanted
    };
    assert_eq!(
        count(&service, &wanted, &Load::default(), 50),
        [("10.0.0.1".to_owned(), 50)].into()
    );
}
