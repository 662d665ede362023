//! Asks an authority for certificates. Keys are made here and stay here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::message::{CertificateRequest, CertificateResponse, frame, unframe};
use super::{METHOD, answer};
use crate::identity::Identity;
use crate::identity::certificates::ALPN;
use crate::identity::leaf::Leaf;
use crate::identity::pem_files::{FileError, bearer, client_tls};
use crate::identity::trust::Anchors;
use crate::identity::verify;

/// Time for TCP and TLS. Shorter than connections of applications wait, so that they see why.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer, bytes.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Status of gRPC that means success.
const OK: &str = "0";

/// Where the authority is, and how we show who we are.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// Host and port.
    pub address: String,
    /// The name that its certificate must bear.
    pub server_name: String,
    /// File of the roots that its certificate is verified against.
    pub root_cert: PathBuf,
    /// File of a bearer token, read for each request: Kubernetes renews it.
    pub token: Option<PathBuf>,
    /// Files of our certificate and of its key.
    pub own: Option<(PathBuf, PathBuf)>,
    /// File of the certificates that it has revoked.
    pub crl: Option<PathBuf>,
}

/// Why there is no certificate from the authority.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A name that is none.
    #[error("{0:?} is neither a DNS name nor an address")]
    Name(String),
    /// No connection, or it broke.
    #[error("the certificate authority {address} cannot be reached: {reason}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What failed.
        reason: String,
    },
    /// It said no.
    #[error("the certificate authority {address} refuses: {reason} (gRPC status {status})")]
    Refused {
        /// Host and port.
        address: String,
        /// Code of gRPC.
        status: String,
        /// What it said.
        reason: String,
    },
    /// What it gave is not what was asked for.
    #[error("the certificate authority {address} gave a certificate that cannot be used: {reason}")]
    Unusable {
        /// Host and port.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Key or request could not be made.
    #[error("cannot make a request for a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// A client of one authority.
pub struct ServiceClient {
    options: ServiceOptions,
    server_name: ServerName<'static>,
    session: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl ServiceClient {
    /// A client of the authority at `options.address`.
    ///
    /// # Errors
    /// Where a file of `options` is not there or not what it should be.
    pub fn new(options: ServiceOptions) -> Result<Self, ClientError> {
        let server_name = ServerName::try_from(options.server_name.clone())
            .map_err(|_| ClientError::Name(options.server_name.clone()))?;
        tls(&options)?;
        options.token.as_deref().map(bearer).transpose()?;
        Ok(Self {
            options,
            server_name,
            session: Mutex::default(),
        })
    }

    /// Host and port of the authority.
    pub fn address(&self) -> &str {
        &self.options.address
    }

    /// File of revoked certificates.
    pub(in crate::identity) fn crl(&self) -> Option<&Path> {
        self.options.crl.as_deref()
    }

    /// A new key, and a certificate for it.
    ///
    /// # Errors
    /// Where the authority is away, refuses, or gives what cannot be used.
    pub(in crate::identity) async fn certificate(
        &self,
        identity: &Identity,
        lifetime: Duration,
    ) -> Result<(Leaf, Anchors), ClientError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        let csr = params.serialize_request(&key)?.pem()?;
        let seconds = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        let request = CertificateRequest::new(csr, seconds, identity);
        let response = timeout(ANSWER_TIMEOUT, self.ask(&request))
            .await
            .unwrap_or_else(|_| Err(self.unreachable("no answer in time")))?;
        answer::read(&response.cert_chain, identity, &key).map_err(|reason| self.unusable(&reason))
    }

    /// Closes the connection until there is something to ask again.
    pub(in crate::identity) async fn rest(&self) {
        *self.session.lock().await = None;
    }

    async fn ask(&self, request: &CertificateRequest) -> Result<CertificateResponse, ClientError> {
        let body = Full::new(frame(request));
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        let uri = format!("https://{}{METHOD}", self.options.address);
        *request.uri_mut() = uri
            .parse()
            .map_err(|_| ClientError::Name(self.options.address.clone()))?;
        let headers = request.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        if let Some(token) = &self.options.token {
            headers.insert(header::AUTHORIZATION, bearer(token)?);
        }
        let mut session = self.session().await?;
        let response = session
            .send_request(request)
            .await
            .map_err(|error| self.unreachable(&error.to_string()))?;
        let (head, body) = response.into_parts();
        if !head.status.is_success() {
            return Err(self.unreachable(&format!("HTTP status {}", head.status)));
        }
        let body = Limited::new(body, MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| self.unreachable(&error.to_string()))?;
        // An answer without a body has its status in front.
        let status = body.trailers().unwrap_or(&head.headers).clone();
        self.succeeded(&status)?;
        unframe(&body.to_bytes()).map_err(|reason| self.unusable(&reason))
    }

    fn succeeded(&self, status: &HeaderMap) -> Result<(), ClientError> {
        let text = |name| {
            let value = status.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or("?").to_owned()
        };
        let code = text("grpc-status");
        if code == OK {
            return Ok(());
        }
        Err(ClientError::Refused {
            address: self.options.address.clone(),
            status: code,
            reason: text("grpc-message"),
        })
    }

    /// The open connection, or a new one; all who wait for it share it.
    async fn session(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let mut kept = self.session.lock().await;
        if let Some(session) = kept.as_ref().filter(|session| !session.is_closed()) {
            return Ok(session.clone());
        }
        *kept = None;
        let session = timeout(CONNECT_TIMEOUT, self.connect())
            .await
            .unwrap_or_else(|_| Err(self.unreachable("no connection in time")))?;
        *kept = Some(session.clone());
        Ok(session)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let failed = |error: std::io::Error| self.unreachable(&verify::explain(error).to_string());
        let config = tls(&self.options)?;
        let stream = TcpStream::connect(&self.options.address)
            .await
            .map_err(failed)?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(self.server_name.clone(), stream)
            .await
            .map_err(failed)?;
        let (session, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(&error.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the certificate authority ended");
            }
        });
        Ok(session)
    }

    fn unreachable(&self, reason: &str) -> ClientError {
        ClientError::Unreachable {
            address: self.options.address.clone(),
            reason: reason.to_owned(),
        }
    }

    pub(in crate::identity) fn unusable(&self, reason: &str) -> ClientError {
        ClientError::Unusable {
            address: self.options.address.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// From the files as they are now.
fn tls(options: &ServiceOptions) -> Result<ClientConfig, FileError> {
    let own = options.own.as_ref();
    let own = own.map(|(chain, key)| (chain.as_path(), key.as_path()));
    client_tls(&options.root_cert, own, &[ALPN])
}
