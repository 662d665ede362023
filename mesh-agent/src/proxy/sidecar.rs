//! Mutual TLS as sidecars of Istio speak it, without HBONE: to the application's own port, with a
//! protocol of theirs (ALPN), and inside it what the applications say.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::copy::Duplex;
use super::hbone::{Handshakes, Unanswered};
use super::replay::Replay;
use super::writes_to::writes_to;
use crate::identity::verify::{self, Side};
use crate::identity::{Identity, TrustWatch, is_revoked};

/// Time that a client has for TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer that has proven who it is. Reading fails when a certificate of it is revoked.
pub struct Proven<S> {
    stream: S,
    /// `None` when it is.
    revoked: Revoked,
    /// Of a client, until the server has answered.
    handshake: Option<Unanswered>,
}

type Revoked = Option<BoxFuture<'static, ()>>;

/// The server's end of the handshake, with a `trust` from before the configuration; and who the
/// client is.
///
/// # Errors
/// Where the client does not prove an identity, or takes too long to.
pub(super) async fn accept(
    stream: Replay<TcpStream>,
    tls: Arc<ServerConfig>,
    trust: TrustWatch,
) -> io::Result<(Proven<server::TlsStream<Replay<TcpStream>>>, Identity)> {
    let stream = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(stream)).await?;
    let stream = stream.map_err(verify::explain)?;
    let (identity, revoked) = peer(stream.get_ref().1, trust, Side::Client)?;
    let handshake = None;
    let proven = Proven {
        stream,
        revoked,
        handshake,
    };
    Ok((proven, identity))
}

/// The client's end, for `client`; the caller bounds the time.
///
/// # Errors
/// Where the server is not whom the configuration expects.
pub(super) async fn connect(
    stream: TcpStream,
    server: ServerName<'static>,
    tls: Arc<ClientConfig>,
    trust: TrustWatch,
    client: &Identity,
    handshakes: &Arc<Handshakes>,
) -> io::Result<Proven<client::TlsStream<TcpStream>>> {
    let stream = TlsConnector::from(tls).connect(server, stream).await;
    let stream = stream.map_err(verify::explain)?;
    let (server, revoked) = peer(stream.get_ref().1, trust, Side::Server)?;
    let handshake = Some(Unanswered::new(handshakes.clone(), client.clone(), server));
    Ok(Proven {
        stream,
        revoked,
        handshake,
    })
}

fn peer(session: &CommonState, trust: TrustWatch, side: Side) -> io::Result<(Identity, Revoked)> {
    let peer = verify::peer(session.peer_certificates()).map_err(io::Error::other)?;
    let chain = session.peer_certificates().unwrap_or_default().to_vec();
    let revoked = trust.distrusts(chain, side).then(|reason| async move {
        if !is_revoked(&reason) {
            // It proves anew who it is with its next connection.
            std::future::pending().await
        }
    });
    Ok((peer.identity, Some(revoked.boxed())))
}

impl<S> Proven<S> {
    /// The stream itself.
    pub(super) fn get_ref(&self) -> &S {
        &self.stream
    }

    fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Some(revoked) = &mut self.revoked {
            ready!(revoked.poll_unpin(cx));
            self.revoked = None;
        }
        let reason = "the other end's certificate is revoked";
        Poll::Ready(io::Error::new(io::ErrorKind::PermissionDenied, reason))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Proven<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(revoked) = self.poll_revoked(cx) {
            return Poll::Ready(Err(revoked));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before
            && let Some(handshake) = self.handshake.take()
        {
            handshake.answered();
        }
        Poll::Ready(Ok(()))
    }
}

writes_to!(Proven.stream);

impl<S: Duplex> Duplex for Proven<S> {
    fn abort(&mut self) {
        self.stream.abort();
    }

    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Poll::Ready(revoked) = self.poll_revoked(cx) {
            return Poll::Ready(revoked);
        }
        self.stream.poll_aborted(cx)
    }
}
