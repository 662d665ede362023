//! The bounds of a DestinationRule, and ejection, over real sockets.

use tokio::sync::Semaphore;

use super::*;

/// A server that holds each request until it is let go, and counts connections.
struct Holding {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// Requests that have arrived.
    arrived: Arc<AtomicUsize>,
    go: Arc<Semaphore>,
}

async fn holding() -> Holding {
    let (connections, arrived) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let go = Arc::new(Semaphore::new(0));
    let shared = (connections.clone(), arrived.clone(), go.clone());
    let address = server(move |_, mut client| {
        let (connections, arrived, go) = shared.clone();
        async move {
            connections.fetch_add(1, SeqCst);
            while maybe_head(&mut client).await.is_some() {
                arrived.fetch_add(1, SeqCst);
                go.acquire().await.expect("open").forget();
                client
                    .write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await;
            }
        }
    })
    .await;
    Holding {
        address,
        connections,
        arrived,
        go,
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
    waited.unwrap_or_else(|_| panic!("never: {what}"));
}

fn policy(policy: &str) -> String {
    format!("{{host: reviews, trafficPolicy: {policy}}}")
}

/// Answers of so many requests at a time, each over a connection of its own.
fn ask(proxy: &Arc<Proxy>, count: usize) -> Vec<tokio::task::JoinHandle<String>> {
    (0..count)
        .map(|_| {
            let proxy = proxy.clone();
            tokio::spawn(async move {
                let mut client = proxy.connect().await;
                client.write(GET).await;
                client.head().await
            })
        })
        .collect()
}

async fn statuses(answers: Vec<tokio::task::JoinHandle<String>>) -> Vec<String> {
    let mut statuses = Vec::new();
    for answer in answers {
        let head = answer.await.expect("an answer");
        statuses.push(head[9..12].to_owned());
    }
    statuses.sort();
    statuses
}

/// The guide's circuit breaker in small: 2 connections, 1 request that waits.
#[tokio::test]
async fn requests_wait_for_a_connection_and_the_next_is_refused() {
    let server = holding().await;
    let rule =
        policy("{connectionPool: {tcp: {maxConnections: 2}, http: {http1MaxPendingRequests: 1}}}");
    let mesh = Mesh {
        endpoints: &[(server.address, "v1")],
        destination_rules: &[("default/r", &rule)],
        ..Mesh::default()
    };
    let proxy = Arc::new(mesh.proxy(HttpVersion::Http1).await);
    let arrived = |count| {
        let arrived = server.arrived.clone();
        move || arrived.load(SeqCst) == count
    };
    let first = ask(&proxy, 1);
    until("the first is served", arrived(1)).await;
    let second = ask(&proxy, 1);
    until("the second is served", arrived(2)).await;
    let third = ask(&proxy, 1);
    until("the third waits", || proxy.pending() == 1).await;
    let mut refused = proxy.connect().await;
    refused.write(GET).await;
    let head = refused.head().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("x-envoy-overloaded: true\r\n"), "{head}");
    let body = refused.read_until("overflow").await;
    assert_eq!(
        body,
        "upstream connect error or disconnect/reset before headers: reset reason: overflow"
    );
    server.go.add_permits(3);
    let answers = first.into_iter().chain(second).chain(third).collect();
    assert_eq!(statuses(answers).await, ["200"; 3]);
    assert_eq!(server.connections.load(SeqCst), 2);
}

#[tokio::test]
async fn many_requests_share_few_connections() {
    let server = holding().await;
    server.go.add_permits(1000);
    let rule = policy("{connectionPool: {tcp: {maxConnections: 3}}}");
    let mesh = Mesh {
        endpoints: &[(server.address, "v1")],
        destination_rules: &[("default/r", &rule)],
        ..Mesh::default()
    };
    let proxy = Arc::new(mesh.proxy(HttpVersion::Http1).await);
    assert_eq!(statuses(ask(&proxy, 200)).await, ["200"; 200]);
    assert!(server.connections.load(SeqCst) <= 3);
}

/// The bound is the service's: waiting connections of one endpoint make room for another's.
#[tokio::test]
async fn the_bound_of_connections_is_for_all_endpoints_together() {
    let servers = [holding().await, holding().await, holding().await];
    let rule =
        policy("{loadBalancer: {simple: ROUND_ROBIN}, connectionPool: {tcp: {maxConnections: 2}}}");
    let endpoints = [0, 1, 2].map(|i| (servers[i].address, "v1"));
    let mesh = Mesh {
        endpoints: &endpoints,
        destination_rules: &[("default/r", &rule)],
        ..Mesh::default()
    };
    let proxy = Arc::new(mesh.proxy(HttpVersion::Http1).await);
    for server in &servers {
        server.go.add_permits(100);
    }
    for _ in 0..5 {
        assert_eq!(statuses(ask(&proxy, 6)).await, ["200"; 6]);
        assert!(proxy.open() <= 2, "{} are open", proxy.open());
    }
}

#[tokio::test]
async fn a_connection_serves_as_many_requests_as_it_may() {
    let server = holding().await;
    server.go.add_permits(1000);
    let rule = policy("{connectionPool: {http: {maxRequestsPerConnection: 10}}}");
    let mesh = Mesh {
        endpoints: &[(server.address, "v1")],
        destination_rules: &[("default/r", &rule)],
        ..Mesh::default()
    };
    let proxy = Arc::new(mesh.proxy(HttpVersion::Http1).await);
    let mut client = proxy.connect().await;
    for request in 0..25 {
        client.write(GET).await;
        client.read_until("\r\n\r\nok").await;
        let connections = server.connections.load(SeqCst);
        assert_eq!(connections, request / 10 + 1, "request {request}");
    }
}

#[tokio::test]
async fn active_requests_have_a_bound() {
    let server = holding().await;
    let rule = policy("{connectionPool: {http: {http2MaxRequests: 2}}}");
    let mesh = Mesh {
        endpoints: &[(server.address, "v1")],
        destination_rules: &[("default/r", &rule)],
        ..Mesh::default()
    };
    let proxy = Arc::new(mesh.proxy(HttpVersion::Http1).await);
    let held = ask(&proxy, 2);
    until("both are served", || server.arrived.load(SeqCst) == 2).await;
    assert_eq!(statuses(ask(&proxy, 2)).await, ["503", "503"]);
    server.go.add_permits(3);
    assert_eq!(statuses(held).await, ["200", "200"]);
    until("both have ended", || proxy.active() == 0).await;
    assert_eq!(statuses(ask(&proxy, 1)).await, ["200"]);
}

#[tokio::test]
async fn a_connection_that_waits_too_long_or_lives_too_long_is_not_used_again() {
    for limit in [
        "{connectionPool: {http: {idleTimeout: 50ms}}}",
        "{connectionPool: {tcp: {maxConnectionDuration: 50ms}}}",
    ] {
        let server = holding().await;
        server.go.add_permits(10);
        let rule = policy(limit);
        let mesh = Mesh {
            endpoints: &[(server.address, "v1")],
            destination_rules: &[("default/r", &rule)],
            ..Mesh::default()
        };
        let proxy = Arc::new(mesh.proxy(HttpVersion::Http1).await);
        assert_eq!(statuses(ask(&proxy, 1)).await, ["200"]);
        tokio::time::sleep(Duration::from_millis(80)).await;
        assert_eq!(statuses(ask(&proxy, 1)).await, ["200"]);
        assert_eq!(server.connections.load(SeqCst), 2, "{limit}");
        // And it is closed, not only left aside.
        until("the old one is closed", || proxy.open() <= 1).await;
    }
}

/// A server whose answers are those of a list, again and again.
async fn answering(statuses: &'static [&'static str], served: Arc<AtomicUsize>) -> SocketAddr {
    server(move |_, mut client| {
        let served = served.clone();
        async move {
            while maybe_head(&mut client).await.is_some() {
                let number = served.fetch_add(1, SeqCst);
                let status = statuses[number % statuses.len()];
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
                client.write(&answer).await;
            }
        }
    })
    .await
}

async fn served_after(
    statuses: &'static [&'static str],
    requests: usize,
    rule: &str,
) -> [usize; 2] {
    let counts = [Arc::<AtomicUsize>::default(), Arc::default()];
    let bad = answering(statuses, counts[0].clone()).await;
    let good = answering(&["200"], counts[1].clone()).await;
    let mesh = Mesh {
        endpoints: &[(bad, "v1"), (good, "v1")],
        destination_rules: &[("default/r", rule)],
        ..Mesh::default()
    };
    let proxy = Arc::new(mesh.proxy(HttpVersion::Http1).await);
    for _ in 0..requests {
        self::statuses(ask(&proxy, 1)).await;
    }
    [&counts[0], &counts[1]].map(|count| count.load(SeqCst))
}

#[tokio::test]
async fn five_errors_in_a_row_take_an_endpoint_out_and_four_do_not() {
    let rule = policy(
        "{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: \
         {consecutive5xxErrors: 5, interval: 30s, baseEjectionTime: 60s, maxEjectionPercent: 50}}",
    );
    assert_eq!(served_after(&["500"], 40, &rule).await, [5, 35]);
    let interrupted: &[&str] = &["500", "500", "500", "500", "200"];
    assert_eq!(served_after(interrupted, 40, &rule).await, [20, 20]);
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_taken_out() {
    let served = Arc::<AtomicUsize>::default();
    let good = answering(&["200"], served.clone()).await;
    let rule = policy(
        "{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutiveGatewayErrors: 2, maxEjectionPercent: 50}}",
    );
    let mesh = Mesh {
        endpoints: &[(nobody().await, "v1"), (good, "v1")],
        destination_rules: &[("default/r", &rule)],
        ..Mesh::default()
    };
    let proxy = Arc::new(mesh.proxy(HttpVersion::Http1).await);
    for _ in 0..20 {
        // The retry goes to the other endpoint.
        assert_eq!(statuses(ask(&proxy, 1)).await, ["200"]);
    }
    assert_eq!(served.load(SeqCst), 20);
    // The one that was tried twice in vain, and the one that served.
    assert_eq!(proxy.connections(), 3);
}

#[tokio::test]
async fn retries_have_a_bound() {
    let served = Arc::<AtomicUsize>::default();
    let bad = answering(&["503"], served.clone()).await;
    let rule = policy("{retryBudget: {percent: {value: 0}, minRetryConcurrency: 0}}");
    let retries = "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], retries: {attempts: 3, retryOn: 5xx, backoff: 1ms}}]}";
    for (rules, expected) in [(&[("default/r", rule.as_str())][..], 1), (&[], 4)] {
        served.store(0, SeqCst);
        let mesh = Mesh {
            endpoints: &[(bad, "v1")],
            virtual_services: &[("default/v", retries)],
            destination_rules: rules,
            ..Mesh::default()
        };
        let proxy = Arc::new(mesh.proxy(HttpVersion::Http1).await);
        assert_eq!(statuses(ask(&proxy, 1)).await, ["503"]);
        assert_eq!(served.load(SeqCst), expected);
    }
}

#[tokio::test]
async fn a_cookie_keeps_a_client_at_its_endpoint() {
    let counts: [Arc<AtomicUsize>; 3] = Default::default();
    let mut endpoints = Vec::new();
    for count in &counts {
        endpoints.push((answering(&["200"], count.clone()).await, "v1"));
    }
    let rule =
        policy("{loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 60s, path: /}}}}");
    let mesh = Mesh {
        endpoints: &endpoints,
        destination_rules: &[("default/r", &rule)],
        ..Mesh::default()
    };
    let proxy = mesh.proxy(HttpVersion::Http1).await;
    let mut client = proxy.connect().await;
    client.write(GET).await;
    let head = client.head().await;
    let cookie = head
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "))
        .unwrap_or_else(|| panic!("no cookie: {head}"));
    assert!(cookie.ends_with("Max-Age=60; Path=/; HttpOnly"), "{cookie}");
    let pair = cookie.split(';').next().expect("a pair");
    for _ in 0..20 {
        client
            .write(&format!(
                "GET / HTTP/1.1\r\nhost: reviews\r\ncookie: {pair}\r\n\r\n"
            ))
            .await;
        assert!(!client.head().await.contains("set-cookie"));
    }
    let mut served = counts.map(|count| count.load(SeqCst));
    served.sort();
    assert_eq!(served, [0, 0, 21]);
}
