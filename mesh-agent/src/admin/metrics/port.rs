//! The port that Prometheus reads: HTTP/1.1, one question to a connection.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admin::api::Agent;

/// Most connections at a time; more wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 16;
/// Largest request head, bytes. Request bodies are not read.
const MAX_REQUEST_BYTES: usize = 16 * 1024;
/// How long a client may take to ask.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last, so that nobody holds one by reading nothing.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two attempts to get the port. An agent that was taken over gives it up within the first.
const RETRY: Duration = Duration::from_secs(2);
/// Pause after a failed accept, such as on too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What Prometheus asks for.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where metrics are served, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// Nowhere.
    Off,
    /// There.
    At(SocketAddr),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let address = text.parse().map(Self::At);
        address.map_err(|_| "neither an address such as 127.0.0.1:15020 nor \"off\"".to_owned())
    }
}

/// Serves `agent`'s metrics until `stop`. Where the port is somebody else's, the agent
/// works without, says so once, and takes the port when it is free.
pub async fn serve(address: MetricsAddress, agent: Arc<dyn Agent>, stop: CancellationToken) {
    let MetricsAddress::At(address) = address else {
        return;
    };
    let work = async {
        let listener = listen(address).await;
        accept(listener, agent, &stop).await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    for attempt in 1.. {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if attempt == 2 => tracing::warn!(
                %address,
                %error,
                "no metrics are served until the port is free (--metrics-address)"
            ),
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
    unreachable!("the loop has no end")
}

async fn accept(listener: TcpListener, agent: Arc<dyn Agent>, stop: &CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = slots.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let (agent, stop) = (agent.clone(), stop.clone());
                tokio::spawn(async move {
                    let _slot = slot;
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = serve_connection(stream, agent) => {}
                    }
                });
            }
            Err(error) => {
                report(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn report(error: &io::Error) {
    tracing::warn!(%error, "the metrics port cannot accept");
}

async fn serve_connection(stream: TcpStream, agent: Arc<dyn Agent>) {
    let service = service_fn(move |request| {
        let agent = agent.clone();
        async move { Ok::<_, Infallible>(answer(&request, agent).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(MAX_REQUEST_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection to the metrics port ended"),
        Err(_) => tracing::debug!("connection to the metrics port took too long"),
    }
}

async fn answer(request: &Request<Incoming>, agent: Arc<dyn Agent>) -> Response<Full<Bytes>> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, text) = match request.uri().path() {
        _ if !is_read => (
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is answered\n".to_owned(),
        ),
        "/metrics" | "/stats/prometheus" => {
            // Views read BPF maps: that blocks.
            let text = tokio::task::spawn_blocking(move || {
                let text = super::text(agent.as_ref());
                agent.answered();
                text
            });
            match text.await {
                Ok(text) => (StatusCode::OK, text),
                Err(_) => (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the agent could not answer\n".to_owned(),
                ),
            }
        }
        _ => (StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let format = header::HeaderValue::from_static(TEXT_FORMAT);
    response.headers_mut().insert(header::CONTENT_TYPE, format);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::admin::samples::SampleAgent;

    struct Port {
        address: SocketAddr,
        stop: CancellationToken,
        server: tokio::task::JoinHandle<()>,
    }

    async fn port(address: SocketAddr) -> Port {
        let stop = CancellationToken::new();
        let at = MetricsAddress::At(address);
        let server = tokio::spawn(serve(at, Arc::new(SampleAgent), stop.clone()));
        Port {
            address,
            stop,
            server,
        }
    }

    async fn free() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address")
    }

    impl Port {
        async fn connect(&self) -> TcpStream {
            let connect = async {
                loop {
                    match TcpStream::connect(self.address).await {
                        Ok(stream) => return stream,
                        Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                    }
                }
            };
            let connected = tokio::time::timeout(Duration::from_secs(10), connect).await;
            connected.expect("it listens")
        }

        /// All that is answered to these bytes.
        async fn say(&self, bytes: &[u8]) -> String {
            let mut stream = self.connect().await;
            // It may have heard enough before the end.
            let _ = stream.write_all(bytes).await;
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            let _ = tokio::time::timeout(Duration::from_secs(20), read)
                .await
                .expect("it ends");
            String::from_utf8_lossy(&answer).into_owned()
        }

        async fn get(&self, path: &str) -> String {
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            self.say(request.as_bytes()).await
        }
    }

    #[tokio::test]
    async fn metrics_by_both_names_and_nothing_else() {
        let port = port(free().await).await;
        for path in ["/metrics", "/stats/prometheus"] {
            let answer = port.get(path).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
            assert!(
                answer.contains("\nundermesh_config_generation "),
                "{answer}"
            );
        }
        assert!(port.get("/v1/flows").await.starts_with("HTTP/1.1 404 "));
        let post = port.say(b"POST /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
        port.stop.cancel();
        port.server.await.expect("no panic");
        assert!(TcpStream::connect(port.address).await.is_err());
    }

    #[tokio::test]
    async fn hostile_input_does_no_harm() {
        let port = port(free().await).await;
        let huge = format!(
            "GET /metrics HTTP/1.1\r\na: {}\r\n\r\n",
            "x".repeat(1 << 20)
        );
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(10_000));
        let garbage: Vec<u8> = (0..100_000u32).map(|i| (i * 167 % 256) as u8).collect();
        let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec();
        for bytes in [huge.into_bytes(), many.into_bytes(), garbage, tls] {
            let answer = port.say(&bytes).await;
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
                "{answer}"
            );
        }
        // Some who say nothing do not keep out who asks.
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS / 2 {
            silent.push(port.connect().await);
        }
        assert!(port.get("/metrics").await.starts_with("HTTP/1.1 200 "));
        // Nor do as many as there may be, for longer than a request may take.
        for _ in 0..MAX_CONNECTIONS {
            silent.push(port.connect().await);
        }
        assert!(port.get("/metrics").await.starts_with("HTTP/1.1 200 "));
        port.stop.cancel();
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_waited_for() {
        let other = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = port(other.local_addr().expect("an address")).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(other);
        assert!(port.get("/metrics").await.starts_with("HTTP/1.1 200 "));
        port.stop.cancel();
    }

    #[test]
    fn an_address_or_off() {
        assert_eq!("off".parse(), Ok(MetricsAddress::Off));
        assert!(matches!("[::1]:15020".parse(), Ok(MetricsAddress::At(_))));
        assert!("15020".parse::<MetricsAddress>().is_err());
        assert!("localhost:15020".parse::<MetricsAddress>().is_err());
    }
}
