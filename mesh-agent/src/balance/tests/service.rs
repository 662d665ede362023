//! What a service says of its clients' way to its endpoints.

use std::collections::HashSet;

use super::*;

/// A service as Kubernetes has it, with more in its spec.
fn changed(mesh: &mut Mesh, change: impl Fn(&mut Service)) {
    change(Arc::make_mut(&mut mesh.service));
}

#[test]
fn a_session_lasts_until_its_client_is_silent() {
    let mut mesh = Mesh::new(&THREE, PLAIN);
    let minute = Duration::from_secs(60);
    changed(&mut mesh, |service| service.session_affinity = Some(minute));
    let choice = Choice::default();
    let at = |mesh: &mut Mesh, seconds| {
        let now = mesh.at(seconds);
        mesh.choose_at(&choice, now)
            .expect("an endpoint")
            .host
            .address
            .clone()
    };
    // Each connection lets the session last on.
    let first = at(&mut mesh, 0);
    for seconds in (0..600).step_by(59) {
        assert_eq!(at(&mut mesh, seconds), first);
    }
    // After a silence any may be chosen.
    let later: HashSet<_> = (1..100)
        .map(|n| at(&mut mesh, 600 + n * 60).to_string())
        .collect();
    assert_eq!(later.len(), 3, "{later:?}");
    // Where the endpoint has been tried in vain, the session goes on elsewhere.
    let now = mesh.at(10_000);
    let tried = [at(&mut mesh, 10_000)];
    let again = Choice {
        avoid: &tried,
        ..choice
    };
    let other = mesh
        .choose_at(&again, now)
        .expect("another")
        .host
        .address
        .clone();
    assert_ne!(other, tried[0]);
    assert_eq!(at(&mut mesh, 10_001), other);
}

#[test]
fn a_session_leaves_an_endpoint_that_is_out_of_service() {
    let mut mesh = Mesh::policy("{outlierDetection: {maxEjectionPercent: 50}}", &THREE);
    changed(&mut mesh, |service| {
        service.session_affinity = Some(Duration::from_secs(60))
    });
    let now = mesh.at(1);
    let first = mesh
        .choose_at(&Choice::default(), now)
        .expect("an endpoint");
    let members = mesh.cluster().members();
    let index = members
        .iter()
        .position(|(one, _)| Arc::ptr_eq(&one.host, &first.host));
    mesh.fail(index.expect("a member"), now).expect("out");
    let other = mesh.choose_at(&Choice::default(), now).expect("another");
    assert_ne!(other.host.address, first.host.address);
}

#[test]
fn a_hash_is_stronger_than_a_session() {
    let mut mesh = Mesh::policy(
        "{loadBalancer: {consistentHash: {httpHeaderName: x}}}",
        &THREE,
    );
    changed(&mut mesh, |service| {
        service.session_affinity = Some(Duration::from_secs(60))
    });
    let chosen: HashSet<_> = (0..50)
        .filter_map(|n: u64| {
            let hash = Some(hash_of(&n.to_be_bytes()));
            let member = mesh.choose(&Choice {
                hash,
                ..Choice::default()
            })?;
            Some(member.host.address.to_string())
        })
        .collect();
    assert_eq!(chosen.len(), 3);
}

#[test]
fn a_service_can_be_open_to_its_nodes_clients_alone() {
    let mut mesh = Mesh::new(&THREE, PLAIN);
    changed(&mut mesh, |service| {
        service.distribution = Distribution::OnlySameNode;
        for (endpoint, node) in service.endpoints.iter_mut().zip(["one", "two"]) {
            let workload = Workload {
                name: WorkloadName {
                    name: node.into(),
                    namespace: "default".into(),
                },
                node: Some(node.to_owned()),
                ..(*client("")).clone()
            };
            Arc::make_mut(endpoint).workload = Some(Arc::new(workload));
        }
    });
    // Nobody knows where the client is, nor the third endpoint.
    assert!(mesh.choose(&Choice::default()).is_none());
    for (node, expected) in [("one", "10.0.0.1"), ("two", "10.0.0.2"), ("three", "")] {
        mesh.client = Arc::new(Workload {
            node: Some(node.to_owned()),
            ..(*mesh.client).clone()
        });
        mesh.clusters = Clusters::default();
        let chosen = mesh.choose(&Choice::default());
        let address = chosen.map(|one| one.endpoint.address.expect("an address").to_string());
        assert_eq!(address.unwrap_or_default(), expected, "{node}");
    }
}
