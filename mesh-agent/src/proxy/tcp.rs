//! Connections that are not HTTP: choose an endpoint, then bytes both ways.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use mesh_common::Protocol;

use super::copy::{Duplex, Transferred, copy_both};
use super::http::Target;
use super::outbound::Outbound;
use super::upstream::Io;
use crate::balance::{self, EndpointAddress, Wanted};
use crate::datapath::FlowPath;
use crate::registry::{Endpoint, Resolution, Service};
use crate::route::ClientView;

/// Endpoints that are tried for one connection.
const MAX_ATTEMPTS: usize = 3;

/// How long the kernel waits for a host that says nothing, by default (`tcp_syn_retries`, ip-sysctl).
const PATIENCE: Duration = Duration::from_secs(127);

/// A connection of an application.
pub(super) struct Connection<'a> {
    pub(super) outbound: &'a Outbound,
    pub(super) service: Arc<Service>,
    pub(super) client: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) flow: u64,
}

/// Connects to an endpoint and copies. A client whose service cannot be
/// reached sees a reset, as from a host that is not there.
pub(super) async fn forward(connection: &Connection<'_>, stream: impl Duplex) -> io::Result<()> {
    // Boxed: what connecting needs is not held as long as the connection.
    match Box::pin(connect(connection)).await {
        Ok(upstream) => copy(connection, stream, upstream).await,
        Err(error) => {
            give_up(connection, stream, &error).await;
            Err(error)
        }
    }
}

/// Ends a client's connection for which there is none to an endpoint: at once,
/// or, where the endpoints said nothing at all, when the client is tired of waiting.
pub(super) async fn give_up(
    connection: &Connection<'_>,
    mut stream: impl Duplex,
    error: &io::Error,
) {
    if error.kind() == io::ErrorKind::TimedOut {
        let tired = async {
            let mut unheard = [0; 4096];
            while let Ok(1..) = stream.read(&mut unheard).await {}
        };
        tokio::select! {
            _ = tokio::time::timeout(PATIENCE, tired) => {}
            () = connection.outbound.drain.cancelled() => {}
        }
    }
    stream.abort();
}

pub(super) async fn copy(
    connection: &Connection<'_>,
    stream: impl Duplex,
    upstream: impl Duplex,
) -> io::Result<()> {
    let transferred = Transferred::default();
    let result = copy_both(stream, upstream, &transferred).await;
    let (sent, received) = transferred.bytes();
    tracing::debug!(
        workload = %connection.outbound.local.workload.name,
        client = %connection.client,
        destination = %connection.destination,
        service = connection.service.host,
        sent,
        received,
        "connection complete"
    );
    result.map_err(io::Error::other)
}

/// A connection to an endpoint of the service; others are tried when one fails.
pub(super) async fn connect(connection: &Connection<'_>) -> io::Result<Io> {
    let mut tried = Vec::new();
    loop {
        let (target, limit) = target(connection, &tried)?;
        let connector = connection.outbound.upstreams.connector();
        let attempt = tokio::time::timeout(limit, connector.open(&target)).await;
        let error = match attempt {
            Ok(Ok((io, path))) => {
                let path = FlowPath {
                    endpoint: Some(path.endpoint),
                    destination_identity: path.identity.map(|identity| identity.to_string()),
                    transport: path.transport,
                    protocol: Protocol::Tcp,
                };
                connection.outbound.node.note_path(connection.flow, &path);
                return Ok(io);
            }
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {limit:?}"),
            ),
        };
        let address = target.address;
        tried.push(EndpointAddress::Socket(address));
        if tried.len() == MAX_ATTEMPTS.min(connection.service.endpoints.len().max(1)) {
            return Err(io::Error::new(
                error.kind(),
                format!("cannot connect to {address}: {error}"),
            ));
        }
    }
}

fn target(
    connection: &Connection<'_>,
    tried: &[EndpointAddress],
) -> io::Result<(Target, Duration)> {
    let Connection {
        outbound,
        service,
        client,
        destination,
        ..
    } = connection;
    let snapshot = outbound.node.snapshot.load();
    let workload = &outbound.local.workload;
    let view = ClientView {
        namespace: &workload.name.namespace,
        labels: &workload.labels,
    };
    let mut random = rand::rng();
    let plan = snapshot
        .routes
        .decide_tcp(
            &view,
            service,
            *destination,
            &snapshot.registry,
            &mut random,
        )
        .map_err(io::Error::other)?;
    let wanted = Wanted {
        port: plan.port,
        labels: plan.subset.map(|subset| &subset.labels),
        algorithm: plan.policy.algorithm(),
        avoid: tried,
        like: Some(client.ip()),
    };
    let endpoint = if plan.service.resolution == Resolution::None {
        Arc::new(as_it_is(*destination, plan.port))
    } else {
        balance::choose(plan.service, &wanted, &outbound.upstreams.load, &mut random)
            .cloned()
            .ok_or_else(|| {
                io::Error::other(format!(
                    "{} has no endpoint for port {}",
                    plan.service.host, plan.port
                ))
            })?
    };
    let address = endpoint.socket_address(plan.port).ok_or_else(|| {
        io::Error::other(format!(
            "endpoints of {} are names, which TCP does not use yet",
            plan.service.host
        ))
    })?;
    let target = Target {
        client: workload.clone(),
        client_address: *client,
        service: plan.service.clone(),
        endpoint,
        address,
        tls: plan.policy.tls,
    };
    Ok((target, plan.policy.connect_timeout))
}

/// `resolution: NONE`: the address that the application asked for.
fn as_it_is(destination: SocketAddr, port: u16) -> Endpoint {
    Endpoint {
        address: Some(destination.ip()),
        host: None,
        ports: [(port, destination.port())].into(),
        labels: Default::default(),
        weight: 1,
        workload: None,
    }
}
