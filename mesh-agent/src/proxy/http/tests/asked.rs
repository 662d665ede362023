//! What requests ask of their own exchange, and what servers are told of it.

use super::*;

/// A server that answers with this status, and says in the body which attempt it saw and
/// how long it was given.
async fn server_with(status: &'static str) -> SocketAddr {
    server(move |_, mut client| async move {
        while let Some(head) = maybe_head(&mut client).await {
            let field = |name: &str| {
                let line = head.lines().find(|line| line.starts_with(name));
                line.and_then(|line| line.split_once(": "))
                    .map_or("-", |(_, value)| value)
                    .to_owned()
            };
            let asked = head.matches("x-envoy-").count()
                - head.matches("x-envoy-attempt-count").count()
                - head.matches("x-envoy-expected").count();
            let body = format!(
                "attempt {} of {} asked {asked}",
                field("x-envoy-attempt-count"),
                field("x-envoy-expected-rq-timeout-ms")
            );
            let length = body.len();
            client
                .write(&format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}"
                ))
                .await;
        }
    })
    .await
}

async fn proxy(endpoint: SocketAddr, rule: &str) -> Proxy {
    let rule = format!(
        "{{hosts: [reviews], http: [{{{rule} route: [{{destination: {{host: reviews}}}}]}}]}}"
    );
    Mesh {
        endpoints: &[(endpoint, "v1")],
        virtual_services: &[("default/reviews", &rule)],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http1)
    .await
}

async fn said(proxy: &Proxy, fields: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: reviews\r\n{fields}\r\n");
    let answer = proxy.request(&request).await;
    answer
        .split_once("\r\n\r\n")
        .expect("an answer")
        .1
        .to_owned()
}

const RETRY: &str = "retries: {attempts: 2, retryOn: \"503\", backoff: 1ms},";

#[tokio::test]
async fn servers_are_told_which_attempt_it_is() {
    let proxy = proxy(server_with("503 Service Unavailable").await, RETRY).await;
    assert_eq!(said(&proxy, "").await, "attempt 3 of - asked 0");
    // What the client says of it is not believed.
    let forged = "x-envoy-attempt-count: 9\r\n";
    assert_eq!(said(&proxy, forged).await, "attempt 3 of - asked 0");
}

#[tokio::test]
async fn a_request_may_name_fields_of_answers_that_ask_for_another_attempt() {
    let endpoint = server_with("200 OK\r\nx-again: 1").await;
    let rule = "retries: {attempts: 2, retryOn: retriable-headers, backoff: 1ms},";
    let [by_rule, without] = [proxy(endpoint, rule).await, proxy(endpoint, RETRY).await];
    let names = "x-envoy-retriable-header-names: x-other, X-Again\r\n";
    let asked = format!("{names}x-envoy-retry-on: retriable-headers\r\n");
    let once = "attempt 1 of - asked 0";
    assert_eq!(said(&by_rule, "").await, once);
    assert_eq!(said(&by_rule, names).await, "attempt 3 of - asked 0");
    assert_eq!(said(&without, names).await, once);
    assert_eq!(said(&without, &asked).await, "attempt 3 of - asked 0");
    let other = "x-envoy-retriable-header-names: x-other\r\n";
    assert_eq!(said(&by_rule, other).await, once);
}

#[tokio::test]
async fn a_request_may_ask_for_more_or_fewer_attempts() {
    let endpoint = server_with("503 Service Unavailable").await;
    let by_rule = proxy(endpoint, RETRY).await;
    let none = proxy(endpoint, "retries: {attempts: 0},").await;
    let timeout = proxy(endpoint, "timeout: 5s,").await;
    for (proxy, fields, expected) in [
        (&by_rule, "x-envoy-max-retries: 0\r\n", "attempt 1 of -"),
        (&by_rule, "x-envoy-max-retries: 4\r\n", "attempt 5 of -"),
        (&by_rule, "x-envoy-max-retries: x\r\n", "attempt 3 of -"),
        (
            &by_rule,
            "x-envoy-upstream-rq-per-try-timeout-ms: 900\r\n",
            "attempt 3 of 900",
        ),
        (&none, "x-envoy-max-retries: 4\r\n", "attempt 1 of -"),
        (&none, "x-envoy-retry-on: 5xx\r\n", "attempt 2 of -"),
        (
            &none,
            "x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 2\r\n",
            "attempt 3 of -",
        ),
        (
            &none,
            "x-envoy-retry-on: retriable-status-codes\r\nx-envoy-retriable-status-codes: 503\r\n",
            "attempt 2 of -",
        ),
        (&none, "x-envoy-retry-on: reset\r\n", "attempt 1 of -"),
        (&timeout, "", "attempt 1 of 5000"),
        (
            &timeout,
            "x-envoy-upstream-rq-timeout-ms: 700\r\n",
            "attempt 1 of 700",
        ),
        (
            &timeout,
            "x-envoy-upstream-rq-timeout-ms: 0\r\n",
            "attempt 1 of -",
        ),
        (
            &timeout,
            "x-envoy-upstream-rq-per-try-timeout-ms: 9000\r\n",
            "attempt 1 of 5000",
        ),
    ] {
        assert_eq!(
            said(proxy, fields).await,
            format!("{expected} asked 0"),
            "{fields}"
        );
    }
}

#[tokio::test]
async fn the_time_that_a_request_asks_for_counts() {
    let endpoint = server(|_, mut client| async move {
        client.head().await;
        std::future::pending().await
    })
    .await;
    let proxy = proxy(endpoint, "").await;
    let answer = proxy
        .request("GET / HTTP/1.1\r\nhost: reviews\r\nx-envoy-upstream-rq-timeout-ms: 100\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
}
