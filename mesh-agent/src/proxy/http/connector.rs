//! The seam to the connections below HTTP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::seq::IndexedRandom;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::netns::BoxFuture;
use crate::registry::{Endpoint, Service, Workload};
use crate::route::UpstreamPolicy;

/// What a connection is wanted for.
#[derive(Clone, Debug)]
pub struct Target {
    /// Workload on whose behalf, and with whose identity, it is made.
    pub client: Arc<Workload>,
    /// Address of the client's connection to us.
    pub client_address: SocketAddr,
    /// That connection in the kernel's account, where the one that is wanted carries nothing else.
    pub flow: Option<u64>,
    /// Address that the client asked for.
    pub original_destination: SocketAddr,
    /// Service that was chosen.
    pub service: Arc<Service>,
    /// Endpoint that was chosen.
    pub endpoint: Arc<Endpoint>,
    /// Where the endpoint listens; names have been resolved.
    pub address: SocketAddr,
    /// What the DestinationRule asks for.
    pub policy: Arc<UpstreamPolicy>,
    /// Protocols to offer where TLS is originated (RFC 7301).
    pub alpn: &'static [&'static [u8]],
}

/// Makes connections to endpoints: on this node, through HBONE, or plain.
pub trait Connector: Send + Sync + 'static {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Connects. The caller bounds the time.
    fn connect<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, io::Result<Self::Io>>;

    /// Address from which a connection goes out, where it has one of its own.
    fn local_address(_io: &Self::Io) -> Option<SocketAddr> {
        None
    }

    /// Resolves the name of an endpoint, to any of its addresses; by the system's resolver unless overridden.
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<SocketAddr>> {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
            let nothing =
                || io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
            // The resolver has sorted them: the first's family is the one that can be reached.
            let v4 = found.first().ok_or_else(nothing)?.is_ipv4();
            let usable: Vec<_> = found.iter().filter(|one| one.is_ipv4() == v4).collect();
            let chosen = usable.choose(&mut rand::rng());
            chosen.map(|address| **address).ok_or_else(nothing)
        })
    }
}
