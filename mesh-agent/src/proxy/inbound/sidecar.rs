//! Mutual TLS as sidecars of Istio speak it, without HBONE.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::identity::Identity;
use crate::identity::verify;
use crate::proxy::replay::Replay;

/// Time for TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that has proven who it is.
pub(super) struct Proven {
    /// What it sends to the application, and the application to it.
    pub(super) stream: TlsStream<Replay<TcpStream>>,
    pub(super) identity: Identity,
    /// Its certificates, leaf first.
    pub(super) chain: Vec<CertificateDer<'static>>,
}

/// The server's end of the handshake.
///
/// # Errors
/// Where the client does not prove an identity, or takes too long to.
pub(super) async fn accept(
    stream: Replay<TcpStream>,
    tls: Arc<ServerConfig>,
) -> io::Result<Proven> {
    let stream = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(stream)).await?;
    let stream = stream.map_err(verify::explain)?;
    let session = stream.get_ref().1;
    let peer = verify::peer(session.peer_certificates()).map_err(io::Error::other)?;
    let chain = session.peer_certificates().unwrap_or_default().to_vec();
    Ok(Proven {
        stream,
        identity: peer.identity,
        chain,
    })
}
