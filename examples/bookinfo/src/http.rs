//! HTTP/1.1 and HTTP/2 without TLS on one port.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::Listen;

/// Largest request body that is read and sent back by `/echo`, in bytes.
const MAX_BODY: usize = 16 << 20;

/// What a page is made from.
pub struct Asked {
    /// Version of this service.
    pub version: Arc<str>,
    /// Header fields of the request.
    pub headers: HeaderMap,
}

/// What a service answers.
pub struct Page {
    /// Status.
    pub status: StatusCode,
    /// JSON text.
    pub body: String,
}

/// Serves `page` for every path but `/headers` (what the request carried),
/// `/peer` (whom the server sees) and `/echo` (the request's body).
pub async fn serve<F, P>(listen: Listen, page: F) -> anyhow::Result<()>
where
    F: Fn(Asked) -> P + Clone + Send + 'static,
    P: Future<Output = Page> + Send + 'static,
{
    let version: Arc<str> = listen.version.into();
    let mut listeners = JoinSet::new();
    for address in listen.listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        listeners.spawn(accept(listener, version.clone(), page.clone()));
    }
    listeners
        .join_next()
        .await
        .context("nothing to listen on")??
}

async fn accept<F, P>(listener: TcpListener, version: Arc<str>, page: F) -> anyhow::Result<()>
where
    F: Fn(Asked) -> P + Clone + Send + 'static,
    P: Future<Output = Page> + Send + 'static,
{
    loop {
        let (stream, peer) = listener.accept().await?;
        tokio::spawn(connection(stream, peer, version.clone(), page.clone()));
    }
}

async fn connection<F, P>(stream: TcpStream, peer: SocketAddr, version: Arc<str>, page: F)
where
    F: Fn(Asked) -> P + Clone + Send + 'static,
    P: Future<Output = Page> + Send + 'static,
{
    // Small answers shall not wait for an acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        eprintln!("{peer}: {error}");
        return;
    }
    let service = service_fn(move |request| {
        let (version, page) = (version.clone(), page.clone());
        async move {
            let is_head = request.method() == Method::HEAD;
            let mut response = answer(request, peer, version, page).await;
            if is_head {
                leave_body_out(&mut response);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let result = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = result {
        eprintln!("{peer}: {error}");
    }
}

/// Over HTTP/2 the body of an answer to HEAD would be sent.
fn leave_body_out(response: &mut Response<Full<Bytes>>) {
    if let Some(length) = response.body().size_hint().exact() {
        let length = HeaderValue::from(length);
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    *response.body_mut() = Full::default();
}

async fn answer<F, P>(
    request: Request<Incoming>,
    peer: SocketAddr,
    version: Arc<str>,
    page: F,
) -> Response<Full<Bytes>>
where
    F: Fn(Asked) -> P,
    P: Future<Output = Page>,
{
    let (head, body) = request.into_parts();
    match head.uri.path() {
        "/headers" => {
            let mut text = format!("{} {} {:?}\n", head.method, head.uri, head.version);
            for (name, value) in &head.headers {
                text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
            }
            response(StatusCode::OK, "text/plain", text.into())
        }
        "/peer" => response(StatusCode::OK, "text/plain", format!("{peer}\n").into()),
        "/echo" => match http_body_util::Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => response(StatusCode::OK, "application/octet-stream", body.to_bytes()),
            Err(error) => response(
                StatusCode::PAYLOAD_TOO_LARGE,
                "text/plain",
                format!("{error}\n").into(),
            ),
        },
        _ => {
            let page = page(Asked {
                version,
                headers: head.headers,
            })
            .await;
            response(page.status, "application/json", page.body.into())
        }
    }
}

fn response(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
