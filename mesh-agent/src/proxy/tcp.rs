//! Connections that are not HTTP: choose an endpoint, then bytes both ways.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::Method;
use tokio::io::AsyncReadExt;

use mesh_common::{Protocol, Transport};
use tokio::time::Instant;

use super::copy::{Duplex, Transferred, copy_both};
use super::hbone::is_overfull;
use super::http::{self, Connector, HttpCluster, HttpPool, Target};
use super::outbound::Outbound;
use super::upstream::Io;
use super::{application, connect_tunnel, post_tunnel, tcp_record};
use crate::balance::{Active, Choice, Destination, EndpointAddress, Member, Report, Slot, hash_of};
use crate::datapath::FlowPath;
use crate::registry::{Resolution, Service};
use crate::route::{Balancer, ClientView, HashKey, TcpLimits, Unroutable, UpstreamPolicy};
use crate::telemetry::{Flag, Flags};

/// Endpoints that are tried for one connection.
const MAX_ATTEMPTS: usize = 3;
/// The silence of a connection is measured to this part of its bound.
const IDLE_CHECKS: u32 = 16;

/// How long the kernel waits for a host that says nothing, by default (`tcp_syn_retries`, ip-sysctl).
const PATIENCE: Duration = Duration::from_secs(127);

/// A connection of an application.
pub(super) struct Connection<'a> {
    pub(super) outbound: &'a Outbound,
    pub(super) service: Arc<Service>,
    pub(super) client: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) flow: u64,
    /// Name that a TLS client asks for, where a rule wants to know it.
    pub(super) server_name: Option<String>,
    /// No address has led to the service.
    pub(super) by_name: bool,
    pub(super) began: Instant,
}

/// What is counted while a connection to an endpoint lasts, and its bounds.
pub(super) struct Counted {
    pub(super) active: Active<HttpPool>,
    _slot: Slot<HttpPool>,
    limits: TcpLimits,
    made: Instant,
    pub(super) local_address: Option<SocketAddr>,
}

/// Why there is no connection to an endpoint.
pub(super) struct Unconnected {
    pub(super) error: io::Error,
    pub(super) flags: Flags,
    /// What was tried.
    pub(super) cluster: Option<Arc<HttpCluster>>,
    pub(super) endpoint: Option<EndpointAddress>,
    /// Why it was refused, where nothing has failed.
    refused: Option<Transport>,
}

impl Unconnected {
    fn new(flag: Flag, to: &Choosing, reason: String) -> Self {
        let is_full = flag == Flag::UpstreamOverflow;
        Self {
            error: io::Error::other(reason),
            flags: flag.into(),
            cluster: Some(to.cluster.clone()),
            endpoint: None,
            refused: is_full.then_some(Transport::NoRoom),
        }
    }
}

impl From<Unroutable> for Unconnected {
    fn from(unroutable: Unroutable) -> Self {
        Self {
            flags: unroutable.flags,
            error: io::Error::other(unroutable),
            cluster: None,
            endpoint: None,
            refused: None,
        }
    }
}

/// Connects to an endpoint and copies. A client whose service cannot be
/// reached sees a reset, as from a host that is not there.
pub(super) async fn forward(connection: &Connection<'_>, stream: impl Duplex) -> io::Result<()> {
    // Boxed: what connecting needs is not held as long as the connection.
    match Box::pin(connect(connection)).await {
        Ok((upstream, counted)) => copy(connection, stream, upstream, counted).await,
        Err(unconnected) => give_up(connection, stream, unconnected).await,
    }
}

/// Ends a client's connection for which there is none to an endpoint: at once,
/// or, where the endpoints said nothing at all, when the client is tired of waiting.
pub(super) async fn give_up(
    connection: &Connection<'_>,
    mut stream: impl Duplex,
    unconnected: Unconnected,
) -> io::Result<()> {
    if unconnected.error.kind() == io::ErrorKind::TimedOut {
        let tired = async {
            // Not an array: every connection's task would have room for it, all its life.
            let mut unheard = vec![0; 4096];
            while let Ok(1..) = stream.read(&mut unheard).await {}
        };
        tokio::select! {
            _ = tokio::time::timeout(PATIENCE, tired) => {}
            () = connection.outbound.drain.cancelled() => {}
        }
    }
    let is_nowhere = connection.service.resolution == Resolution::Nowhere;
    let refused = unconnected
        .refused
        .or(is_nowhere.then_some(Transport::Blocked));
    if let Some(why) = refused {
        let endpoint = match unconnected.endpoint {
            Some(EndpointAddress::Socket(address)) => Some(address),
            _ => None,
        };
        let node = &connection.outbound.node;
        node.note_refused(connection.flow, why, endpoint, Protocol::Tcp);
    }
    stream.abort();
    tcp_record::unconnected(connection, &unconnected);
    Err(unconnected.error)
}

pub(super) async fn copy(
    connection: &Connection<'_>,
    stream: impl Duplex,
    upstream: impl Duplex,
    counted: Counted,
) -> io::Result<()> {
    let transferred = Transferred::default();
    let (result, cut) = tokio::select! {
        result = copy_both(stream, upstream, &transferred) => {
            let is_overfull = result.as_ref().is_err_and(|error| is_overfull(&error.source));
            (result.map_err(io::Error::other), is_overfull.then_some(Bound::Memory))
        }
        // Dropped, the copy aborts both streams.
        bound = too_long(&counted, &transferred) => {
            let reason = format!("{bound} is over");
            (Err(io::Error::new(io::ErrorKind::TimedOut, reason)), Some(bound))
        }
    };
    tcp_record::complete(connection, &counted, transferred.bytes(), cut);
    result
}

/// What ends a connection that its ends would go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    Duration,
    Idle,
    /// Of the node's tunnels.
    Memory,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Duration => "maxConnectionDuration",
            Self::Idle => "idleTimeout",
            Self::Memory => "--max-tunnel-memory",
        })
    }
}

/// Ends when the connection has lived, or been silent, longer than it may.
async fn too_long(counted: &Counted, transferred: &Transferred) -> Bound {
    let old = async {
        match counted.limits.max_duration {
            Some(limit) => tokio::time::sleep_until(counted.made + limit).await,
            None => pending().await,
        }
    };
    let silent = async {
        match counted.limits.idle_timeout {
            Some(limit) => silence(limit, transferred).await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = old => Bound::Duration,
        () = silent => Bound::Idle,
    }
}

async fn silence(limit: Duration, transferred: &Transferred) {
    let (mut last, mut since) = (transferred.bytes(), Instant::now());
    loop {
        tokio::time::sleep(limit / IDLE_CHECKS).await;
        let now = transferred.bytes();
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() >= limit {
            return;
        }
    }
}

/// A way to an endpoint of the service.
struct Choosing {
    service: Arc<Service>,
    port: u16,
    policy: Arc<UpstreamPolicy>,
    /// The name to resolve, where the service is whatever the client asks for.
    named: Option<String>,
    cluster: Arc<HttpCluster>,
}

/// A connection to an endpoint of the service; others are tried when one fails.
pub(super) async fn connect(connection: &Connection<'_>) -> Result<(Io, Counted), Unconnected> {
    let outbound = connection.outbound;
    let mut tried = Vec::new();
    loop {
        let to = decide(connection)?;
        let member = choose(connection, &to, &tried)?;
        let overflow = |reason: &str| {
            let reason = format!("{}: {reason} (UO)", to.service.host);
            Unconnected::new(Flag::UpstreamOverflow, &to, reason)
        };
        let active = to.cluster.begin(&member);
        let active = active.map_err(|_| overflow("too many connections"))?;
        let slot = to.cluster.slot();
        let slot = slot.ok_or_else(|| overflow("maxConnections are open"))?;
        let limit = to.policy.connect_timeout;
        let connector = outbound.upstreams.connector();
        let attempt = tokio::time::timeout(limit, async {
            let address = match &member.host.address {
                EndpointAddress::Socket(address) => *address,
                EndpointAddress::Name(host, port) => connector.resolve(host, *port).await?,
            };
            let target = Target {
                client: outbound.local.workload.clone(),
                client_address: connection.client,
                flow: Some(connection.flow),
                original_destination: connection.destination,
                service: to.service.clone(),
                endpoint: member.endpoint.clone(),
                address,
                policy: to.policy.clone(),
                alpn: &[],
            };
            let (mut io, path) = connector.open(&target).await?;
            if let Some(tunnel) = &to.policy.tunnel {
                if tunnel.method == Method::POST {
                    let posted = post_tunnel::establish(io, tunnel).await?;
                    io = Io::Posted(Box::new(posted));
                } else {
                    connect_tunnel::establish(&mut io, tunnel).await?;
                }
            }
            Ok((io, path))
        });
        let (error, report) = match attempt.await {
            Ok(Ok((io, path))) => {
                let path = FlowPath {
                    endpoint: Some(path.endpoint),
                    destination_identity: path.identity.map(|identity| identity.to_string()),
                    transport: path.transport,
                    protocol: Protocol::Tcp,
                };
                outbound.node.note_path(connection.flow, &path);
                member.host.pool.connections.open();
                http::report(&to.cluster, &member, Report::Connected);
                // Without a further layer this is all that can go well (Envoy's "final" success).
                http::report(&to.cluster, &member, Report::Status(200));
                let counted = Counted {
                    local_address: io.local_address(),
                    active,
                    _slot: slot,
                    limits: to.policy.tcp.clone(),
                    made: Instant::now(),
                };
                return Ok((io, counted));
            }
            Ok(Err(error)) => (error, Report::Failed),
            Err(_) => {
                let reason = format!("no connection within {limit:?}");
                (
                    io::Error::new(io::ErrorKind::TimedOut, reason),
                    Report::TimedOut,
                )
            }
        };
        // What a policy of the destination forbids is no failure of the endpoint.
        let denied =
            error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none();
        let refused = match application::is_overflow(&error) {
            true => Some(Transport::NoRoom),
            false => denied.then_some(Transport::Blocked),
        };
        if !denied {
            http::report(&to.cluster, &member, report);
        }
        let address = member.host.address.clone();
        let reason = format!("cannot connect to {address}: {error}");
        tried.push(address.clone());
        let attempts = MAX_ATTEMPTS.min(to.service.endpoints.len().max(1));
        // As with requests: no other endpoint is asked for what this one's policies forbid.
        if denied || tried.len() == attempts {
            let mut flags = Flags::default();
            if !denied {
                flags.add(Flag::UpstreamConnectionFailure);
                flags.add(Flag::UpstreamRetryLimitExceeded);
            }
            return Err(Unconnected {
                error: io::Error::new(error.kind(), reason),
                flags,
                cluster: Some(to.cluster.clone()),
                endpoint: Some(address),
                refused,
            });
        }
    }
}

/// What the rules say, of the configuration that is in force now.
fn decide(connection: &Connection<'_>) -> Result<Choosing, Unroutable> {
    let outbound = connection.outbound;
    let snapshot = outbound.node.snapshot.load();
    let workload = &outbound.local.workload;
    let view = ClientView::of(workload);
    let (routes, registry) = (&snapshot.routes, &snapshot.registry);
    let (service, to) = (&connection.service, connection.destination);
    let mut random = rand::rng();
    let plan = match &connection.server_name {
        Some(name) => routes.decide_tls(&view, service, to, name, registry, &mut random),
        None => {
            let from = connection.client.ip();
            routes.decide_tcp(&view, service, from, to, registry, &mut random)
        }
    }?;
    let destination = Destination::of(&plan, workload, snapshot.version());
    let now = Instant::now().into_std();
    Ok(Choosing {
        service: plan.service.clone(),
        port: plan.port,
        policy: plan.policy.clone(),
        named: plan.named.clone(),
        cluster: outbound.upstreams.clusters.get(&destination, now),
    })
}

fn choose(
    connection: &Connection<'_>,
    to: &Choosing,
    tried: &[EndpointAddress],
) -> Result<Arc<Member<HttpPool>>, Unconnected> {
    let now = Instant::now().into_std();
    // `resolution: NONE`, or PASSTHROUGH: the address that the application asked for.
    if to.service.resolution == Resolution::None || to.policy.balancer == Balancer::Passthrough {
        let address = EndpointAddress::Socket(connection.destination);
        return Ok(to.cluster.asked_for(address, now));
    }
    if let Some(name) = &to.named {
        let address = EndpointAddress::Name(name.as_str().into(), to.port);
        return Ok(to.cluster.asked_for(address, now));
    }
    let choice = Choice {
        hash: source_hash(&to.policy, connection.client),
        avoid: tried,
        remote: false,
        like: Some(connection.client.ip()),
    };
    let chosen = to.cluster.choose(&choice, now, &mut rand::rng());
    chosen.ok_or_else(|| {
        let reason = format!(
            "{} has no endpoint in service for port {} (UH)",
            to.service.host, to.port
        );
        Unconnected::new(Flag::NoHealthyUpstream, to, reason)
    })
}

/// A connection has no property to hash but its client's address.
fn source_hash(policy: &UpstreamPolicy, client: SocketAddr) -> Option<u64> {
    match &policy.balancer {
        Balancer::Hash(hash) if hash.key == HashKey::SourceIp => {
            Some(hash_of(client.ip().to_string().as_bytes()))
        }
        _ => None,
    }
}
