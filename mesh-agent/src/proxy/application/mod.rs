//! The last step of every connection to a local application, however it came:
//! AuthorizationPolicy, then the application's socket. Where only the requests
//! can tell, a filter stands between.

mod admissions;
mod closed_ports;
mod counting;
mod filter;
mod http;
mod kept;
mod pipe;
mod ports;
mod record;
mod reports;
mod revocable;
mod windows;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::{CloseReason, Protocol, Transport};

pub use admissions::Admissions;
pub use closed_ports::ClosedPorts;
use pipe::Pipe;
pub use ports::{Place, Ports};
pub use record::ended;
pub use reports::{Event, Report, Reports};
pub use revocable::Revocable;
pub use windows::Windows;

use super::application_stream::ApplicationStream;
use super::one_of::one_of;
use super::upstream::keep_alive;
use super::{Local, Node};
use crate::balance::Overflow;
use crate::identity::Identity;
use crate::netns::Sockets;
use crate::policy::authorization::{Connection, Decision, Reason, Verdict};
use crate::registry::{Protocol as Declared, Workload};
use crate::route::{ClientView, InboundPort};
use crate::snapshot::Snapshot;
use crate::telemetry::callers::{Arrived, Counted, Source};
use crate::telemetry::{Flag, Flags};

/// Who connects to an application.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The client's address, which the application sees.
    pub address: SocketAddr,
    /// Its connection in the account of this node, where this one carries nothing else.
    pub flow: Option<u64>,
    /// Who it is, where that is known.
    pub identity: Option<Identity>,
    /// How the bytes came.
    pub transport: Transport,
    /// A probe of the node itself, which no policy stops ([`super::node_probes`]).
    pub is_probe: bool,
}

impl Caller {
    /// As the kernel knows it.
    fn seen(&self) -> crate::datapath::Caller {
        crate::datapath::Caller {
            address: self.address,
            identity: self.identity.as_ref().map(ToString::to_string),
            transport: self.transport,
        }
    }

    /// The connection as policies see it.
    pub(super) fn connection(&self, destination: SocketAddr) -> Connection<'_> {
        Connection {
            source: self.identity.as_ref(),
            source_ip: self.address.ip(),
            destination,
        }
    }
}

/// Why there is no connection to an application.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A policy forbids it.
    #[error("connection closed due to policy rejection: {0}")]
    Policy(Reason),
    /// As many are open as the workload's Sidecar lets be.
    #[error("connection closed: maxConnections of the Sidecar are open (UO)")]
    Overflow(#[from] Overflow),
    /// The application does not accept it.
    #[error(transparent)]
    Unreachable(#[from] io::Error),
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unreachable(error) => error,
            Refused::Policy(_) => Self::new(io::ErrorKind::PermissionDenied, refused),
            Refused::Overflow(_) => Self::new(io::ErrorKind::ConnectionRefused, refused),
        }
    }
}

/// A connection to an application, or to the filter before it.
pub enum Application {
    /// To the application; a change of policy may revoke it.
    Direct(Revocable<ApplicationStream>),
    /// To the filter that looks at the requests.
    Filtered(Pipe),
}

/// Connects to an application of this node on behalf of `caller`, if the
/// policies let it.
///
/// # Errors
/// Where a policy forbids it, or the application does not accept it.
pub async fn open(
    node: &Arc<Node>,
    local: &Arc<Local>,
    caller: Caller,
    application: SocketAddr,
) -> Result<Application, Refused> {
    if caller.is_probe {
        let stream = admitted(node, local, caller, application).await?;
        return Ok(Application::Direct(stream));
    }
    let (decision, by_request) = {
        let snapshot = node.snapshot.load();
        let connection = caller.connection(application);
        let decision = (snapshot.authorization).connection(&local.workload, &connection);
        (decision, counts_requests(&snapshot, local, application))
    };
    match decision.verdict {
        Verdict::Deny => {
            denied(node, local, &caller, application, &decision.reason);
            return Err(Refused::Policy(decision.reason));
        }
        Verdict::Allow if !by_request => {
            told(node, &local.workload, &caller, application, decision);
            let stream = admitted(node, local, caller, application).await?;
            return Ok(Application::Direct(stream));
        }
        Verdict::Allow | Verdict::NeedsHttp => {}
    }
    let (near, far) = Pipe::pair();
    let (node, local) = (node.clone(), local.clone());
    tokio::spawn(filter::run(node, local, caller, application, far));
    Ok(Application::Filtered(near))
}

/// What the workload's Sidecar says of the port that is asked for.
fn inbound(node: &Node, local: &Local, application: SocketAddr) -> InboundPort {
    let snapshot = node.snapshot.load();
    let workload = ClientView::of(&local.workload);
    let inbound = snapshot.routes.inbound(&workload, application.port());
    inbound.cloned().unwrap_or_default()
}

/// Whether there are bounds that count requests, if the port may carry any.
fn counts_requests(snapshot: &Snapshot, local: &Local, application: SocketAddr) -> bool {
    let (workload, port) = (&local.workload, application.port());
    let inbound = (snapshot.routes).inbound(&ClientView::of(workload), port);
    inbound.is_some_and(|inbound| inbound.limits.is_some())
        && !matches!(
            snapshot.authorization.protocol(workload, port),
            Declared::Tcp | Declared::Tls | Declared::Udp
        )
}

/// After a change of the configuration: closes what it forbids, and reports of
/// what is open what policies that only report have to say.
pub fn recheck(node: &Node, snapshot: &Snapshot) {
    let rechecked = node.admissions.recheck(snapshot);
    if rechecked.closed > 0 {
        let closed = rechecked.closed;
        tracing::info!(closed, "connections that the policies forbid are closed");
    }
    // Once for each change of the policies, not of anything else.
    if snapshot.authorization.epoch != snapshot.generation {
        return;
    }
    for (workload, caller, to, decision) in rechecked.open {
        told(node, &workload, &caller, to, decision);
    }
}

/// A connection that was allowed: open until its end, or until a policy forbids it.
async fn admitted(
    node: &Arc<Node>,
    local: &Arc<Local>,
    caller: Caller,
    application: SocketAddr,
) -> Result<Revocable<ApplicationStream>, Refused> {
    // Before the connection is made: a policy that comes meanwhile finds it.
    let admission = node
        .admissions
        .bytes(local.workload.clone(), caller.clone(), application);
    let limits = inbound(node, local, application).limits;
    let place = match &limits {
        None => None,
        Some(limits) => match local
            .inbound
            .at(application.port())
            .enter(limits.tcp.max_connections)
        {
            Ok(place) => Some(place),
            Err(overflow) => {
                overflowed(node, local, &caller, application);
                return Err(overflow.into());
            }
        },
    };
    let mut stream = connect(node, local, &caller, application, place).await?;
    let arrived = arrived(node, local, &caller, application);
    stream.count_in(arrived.clone());
    let counted = arrived.map(Counted::open);
    let stream = Revocable::new(stream, admission, counted);
    Ok(match limits {
        Some(limits) => stream.bounded(&limits.tcp),
        None => stream,
    })
}

/// Where requests and connections of a caller are counted; probes are not.
pub(super) fn arrived(
    node: &Node,
    local: &Local,
    caller: &Caller,
    application: SocketAddr,
) -> Option<Arc<Arrived>> {
    if caller.is_probe {
        return None;
    }
    let snapshot = node.snapshot.load();
    let workload = snapshot.registry.workload_at(caller.address.ip());
    // An address proves nothing: where somebody else has proven to be there, that counts.
    let workload = workload.filter(|workload| {
        let identity = caller.identity.as_ref();
        identity.is_none_or(|identity| *identity == workload.identity)
    });
    Some(local.callers.of(Source {
        workload: workload.cloned(),
        identity: caller.identity.clone(),
        mutual_tls: caller.transport.is_mutual_tls(),
        port: application.port(),
    }))
}

/// To the application, which sees the caller's address as its peer. `place` is held as long
/// as the connection is open.
async fn connect(
    node: &Arc<Node>,
    local: &Arc<Local>,
    caller: &Caller,
    application: SocketAddr,
    place: Option<Place>,
) -> io::Result<ApplicationStream> {
    let InboundPort {
        endpoint, limits, ..
    } = inbound(node, local, application);
    let to = endpoint.map_or(application, |endpoint| endpoint.behind(application));
    // A socket of IPv4 cannot have a peer of IPv6.
    let seen = Some(caller.seen()).filter(|seen| seen.address.is_ipv4() || to.is_ipv6());
    let connecting = local.sockets.connect(Some(to.ip()), to, seen);
    let connected = match limits.as_ref().and_then(|limits| limits.connect_timeout) {
        Some(limit) => tokio::time::timeout(limit, connecting).await?,
        None => connecting.await,
    };
    let refused = connected
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if refused {
        closed_ports::refused(node, local);
    }
    let stream = connected?;
    if let Some(keepalive) = limits.and_then(|limits| limits.tcp.keepalive) {
        keep_alive(&stream, keepalive)?;
    }
    let is_spliced = node.datapath.marks().is_spliced(&stream)?;
    let bridges = node.datapath.bridges();
    let mut stream = ApplicationStream::new(stream, is_spliced, bridges);
    stream.hold(place);
    Ok(stream)
}

/// Tells of a connection for which there is no room.
fn overflowed(node: &Node, local: &Local, caller: &Caller, to: SocketAddr) {
    tracing::debug!(
        workload = %local.workload.name,
        client = %caller.address,
        port = to.port(),
        "connection refused: maxConnections of the Sidecar are open"
    );
    let flags = Flag::UpstreamOverflow.into();
    record::connection(node, &local.workload, caller, to, flags, None);
    refused(node, local, caller, to, Transport::NoRoom);
}

/// Counts a refusal, and says so.
fn denied(node: &Node, local: &Local, caller: &Caller, to: SocketAddr, reason: &Reason) {
    if let Some(line) = node.refusals.line() {
        tracing::info!(
            workload = %local.workload.name,
            client = %caller.address,
            identity = caller.identity.as_ref().map(tracing::field::display),
            port = to.port(),
            %reason,
            left_out = line.left_out,
            "connection denied"
        );
    }
    let details = reason.details();
    let flags = Flags::default();
    record::connection(node, &local.workload, caller, to, flags, Some(&details));
    refused(node, local, caller, to, Transport::Blocked);
    let reason = reason.to_string();
    report(node, &local.workload, caller, to, Event::Denied, reason);
}

/// Puts a connection into the account that is refused: `why` is one of the transports that are none.
pub(super) fn refused(node: &Node, local: &Local, caller: &Caller, to: SocketAddr, why: Transport) {
    if let Some(flow) = caller.flow {
        node.note_refused(flow, why, Some(to), Protocol::Tcp);
    }
    let refusal = crate::datapath::Refusal {
        netns_cookie: local.sockets.namespace().cookie(),
        application: to,
        identity: &local.workload.identity.to_string(),
        caller: &caller.seen(),
        is_counted: caller.flow.is_some(),
        reason: mesh_common::refusal(why as u16).unwrap_or(CloseReason::Refused),
    };
    // It is for people: where it fails, that is counted.
    if let Err(error) = node.datapath.refused(&refusal) {
        tracing::debug!(workload = %local.workload.name, %error, "a refused connection is not recorded");
    }
}

/// Whether a connection was refused since as many are open as the workload's Sidecar lets be.
pub(super) fn is_overflow(error: &io::Error) -> bool {
    let refused = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<Refused>());
    matches!(refused, Some(Refused::Overflow(_)))
}

/// Reports what policies that only report have to say.
pub fn told(node: &Node, workload: &Workload, caller: &Caller, to: SocketAddr, decision: Decision) {
    if let Some(reason) = decision.would_deny {
        let reason = reason.to_string();
        report(node, workload, caller, to, Event::WouldBeDenied, reason);
    }
    for policy in decision.audited {
        report(node, workload, caller, to, Event::Audited, policy);
    }
}

fn report(
    node: &Node,
    workload: &Workload,
    caller: &Caller,
    to: SocketAddr,
    event: Event,
    by: String,
) {
    let source = match &caller.identity {
        Some(identity) => identity.to_string(),
        None => caller.address.ip().to_string(),
    };
    let workload = workload.name.to_string();
    node.reports.add(event, workload, to.port(), source, by);
}

one_of!(Application: Direct | Filtered);
