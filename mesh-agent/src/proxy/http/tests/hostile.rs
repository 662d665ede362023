//! Requests that mean one thing to one reader and another to the next.

use super::*;

/// A server that answers every request with all that it got: the head, and the body
/// where it has a length.
async fn mirror() -> SocketAddr {
    server(|_, mut client| async move {
        while let Some(head) = maybe_head(&mut client).await {
            let mut got = head.clone();
            if head.contains("transfer-encoding: chunked\r\n") {
                got += &client.read_until("0\r\n\r\n").await;
            }
            let length = got.len();
            client
                .write(&format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{got}"
                ))
                .await;
        }
    })
    .await
}

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: reviews\r\n{fields}\r\n")
}

/// The first line of what the server got, `None` where it got nothing.
fn asked(answer: &str) -> Option<&str> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200 ")
        .then(|| body.lines().next())?
}

#[tokio::test]
async fn routes_and_servers_see_the_same_path() {
    let endpoint = mirror().await;
    let rule = "{hosts: [reviews], http: [\
        {match: [{uri: {prefix: /admin}}], directResponse: {status: 403}},\
        {route: [{destination: {host: reviews}}]}]}";
    let mesh = Mesh {
        endpoints: &[(endpoint, "v1")],
        virtual_services: &[("default/reviews", rule)],
        ..Mesh::default()
    };
    let proxy = mesh.proxy(HttpVersion::Http1).await;
    for target in [
        "/admin",
        "/x/../admin",
        "/%61dmin",
        "/./admin/x",
        "/x/%2e%2e/admin?q",
        "/x\\..\\admin",
        "http://reviews/x/../admin",
    ] {
        let answer = proxy.request(&get(target, "")).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{target}: {answer}");
    }
    for (target, forwarded) in [
        ("/x/../y?z=/../w", "GET /y?z=/../w HTTP/1.1"),
        ("/%7Ea%2fb", "GET /~a%2fb HTTP/1.1"),
        ("//x", "GET //x HTTP/1.1"),
    ] {
        let answer = proxy.request(&get(target, "")).await;
        assert_eq!(asked(&answer), Some(forwarded), "{answer}");
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let proxy = proxy_to(mirror().await).await;
    for (request, status) in [
        (get("/%00", ""), 400),
        (get("admin", ""), 400),
        (get("/", "host: other\r\n"), 400),
        (get("/", "transfer-encoding: gzip, chunked\r\n"), 501),
        (get("/", "transfer-encoding: chunked, chunked\r\n"), 501),
        (get("/", "transfer-encoding: gzip\r\n"), 400),
        (get("/", "content-length: 1\r\ncontent-length: 2\r\n"), 400),
        (get("/", "content-length: +1\r\n"), 400),
        (get("/", "content-length : 1\r\n"), 400),
        (get("/", "x: a\r\n b\r\n"), 400),
        (get("/", "x: a\rb\r\n"), 400),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /\r\n\r\n".to_owned(), 400),
    ] {
        let answer = proxy.request(&request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {answer}"
        );
    }
    assert_eq!(proxy.connections(), 0, "nothing of it was forwarded");
}

/// Both lengths: the coding counts, the server gets one of them, and what could be
/// another request for somebody else is not read as one (RFC 9112, section 6.3).
#[tokio::test]
async fn a_request_with_two_lengths_is_the_last_of_its_connection() {
    let proxy = proxy_to(mirror().await).await;
    for lengths in [
        "content-length: 6\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 6\r\n",
    ] {
        let mut client = proxy.connect().await;
        client
            .write(&format!(
                "POST / HTTP/1.1\r\nhost: reviews\r\n{lengths}\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nhost: reviews\r\n\r\n"
            ))
            .await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(!answer.contains("/hidden"), "{answer}");
        assert!(!answer.contains("content-length: 6"), "{answer}");
    }
}

#[tokio::test]
async fn no_client_turns_its_connection_into_http2() {
    let proxy = proxy_to(mirror().await).await;
    for upgrade in ["h2c", "H2C", "websocket, h2c"] {
        let fields = format!(
            "connection: upgrade, http2-settings\r\nupgrade: {upgrade}\r\nhttp2-settings: AAMAAABk\r\n"
        );
        let answer = proxy.request(&get("/", &fields)).await;
        assert_eq!(asked(&answer), Some("GET / HTTP/1.1"));
        assert!(
            !answer.contains("upgrade") && !answer.contains("settings"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn requests_that_come_at_once_are_answered_in_order() {
    let proxy = proxy_to(echo("v1").await).await;
    let mut client = proxy.connect().await;
    let requests: String = (0..20)
        .map(|number| get(&format!("/{number}"), ""))
        .collect();
    client.write(&requests).await;
    for number in 0..20 {
        client.head().await;
        let end = format!("GET /{number} HTTP/1.1");
        assert_eq!(client.read_until(&end).await, format!("v1: {end}"));
    }
}

/// Fields that HTTP/1.1 splits must not be joined: a server may read two of them.
#[tokio::test]
async fn cookies_pass_as_they_came() {
    let proxy = proxy_to(mirror().await).await;
    let answer = proxy
        .request(&get("/", "cookie: a=b\r\ncookie: c=d\r\n"))
        .await;
    assert!(
        answer.contains("cookie: a=b\r\ncookie: c=d\r\n"),
        "{answer}"
    );
}
