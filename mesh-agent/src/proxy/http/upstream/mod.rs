//! Connections to endpoints: one that waits, a new one, or the first that becomes free.

mod connection;
mod error;

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::Behind;
use super::connector::{Connector, Target};
use super::pool::{HttpPool, Made, UpstreamProtocol};
use super::request_body::RequestBody;
use crate::balance::outlier::Cause;
use crate::balance::{Cluster, Clusters, EndpointAddress, Member, Report, Slot};
use crate::proxy::turn::after_others;
use crate::proxy::write_together::WriteTogether;
use crate::registry::WorkloadName;
use crate::route::{RouteLimits, UpstreamPolicy};

use connection::Channel;
pub(super) use connection::{Connection, Lease, Sent};
pub(super) use error::{ConnectError, Ended, Unsent, is_cut_short};

/// HTTP/2 flow control window of a stream, in bytes.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// HTTP/2 flow control window of a connection, in bytes.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// What a client knows of a service, with its connections.
pub type HttpCluster = Cluster<HttpPool>;

/// How often connections that wait are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// All that is shared between the connections of clients: the way to
/// endpoints, their waiting connections, their load and health.
pub struct Upstreams<C> {
    connector: C,
    /// Load, health and connections; a TCP proxy counts its connections here as well.
    pub clusters: Arc<Clusters<HttpPool>>,
}

impl<C: Connector> Upstreams<C> {
    /// Needs a tokio runtime.
    pub fn new(connector: C) -> Self {
        let clusters = Arc::<Clusters<HttpPool>>::default();
        tokio::spawn(sweep(Arc::downgrade(&clusters)));
        Self {
            connector,
            clusters,
        }
    }

    /// The connector.
    pub fn connector(&self) -> &C {
        &self.connector
    }

    /// Closes the waiting connections of a workload that has left; those with
    /// requests end with them.
    pub fn forget(&self, client: &WorkloadName) {
        self.clusters.forget(client);
    }

    /// A connection for a request to `member`: one that waits, a new one, or, where no more
    /// may be made, the first that becomes free, of any endpoint where `moves`.
    /// `fresh`: a new one, because one that waited has just failed.
    pub(super) async fn connection(
        &self,
        wanted: &Wanted<'_>,
        fresh: bool,
    ) -> Result<Connection, ConnectError> {
        let (cluster, policy) = (wanted.cluster, wanted.policy);
        if !fresh
            && !cluster.has_queue()
            && let Some(channel) = waiting(wanted.member, wanted)
        {
            return Ok(wanted.reused(wanted.member, channel));
        }
        let in_route = wanted.limits.map(|limits| cluster.pend_in_route(limits));
        let _pending = (cluster.pend()?, in_route.transpose()?);
        let at_once = if cluster.has_queue() {
            None
        } else {
            cluster.slot()
        };
        let slot = match at_once {
            Some(slot) => slot,
            None => match cluster.wait_for(|| free(wanted)).await {
                Free::Slot(slot) => slot,
                Free::Connection(connection) => return Ok(connection),
            },
        };
        let member = wanted.member;
        let channel = match wanted.protocol {
            UpstreamProtocol::Http1 => {
                // Boxed: few requests make a connection, and all would have room for it.
                let made = Box::pin(self.open_http1(wanted, slot)).await?;
                Channel::Http1(member.host.pool.new_http1(made, wanted.behind.clone()))
            }
            UpstreamProtocol::Http2 => {
                let connections = &member.host.pool.http2;
                // Whoever waits for another's attempt in vain does not begin its own.
                let turn =
                    tokio::time::timeout(policy.connect_timeout, connections.connecting.lock());
                let Ok(_turn) = turn.await else {
                    return Err(ConnectError::Timeout(policy.connect_timeout));
                };
                let shared = if fresh {
                    None
                } else {
                    connections.stream(policy, wanted.behind.as_ref())
                };
                let stream = match shared {
                    Some(shared) => shared,
                    None => {
                        let made = Box::pin(self.open_http2(wanted, slot)).await?;
                        connections.add(made, wanted.behind.clone())
                    }
                };
                // Others may share it.
                cluster.freed();
                Channel::Http2(stream)
            }
        };
        Ok(Connection {
            member: Arc::clone(member),
            channel,
            reused: false,
        })
    }

    async fn open_http1(
        &self,
        wanted: &Wanted<'_>,
        slot: Slot<HttpPool>,
    ) -> Result<Made<http1::SendRequest<RequestBody>>, ConnectError> {
        let io = self.connect(wanted).await?;
        let local = C::local_address(&io);
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(io))
            .await
            .map_err(ConnectError::Handshake)?;
        tokio::spawn(async move {
            let _slot = slot;
            // What goes wrong is told to whoever waits for a response.
            if let Err(error) = connection.with_upgrades().await {
                tracing::trace!(%error, "upstream connection ended");
            }
        });
        Ok((sender, local))
    }

    async fn open_http2(
        &self,
        wanted: &Wanted<'_>,
        slot: Slot<HttpPool>,
    ) -> Result<Made<http2::SendRequest<RequestBody>>, ConnectError> {
        let io = self.connect(wanted).await?;
        let local = C::local_address(&io);
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(super::MAX_HEADER_BYTES);
        if let Some((interval, timeout)) = wanted.policy.http.http2_keepalive {
            builder
                .keep_alive_interval(interval)
                .keep_alive_timeout(timeout)
                .keep_alive_while_idle(true);
        }
        let (sender, connection) = builder
            .handshake(TokioIo::new(WriteTogether::new(io)))
            .await
            .map_err(ConnectError::Handshake)?;
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = after_others(connection).await {
                tracing::trace!(%error, "upstream connection ended");
            }
        });
        Ok((sender, local))
    }

    async fn connect(&self, wanted: &Wanted<'_>) -> Result<C::Io, ConnectError> {
        let limit = wanted.policy.connect_timeout;
        let connect = async {
            let address = match &wanted.member.host.address {
                EndpointAddress::Socket(address) => *address,
                EndpointAddress::Name(host, port) => self.connector.resolve(host, *port).await?,
            };
            let target = (wanted.target)(address);
            self.connector.connect(&target).await
        };
        match tokio::time::timeout(limit, connect).await {
            Ok(result) => result.map_err(ConnectError::Io),
            Err(_) => Err(ConnectError::Timeout(limit)),
        }
    }
}

/// Closes what waits too long, and lets endpoints return whose time out of service is over.
async fn sweep(clusters: Weak<Clusters<HttpPool>>) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        ticks.tick().await;
        let Some(clusters) = clusters.upgrade() else {
            return;
        };
        let now = tokio::time::Instant::now().into_std();
        for cluster in clusters.all() {
            cluster.sweep(now);
            for (endpoint, cause) in cluster.swept_out() {
                tell_of_ejection(&cluster, &endpoint, cause);
            }
            let policy = cluster.policy();
            for (member, _) in cluster.members() {
                member.host.pool.sweep(&policy);
            }
        }
        clusters.forget_unused(now);
    }
}

/// A connection of `member` that waits for a request.
fn waiting(member: &Member<HttpPool>, wanted: &Wanted<'_>) -> Option<Channel> {
    let (pool, policy, behind) = (&member.host.pool, wanted.policy, wanted.behind.as_ref());
    match wanted.protocol {
        UpstreamProtocol::Http1 => pool.take_http1(policy, behind).map(Channel::Http1),
        UpstreamProtocol::Http2 => pool.http2.stream(policy, behind).map(Channel::Http2),
    }
}

/// What a request got that waited.
enum Free {
    Connection(Connection),
    Slot(Slot<HttpPool>),
}

/// Where as many connections are open as may be: one that waits, or the place of one.
fn free(wanted: &Wanted<'_>) -> Option<Free> {
    let cluster = wanted.cluster;
    let reused = |member: &Arc<Member<HttpPool>>, channel| {
        if matches!(channel, Channel::Http2(..)) {
            // Others may share it.
            cluster.freed();
        }
        Some(Free::Connection(wanted.reused(member, channel)))
    };
    if let Some(channel) = waiting(wanted.member, wanted) {
        return reused(wanted.member, channel);
    }
    if let Some(slot) = cluster.slot() {
        return Some(Free::Slot(slot));
    }
    let members = cluster.members();
    if wanted.moves {
        let in_service = members.iter().filter(|(_, ejection)| ejection.is_none());
        for (other, _) in in_service {
            if let Some(channel) = waiting(other, wanted) {
                return reused(other, channel);
            }
        }
    }
    for (other, _) in &members {
        let pool = &other.host.pool;
        let is_own = Arc::ptr_eq(other, wanted.member);
        let given_up = match wanted.protocol {
            // One that has become free since then is for this request, not in its way.
            UpstreamProtocol::Http1 if is_own && wanted.behind.is_none() => pool.give_up_http2(),
            _ => pool.give_up_one(),
        };
        if given_up {
            // Its place becomes free when it has closed.
            break;
        }
    }
    None
}

/// Where a request is to be sent.
pub(super) struct Wanted<'a> {
    pub(super) cluster: &'a Arc<HttpCluster>,
    pub(super) policy: &'a UpstreamPolicy,
    pub(super) member: &'a Arc<Member<HttpPool>>,
    pub(super) protocol: UpstreamProtocol,
    /// Bounds of the route.
    pub(super) limits: Option<&'a RouteLimits>,
    /// Whether another endpoint would do.
    pub(super) moves: bool,
    /// Who is to be behind the connection, where the endpoint is told.
    pub(super) behind: Option<Behind>,
    /// The target of a new connection, at the address of `member`.
    pub(super) target: &'a (dyn Fn(SocketAddr) -> Target + Send + Sync),
}

impl Wanted<'_> {
    fn reused(&self, member: &Arc<Member<HttpPool>>, channel: Channel) -> Connection {
        Connection {
            member: Arc::clone(member),
            channel,
            reused: true,
        }
    }
}

/// Tells what became of a request to an endpoint.
pub(in crate::proxy) fn report(cluster: &HttpCluster, member: &Member<HttpPool>, report: Report) {
    let now = || tokio::time::Instant::now().into_std();
    if let Some(cause) = cluster.report(member, report, now) {
        tell_of_ejection(cluster, &member.host.address, cause);
    }
}

fn tell_of_ejection(cluster: &HttpCluster, endpoint: &EndpointAddress, cause: Cause) {
    tracing::warn!(
        client = %cluster.key.client,
        service = cluster.key.service,
        port = cluster.key.port,
        subset = cluster.key.subset.as_deref().unwrap_or("-"),
        %endpoint,
        %cause,
        "endpoint is taken out of service"
    );
}
