//! Answers of our own.

use super::*;

/// Status line and body of an answer.
fn parts(answer: &str) -> (&str, &str) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.lines().next().expect("a line"), body)
}

async fn ask(mesh: Mesh<'_>) -> String {
    mesh.proxy(HttpVersion::Http1).await.request(GET).await
}

#[tokio::test]
async fn no_endpoint_is_no_healthy_upstream() {
    let answer = ask(Mesh::default()).await;
    assert_eq!(
        parts(&answer),
        ("HTTP/1.1 503 Service Unavailable", "no healthy upstream")
    );
    assert!(answer.contains("content-type: text/plain\r\n"), "{answer}");
}

#[tokio::test]
async fn a_refused_connection_says_its_cause() {
    let answer = ask(Mesh {
        endpoints: &[(nobody().await, "v1")],
        ..Mesh::default()
    })
    .await;
    let (status, body) = parts(&answer);
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(
        body.starts_with("upstream connect error ") && body.contains("onnection refused"),
        "{body}"
    );
}

#[tokio::test]
async fn an_undefined_subset_and_a_missing_rule_are_said() {
    let rule = "{hosts: [reviews], http: [{match: [{uri: {exact: /a}}], route: [{destination: {host: reviews, subset: stable}}]}]}";
    let endpoint = echo("v1").await;
    let mesh = Mesh {
        endpoints: &[(endpoint, "v1")],
        virtual_services: &[("default/reviews", rule)],
        ..Mesh::default()
    };
    let proxy = mesh.proxy(HttpVersion::Http1).await;
    let answer = proxy.request(GET).await;
    assert_eq!(
        parts(&answer),
        (
            "HTTP/1.1 503 Service Unavailable",
            "subset \"stable\" of reviews.default.svc.cluster.local: no DestinationRule defines it"
        )
    );
    let answer = proxy
        .request("GET /b HTTP/1.1\r\nhost: reviews\r\n\r\n")
        .await;
    assert_eq!(parts(&answer).0, "HTTP/1.1 404 Not Found");
}

#[tokio::test]
async fn a_server_that_does_not_answer_in_time_is_a_504() {
    let endpoint = server(|_, mut client| async move {
        client.head().await;
        client.rest().await;
    })
    .await;
    let rule =
        "{hosts: [reviews], http: [{timeout: 50ms, route: [{destination: {host: reviews}}]}]}";
    let mesh = Mesh {
        endpoints: &[(endpoint, "v1")],
        virtual_services: &[("default/reviews", rule)],
        ..Mesh::default()
    };
    let answer = ask(mesh).await;
    assert_eq!(
        parts(&answer),
        ("HTTP/1.1 504 Gateway Timeout", "upstream request timeout")
    );
}

#[tokio::test]
async fn a_slow_upload_is_not_the_servers_time() {
    let endpoint = server(|_, mut client| async move {
        client.read_until("body").await;
        client
            .write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
    })
    .await;
    let rule =
        "{hosts: [reviews], http: [{timeout: 200ms, route: [{destination: {host: reviews}}]}]}";
    let mesh = Mesh {
        endpoints: &[(endpoint, "v1")],
        virtual_services: &[("default/reviews", rule)],
        ..Mesh::default()
    };
    let proxy = mesh.proxy(HttpVersion::Http1).await;
    let mut client = proxy.connect().await;
    client
        .write("POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 4\r\n\r\n")
        .await;
    for byte in ["b", "o", "d", "y"] {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.write(byte).await;
    }
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert_eq!(client.read_until("ok").await, "ok");
}

#[tokio::test]
async fn a_rule_answers_redirects_and_aborts() {
    let rule = "{hosts: [reviews], http: [\
        {match: [{uri: {exact: /direct}}], directResponse: {status: 418, body: {string: short}}, headers: {response: {set: {x-a: b}}}},\
        {match: [{uri: {exact: /away}}], redirect: {authority: shop}},\
        {match: [{uri: {exact: /abort}}], fault: {abort: {httpStatus: 555, percentage: {value: 100}}}, route: [{destination: {host: reviews}}]},\
        {fault: {delay: {fixedDelay: 100ms, percentage: {value: 100}}}, route: [{destination: {host: reviews}}]}]}";
    let endpoint = echo("v1").await;
    let mesh = Mesh {
        endpoints: &[(endpoint, "v1")],
        virtual_services: &[("default/reviews", rule)],
        ..Mesh::default()
    };
    let proxy = mesh.proxy(HttpVersion::Http1).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: reviews\r\n\r\n");
    let answer = proxy.request(&get("/direct")).await;
    assert!(
        answer.starts_with("HTTP/1.1 418 ")
            && answer.contains("x-a: b\r\n")
            && answer.ends_with("short"),
        "{answer}"
    );
    let answer = proxy.request(&get("/away")).await;
    assert!(
        answer.contains("location: http://shop/away\r\n"),
        "{answer}"
    );
    let answer = proxy.request(&get("/abort")).await;
    assert_eq!(parts(&answer).1, "fault filter abort");
    assert_eq!(proxy.connections(), 0);
    let began = tokio::time::Instant::now();
    assert!(
        proxy
            .request(&get("/late"))
            .await
            .ends_with("v1: GET /late HTTP/1.1")
    );
    assert!(began.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_request_without_a_host_is_refused() {
    let endpoint = echo("v1").await;
    let proxy = proxy_to(endpoint).await;
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    ] {
        let answer = proxy.request(request).await;
        assert_eq!(parts(&answer).0, "HTTP/1.1 400 Bad Request");
    }
    assert_eq!(proxy.connections(), 0);
}

#[tokio::test]
async fn a_body_that_breaks_off_breaks_off_for_the_client() {
    let endpoint = server(|_, mut client| async move {
        client.head().await;
        client
            .write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
            .await;
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let mut client = proxy.connect().await;
    client.write(GET).await;
    assert!(client.head().await.contains("content-length: 10\r\n"));
    let mut body = Vec::new();
    // An end or a reset, but never ten bytes.
    let _ = client.0.read_to_end(&mut body).await;
    assert_eq!(body, b"half");
}
