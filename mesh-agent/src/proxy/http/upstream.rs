//! Sends one request over a connection that waits, or a new one.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, request};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::connector::{Connector, Target};
use super::pool::{Key, Multiplexed, Pool, Stream, UpstreamProtocol};
use super::request_body::RequestBody;
use crate::balance::{EndpointAddress, Load};
use crate::registry::WorkloadName;

/// HTTP/2 flow control window of a stream, in bytes.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// HTTP/2 flow control window of a connection, in bytes.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// How long a connection has, after its response, to take the rest of the request.
const FINISH_TIMEOUT: Duration = Duration::from_secs(30);

/// All that is shared between the connections of clients: the way to
/// endpoints, their waiting connections, and their load.
pub struct Upstreams<C> {
    connector: C,
    pool: Arc<Pool>,
    /// Requests in flight; a TCP proxy counts its connections here as well.
    pub load: Load,
}

impl<C: Connector> Upstreams<C> {
    /// Needs a tokio runtime.
    pub fn new(connector: C) -> Self {
        Self {
            connector,
            pool: Pool::new(),
            load: Load::default(),
        }
    }

    /// The connector.
    pub fn connector(&self) -> &C {
        &self.connector
    }

    /// Closes the waiting connections of a workload that has left; those with
    /// requests end with them.
    pub fn forget(&self, client: &WorkloadName) {
        self.pool.forget(client);
    }

    /// Sends a request. `fresh`: over a new connection, because one that waited has just failed.
    pub(super) async fn send(
        &self,
        wanted: &Wanted<'_>,
        mut request: Request<RequestBody>,
        fresh: bool,
    ) -> Result<Sent, SendError> {
        match wanted.key.protocol {
            UpstreamProtocol::Http1 => {
                while !fresh && let Some(mut sender) = self.pool.take_http1(&wanted.key) {
                    match sender.try_send_request(request).await {
                        Ok(response) => return Ok(self.sent_http1(wanted, response, sender)),
                        Err(mut error) => match error.take_message() {
                            // The server had closed it: nothing was sent.
                            Some(unsent) => request = unsent,
                            None => return Err(SendError::ended(error.into_error(), true)),
                        },
                    }
                }
                let mut sender = match self.open_http1(wanted).await {
                    Ok(sender) => sender,
                    Err(cause) => return Err(SendError::unsent(cause, request)),
                };
                match sender.try_send_request(request).await {
                    Ok(response) => Ok(self.sent_http1(wanted, response, sender)),
                    Err(error) => Err(SendError::ended(error.into_error(), false)),
                }
            }
            UpstreamProtocol::Http2 => {
                let connections = self.pool.http2(&wanted.key);
                // A connection may close between the look-up and the request; a new one is made once.
                for last in [false, true] {
                    let reused = connections.stream();
                    let is_reused = reused.is_some();
                    let stream = match reused {
                        Some(stream) => Ok(stream),
                        None => self.open_or_share_http2(wanted, &connections).await,
                    };
                    let (mut sender, stream) = match stream {
                        Ok(stream) => stream,
                        Err(cause) => return Err(SendError::unsent(cause, request)),
                    };
                    match sender.try_send_request(request).await {
                        Ok(response) => {
                            return Ok(Sent {
                                response,
                                lease: Lease::Http2 { _counted: stream },
                            });
                        }
                        Err(mut error) => match error.take_message() {
                            Some(unsent) if !last => request = unsent,
                            _ => return Err(SendError::ended(error.into_error(), is_reused)),
                        },
                    }
                }
                unreachable!("the second round returns")
            }
        }
    }

    fn sent_http1(
        &self,
        wanted: &Wanted<'_>,
        response: Response<Incoming>,
        sender: http1::SendRequest<RequestBody>,
    ) -> Sent {
        Sent {
            response,
            lease: Lease::Http1 {
                pool: Arc::clone(&self.pool),
                key: wanted.key.clone(),
                sender,
            },
        }
    }

    async fn open_http1(
        &self,
        wanted: &Wanted<'_>,
    ) -> Result<http1::SendRequest<RequestBody>, ConnectError> {
        let io = self.connect(wanted).await?;
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(io))
            .await
            .map_err(ConnectError::Handshake)?;
        tokio::spawn(async move {
            // What goes wrong is told to whoever waits for a response.
            if let Err(error) = connection.with_upgrades().await {
                tracing::trace!(%error, "upstream connection ended");
            }
        });
        Ok(sender)
    }

    /// A new connection, or the one that somebody else is making right now.
    async fn open_or_share_http2(
        &self,
        wanted: &Wanted<'_>,
        connections: &Multiplexed,
    ) -> Result<(http2::SendRequest<RequestBody>, Stream), ConnectError> {
        // Whoever waits for another's attempt in vain does not begin its own.
        let turn = tokio::time::timeout(wanted.connect_timeout, connections.connecting.lock());
        let Ok(_turn) = turn.await else {
            return Err(ConnectError::Timeout(wanted.connect_timeout));
        };
        match connections.stream() {
            Some(stream) => Ok(stream),
            None => Ok(connections.add(self.open_http2(wanted).await?)),
        }
    }

    async fn open_http2(
        &self,
        wanted: &Wanted<'_>,
    ) -> Result<http2::SendRequest<RequestBody>, ConnectError> {
        let io = self.connect(wanted).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(io))
            .await
            .map_err(ConnectError::Handshake)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "upstream connection ended");
            }
        });
        Ok(sender)
    }

    async fn connect(&self, wanted: &Wanted<'_>) -> Result<C::Io, ConnectError> {
        let connect = async {
            let mut target = wanted.target.clone();
            if let EndpointAddress::Name(host, port) = &wanted.key.endpoint {
                target.address = self.connector.resolve(host, *port).await?;
            }
            self.connector.connect(&target).await
        };
        match tokio::time::timeout(wanted.connect_timeout, connect).await {
            Ok(result) => result.map_err(ConnectError::Io),
            Err(_) => Err(ConnectError::Timeout(wanted.connect_timeout)),
        }
    }
}

/// Where a request is to be sent.
pub(super) struct Wanted<'a> {
    pub(super) key: Key,
    /// `address` of a target with a name is resolved for each new connection.
    pub(super) target: &'a Target,
    pub(super) connect_timeout: Duration,
}

/// A response, and the connection that it comes over.
pub(super) struct Sent {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
}

/// Holds a connection (or a stream of it) until its response has ended.
pub(super) enum Lease {
    Http1 {
        pool: Arc<Pool>,
        key: Key,
        sender: http1::SendRequest<RequestBody>,
    },
    Http2 {
        _counted: Stream,
    },
}

impl Lease {
    /// The response has been read to its end: the connection may be used again.
    /// A lease that is merely dropped closes an HTTP/1.1 connection.
    pub(super) fn finish(self) {
        let Self::Http1 {
            pool,
            key,
            mut sender,
        } = self
        else {
            return;
        };
        if sender.is_ready() {
            pool.keep_http1(key, sender);
        } else if !sender.is_closed()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                if let Ok(Ok(())) = tokio::time::timeout(FINISH_TIMEOUT, sender.ready()).await {
                    pool.keep_http1(key, sender);
                }
            });
        }
    }
}

/// Why there is no response.
pub(super) enum SendError {
    /// There was no connection; the request has not been touched.
    Connect {
        cause: ConnectError,
        head: Box<request::Parts>,
    },
    /// The connection ended.
    Ended {
        cause: Chain,
        /// The server has said that it did not process the request.
        refused: bool,
        /// The connection had served other requests before: it may have been closed for its age.
        reused: bool,
        /// A stream was reset, not the connection.
        reset: bool,
        /// The client ended its own request.
        client: bool,
    },
}

impl SendError {
    fn unsent(cause: ConnectError, request: Request<RequestBody>) -> Self {
        Self::Connect {
            cause,
            head: Box::new(request.into_parts().0),
        }
    }

    fn ended(error: hyper::Error, reused: bool) -> Self {
        let h2 = source::<h2::Error>(&error);
        Self::Ended {
            // A stream that a graceful GOAWAY ends was not processed (RFC 9113, section 6.8).
            refused: h2.is_some_and(|h2| match h2.reason() {
                Some(h2::Reason::REFUSED_STREAM) => true,
                Some(h2::Reason::NO_ERROR) => h2.is_go_away() && h2.is_remote(),
                _ => false,
            }),
            reset: h2.is_some_and(h2::Error::is_reset),
            client: source::<super::BodyError>(&error).is_some(),
            reused,
            cause: Chain(error),
        }
    }
}

fn source<T: std::error::Error + 'static>(error: &hyper::Error) -> Option<&T> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// An error of hyper's with its causes, which its own text leaves out.
#[derive(Debug)]
pub(super) struct Chain(hyper::Error);

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = std::error::Error::source(&self.0);
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// It was refused, or the like.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It took too long.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The endpoint did not begin to speak HTTP.
    #[error("HTTP handshake: {0}")]
    Handshake(hyper::Error),
}

impl ConnectError {
    /// Whether a policy of the destination forbids the connection (not the
    /// system, whose refusals have a number).
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::Io(error)
            if error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none())
    }
}
