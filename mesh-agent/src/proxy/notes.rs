//! Which way the requests of a workload to a service went last. Connections of
//! HTTP are shared by many requests and many flows, so the kernel's record of a
//! flow cannot say it; of all else it does ([`crate::datapath::FlowPath`]).

use std::collections::HashMap;
use std::net::SocketAddr;

use mesh_common::Transport;
use parking_lot::Mutex;

use crate::identity::Identity;
use crate::registry::WorkloadName;

/// Pairs of client and service that are remembered; at the bound all are forgotten.
const MAX_NOTES: usize = 65_536;

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

/// The notes. Written once per upstream connection.
#[derive(Default)]
pub struct Notes {
    paths: Mutex<HashMap<(WorkloadName, String), Path>>,
}

impl Notes {
    /// The way that the last new upstream connection from a workload to a service took.
    pub fn set(&self, client: &WorkloadName, service: &str, path: Path) {
        let mut paths = self.paths.lock();
        if paths.len() >= MAX_NOTES {
            paths.clear();
        }
        paths.insert((client.clone(), service.to_owned()), path);
    }

    /// The way to a service.
    pub fn path(&self, client: &WorkloadName, service: &str) -> Option<Path> {
        let paths = self.paths.lock();
        paths.get(&(client.clone(), service.to_owned())).cloned()
    }
}
