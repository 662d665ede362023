//! Tunnels from other nodes.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use h2::Reason;
use h2::server::SendResponse;
use http::{Method, Request, Response, StatusCode};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::clients::Place;
use super::memory::{Receiver, TunnelMemory, Tunnels};
use super::metered::{Metered, PREFACE_BYTES};
use super::outbox::Payload;
use super::refusal::Refusal;
use super::stream::TunnelStream;
use super::tls::{self, Established, TlsStream};
use super::window::Windows;
use super::{
    CONNECTION_WINDOW_BYTES, MAX_FRAME_BYTES, MAX_HEADER_BYTES, MAX_STREAMS, SEND_BUFFER_BYTES,
    forwarded, keep_alive,
};
use crate::identity::certificates::{ALPN, remaining};
use crate::identity::verify::{self, Peer, Side};
use crate::identity::{Identity, TrustWatch, is_revoked};
use crate::netns::BoxFuture;
use crate::proxy::copy::{CopyError, Duplex, Transferred, copy_both};
use crate::proxy::turn::Turn;
use crate::proxy::write_together::WriteTogether;

/// Time for TLS and the beginning of HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Tunnels of one connection that are opened, open, or being ended; the rest
/// is refused. More than streams, because ending may outlast the stream.
const MAX_TUNNELS: usize = 2 * MAX_STREAMS;
/// How many streams may be reset before we have seen them: beyond it, h2 ends the
/// connection with all tunnels. Clients that give up while a node is busy are no
/// attack, and each that does makes room for the next.
const MAX_GIVEN_UP: usize = 10 * MAX_STREAMS;
/// A connection without tunnels is closed after this time, at most twice of
/// it. Longer than clients keep one, so that it is them who close.
const IDLE_TIMEOUT: Duration = Duration::from_secs(900);

/// Why a connection from another node was not served to its end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The client took too long to introduce itself.
    #[error("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    HandshakeTimeout,
    /// TLS failed, for instance because the client proved no identity.
    #[error("TLS failed: {0}")]
    Tls(#[source] io::Error),
    /// The client did not offer HTTP/2.
    #[error("the client does not speak HTTP/2")]
    NotHttp2,
    /// HTTP/2 failed.
    #[error("HTTP/2 failed: {0}")]
    Http2(#[from] h2::Error),
    /// A certificate of the client has been revoked meanwhile.
    #[error("the client's certificate is revoked")]
    Revoked,
    /// The client has too many connections.
    #[error("the client has too many connections")]
    TooMany,
    /// The client does not answer pings.
    #[error("the client does not answer any more")]
    Lost,
}

/// A tunnel that a client asks for.
#[derive(Clone, Debug)]
pub struct IncomingTunnel {
    /// Who asks, as proven by its certificate.
    pub peer_identity: Identity,
    /// From where the connection comes.
    pub peer_address: SocketAddr,
    /// Where to: address and port of the application.
    pub authority: SocketAddr,
    /// The true client's address, believed only where it is the peer's own.
    pub forwarded_for: Option<SocketAddr>,
    /// Counts while the tunnel is open: first to second is from the client to
    /// the application.
    pub transferred: Arc<Transferred>,
}

/// Decides about tunnels.
pub trait TunnelHandler: Send + Sync + 'static {
    /// A connection to an application.
    type Io: Duplex;

    /// Connects to the application, or says why not. Dropped when the client
    /// gives up first.
    fn open(&self, tunnel: IncomingTunnel) -> BoxFuture<'_, Result<Self::Io, Refusal>>;

    /// A client has proven who it is. The connection is refused where it has no place, and gives
    /// its place back when it ends.
    fn connected(&self, peer: &Identity, address: IpAddr) -> Option<Place>;

    /// Bounds what tunnels hold.
    fn memory(&self) -> &Arc<TunnelMemory>;

    /// A tunnel that was opened has ended. Not called for tunnels that are cut
    /// off because `serve` was dropped.
    fn closed(&self, _tunnel: &IncomingTunnel, _result: Result<(), CopyError>) {}
}

/// How a server talks TLS, and how it learns that a client is not to be trusted any more.
pub struct ServerTls {
    /// For the handshake.
    pub config: Arc<ServerConfig>,
    /// Made before `config`.
    pub trust: TrustWatch,
}

/// Serves one connection from another node until it is closed. After `drain`
/// is cancelled no more tunnels are accepted, and it returns when the last has
/// ended. A client whose certificate is revoked meanwhile is cut off; one that is not trusted
/// any more for another reason gets no more tunnels. Drop the future to abort them all.
///
/// # Errors
/// Where the connection ends otherwise than by an orderly close.
pub async fn serve(
    stream: TcpStream,
    peer_address: SocketAddr,
    tls: ServerTls,
    handler: Arc<impl TunnelHandler>,
    drain: CancellationToken,
) -> Result<(), ServeError> {
    let peer_address = forwarded::canonical(peer_address);
    let client = peer_address.ip();
    let handshake = Box::pin(handshake(stream, tls.config, handler.memory(), client));
    let Arrived {
        mut http2,
        mut windows,
        tunnels: tunnels_held,
        peer,
        chain,
    } = timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .unwrap_or(Err(ServeError::HandshakeTimeout))?;
    let Some(_place) = handler.connected(&peer.identity, client) else {
        http2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        let _ = timeout(HANDSHAKE_TIMEOUT, poll_fn(|cx| http2.poll_closed(cx))).await;
        return Err(ServeError::TooMany);
    };

    let open_tunnels = AtomicUsize::new(0);
    let lost = keep_alive::lost(http2.ping_pong(), || {
        open_tunnels.load(Ordering::Relaxed) > 0
    });
    let outlived = async {
        tokio::select! {
            () = drain.cancelled() => {}
            // A client proves again who it is before its certificate ends.
            () = tokio::time::sleep(remaining(peer.not_after)) => {}
        }
    };
    let distrust = tls.trust.distrusts(chain, Side::Client);
    tokio::pin!(lost, outlived, distrust);
    let mut trusted = true;
    let mut idle_check = tokio::time::interval(IDLE_TIMEOUT);
    let mut idle_checks = 0;
    let mut draining = false;
    let mut tunnels = JoinSet::new();
    let mut turn = Turn::default();
    let result = loop {
        tokio::select! {
            stream = poll_fn(|cx| turn.poll(cx, |cx| {
                windows.keep(|bytes| http2.set_initial_window_size(bytes));
                http2.poll_accept(cx)
            })) => match stream {
                Some(Ok((_, mut respond))) if tunnels.len() >= MAX_TUNNELS => {
                    respond.send_reset(Reason::REFUSED_STREAM);
                }
                Some(Ok((request, respond))) => {
                    idle_checks = 0;
                    let (identity, handler) = (peer.identity.clone(), handler.clone());
                    // What comes before the answer counts, too.
                    let request = request.map(|body| tunnels_held.receiver(body));
                    let opened = open(request, respond, identity, peer_address, handler.clone());
                    // Boxed: what opening needs is not held as long as the tunnel.
                    tunnels.spawn(opened.boxed().then(|opened| carry(opened, handler)));
                }
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(()),
            },
            () = &mut lost => break Err(ServeError::Lost),
            reason = &mut distrust, if trusted => {
                trusted = false;
                tracing::info!(peer = %peer_address, %reason, "client is not trusted any more");
                if is_revoked(&reason) {
                    break Err(ServeError::Revoked);
                }
                if !draining {
                    draining = true;
                    http2.graceful_shutdown();
                }
            }
            () = &mut outlived, if !draining => {
                draining = true;
                http2.graceful_shutdown();
            }
            _ = idle_check.tick(), if !draining => {
                idle_checks = if tunnels.is_empty() { idle_checks + 1 } else { 0 };
                if idle_checks > 1 {
                    draining = true;
                    http2.graceful_shutdown();
                }
            }
            Some(ended) = tunnels.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a tunnel failed");
                }
            }
        }
        open_tunnels.store(tunnels.len(), Ordering::Relaxed);
    };
    // Without the connection every stream ends; what had arrived before is
    // still on its way to the applications.
    drop(http2);
    while tunnels.join_next().await.is_some() {}
    result
}

type Http2 = h2::server::Connection<WriteTogether<Metered<TlsStream<TcpStream>>>, Payload>;

/// A client after its handshakes.
struct Arrived {
    http2: Http2,
    windows: Windows,
    tunnels: Arc<Tunnels>,
    peer: Peer,
    /// Its certificates, leaf first.
    chain: Vec<CertificateDer<'static>>,
}

async fn handshake(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    memory: &Arc<TunnelMemory>,
    client: IpAddr,
) -> Result<Arrived, ServeError> {
    stream
        .set_nodelay(true)
        .and_then(|()| keep_alive::by_kernel(&stream))
        .map_err(ServeError::Tls)?;
    let Established {
        stream: tls,
        peer_certificates: chain,
        alpn,
    } = tls::accept(config, stream)
        .await
        .map_err(|error| ServeError::Tls(verify::explain(error)))?;
    // rustls lets clients pass that offer no protocol at all.
    if alpn.as_deref() != Some(ALPN) {
        return Err(ServeError::NotHttp2);
    }
    let peer =
        verify::peer(Some(&chain)).map_err(|error| ServeError::Tls(io::Error::other(error)))?;
    let tunnels = memory.connection((peer.identity.clone(), client));
    let windows = Windows::new(tunnels.clone());
    let metered = Metered::new(tls, tunnels.clone(), PREFACE_BYTES);
    let http2 = h2::server::Builder::new()
        .initial_window_size(windows.bytes())
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_concurrent_streams(MAX_STREAMS as u32)
        .max_pending_accept_reset_streams(MAX_GIVEN_UP)
        // What is on its way to a tunnel that was reset is no error, were it all of them.
        .max_concurrent_reset_streams(MAX_STREAMS)
        .handshake(WriteTogether::new(metered))
        .await?;
    Ok(Arrived {
        http2,
        windows,
        tunnels,
        peer,
        chain,
    })
}

/// A tunnel whose CONNECT has been answered.
struct Open<A> {
    tunnel: Box<IncomingTunnel>,
    stream: TunnelStream,
    application: A,
}

/// One tunnel from CONNECT to its answer; nothing, where that is no.
async fn open<H: TunnelHandler>(
    request: Request<Receiver>,
    mut respond: SendResponse<Payload>,
    peer_identity: Identity,
    peer_address: SocketAddr,
    handler: Arc<H>,
) -> Option<Open<H::Io>> {
    let asked = asked(&request, peer_identity, peer_address);
    let opened = match asked {
        Err(refusal) => Err(refusal),
        Ok(tunnel) => {
            let opened = tokio::select! {
                opened = handler.open(tunnel.clone()) => opened,
                // The client gave up, or is gone.
                _ = poll_fn(|cx| respond.poll_reset(cx)) => return None,
            };
            opened.map(|application| (tunnel, application))
        }
    };
    let (tunnel, mut application) = match opened {
        Ok(opened) => opened,
        Err(refusal) => {
            tracing::debug!(peer = %peer_address, %refusal, "tunnel refused");
            // An error means that nobody waits for the answer.
            let _ = respond.send_response(refusal.to_response(), true);
            return None;
        }
    };
    let Ok(send) = respond.send_response(Response::new(()), false) else {
        application.abort();
        return None;
    };
    let stream = TunnelStream::new(
        send,
        request.into_body(),
        tunnel.peer_identity.clone(),
        None,
    );
    Some(Open {
        tunnel: Box::new(tunnel),
        stream,
        application,
    })
}

/// An open tunnel to its end.
async fn carry<H: TunnelHandler>(opened: Option<Open<H::Io>>, handler: Arc<H>) {
    let Some(Open {
        tunnel,
        stream,
        application,
    }) = opened
    else {
        return;
    };
    let result = copy_both(stream, application, &tunnel.transferred).await;
    handler.closed(&tunnel, result);
}

fn asked<B>(
    request: &Request<B>,
    peer_identity: Identity,
    peer_address: SocketAddr,
) -> Result<IncomingTunnel, Refusal> {
    if request.method() != Method::CONNECT {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "only CONNECT is served here",
        ));
    }
    let authority = request
        .uri()
        .authority()
        .map_or("", http::uri::Authority::as_str);
    let authority = authority.parse().map_err(|_| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("authority {authority:?} is not an address with a port"),
        )
    })?;
    Ok(IncomingTunnel {
        peer_identity,
        peer_address,
        authority: forwarded::canonical(authority),
        forwarded_for: forwarded::client(request.headers())
            .filter(|client| client.ip() == peer_address.ip()),
        transferred: Arc::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Method, authority and `forwarded` of a CONNECT, one a line.
    #[test]
    fn fuzz_connect() {
        let identity: Identity = "spiffe://cluster.local/ns/default/sa/a".parse().unwrap();
        let peer: SocketAddr = "10.0.0.1:4000".parse().unwrap();
        crate::fuzz::run("connect", |bytes| {
            let mut lines = bytes.split(|byte| *byte == b'\n');
            let mut next = || lines.next().unwrap_or_default();
            let (Ok(method), Ok(uri)) = (Method::from_bytes(next()), http::Uri::try_from(next()))
            else {
                return;
            };
            let mut request = Request::new(());
            (*request.method_mut(), *request.uri_mut()) = (method, uri);
            if let Ok(forwarded) = http::HeaderValue::from_bytes(next()) {
                let headers = request.headers_mut();
                headers.insert(http::header::FORWARDED, forwarded);
            }
            match asked(&request, identity.clone(), peer) {
                Ok(tunnel) => {
                    let spoken_for = tunnel.forwarded_for.map(|client| client.ip());
                    assert!(spoken_for.is_none_or(|client| client == peer.ip()));
                }
                Err(refusal) => assert!(refusal.status.is_client_error()),
            }
        });
    }
}
