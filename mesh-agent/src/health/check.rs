//! One probe, made inside the workload's own network namespace.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::netns::Sockets;
use crate::proxy::{Local, Originator, Server};
use crate::resource::workload_group::{Exec, Grpc, HttpGet, ProbeSpec};
use crate::route::TlsOrigination;

/// Longest answer of gRPC that is read, in bytes; a health status has two.
const MAX_GRPC_ANSWER: usize = 1024;

/// Makes the probe; the caller bounds the time.
///
/// # Errors
/// Why it failed, for people.
pub(super) async fn check(probe: &ProbeSpec, local: &Local) -> Result<(), String> {
    if let Some(get) = &probe.http_get {
        return http_get(get, local).await;
    }
    if let Some(socket) = &probe.tcp_socket {
        return connect(local, &socket.host, socket.port).await.map(drop);
    }
    if let Some(exec) = &probe.exec {
        return run(exec, local).await;
    }
    match &probe.grpc {
        Some(grpc) => ask(grpc, local).await,
        None => Err("the probe does not say how to ask".to_owned()),
    }
}

/// Connects to the workload's own address, or to another that its namespace reaches.
async fn connect(local: &Local, host: &str, port: u32) -> Result<TcpStream, String> {
    let own = local.workload.addresses.first().copied();
    let address: Option<IpAddr> = match host {
        "" => own,
        "localhost" => Some([127, 0, 0, 1].into()),
        host => host.parse().ok(),
    };
    let (Some(address), Ok(port)) = (address, u16::try_from(port)) else {
        return Err(format!("{host}:{port} is no address"));
    };
    let to = SocketAddr::new(address, port);
    // From its own address to its own address, which the kernel leaves alone.
    let from = own.filter(|own| *own == address);
    let connected = local.sockets.connect(from, to, None).await;
    connected.map_err(|error| format!("{to}: {error}"))
}

async fn http_get(get: &HttpGet, local: &Local) -> Result<(), String> {
    let stream = connect(local, &get.host, get.port).await?;
    let peer = stream.peer_addr().map_err(|error| error.to_string())?;
    if get.scheme != "HTTPS" {
        return get_over(stream, get, peer).await;
    }
    // As kubelet does: whoever answers is the workload.
    let tls = Arc::new(TlsOrigination {
        certificate: None,
        authorities: None,
        revoked: None,
        sni: None,
        subject_alt_names: Vec::new(),
        verify: false,
    });
    let server = Server {
        host: &peer.ip().to_string(),
        names: &[],
        alpn: &[],
    };
    let stream = Originator::default().connect(stream, &tls, &server).await;
    get_over(stream.map_err(|error| error.to_string())?, get, peer).await
}

async fn get_over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    get: &HttpGet,
    peer: SocketAddr,
) -> Result<(), String> {
    let said = |error: hyper::Error| format!("{peer}: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
    let path = if get.path.is_empty() { "/" } else { &get.path };
    let mut request = Request::get(path).header(header::USER_AGENT, "undermesh-probe");
    let named =
        |name: &str| (get.http_headers.iter()).any(|own| own.name.eq_ignore_ascii_case(name));
    if !named("host") {
        request = request.header(header::HOST, peer.to_string());
    }
    for own in &get.http_headers {
        request = request.header(&own.name, &own.value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(said)?;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            Ok(())
        } else {
            Err(format!("GET {path} is answered with {}", status.as_u16()))
        }
    };
    tokio::pin!(connection);
    tokio::select! {
        answered = answered => answered,
        ended = &mut connection => Err(match ended {
            Ok(()) => format!("{peer}: closed without an answer"),
            Err(error) => said(error),
        }),
    }
}

async fn run(exec: &Exec, local: &Local) -> Result<(), String> {
    let Some((program, arguments)) = exec.command.split_first() else {
        return Err("no command".to_owned());
    };
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // The child is made by the thread that is inside, and so is inside itself.
    let spawned = local.sockets.namespace().run(|| command.spawn());
    let mut child = spawned.map_err(|error| format!("{program}: {error}"))?;
    let status = child.wait().await.map_err(|error| error.to_string())?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {status}"))
    }
}

/// `grpc.health.v1.HealthCheckRequest` (gRPC Health Checking Protocol).
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: i32 = 1;
/// Bytes before a message: compressed or not, and its length.
const GRPC_PREFIX: usize = 5;

async fn ask(grpc: &Grpc, local: &Local) -> Result<(), String> {
    let stream = connect(local, "", grpc.port).await?;
    let peer = stream.peer_addr().map_err(|error| error.to_string())?;
    ask_over(stream, grpc, peer).await
}

async fn ask_over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    grpc: &Grpc,
    peer: SocketAddr,
) -> Result<(), String> {
    let said = |error: hyper::Error| format!("{peer}: {error}");
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(said)?;
    let connection = tokio::spawn(connection);
    let question = HealthCheckRequest {
        service: grpc.service.clone(),
    }
    .encode_to_vec();
    let mut body = vec![0];
    body.extend((question.len() as u32).to_be_bytes());
    body.extend(question);
    let request = Request::post(format!("http://{peer}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(said)?;
        if response.status() != StatusCode::OK {
            return Err(format!(
                "gRPC is answered with {}",
                response.status().as_u16()
            ));
        }
        let headers = response.headers().clone();
        let body = http_body_util::Limited::new(response.into_body(), MAX_GRPC_ANSWER);
        let body = body
            .collect()
            .await
            .map_err(|error| format!("{peer}: {error}"))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let status = trailers.get("grpc-status").or(headers.get("grpc-status"));
        if let Some(status) = status.filter(|status| *status != "0") {
            return Err(format!(
                "gRPC status {}",
                status.to_str().unwrap_or("unreadable")
            ));
        }
        let bytes = body.to_bytes();
        let answer = bytes.get(GRPC_PREFIX..).map(HealthCheckResponse::decode);
        match answer {
            Some(Ok(answer)) if answer.status == SERVING => Ok(()),
            Some(Ok(answer)) => Err(format!("gRPC health is {}, not SERVING", answer.status)),
            _ => Err(format!("{peer}: no answer of gRPC's health service")),
        }
    };
    let result = answered.await;
    connection.abort();
    result
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{HeaderMap, HeaderValue, Response};
    use http_body_util::combinators::BoxBody;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use tokio::io::DuplexStream;

    use super::*;

    const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 80);

    type Answer = Response<BoxBody<Bytes, Infallible>>;

    fn body(bytes: &'static [u8], grpc_status: Option<&'static str>) -> BoxBody<Bytes, Infallible> {
        let trailers = grpc_status.map(|status| {
            Ok(HeaderMap::from_iter([(
                header::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static(status),
            )]))
        });
        let body = Full::new(Bytes::from_static(bytes));
        body.with_trailers(async { trailers }).boxed()
    }

    /// The client's end of a connection to a server that answers with `answer`.
    fn server(
        http2: bool,
        answer: impl Fn(&Request<Incoming>) -> Answer + Clone + Send + 'static,
    ) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let io = TokioIo::new(far);
            let _ = if http2 {
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(io, service)
                    .await
            } else {
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .await
            };
        });
        near
    }

    #[tokio::test]
    async fn http_is_well_with_any_status_from_200_to_399() {
        for (status, expected) in [
            (200, Ok(())),
            (302, Ok(())),
            (404, Err("GET /well is answered with 404".to_owned())),
            (503, Err("GET /well is answered with 503".to_owned())),
        ] {
            let near = server(false, move |request| {
                assert_eq!(request.uri().path(), "/well");
                assert_eq!(request.headers()["host"], "a.example.com");
                assert_eq!(request.headers()["x-probe"], "1");
                let mut answer = Response::new(body(b"", None));
                *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
                answer
            });
            let header = |name: &str, value: &str| crate::resource::workload_group::HttpHeader {
                name: name.to_owned(),
                value: value.to_owned(),
            };
            let get = HttpGet {
                path: "/well".to_owned(),
                http_headers: vec![header("Host", "a.example.com"), header("X-Probe", "1")],
                ..HttpGet::default()
            };
            assert_eq!(get_over(near, &get, PEER).await, expected, "{status}");
        }
    }

    #[tokio::test]
    async fn grpc_is_well_when_it_says_that_it_serves() {
        let grpc = Grpc {
            port: 80,
            service: "shop".to_owned(),
        };
        for (message, status, expected) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], "0", Ok(())),
            (
                &[0, 0, 0, 0, 2, 8, 2],
                "0",
                Err("gRPC health is 2, not SERVING".to_owned()),
            ),
            (&[], "5", Err("gRPC status 5".to_owned())),
            (
                &[],
                "0",
                Err(format!("{PEER}: no answer of gRPC's health service")),
            ),
        ] {
            let near = server(true, move |request| {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                Response::new(body(message, Some(status)))
            });
            assert_eq!(ask_over(near, &grpc, PEER).await, expected, "{message:?}");
        }
    }

    #[tokio::test]
    async fn who_says_nothing_is_not_well() {
        let (near, far) = tokio::io::duplex(64);
        drop(far);
        assert!(get_over(near, &HttpGet::default(), PEER).await.is_err());
    }
}
