//! Informational responses on their way through the proxy.

use std::sync::Arc;

use tokio::sync::Notify;

use super::*;

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn hints_come_ahead_of_the_answer() {
    let go_on = Arc::new(Notify::new());
    let seen = go_on.clone();
    let endpoint = server(move |_, mut client| {
        let go_on = go_on.clone();
        async move {
            while maybe_head(&mut client).await.is_some() {
                client.write("HTTP/1.1 102 Processing\r\n\r\n").await;
                client.write(HINTS).await;
                // Nothing of the answer is there before the client has seen what there is.
                go_on.notified().await;
                client.write(OK).await;
            }
        }
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        client.write("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        assert_eq!(client.head().await, "HTTP/1.1 102 Processing\r\n\r\n");
        assert_eq!(client.head().await, HINTS);
        seen.notify_one();
        assert!(client.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(client.read_until("ok").await, "ok");
    }
}

#[tokio::test]
async fn hints_are_in_their_place_among_pipelined_answers() {
    // At once: what comes with the answer is told with the answer.
    let endpoint = server(|_, mut client| async move {
        while maybe_head(&mut client).await.is_some() {
            client.write(&format!("{HINTS}{OK}")).await;
        }
    })
    .await;
    let proxy = proxy_to(endpoint).await;
    let mut client = proxy.connect().await;
    let request = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    client.write(&request.repeat(20)).await;
    for _ in 0..20 {
        let mut head = client.head().await;
        // They may be left out, while the client has not taken the answer before.
        if head == HINTS {
            head = client.head().await;
        }
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(client.read_until("ok").await, "ok");
    }
    // HTTP/1.0 knows nothing of them.
    let answer = proxy.request("GET / HTTP/1.0\r\nhost: web\r\n\r\n").await;
    assert!(
        answer.contains(" 200 OK\r\n") && !answer.contains("103"),
        "{answer}"
    );
}
