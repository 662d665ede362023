//! What the agent did with a connection: joined to the kernel's account for
//! `meshctl flows`.

use std::collections::HashMap;
use std::net::SocketAddr;

use parking_lot::Mutex;

use crate::identity::Identity;
use crate::registry::WorkloadName;

/// Connections that are remembered. At the bound, all whose flow the kernel no
/// longer knows are forgotten.
const MAX_NOTES: usize = 65_536;

/// How bytes travel to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Both ends on this node: the kernel knows both namespaces.
    SameNode,
    /// HBONE, mutual TLS.
    Hbone,
    /// Plain TCP.
    Plain,
}

/// The way that an upstream connection took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Endpoint.
    pub endpoint: SocketAddr,
    /// Transport.
    pub transport: Transport,
    /// Identity of the endpoint, where it has one.
    pub identity: Option<Identity>,
}

/// One connection of a local application.
#[derive(Clone, Debug, Default)]
pub struct Note {
    /// Host of the service that was asked for.
    pub service: Option<String>,
    /// `http`, `h2`, `tcp`, `dns`.
    pub protocol: &'static str,
    /// Where its bytes went. HTTP requests of one connection may take several
    /// ways; they are noted by service, see [`Notes::path`].
    pub path: Option<Path>,
}

/// One connection to a local application.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// How it came.
    pub transport: Transport,
    /// Who opened it.
    pub identity: Option<Identity>,
}

/// Client and the application's address.
type Ends = (SocketAddr, SocketAddr);

#[derive(Default)]
struct Inner {
    /// By socket cookie of the application's socket.
    outbound: HashMap<u64, Note>,
    inbound: HashMap<Ends, Arrival>,
    paths: HashMap<(WorkloadName, String), Path>,
}

/// The notes. Written once per connection.
#[derive(Default)]
pub struct Notes {
    inner: Mutex<Inner>,
}

impl Notes {
    /// A connection of a local application.
    pub fn outbound(&self, flow: u64, note: Note) {
        self.inner.lock().outbound.insert(flow, note);
    }

    /// The way that the bytes of a connection took.
    pub fn outbound_path(&self, flow: u64, path: Path) {
        if let Some(note) = self.inner.lock().outbound.get_mut(&flow) {
            note.path = Some(path);
        }
    }

    /// The way that the last new upstream connection from a workload to a service took.
    pub fn service_path(&self, client: &WorkloadName, service: &str, path: Path) {
        self.inner
            .lock()
            .paths
            .insert((client.clone(), service.to_owned()), path);
    }

    /// A connection to a local application.
    pub fn inbound(&self, client: SocketAddr, application: SocketAddr, arrival: Arrival) {
        self.inner
            .lock()
            .inbound
            .insert((client, application), arrival);
    }

    /// What is noted of a connection of a local application.
    pub fn of_outbound(&self, flow: u64) -> Option<Note> {
        self.inner.lock().outbound.get(&flow).cloned()
    }

    /// What is noted of a connection to a local application.
    pub fn of_inbound(&self, client: SocketAddr, application: SocketAddr) -> Option<Arrival> {
        self.inner
            .lock()
            .inbound
            .get(&(client, application))
            .cloned()
    }

    /// The way to a service.
    pub fn path(&self, client: &WorkloadName, service: &str) -> Option<Path> {
        self.inner
            .lock()
            .paths
            .get(&(client.clone(), service.to_owned()))
            .cloned()
    }

    /// Whether it is time to call [`Self::retain`].
    pub fn is_full(&self) -> bool {
        let inner = self.inner.lock();
        inner.outbound.len() + inner.inbound.len() + inner.paths.len() > MAX_NOTES
    }

    /// Keeps the notes of these flows alone.
    pub fn retain(&self, outbound: impl Fn(u64) -> bool, inbound: impl Fn(&Ends) -> bool) {
        let mut inner = self.inner.lock();
        inner.outbound.retain(|flow, _| outbound(*flow));
        inner.inbound.retain(|ends, _| inbound(ends));
        if inner.paths.len() > MAX_NOTES / 2 {
            inner.paths.clear();
        }
    }
}
