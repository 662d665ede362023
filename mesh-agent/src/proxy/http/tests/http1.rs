//! HTTP/1.x on both sides.

use super::*;

#[tokio::test]
async fn a_connection_is_used_again() {
    let endpoint = echo("v1").await;
    let proxy = proxy_to(endpoint).await;
    let mut client = proxy.connect().await;
    for _ in 0..20 {
        client.write(GET).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("x-envoy-upstream-service-time: "), "{head}");
        assert_eq!(
            client.read_until("HTTP/1.1").await,
            "v1: GET /a?b=c HTTP/1.1"
        );
    }
    // A second client of the same workload shares it.
    assert!(
        proxy
            .request(GET)
            .await
            .ends_with("v1: GET /a?b=c HTTP/1.1")
    );
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn hop_by_hop_fields_end_here_and_the_rest_goes_on() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let endpoint = server(move |_, mut client| {
        let tell = tell.clone();
        async move {
            let head = client.head().await;
            tell.send(head).await.expect("a test");
            client
                .write("HTTP/1.1 200 OK\r\nconnection: x-mine, close\r\nx-mine: 1\r\nkeep-alive: timeout=5\r\nx-kept: 1\r\ncontent-length: 2\r\n\r\nok")
                .await;
        }
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let answer = proxy
        .request("GET /a%20b HTTP/1.1\r\nHost: reviews:80\r\nConnection: close, x-hop, host\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers, gzip\r\nX-Two: a\r\nX-Request-ID: mine\r\nX-Two: b\r\n\r\n")
        .await;
    let asked = told.recv().await.expect("a request");
    let lines: Vec<_> = asked.trim_end().lines().collect();
    assert_eq!(lines[0], "GET /a%20b HTTP/1.1");
    let mut fields = lines[1..].to_vec();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "connection: te",
            "host: reviews:80",
            "te: trailers",
            "x-envoy-attempt-count: 1",
            "x-request-id: mine",
            "x-two: a",
            "x-two: b"
        ]
    );
    assert!(
        answer.contains("\r\nx-kept: 1\r\n") && answer.ends_with("\r\n\r\nok"),
        "{answer}"
    );
    assert!(
        !answer.contains("x-mine") && !answer.contains("keep-alive"),
        "{answer}"
    );
}

#[tokio::test]
async fn chunks_and_trailers_pass() {
    let endpoint = server(|_, mut client| async move {
        let head = client.head().await;
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        let body = client.read_until("\r\n\r\n").await;
        assert!(body.starts_with("3\r\nabc\r\n") && body.contains("x-sum: 1\r\n"), "{body}");
        client
            .write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nde\r\n0\r\nx-sum: 2\r\n\r\n")
            .await;
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let mut client = proxy.connect().await;
    client
        .write("POST / HTTP/1.1\r\nhost: reviews\r\nte: trailers\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n")
        .await;
    let head = client.head().await;
    assert!(head.contains("trailer: x-sum\r\n"), "{head}");
    assert_eq!(
        client.read_until("x-sum: 2\r\n\r\n").await,
        "2\r\nde\r\n0\r\nx-sum: 2\r\n\r\n"
    );
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_usable() {
    let endpoint = server(|_, mut client| async move {
        while let Some(head) = maybe_head(&mut client).await {
            let answer = match head.split(' ').next() {
                Some("HEAD") => "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
                Some("DELETE") => "HTTP/1.1 204 No Content\r\n\r\n",
                _ => "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n",
            };
            client.write(answer).await;
        }
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let mut client = proxy.connect().await;
    for _ in 0..3 {
        client
            .write("HEAD / HTTP/1.1\r\nhost: reviews\r\n\r\n")
            .await;
        assert!(client.head().await.contains("content-length: 1000\r\n"));
        client
            .write("DELETE / HTTP/1.1\r\nhost: reviews\r\n\r\n")
            .await;
        assert!(client.head().await.starts_with("HTTP/1.1 204 "));
        client.write(GET).await;
        assert!(client.head().await.contains("etag: \"a\"\r\n"));
    }
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn http_1_0_clients_and_servers_are_served() {
    let endpoint = server(|_, mut client| async move {
        let head = client.head().await;
        assert!(head.starts_with("GET /old HTTP/1.1\r\n"), "{head}");
        assert!(
            head.contains("host: reviews.default.svc.cluster.local\r\n"),
            "{head}"
        );
        client.write("HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let answer = proxy.request("GET /old HTTP/1.0\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nuntil the end"),
        "{answer}"
    );
    assert!(!answer.contains("chunked"), "{answer}");
}

#[tokio::test]
async fn a_protocol_can_be_switched() {
    let endpoint = server(|_, mut client| async move {
        let head = client.head().await;
        assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
        client
            .write("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello")
            .await;
        assert_eq!(client.read_until("ping").await, "ping");
        client.write("pong").await;
        // The client has closed its side: ours still speaks.
        assert_eq!(client.rest().await, "");
        client.write("bye").await;
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let mut client = proxy.connect().await;
    client.write("GET /chat HTTP/1.1\r\nhost: reviews\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    let head = client.head().await;
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: websocket\r\n"),
        "{head}"
    );
    assert_eq!(client.read_until("hello").await, "hello");
    client.write("ping").await;
    assert_eq!(client.read_until("pong").await, "pong");
    client.0.shutdown().await.expect("half-close");
    assert_eq!(client.rest().await, "bye");
}

#[tokio::test]
async fn an_upgrade_may_be_declined() {
    let endpoint = echo("v1").await;
    let proxy = proxy_to(endpoint).await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        client
            .write("GET / HTTP/1.1\r\nhost: reviews\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
        client.read_until("HTTP/1.1").await;
    }
}

#[tokio::test]
async fn the_server_says_when_a_body_may_come() {
    let endpoint = server(|number, mut client| async move {
        let head = client.head().await;
        assert!(head.contains("expect: 100-continue\r\n"), "{head}");
        if number == 0 {
            client
                .write("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n")
                .await;
            // Nothing of the body may ever arrive.
            assert_eq!(client.rest().await, "");
        } else {
            client.write("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(client.read_until("body").await, "body");
            client
                .write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await;
        }
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let request =
        "POST / HTTP/1.1\r\nhost: reviews\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
    let mut client = proxy.connect().await;
    client.write(request).await;
    assert!(client.head().await.starts_with("HTTP/1.1 417 "));
    let mut client = proxy.connect().await;
    client.write(request).await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write("body").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(client.read_until("ok").await, "ok");
}

#[tokio::test]
async fn bodies_stream_with_back_pressure() {
    const CHUNK: usize = 64 * 1024;
    const CHUNKS: usize = 1024;
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let endpoint = server(move |_, mut client| {
        let sent = Arc::clone(&counter);
        async move {
            client.head().await;
            client
                .write(&format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                    CHUNK * CHUNKS
                ))
                .await;
            for chunk in 0..CHUNKS {
                client
                    .0
                    .write_all(&vec![chunk as u8; CHUNK])
                    .await
                    .expect("written");
                sent.fetch_add(1, SeqCst);
            }
        }
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let mut client = proxy.connect().await;
    client.write(GET).await;
    client.head().await;
    // The client does not read: the server has to stop before all is sent.
    let mut before = usize::MAX;
    while before != sent.load(SeqCst) {
        before = sent.load(SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(
        before < CHUNKS,
        "{before} chunks were taken from the server"
    );
    let mut chunk = vec![0; CHUNK];
    for number in 0..CHUNKS {
        client.0.read_exact(&mut chunk).await.expect("the body");
        assert!(
            chunk.iter().all(|byte| *byte == number as u8),
            "chunk {number}"
        );
    }
}

#[tokio::test]
async fn a_closed_connection_costs_no_request() {
    // Answers once, and closes without having said so.
    let endpoint = server(|_, mut client| async move {
        client.head().await;
        client
            .write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let mut client = proxy.connect().await;
    for _ in 0..200 {
        client.write(GET).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        client.read_until("ok").await;
    }
}

#[tokio::test]
async fn a_connection_that_closes_under_a_request_costs_none_that_may_be_repeated() {
    // Closes when the second request arrives, as a server does whose time is up.
    let endpoint = server(|_, mut client| async move {
        client.head().await;
        client
            .write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        client.head().await;
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let mut client = proxy.connect().await;
    for _ in 0..50 {
        client.write(GET).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        client.read_until("ok").await;
    }
}

#[tokio::test]
async fn a_change_of_configuration_loses_no_request() {
    let (one, two) = (echo("v1").await, echo("v2").await);
    let rule = |subset: &str| {
        format!(
            "{{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews, subset: {subset}}}}}]}}]}}"
        )
    };
    let (to_v1, to_v2) = (rule("v1"), rule("v2"));
    let subsets = "{host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}";
    let subsets = [("default/reviews", subsets)];
    let endpoints = [(one, "v1"), (two, "v2")];
    let mesh = |rule| Mesh {
        endpoints: &endpoints,
        virtual_services: rule,
        destination_rules: &subsets,
        ..Mesh::default()
    };
    let (v1, v2) = (
        [("default/reviews", to_v1.as_str())],
        [("default/reviews", to_v2.as_str())],
    );
    let proxy = mesh(&v1).proxy(HttpVersion::Http1).await;
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let address = proxy.address;
            tokio::spawn(async move {
                let mut client = Raw(TcpStream::connect(address).await.expect("the proxy"));
                let mut seen = [0, 0];
                while seen[0] < 50 || seen[1] < 50 {
                    client.write(GET).await;
                    assert!(client.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
                    let body = client.read_until("HTTP/1.1").await;
                    seen[usize::from(body.starts_with("v2"))] += 1;
                }
            })
        })
        .collect();
    while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
        proxy.snapshot.store(Arc::new(mesh(&v2).snapshot()));
        tokio::time::sleep(Duration::from_millis(5)).await;
        proxy.snapshot.store(Arc::new(mesh(&v1).snapshot()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for client in clients {
        client.await.expect("no request lost");
    }
}

#[tokio::test]
async fn a_drained_connection_ends_after_its_request() {
    let (go, wait) = tokio::sync::watch::channel(false);
    let endpoint = server(move |_, mut client| {
        let mut wait = wait.clone();
        async move {
            client.head().await;
            wait.wait_for(|go| *go).await.expect("a test");
            client
                .write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await;
        }
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let mut client = proxy.connect().await;
    client.write(GET).await;
    while proxy.connections() == 0 {
        tokio::task::yield_now().await;
    }
    proxy.drain.cancel();
    go.send(true).expect("a server");
    let answer = client.rest().await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"),
        "{answer}"
    );
    assert!(answer.contains("connection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn a_rule_changes_the_request_and_the_answer() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let endpoint = server(move |_, mut client| {
        let tell = tell.clone();
        async move {
            tell.send(client.head().await).await.expect("a test");
            client
                .write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-old: 1\r\n\r\n")
                .await;
        }
    })
    .await;
    let rule = "{hosts: [reviews], http: [{match: [{uri: {prefix: /old/}}], rewrite: {uri: /new/, authority: shop.example.com}, \
        headers: {request: {set: {x-a: b}}, response: {remove: [x-old]}}, route: [{destination: {host: reviews}}]}]}";
    let proxy = Mesh {
        endpoints: &[(endpoint, "v1")],
        virtual_services: &[("default/reviews", rule)],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http1)
    .await;
    let answer = proxy
        .request("GET /old/a?b HTTP/1.1\r\nhost: reviews\r\n\r\n")
        .await;
    let asked = told.recv().await.expect("a request");
    assert!(asked.starts_with("GET /new/a?b HTTP/1.1\r\n"), "{asked}");
    for line in [
        "host: shop.example.com",
        "x-a: b",
        "x-envoy-original-path: /old/a?b",
    ] {
        assert!(asked.contains(&format!("\r\n{line}\r\n")), "{asked}");
    }
    assert!(!answer.contains("x-old"), "{answer}");
}

#[tokio::test]
async fn connect_opens_a_tunnel_where_the_server_agrees() {
    let endpoint = server(|number, mut client| async move {
        let head = client.head().await;
        assert!(head.starts_with("CONNECT shop:443 HTTP/1.1\r\n"), "{head}");
        if number == 0 {
            client
                .write("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
                .await;
            return;
        }
        client.write("HTTP/1.1 200 OK\r\n\r\nhello").await;
        assert_eq!(client.read_until("ping").await, "ping");
        client.write("pong").await;
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let connect = "CONNECT shop:443 HTTP/1.1\r\nhost: shop:443\r\n\r\n";
    let mut refused = proxy.connect().await;
    refused.write(connect).await;
    assert!(refused.head().await.starts_with("HTTP/1.1 403 "));
    let mut client = proxy.connect().await;
    client.write(connect).await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(client.read_until("hello").await, "hello");
    client.write("ping").await;
    assert_eq!(client.read_until("pong").await, "pong");
}
