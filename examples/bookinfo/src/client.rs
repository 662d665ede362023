//! How one service asks another: by name, with a deadline.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// How long a neighbour may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Header fields that tell who asks, as far as a page passes them on: that is
/// all an application has to do for routing and tracing across services.
const PASSED_ON: &[&str] = &[
    "end-user",
    "x-request-id",
    "traceparent",
    "tracestate",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "b3",
];

/// Status and body of `http://<host>:<port>/`, on behalf of a request with these `headers`.
pub async fn get(
    host: &str,
    port: u16,
    headers: &HeaderMap,
) -> anyhow::Result<(StatusCode, String)> {
    tokio::time::timeout(TIMEOUT, ask(host, port, headers))
        .await
        .with_context(|| format!("{host} did not answer within {TIMEOUT:?}"))?
}

async fn ask(host: &str, port: u16, headers: &HeaderMap) -> anyhow::Result<(StatusCode, String)> {
    let stream = TcpStream::connect((host, port))
        .await
        .with_context(|| format!("cannot connect to {host}:{port}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::get("/").header("host", host);
    for name in PASSED_ON {
        if let Some(value) = headers.get(*name) {
            request = request.header(*name, value);
        }
    }
    let response = sender.send_request(request.body(Empty::new())?).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).trim_end().to_owned()))
}
