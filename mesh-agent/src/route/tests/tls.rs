use super::*;

#[test]
fn tls_is_routed_by_the_name_that_the_client_asks_for() {
    let endpoint = |last: u8| (std::net::SocketAddr::from(([10, 0, 0, last], 8443)), "v1");
    let registry = registry(vec![
        service("front.default", &[(443, Protocol::Tls)], &[endpoint(1)]),
        service("blue.default", &[(443, Protocol::Tls)], &[endpoint(2)]),
        service("green.default", &[(443, Protocol::Tls)], &[endpoint(3)]),
    ]);
    let rule = "{hosts: [front, '*.example.com', shop.example.org], tls: [\
        {match: [{sniHosts: [shop.example.org]}], route: [{destination: {host: blue}}]}, \
        {match: [{sniHosts: ['*.example.com'], sourceLabels: {app: sleep}}], route: [{destination: {host: green}}]}]}";
    let (routes, findings) = routes(&registry, &[("default/front", rule)], &[]);
    assert_eq!(findings, []);
    let front = &registry.services[0];
    let to = |labels: &[(&str, &str)], name: &str| {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let client = ClientView {
            node: None,
            namespace: "default",
            labels: &labels,
        };
        assert!(routes.wants_server_name(&client, front));
        assert!(!routes.wants_server_name(&client, &registry.services[1]));
        let random = &mut StdRng::seed_from_u64(1);
        let destination = "10.96.0.1:443".parse().expect("an address");
        let plan = routes.decide_tls(&client, front, destination, name, &registry, random);
        plan.expect("a way").service.name.clone()
    };
    let sleep = &[("app", "sleep")];
    assert_eq!(to(sleep, "Shop.example.org"), "blue");
    assert_eq!(to(sleep, "www.example.com"), "green");
    assert_eq!(to(&[], "www.example.com"), "front");
    assert_eq!(to(sleep, "example.com"), "front");
    assert_eq!(to(sleep, "other"), "front");
}
