//! Copies of requests.

use tokio::sync::mpsc;

use super::*;

const SUBSETS: (&str, &str) = (
    "default/r",
    "{host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}",
);

fn rule(mirror: &str) -> String {
    format!(
        "{{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews, subset: v1}}}}], \
         headers: {{request: {{set: {{x-by: rule}}}}}}, {mirror}}}]}}"
    )
}

/// A server that tells every request it gets, head and body of a known length.
async fn telling(body: usize) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let (told, requests) = mpsc::unbounded_channel();
    let address = server(move |_, mut client| {
        let told = told.clone();
        async move {
            while let Some(head) = maybe_head(&mut client).await {
                let mut bytes = vec![0; body];
                if client.0.read_exact(&mut bytes).await.is_err() {
                    return;
                }
                let _ = told.send(format!("{head}{}", String::from_utf8_lossy(&bytes)));
                client
                    .write("HTTP/1.1 500 Oops\r\ncontent-length: 6\r\n\r\nmirror")
                    .await;
            }
        }
    })
    .await;
    (address, requests)
}

async fn next(requests: &mut mpsc::UnboundedReceiver<String>) -> String {
    let next = patient(requests.recv()).await;
    next.expect("in time").expect("a request")
}

#[tokio::test]
async fn a_mirror_gets_the_request_and_the_client_never_its_answer() {
    let (mirror, mut requests) = telling(5).await;
    let rule = rule("mirror: {host: reviews, subset: v2}");
    let mesh = Mesh {
        endpoints: &[(echo("v1").await, "v1"), (mirror, "v2")],
        virtual_services: &[("default/v", &rule)],
        destination_rules: &[SUBSETS],
        ..Mesh::default()
    };
    let proxy = mesh.proxy(HttpVersion::Http1).await;
    let post = "POST /a?b=c HTTP/1.1\r\nhost: Reviews:80\r\ncontent-length: 5\r\n\r\nhello";
    let answer = proxy.request(post).await;
    assert!(answer.ends_with("v1: POST /a?b=c HTTP/1.1"), "{answer}");
    let copy = next(&mut requests).await;
    assert!(copy.starts_with("POST /a?b=c HTTP/1.1\r\n"), "{copy}");
    assert!(copy.ends_with("\r\n\r\nhello"), "{copy}");
    // The host is as the client wrote it, and the rule's headers are there.
    assert!(copy.contains("host: Reviews:80\r\n"), "{copy}");
    assert!(copy.contains("x-by: rule\r\n"), "{copy}");
}

#[tokio::test]
async fn a_mirror_that_is_gone_or_silent_changes_nothing() {
    let silent =
        server(|_, mut client| async move { while maybe_head(&mut client).await.is_some() {} })
            .await;
    for mirror in [silent, nobody().await] {
        let rule = rule("mirror: {host: reviews, subset: v2}");
        let mesh = Mesh {
            endpoints: &[(echo("v1").await, "v1"), (mirror, "v2")],
            virtual_services: &[("default/v", &rule)],
            destination_rules: &[SUBSETS],
            ..Mesh::default()
        };
        let proxy = mesh.proxy(HttpVersion::Http1).await;
        let mut client = proxy.connect().await;
        let began = Instant::now();
        for _ in 0..50 {
            client.write(GET).await;
            client.read_until("v1: GET /a?b=c HTTP/1.1").await;
        }
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_share_of_the_requests_is_mirrored() {
    const REQUESTS: usize = 2000;
    for (mirror, share) in [
        (
            "mirror: {host: reviews, subset: v2}, mirrorPercentage: {value: 0}",
            0,
        ),
        (
            "mirror: {host: reviews, subset: v2}, mirrorPercentage: {value: 10}",
            200,
        ),
        (
            "mirrors: [{destination: {host: reviews, subset: v2}, percentage: {value: 10}}]",
            200,
        ),
        (
            "mirror: {host: reviews, subset: v2}, mirrorPercent: 50",
            1000,
        ),
    ] {
        let (address, mut requests) = telling(0).await;
        let rule = rule(mirror);
        let mesh = Mesh {
            endpoints: &[(echo("v1").await, "v1"), (address, "v2")],
            virtual_services: &[("default/v", &rule)],
            destination_rules: &[SUBSETS],
            ..Mesh::default()
        };
        let proxy = mesh.proxy(HttpVersion::Http1).await;
        let mut client = proxy.connect().await;
        for _ in 0..REQUESTS {
            client.write(GET).await;
            client.read_until("v1: GET /a?b=c HTTP/1.1").await;
        }
        // The last copies may still be under way.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut mirrored = 0usize;
        while requests.try_recv().is_ok() {
            mirrored += 1;
        }
        assert!(
            mirrored.abs_diff(share) <= share / 4,
            "{mirror}: {mirrored} of {REQUESTS}"
        );
    }
}
