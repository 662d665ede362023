//! One HTTP/2 connection to a peer: TCP from the workload's namespace, mutual
//! TLS, HTTP/2.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use h2::client::SendRequest;
use rustls_pki_types::ServerName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::handshakes::{Handshakes, Unanswered};
use super::memory::{TunnelMemory, Tunnels};
use super::metered::Metered;
use super::outbox::Payload;
use super::tls::{self, Established};
use super::window::Windows;
use super::{
    CONNECTION_WINDOW_BYTES, MAX_FRAME_BYTES, MAX_HEADER_BYTES, MAX_STREAMS, SEND_BUFFER_BYTES,
    keep_alive,
};
use crate::identity::certificates::{ALPN, Certificates, remaining};
use crate::identity::verify::{self, Side};
use crate::identity::{CertificateError, Identity, is_revoked};
use crate::netns::Sockets;
use crate::proxy::turn::after_others;
use crate::proxy::write_together::WriteTogether;

/// Why there is no connection to a peer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No certificate for the source.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// No TCP connection.
    #[error("cannot connect to {node}: {source}")]
    Tcp {
        /// The peer.
        node: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS failed: it is not the right peer, or we are not for it.
    #[error("TLS with {node} failed: {source}")]
    Tls {
        /// The peer.
        node: SocketAddr,
        /// What rustls said.
        source: io::Error,
    },
    /// It speaks TLS, but not HTTP/2.
    #[error("{node} does not speak HTTP/2")]
    NotHttp2 {
        /// The peer.
        node: SocketAddr,
    },
    /// HTTP/2 failed.
    #[error("HTTP/2 with {node} failed: {source}")]
    Http2 {
        /// The peer.
        node: SocketAddr,
        /// What h2 said.
        source: h2::Error,
    },
    /// It took too long.
    #[error("no connection to {node} within {} s", limit.as_secs())]
    Timeout {
        /// The peer.
        node: SocketAddr,
        /// The time that was given.
        limit: Duration,
    },
    /// The task that connected is gone, as it is when the agent stops.
    #[error("the attempt to connect to {node} was given up")]
    GivenUp {
        /// The peer.
        node: SocketAddr,
    },
}

/// What to connect to, and as whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub source_identity: Identity,
    pub from: IpAddr,
    pub node: SocketAddr,
    /// Ordered, without doubles.
    pub expected: Arc<[Identity]>,
}

/// What a tunnel needs of its connection; the connection closes when the last
/// of these and the last tunnel are gone.
pub struct Connection {
    /// Later connections have higher numbers.
    pub number: u64,
    pub peer_identity: Identity,
    pub handshake: Arc<Unanswered>,
    pub tunnels: Arc<Tunnels>,
    sender: SendRequest<Payload>,
    usage: Usage,
}

impl Connection {
    /// Room for one tunnel, if there is any.
    pub fn slot(&self) -> Option<OwnedSemaphorePermit> {
        // The peer may allow fewer streams than we would use.
        let used = MAX_STREAMS - self.usage.slots.available_permits();
        if used >= self.sender.current_max_send_streams() {
            return None;
        }
        let slot = self.usage.slots.clone().try_acquire_owned().ok()?;
        self.usage.touched.store(true, Ordering::Relaxed);
        Some(slot)
    }

    /// To send a CONNECT with.
    pub fn sender(&self) -> SendRequest<Payload> {
        self.sender.clone()
    }
}

#[derive(Clone)]
struct Usage {
    slots: Arc<Semaphore>,
    /// Whether there was a tunnel since this was last looked at.
    touched: Arc<AtomicBool>,
}

impl Usage {
    fn has_tunnels(&self) -> bool {
        self.slots.available_permits() < MAX_STREAMS
    }

    /// Returns when there was no tunnel for `timeout` (up to twice of it).
    async fn idle(&self, timeout: Duration) {
        loop {
            tokio::time::sleep(timeout).await;
            let in_use = self.has_tunnels();
            if !self.touched.swap(in_use, Ordering::Relaxed) && !in_use {
                return;
            }
        }
    }
}

/// What all connections have in common.
pub struct Common {
    pub certificates: Arc<Certificates>,
    /// Where handshakes are noted.
    pub handshakes: Arc<Handshakes>,
    /// Bounds what tunnels hold.
    pub memory: Arc<TunnelMemory>,
}

/// Connects. The second value drives the connection until it is closed; it
/// calls `retire` when no more tunnels are to be opened on it: when it was idle
/// for `idle_timeout`, a certificate has ended or is not trusted any more, or the
/// connection is gone. Where a certificate is revoked, the connection ends.
pub async fn connect<R: FnOnce() + Send + 'static>(
    number: u64,
    key: &Key,
    sockets: &dyn Sockets,
    common: &Common,
    idle_timeout: Duration,
    retire: R,
) -> Result<(Connection, impl Future<Output = ()> + Send + use<R>), ConnectError> {
    let node = key.node;
    let Common {
        certificates,
        handshakes,
        memory,
    } = common;
    let trust = certificates.watch_trust();
    let config = certificates
        .client_config(&key.source_identity, &key.expected)
        .await?;
    let own_end = certificates.not_after(&key.source_identity);
    let tcp = sockets
        .connect(Some(key.from), node, None)
        .await
        .map_err(|source| ConnectError::Tcp { node, source })?;
    // Small writes are whole messages of applications; they do not wait.
    tcp.set_nodelay(true)
        .and_then(|()| keep_alive::by_kernel(&tcp))
        .map_err(|source| ConnectError::Tcp { node, source })?;
    let name = ServerName::IpAddress(node.ip().into());
    let Established {
        stream: tls,
        peer_certificates: chain,
        alpn,
    } = tls::connect(config, name, tcp)
        .await
        .map_err(|error| ConnectError::Tls {
            node,
            source: verify::explain(error),
        })?;
    if alpn.as_deref() != Some(ALPN) {
        return Err(ConnectError::NotHttp2 { node });
    }
    let peer = verify::peer(Some(&chain)).map_err(|error| ConnectError::Tls {
        node,
        source: io::Error::other(error),
    })?;
    let tunnels = memory.connection((key.source_identity.clone(), key.from));
    let mut windows = Windows::new(tunnels.clone());
    let metered = Metered::new(tls, tunnels.clone(), 0);
    let (sender, mut http2) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(windows.bytes())
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_concurrent_reset_streams(MAX_STREAMS)
        .handshake::<_, Payload>(WriteTogether::new(metered))
        .await
        .map_err(|source| ConnectError::Http2 { node, source })?;

    let usage = Usage {
        slots: Arc::new(Semaphore::new(MAX_STREAMS)),
        touched: Arc::new(AtomicBool::new(true)),
    };
    let valid = remaining(own_end.unwrap_or(u64::MAX).min(peer.not_after));
    let driver = {
        let usage = usage.clone();
        let pings = http2.ping_pong();
        let http2 = after_others(poll_fn(move |cx| {
            windows.keep(|bytes| http2.set_initial_window_size(bytes));
            Pin::new(&mut http2).poll(cx)
        }));
        async move {
            let lost = keep_alive::lost(pings, || usage.has_tunnels());
            let outlived = async {
                tokio::select! {
                    () = usage.idle(idle_timeout) => {}
                    () = tokio::time::sleep(valid) => {}
                }
            };
            let distrust = trust.distrusts(chain, Side::Server);
            tokio::pin!(lost, outlived, distrust, http2);
            let mut retire = Some(retire);
            let mut trusted = true;
            loop {
                tokio::select! {
                    result = &mut http2 => {
                        if let Err(error) = result {
                            tracing::debug!(peer = %node, %error, "connection ended");
                        }
                        break;
                    }
                    () = &mut lost => {
                        tracing::info!(peer = %node, "peer does not answer, connection dropped");
                        break;
                    }
                    reason = &mut distrust, if trusted => {
                        trusted = false;
                        tracing::info!(peer = %node, %reason, "peer is not trusted any more");
                        if is_revoked(&reason) {
                            break;
                        }
                        if let Some(retire) = retire.take() {
                            retire();
                        }
                    }
                    () = &mut outlived, if retire.is_some() => {
                        if let Some(retire) = retire.take() {
                            retire();
                        }
                    }
                }
            }
            if let Some(retire) = retire {
                retire();
            }
        }
    };
    let connection = Connection {
        number,
        handshake: Arc::new(Unanswered::new(
            handshakes.clone(),
            key.source_identity.clone(),
            peer.identity.clone(),
        )),
        peer_identity: peer.identity,
        tunnels,
        sender,
        usage,
    };
    Ok((connection, driver))
}
