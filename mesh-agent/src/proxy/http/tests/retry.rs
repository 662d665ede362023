//! Requests that are tried again.

use super::*;

#[tokio::test]
async fn another_endpoint_is_tried_when_one_refuses() {
    let endpoint = echo("v1").await;
    let endpoints = [
        (nobody().await, "v1"),
        (nobody().await, "v1"),
        (endpoint, "v1"),
    ];
    let proxy = Mesh {
        endpoints: &endpoints,
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http1)
    .await;
    for _ in 0..30 {
        // The body has not been sent when a connection is refused: any method is tried again.
        let answer = proxy
            .request("POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 0\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_small_body_is_sent_again_whole() {
    let endpoint = server(|number, mut client| async move {
        client.read_until("small body").await;
        let status = if number < 2 {
            "503 Service Unavailable"
        } else {
            "200 OK"
        };
        client
            .write(&format!(
                "HTTP/1.1 {status}\r\ncontent-length: 1\r\nconnection: close\r\n\r\n{number}"
            ))
            .await;
    })
    .await;
    let rule = "{hosts: [reviews], http: [{retries: {attempts: 2, retryOn: gateway-error, backoff: 1ms}, route: [{destination: {host: reviews}}]}]}";
    let proxy = Mesh {
        endpoints: &[(endpoint, "v1")],
        virtual_services: &[("default/reviews", rule)],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http1)
    .await;
    let answer = proxy
        .request("POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 10\r\n\r\nsmall body")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with('2'),
        "{answer}"
    );
}

#[tokio::test]
async fn attempts_come_to_an_end() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let endpoint = server(move |_, mut client| {
        let counter = Arc::clone(&counter);
        async move {
            while maybe_head(&mut client).await.is_some() {
                counter.fetch_add(1, SeqCst);
                client
                    .write("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 5\r\n\r\nsorry")
                    .await;
            }
        }
    })
    .await;
    let rule = "{hosts: [reviews], http: [{retries: {attempts: 3, retryOn: 5xx, backoff: 1ms}, route: [{destination: {host: reviews}}]}]}";
    let proxy = Mesh {
        endpoints: &[(endpoint, "v1")],
        virtual_services: &[("default/reviews", rule)],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http1)
    .await;
    let answer = proxy.request(GET).await;
    assert!(
        answer.starts_with("HTTP/1.1 500 ") && answer.ends_with("sorry"),
        "{answer}"
    );
    assert_eq!(count.load(SeqCst), 4);
}

#[tokio::test]
async fn a_try_has_its_own_time() {
    let endpoint = server(|number, mut client| async move {
        client.head().await;
        if number == 0 {
            client.rest().await;
        } else {
            client
                .write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await;
        }
    })
    .await;
    let rule = "{hosts: [reviews], http: [{retries: {attempts: 1, perTryTimeout: 100ms, retryOn: 5xx}, route: [{destination: {host: reviews}}]}]}";
    let proxy = Mesh {
        endpoints: &[(endpoint, "v1")],
        virtual_services: &[("default/reviews", rule)],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http1)
    .await;
    assert!(proxy.request(GET).await.ends_with("ok"));
}

#[tokio::test]
async fn a_request_that_may_have_acted_is_not_repeated() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let endpoint = server(move |_, mut client| {
        let counter = Arc::clone(&counter);
        async move {
            client.read_until("body").await;
            counter.fetch_add(1, SeqCst);
        }
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let answer = proxy
        .request("POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 4\r\n\r\nbody")
        .await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(count.load(SeqCst), 1);
}

#[tokio::test]
async fn a_large_body_is_streamed_and_not_kept() {
    const SIZE: usize = 1024 * 1024;
    let endpoint = server(|number, mut client| async move {
        client.head().await;
        let mut body = vec![0; SIZE];
        client.0.read_exact(&mut body).await.expect("the body");
        assert!(body.iter().all(|byte| *byte == b'x'));
        client
            .write(&format!(
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 1\r\n\r\n{number}"
            ))
            .await;
    })
    .await;
    let rule = "{hosts: [reviews], http: [{retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}, route: [{destination: {host: reviews}}]}]}";
    let proxy = Mesh {
        endpoints: &[(endpoint, "v1")],
        virtual_services: &[("default/reviews", rule)],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http1)
    .await;
    let head = format!("POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: {SIZE}\r\n\r\n");
    let answer = proxy.request(&(head + &"x".repeat(SIZE))).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.ends_with('0'),
        "{answer}"
    );
}
