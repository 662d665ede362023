//! One connection to an endpoint: a request over it, and its way back to those that wait.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;

use super::Wanted;
use super::error::Unsent;
use crate::balance::{Active, InRoute, Member, Report, Slot};
use crate::proxy::http::pool::{Http1, Http2Stream, HttpPool};
use crate::proxy::http::request_body::RequestBody;

/// How long a connection has, after its response, to take the rest of the request.
const FINISH_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection (or a stream of one) that is ready for a request.
pub(in crate::proxy::http) struct Connection {
    pub(in crate::proxy::http) member: Arc<Member<HttpPool>>,
    pub(super) channel: Channel,
    /// It has served others before.
    pub(super) reused: bool,
}

pub(super) enum Channel {
    Http1(Http1),
    Http2(Http2Stream),
}

impl Connection {
    /// Address from which it goes out, where it has one of its own.
    pub(in crate::proxy::http) fn local_address(&self) -> Option<SocketAddr> {
        match &self.channel {
            Channel::Http1(connection) => connection.local_address,
            Channel::Http2(stream) => stream.local_address,
        }
    }

    /// Sends a request.
    pub(in crate::proxy::http) async fn send(
        self,
        request: Request<RequestBody>,
        active: Active<HttpPool>,
    ) -> Result<Sent, Unsent> {
        let Self {
            channel, reused, ..
        } = self;
        let (channel, result) = match channel {
            Channel::Http1(mut connection) => {
                connection.count();
                let result = connection.sender.try_send_request(request).await;
                (Channel::Http1(connection), result)
            }
            Channel::Http2(mut stream) => {
                let result = stream.sender.try_send_request(request).await;
                (Channel::Http2(stream), result)
            }
        };
        match result {
            Ok(response) => Ok(Sent {
                response,
                lease: Lease {
                    channel: Some(channel),
                    active,
                },
            }),
            Err(error) => Err(Unsent::of(error, reused)),
        }
    }

    /// It was not needed after all.
    pub(in crate::proxy::http) fn give_back(self, wanted: &Wanted<'_>) {
        if let Channel::Http1(connection) = self.channel {
            self.member.host.pool.keep_http1(connection, wanted.policy);
        }
        wanted.cluster.freed();
    }
}

/// A response, and the connection that it comes over.
pub(in crate::proxy::http) struct Sent {
    pub(in crate::proxy::http) response: Response<Incoming>,
    pub(in crate::proxy::http) lease: Lease,
}

/// Holds a connection (or a stream of it) until its response has ended.
pub(in crate::proxy::http) struct Lease {
    channel: Option<Channel>,
    active: Active<HttpPool>,
}

impl Lease {
    /// Tells what became of the request.
    pub(in crate::proxy::http) fn report(&self, report: Report) {
        super::report(self.active.cluster(), self.active.member(), report);
    }

    /// Tells the breaker of its route what a call of gRPC's came to.
    pub(in crate::proxy::http) fn report_to_route(&self, failed: bool) {
        let now = || tokio::time::Instant::now().into_std();
        self.active.report_to_route(failed, now);
    }

    /// Counts the exchange among those of its route until it ends.
    pub(in crate::proxy::http) fn hold(&mut self, in_route: InRoute) {
        self.active.hold(in_route);
    }

    /// The connection has become a tunnel: what is left is to be counted while it lasts.
    pub(in crate::proxy::http) fn into_tunnel(self) -> (Active<HttpPool>, Slot<HttpPool>) {
        let slot = self.active.cluster().slot_anyway();
        (self.active, slot)
    }

    /// The response has been read to its end: the connection may be used again.
    /// A lease that is merely dropped closes an HTTP/1.1 connection.
    pub(in crate::proxy::http) fn finish(mut self) {
        let cluster = Arc::clone(self.active.cluster());
        match self.channel.take() {
            Some(Channel::Http1(connection)) if connection.sender.is_ready() => {
                keep(&self.active, connection);
            }
            Some(Channel::Http1(mut connection)) => {
                if !connection.sender.is_closed()
                    && let Ok(runtime) = tokio::runtime::Handle::try_current()
                {
                    let active = self.active;
                    runtime.spawn(async move {
                        let ready = connection.sender.ready();
                        if let Ok(Ok(())) = tokio::time::timeout(FINISH_TIMEOUT, ready).await {
                            keep(&active, connection);
                        }
                    });
                }
            }
            // Its place among the streams is free when it is dropped.
            Some(Channel::Http2(..)) | None => cluster.freed(),
        }
    }
}

fn keep(active: &Active<HttpPool>, connection: Http1) {
    let cluster = active.cluster();
    let pool = &active.member().host.pool;
    pool.keep_http1(connection, &cluster.policy());
    cluster.freed();
}
