//! A server that answers as it is asked to, and tells over which of its
//! connections a request came: for trying limits, timeouts and failures.
//!
//! `/status/503` answers with that status, `/delay/1500` after so many
//! milliseconds; `--fail` makes every answer a 500, `--delay 100` makes every one late.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::Listen;

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
    requests: AtomicUsize,
}

/// How it answers where the path does not say.
#[derive(Clone, Copy)]
pub struct Manner {
    /// With 500.
    pub fail: bool,
    /// Milliseconds late.
    pub delay: u64,
}

/// Serves until the process ends.
pub async fn serve(listen: Listen, manner: Manner) -> anyhow::Result<()> {
    let counts = Arc::<Counts>::default();
    let version: Arc<str> = listen.version.into();
    let mut listeners = JoinSet::new();
    for address in listen.listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let (counts, version) = (counts.clone(), version.clone());
        listeners.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(connection(stream, counts.clone(), version.clone(), manner));
            }
        });
    }
    let ended: anyhow::Result<()> = listeners
        .join_next()
        .await
        .context("nothing to listen on")??;
    ended
}

async fn connection(stream: TcpStream, counts: Arc<Counts>, version: Arc<str>, manner: Manner) {
    let number = counts.connections.fetch_add(1, SeqCst) + 1;
    let open = counts.open.fetch_add(1, SeqCst) + 1;
    counts.most_open.fetch_max(open, SeqCst);
    let on_connection = Arc::new(AtomicUsize::new(0));
    let shared = counts.clone();
    let service = service_fn(move |request: Request<_>| {
        let (counts, version) = (shared.clone(), version.clone());
        let request_number = on_connection.fetch_add(1, SeqCst) + 1;
        counts.requests.fetch_add(1, SeqCst);
        async move {
            let path = request.uri().path().to_owned();
            let status = answer(&path, manner).await;
            let body = format!(
                "version={version} connection={number} request={request_number} connections={} most={} requests={}\n",
                counts.connections.load(SeqCst),
                counts.most_open.load(SeqCst),
                counts.requests.load(SeqCst),
            );
            let mut response: Response<Full<Bytes>> = Response::new(Full::new(body.into()));
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        }
    });
    let served = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        eprintln!("connection {number}: {error}");
    }
    counts.open.fetch_sub(1, SeqCst);
}

async fn answer(path: &str, manner: Manner) -> StatusCode {
    let asked = path
        .strip_prefix("/delay/")
        .and_then(|text| text.parse().ok());
    let delay = Duration::from_millis(asked.unwrap_or(manner.delay));
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let asked = path.strip_prefix("/status/");
    match asked.and_then(|text| text.parse::<StatusCode>().ok()) {
        Some(status) => status,
        None if manner.fail => StatusCode::INTERNAL_SERVER_ERROR,
        None => StatusCode::OK,
    }
}
