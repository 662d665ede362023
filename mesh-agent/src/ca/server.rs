//! gRPC over TLS: one method, `CreateCertificate`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::MAX_LIFETIME;
use super::callers::Callers;
use super::status::Status;
use crate::identity::certificate_service::{
    CertificateRequest, CertificateResponse, METHOD, frame, unframe,
};
use crate::identity::{Authority, AuthorityError, Identity, verify};

/// Connections at a time; more wait.
const MAX_CONNECTIONS: usize = 1024;
/// Requests at a time on one connection.
const MAX_STREAMS: u32 = 32;
/// Longest request, bytes.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Time for TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection is served: those who ask come again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// Time for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, such as on too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The certificates by which a client proves who it is, leaf first.
type Proof = Vec<CertificateDer<'static>>;

/// What certificates are given by.
pub struct Service {
    authority: ArcSwap<Authority>,
    /// Who may ask.
    callers: Callers,
    /// Names of this server.
    pub dns_names: Vec<String>,
    /// Life of a certificate whose life is not asked for.
    pub lifetime: Duration,
    /// How this server talks TLS.
    own: Mutex<Option<Own>>,
}

/// This server's own certificate, of one authority.
struct Own {
    authority: Arc<Authority>,
    made: Instant,
    config: Arc<ServerConfig>,
}

impl Service {
    /// Certificates of the authority for those that `callers` know.
    pub fn new(
        authority: Authority,
        callers: Callers,
        dns_names: Vec<String>,
        lifetime: Duration,
    ) -> Self {
        Self {
            authority: ArcSwap::from_pointee(authority),
            callers,
            dns_names,
            lifetime,
            own: Mutex::default(),
        }
    }

    /// Gives certificates by another authority from now on.
    pub fn replace(&self, authority: Authority) {
        self.authority.store(Arc::new(authority));
    }

    /// With a certificate that is new at half of its life, and with another authority.
    fn config(&self) -> Result<Arc<ServerConfig>, AuthorityError> {
        let authority = self.authority.load_full();
        let mut own = self.own.lock();
        if let Some(own) = &*own
            && Arc::ptr_eq(&own.authority, &authority)
            && own.made.elapsed() < self.lifetime / 2
        {
            return Ok(own.config.clone());
        }
        let config = authority.service_config(&self.dns_names, self.lifetime)?;
        let config = Arc::new(config);
        *own = Some(Own {
            authority,
            made: Instant::now(),
            config: config.clone(),
        });
        Ok(config)
    }
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, service: Arc<Service>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let service = service.clone();
                tokio::spawn(async move {
                    let _slot = slot;
                    if let Err(reason) = connection(stream, peer, service).await {
                        tracing::debug!(%peer, reason, "connection to the authority ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    service: Arc<Service>,
) -> Result<(), String> {
    let config = service.config().map_err(|error| error.to_string())?;
    let tls = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream))
        .await
        .map_err(|_| "no handshake in time".to_owned())?
        .map_err(|error| verify::explain(error).to_string())?;
    // A certificate is not a duty here.
    let proof: Option<Proof> = (tls.get_ref().1.peer_certificates())
        .map(|chain| chain.iter().map(|one| one.clone().into_owned()).collect());
    let serve = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .serve_connection(
            TokioIo::new(tls),
            service_fn(|request| {
                let (service, proof) = (service.clone(), proof.clone());
                async move { Ok::<_, Infallible>(answer(&service, proof, peer, request).await) }
            }),
        );
    timeout(CONNECTION_TIMEOUT, serve)
        .await
        .map_err(|_| "its time was over".to_owned())?
        .map_err(|error| error.to_string())
}

async fn answer(
    service: &Service,
    proof: Option<Proof>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Response<impl http_body::Body<Data = Bytes, Error = Infallible> + use<>> {
    let result = create(service, proof, request).await;
    let mut trailers = HeaderMap::new();
    let body = match result {
        Ok((identity, chain)) => {
            tracing::info!(%peer, %identity, "certificate given");
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            frame(&CertificateResponse { cert_chain: chain })
        }
        Err(Status(code, reason)) => {
            tracing::warn!(%peer, code, reason, "no certificate given");
            trailers.insert("grpc-status", HeaderValue::from(code));
            if let Ok(reason) = HeaderValue::from_str(&reason) {
                trailers.insert("grpc-message", reason);
            }
            Bytes::new()
        }
    };
    let body = Full::new(body).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

async fn create(
    service: &Service,
    proof: Option<Proof>,
    request: Request<Incoming>,
) -> Result<(Identity, Vec<String>), Status> {
    if request.uri().path() != METHOD {
        let path = request.uri().path();
        return Err(Status(Status::UNIMPLEMENTED, format!("no method {path}")));
    }
    let authority = service.authority.load_full();
    // Anew for each request: the handshake may have been long ago, before the certificate's end
    // or its revocation, or a resumption of one that was.
    let proven = proof.map(|proof| authority.identify(&proof)).transpose();
    let proven = proven.map_err(|error| {
        let reason = verify::explain(std::io::Error::other(error)).to_string();
        Status(Status::UNAUTHENTICATED, reason)
    })?;
    let caller = service.callers.caller(proven, request.headers()).await?;
    let body = timeout(
        BODY_TIMEOUT,
        Limited::new(request.into_body(), MAX_REQUEST_BYTES).collect(),
    )
    .await
    .map_err(|_| Status(Status::INVALID_ARGUMENT, "no request in time".to_owned()))?
    .map_err(|error| {
        let reason = if error.is::<LengthLimitError>() {
            format!("a request of more than {MAX_REQUEST_BYTES} bytes")
        } else {
            error.to_string()
        };
        Status(Status::INVALID_ARGUMENT, reason)
    })?
    .to_bytes();
    let request: CertificateRequest =
        unframe(&body).map_err(|reason| Status(Status::INVALID_ARGUMENT, reason))?;
    let identity = service
        .callers
        .chosen(&caller, request.impersonated())
        .await?;
    let lifetime = match u64::try_from(request.validity_duration) {
        Ok(0) | Err(_) => service.lifetime,
        Ok(seconds) => Duration::from_secs(seconds).min(MAX_LIFETIME),
    };
    let chain = authority
        .sign(&request.csr, &identity, lifetime)
        .map_err(|error| match error {
            AuthorityError::Request(_) => Status(Status::INVALID_ARGUMENT, error.to_string()),
            AuthorityError::ForeignTrustDomain { .. } => {
                Status(Status::PERMISSION_DENIED, error.to_string())
            }
            error => Status(Status::INTERNAL, error.to_string()),
        })?;
    Ok((identity, chain))
}
