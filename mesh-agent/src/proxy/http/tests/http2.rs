//! HTTP/2 and gRPC.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use tokio::sync::mpsc;

use super::*;

type TestBody = BoxBody<Bytes, std::convert::Infallible>;

/// A body whose frames come from a channel.
fn channel() -> (mpsc::Sender<Frame<Bytes>>, TestBody) {
    let (sender, receiver) = mpsc::channel(1);
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((Ok(frame), receiver))
    });
    (sender, BodyExt::boxed(StreamBody::new(frames)))
}

/// A gRPC-like server: gives every message back at once, and trailers at the end.
async fn grpc_server() -> SocketAddr {
    server(|_, client| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            assert_eq!(
                request.headers().get("te").map(|te| te.as_bytes()),
                Some(&b"trailers"[..])
            );
            assert_eq!(
                request
                    .uri()
                    .authority()
                    .map(|authority| authority.as_str()),
                Some("reviews:80")
            );
            let mut incoming = request.into_body();
            let (sender, body) = channel();
            tokio::spawn(async move {
                while let Some(Ok(frame)) = incoming.frame().await {
                    if frame.is_data() && sender.send(frame).await.is_err() {
                        return;
                    }
                }
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                sender.send(Frame::trailers(trailers)).await.ok();
            });
            Ok::<_, std::convert::Infallible>(Response::new(body))
        });
        let connection = super::super::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(client.0), service);
        connection.await.ok();
    })
    .await
}

async fn client(proxy: &Proxy) -> http2::SendRequest<TestBody> {
    let io = TcpStream::connect(proxy.address).await.expect("the proxy");
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
        .await
        .expect("a handshake");
    tokio::spawn(connection);
    sender
}

fn grpc(body: TestBody) -> Request<TestBody> {
    Request::post("http://reviews:80/shop.Reviews/Chat")
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .body(body)
        .expect("a request")
}

#[tokio::test]
async fn a_grpc_stream_flows_both_ways_and_ends_with_trailers() {
    let endpoint = grpc_server().await;
    let proxy = Mesh {
        protocol: Protocol::Auto,
        endpoints: &[(endpoint, "v1")],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http2)
    .await;
    let mut client = client(&proxy).await;
    for _ in 0..3 {
        let (sender, body) = channel();
        let response = client.send_request(grpc(body)).await.expect("a response");
        assert_eq!(response.status(), StatusCode::OK);
        assert!(
            response
                .headers()
                .contains_key("x-envoy-upstream-service-time")
        );
        let mut answers = response.into_body();
        for message in ["one", "two", "three"] {
            sender
                .send(Frame::data(message.into()))
                .await
                .expect("sent");
            let frame = answers.frame().await.expect("a frame").expect("no error");
            assert_eq!(frame.into_data().expect("data"), message);
        }
        drop(sender);
        let frame = answers.frame().await.expect("a frame").expect("no error");
        assert_eq!(frame.into_trailers().expect("trailers")["grpc-status"], "0");
    }
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn many_streams_share_a_connection() {
    let endpoint = grpc_server().await;
    let proxy = Mesh {
        protocol: Protocol::Grpc,
        endpoints: &[(endpoint, "v1")],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http2)
    .await;
    let client = client(&proxy).await;
    let streams: Vec<_> = (0..50)
        .map(|number| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let text = format!("message {number}");
                let body = BodyExt::boxed(Full::new(Bytes::from(text.clone())));
                let response = client.send_request(grpc(body)).await.expect("a response");
                let answer = response.into_body().collect().await.expect("a body");
                assert!(answer.trailers().is_some());
                assert_eq!(answer.to_bytes(), text);
            })
        })
        .collect();
    for stream in streams {
        stream.await.expect("an answer");
    }
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn an_error_of_ours_is_one_of_grpc() {
    let proxy = Mesh {
        protocol: Protocol::Grpc,
        endpoints: &[(nobody().await, "v1")],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http2)
    .await;
    let mut client = client(&proxy).await;
    let response = client
        .send_request(grpc(BodyExt::boxed(Empty::new())))
        .await
        .expect("a response");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert_eq!(response.headers()["grpc-status"], "14");
    let message = response.headers()["grpc-message"]
        .to_str()
        .expect("text")
        .to_owned();
    assert!(message.starts_with("upstream connect error "), "{message}");
    assert!(
        response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes()
            .is_empty()
    );
}

#[tokio::test]
async fn an_http2_client_reaches_an_http1_server() {
    let endpoint = server(|_, mut client| async move {
        let head = client.head().await;
        assert!(head.starts_with("GET /a HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("host: reviews:80\r\n"), "{head}");
        assert!(head.contains("cookie: a=1; b=2\r\n"), "{head}");
        client
            .write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            .await;
    })
    .await;
    let proxy = Mesh {
        endpoints: &[(endpoint, "v1")],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http2)
    .await;
    let mut client = client(&proxy).await;
    let request = Request::get("http://reviews:80/a")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(BodyExt::boxed(Empty::new()))
        .expect("a request");
    let response = client.send_request(request).await.expect("a response");
    assert!(!response.headers().contains_key("connection"));
    assert_eq!(
        response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes(),
        "ok"
    );
}

#[tokio::test]
async fn an_http1_client_reaches_an_http2_server() {
    let endpoint = server(|_, client| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            assert_eq!(request.uri(), "http://reviews/a?b=c");
            assert!(!request.headers().contains_key("host"));
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from("ok"))))
        });
        let connection = super::super::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(client.0), service);
        connection.await.ok();
    })
    .await;
    let proxy = Mesh {
        protocol: Protocol::Http2,
        endpoints: &[(endpoint, "v1")],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http1)
    .await;
    let answer = proxy.request(GET).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_closed_http2_connection_costs_no_request() {
    // Each connection ends after one response.
    let endpoint = server(|_, client| async move {
        let done = CancellationToken::new();
        let finish = done.clone();
        let service = service_fn(move |_| {
            finish.cancel();
            async { Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from("ok")))) }
        });
        let connection = super::super::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(client.0), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = done.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await.ok();
    })
    .await;
    let proxy = Mesh {
        protocol: Protocol::Http2,
        endpoints: &[(endpoint, "v1")],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http1)
    .await;
    // Also for requests that may not be repeated: a graceful end says which were not processed.
    let post = "POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 4\r\n\r\nbody";
    for number in 0..100 {
        let answer = proxy
            .request(if number % 2 == 0 { GET } else { post })
            .await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

/// What an HTTP/2 client gets to HEAD, with all frames of it.
#[tokio::test]
async fn answers_to_head_have_a_length_and_no_body() {
    let endpoint = server(|_, mut client| async move {
        while maybe_head(&mut client).await.is_some() {
            client
                .write("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n")
                .await;
        }
    })
    .await;
    let rule = "{hosts: [reviews], http: [\
        {match: [{uri: {exact: /direct}}], directResponse: {status: 200, body: {string: direct!}}},\
        {route: [{destination: {host: reviews}}]}]}";
    let proxy = Mesh {
        endpoints: &[(endpoint, "v1")],
        virtual_services: &[("default/reviews", rule)],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http2)
    .await;
    let mut client = client(&proxy).await;
    for path in ["direct", "other"] {
        let request = Request::head(format!("http://reviews/{path}"))
            .body(BodyExt::boxed(Empty::new()))
            .expect("a request");
        let response = client.send_request(request).await.expect("an answer");
        assert_eq!(response.headers()["content-length"], "7", "{path}");
        let body = response.into_body().collect().await.expect("an end");
        assert_eq!(body.to_bytes(), "", "{path}");
    }
}

#[tokio::test]
async fn websocket_over_http2_reaches_servers_that_know_it_over_http1() {
    let endpoint = server(|_, mut client| async move {
        let head = client.head().await;
        assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
        for field in [
            "host: reviews\r\n",
            "upgrade: websocket\r\n",
            "connection: upgrade\r\n",
            "sec-websocket-key: ",
        ] {
            assert!(head.contains(field), "{field:?} in {head}");
        }
        if head.contains("x-refuse") {
            client
                .write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno")
                .await;
            return;
        }
        client
            .write("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\nhello")
            .await;
        assert_eq!(client.read_until("ping").await, "ping");
        client.write("pong").await;
    })
    .await;
    let proxy = Mesh {
        endpoints: &[(endpoint, "v1")],
        ..Mesh::default()
    }
    .proxy(HttpVersion::Http2)
    .await;
    let mut client = client(&proxy).await;
    let request = |fields: &[(&'static str, &str)]| {
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri("http://reviews/chat")
            .extension(hyper::ext::Protocol::from_static("websocket"));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request
            .body(BodyExt::boxed(Empty::new()))
            .expect("a request")
    };
    let refused = client.send_request(request(&[("x-refuse", "1")])).await;
    let refused = refused.expect("an answer");
    assert_eq!(refused.status(), StatusCode::BAD_GATEWAY);

    let response = client.send_request(request(&[])).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let upgraded = hyper::upgrade::on(response).await.expect("a tunnel");
    let mut tunnel = TokioIo::new(upgraded);
    let mut read = [0; 5];
    tunnel.read_exact(&mut read).await.expect("a greeting");
    assert_eq!(&read, b"hello");
    tunnel.write_all(b"ping").await.expect("written");
    tunnel.read_exact(&mut read[..4]).await.expect("an answer");
    assert_eq!(&read[..4], b"pong");
}
