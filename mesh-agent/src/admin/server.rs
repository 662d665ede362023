//! HTTP/1.1 with JSON over the control socket: `GET /v1/<view>`. The one thing that
//! can be changed is what the kernel programs log.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::api::{Agent, ErrorView};
use super::authz;
use super::checks::all_checks;
use super::observed::observe;
use super::socket::ControlSocket;

/// What the kernel programs log.
const KERNEL_LOG: &str = "/v1/kernel-log";
/// Most connections at a time; more wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 32;
/// Largest request head, bytes. Request bodies are not read.
const MAX_REQUEST_BYTES: usize = 16 * 1024;
/// How long a client may take to send a request, or stay idle between two.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, such as on too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers on `socket` until `stop`, then removes it. Connections under way are cut:
/// every request is a question that can be asked again.
pub async fn serve(socket: ControlSocket, agent: Arc<dyn Agent>, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, socket.listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let agent = agent.clone();
                connections.spawn(async move {
                    let _slot = slot;
                    serve_connection(stream, agent).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "control socket cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: UnixStream, agent: Arc<dyn Agent>) {
    let service = service_fn(move |request| {
        let agent = agent.clone();
        async move { Ok::<_, Infallible>(answer(request, agent).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(MAX_REQUEST_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "control connection ended");
    }
}

async fn answer(request: Request<Incoming>, agent: Arc<dyn Agent>) -> Response<Full<Bytes>> {
    let uri = request.uri().clone();
    let change = match (request.method(), uri.path()) {
        (&Method::GET, _) => false,
        (&Method::POST, KERNEL_LOG) => true,
        _ => return error(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered"),
    };
    // Views read BPF maps: that blocks.
    let view = tokio::task::spawn_blocking(move || {
        let query = uri.query().unwrap_or_default();
        let answer = if change {
            set_kernel_log(agent.as_ref(), query)
        } else {
            view(agent.as_ref(), uri.path(), query)
        };
        agent.answered();
        answer
    });
    view.await.unwrap_or_else(|_| {
        error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the agent could not answer",
        )
    })
}

fn view(agent: &dyn Agent, path: &str, query: &str) -> Response<Full<Bytes>> {
    match path {
        "/v1/version" => json(StatusCode::OK, &agent.version()),
        "/v1/workloads" => json(StatusCode::OK, &agent.workloads()),
        "/v1/services" => json(StatusCode::OK, &agent.services()),
        "/v1/endpoints" => json(StatusCode::OK, &agent.endpoints()),
        "/v1/inbound" => json(StatusCode::OK, &agent.inbound()),
        "/v1/route" => route(agent, query),
        KERNEL_LOG => json(StatusCode::OK, &agent.kernel_log()),
        "/v1/flows" => json(StatusCode::OK, &agent.flows()),
        "/v1/config" => json(StatusCode::OK, &agent.config()),
        "/v1/certificates" => json(StatusCode::OK, &agent.certificates()),
        "/v1/checks" => json(StatusCode::OK, &all_checks(agent)),
        "/v1/tls-check" => tls_check(agent, query),
        "/v1/authz-check" => authz_check(agent, query),
        "/v1/plaintext" => plaintext(agent, query),
        "/v1/authz-report" => json(StatusCode::OK, &agent.authz_report()),
        _ => error(StatusCode::NOT_FOUND, "no such view"),
    }
}

fn set_kernel_log(agent: &dyn Agent, query: &str) -> Response<Full<Bytes>> {
    let Some(level) = parameter(query, "level") else {
        return error(StatusCode::BAD_REQUEST, "kernel-log needs ?level=<LEVEL>");
    };
    match agent.set_kernel_log(level) {
        Ok(view) => json(StatusCode::OK, &view),
        Err(reason) => error(StatusCode::BAD_REQUEST, &reason),
    }
}

/// The question is JSON, percent-encoded: a path and headers may hold anything.
fn route(agent: &dyn Agent, query: &str) -> Response<Full<Bytes>> {
    let question = parameter(query, "question").and_then(percent_decoded);
    let Some(question) = question.and_then(|text| serde_json::from_slice(&text).ok()) else {
        return error(StatusCode::BAD_REQUEST, "route needs ?question=<JSON>");
    };
    match agent.route(&question) {
        Ok(view) => json(StatusCode::OK, &view),
        Err(reason) => error(StatusCode::NOT_FOUND, &reason),
    }
}

/// RFC 3986, section 2.1.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    Some(decoded)
}

fn tls_check(agent: &dyn Agent, query: &str) -> Response<Full<Bytes>> {
    let Some(workload) = parameter(query, "workload") else {
        return error(
            StatusCode::BAD_REQUEST,
            "tls-check needs ?workload=<name>.<namespace>",
        );
    };
    match agent.tls_check(workload, parameter(query, "service")) {
        Ok(mut rows) => {
            observe(&mut rows, &agent.flows(), workload);
            json(StatusCode::OK, &rows)
        }
        Err(reason) => error(StatusCode::NOT_FOUND, &reason.to_string()),
    }
}

fn plaintext(agent: &dyn Agent, query: &str) -> Response<Full<Bytes>> {
    match parameter(query, "minutes").map(str::parse) {
        Some(Ok(minutes)) => json(StatusCode::OK, &agent.plaintext(minutes)),
        _ => error(StatusCode::BAD_REQUEST, "plaintext needs ?minutes=<number>"),
    }
}

fn authz_check(agent: &dyn Agent, query: &str) -> Response<Full<Bytes>> {
    let question = parameter(query, "question").unwrap_or_default();
    match authz::decode(question) {
        Err(reason) => {
            let text = format!("authz-check needs ?question=<JSON in hexadecimal>: {reason}");
            error(StatusCode::BAD_REQUEST, &text)
        }
        Ok(question) => match agent.authz_check(&question) {
            Ok(answer) => json(StatusCode::OK, &answer),
            Err(reason) => error(StatusCode::NOT_FOUND, &reason),
        },
    }
}

/// A parameter of a query. Names of workloads and services need no percent encoding, so there is none.
fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, value)| *key == name && !value.is_empty())
        .map(|(_, value)| value)
}

fn error(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    json(
        status,
        &ErrorView {
            error: text.to_owned(),
        },
    )
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    let (status, body) = match serde_json::to_vec(value) {
        Ok(body) => (status, body),
        Err(error) => {
            tracing::error!(%error, "a view cannot be written as JSON");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                br#"{"error":"the answer cannot be written as JSON"}"#.to_vec(),
            )
        }
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::samples::SampleAgent;
    use std::path::Path;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Sends `request` and reads to the end.
    async fn exchange(path: &Path, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // A refused request may end in a reset after the answer.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn views_are_answered_and_everything_else_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n1.sock");
        let socket = ControlSocket::bind(&path, None).await.unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(socket, Arc::new(SampleAgent), stop.clone()));
        for (line, status, part) in [
            ("GET /v1/version", "200", "\"node\":\"n1\""),
            (
                "GET /v1/workloads",
                "200",
                "\"state\":\"waiting\",\"reason\":\"no process 4711\"",
            ),
            ("GET /v1/services", "200", "10.0.2.3:8080"),
            ("GET /v1/inbound", "200", "\"pending\":{"),
            ("GET /v1/flows", "200", "\"security\":\"mutual_tls\""),
            ("GET /v1/config", "200", "spec.http[0].mirror"),
            ("GET /v1/certificates", "200", "spiffe://"),
            ("GET /v1/plaintext?minutes=10", "200", "sleep.legacy"),
            ("GET /v1/plaintext", "400", "minutes"),
            ("GET /v1/checks", "200", "agent is running"),
            ("GET /v1/tls-check?workload=sleep", "200", "\"observed\":{"),
            ("GET /v1/tls-check?workload=nope", "404", "no workload nope"),
            ("GET /v1/tls-check?service=x", "400", "workload="),
            ("GET /v1/authz-report", "200", "would_be_denied"),
            (
                "GET /v1/authz-check?question=7b7d",
                "200",
                "\"verdict\":\"denied\"",
            ),
            ("GET /v1/authz-check?question=7b", "400", "question="),
            ("GET /nope", "404", "error"),
            ("POST /v1/version", "405", "error"),
            ("GET /v1/kernel-log", "200", "off"),
            ("POST /v1/kernel-log?level=debug", "200", "debug"),
            ("POST /v1/kernel-log?level=loud", "400", "loud"),
            ("POST /v1/kernel-log", "400", "level"),
        ] {
            let request = format!("{line} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            let answer = exchange(&path, request.as_bytes()).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{line}: {answer}"
            );
            assert!(answer.contains(part), "{line}: {answer}");
        }
        let endless = vec![b'x'; 2 * MAX_REQUEST_BYTES];
        let answer = exchange(&path, &[b"GET /", &endless[..]].concat()).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );

        stop.cancel();
        server.await.unwrap();
        assert!(!path.exists());
    }
}
