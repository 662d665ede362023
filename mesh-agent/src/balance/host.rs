//! One endpoint as a client sees it: what outlives changes of configuration,
//! and what does not.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::outlier::Monitor;
use crate::registry::Endpoint;

/// What identifies an endpoint over changes of configuration, and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointAddress {
    /// A socket address.
    Socket(SocketAddr),
    /// A name that has to be resolved, and a port.
    Name(Arc<str>, u16),
}

impl EndpointAddress {
    /// The address of an endpoint for a port of the service, where it serves that port.
    pub fn of(endpoint: &Endpoint, service_port: u16) -> Option<Self> {
        let port = *endpoint.ports.get(&service_port)?;
        match (endpoint.address, &endpoint.host) {
            (Some(ip), _) => Some(Self::Socket(SocketAddr::new(ip, port))),
            (None, Some(host)) => Some(Self::Name(host.as_str().into(), port)),
            (None, None) => None,
        }
    }

    pub(super) fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Socket(address) => Some(address.ip()),
            Self::Name(..) => None,
        }
    }
}

impl std::fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// What outlives changes of configuration. `P` is whatever the user of this
/// module keeps for each endpoint, such as its idle connections.
#[derive(Debug)]
pub struct Host<P> {
    /// Where it is.
    pub address: EndpointAddress,
    /// When it was seen first.
    pub since: Instant,
    /// Failures and ejections, shared by the addresses of one workload: it is one
    /// endpoint, whichever address it is called by.
    pub monitor: Arc<Monitor>,
    /// Connections and the like.
    pub pool: P,
    in_flight: AtomicU32,
    served: AtomicU64,
}

impl<P: Default> Host<P> {
    pub(super) fn new(address: EndpointAddress, since: Instant, monitor: Arc<Monitor>) -> Self {
        Self {
            address,
            since,
            monitor,
            pool: P::default(),
            in_flight: AtomicU32::new(0),
            served: AtomicU64::new(0),
        }
    }
}

impl<P> Host<P> {
    /// Requests (for TCP: connections) that are on their way to it.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// All that have ever been.
    pub fn served(&self) -> u64 {
        self.served.load(Relaxed)
    }

    pub(super) fn enter(&self) {
        self.in_flight.fetch_add(1, Relaxed);
        self.served.fetch_add(1, Relaxed);
    }

    pub(super) fn leave(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }
}

/// An endpoint of a configuration.
#[derive(Debug)]
pub struct Member<P> {
    /// What outlives the configuration.
    pub host: Arc<Host<P>>,
    /// As the registry has it.
    pub endpoint: Arc<Endpoint>,
}

impl<P> Member<P> {
    pub(super) fn weight(&self) -> u64 {
        u64::from(self.endpoint.weight.max(1))
    }
}
