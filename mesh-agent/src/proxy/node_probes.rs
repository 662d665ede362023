//! Probes of the node itself, such as kubelet's: they come in the clear, and an
//! application that gets none is taken for dead.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use parking_lot::Mutex;

use crate::netns::{Hierarchy, Owner, SockDiag, is_of_container};

const ROOT: u32 = 0;

/// What becomes of connections that root of the node's own network namespace
/// makes to workloads of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ProbePolicy {
    /// They reach the application, whatever the policies say.
    #[default]
    Pass,
    /// They are like any other's.
    Check,
}

/// Tells probes of the node from other connections.
///
/// An address does not tell: what a node forwards for others often bears its own (a
/// NodePort, masquerading), and neighbours can lie. So the kernel is asked for the
/// socket at the other end: it has to be in the node's own namespace, and a process
/// of root has to hold it, which is in no container. Whoever is root there could enter the
/// workload's namespace as well, so nobody can do more by being let in; root of a container
/// on the node's network could not.
pub struct NodeProbes(Option<Asked>);

struct Asked {
    sockets: Mutex<SockDiag>,
    groups: Hierarchy,
}

impl NodeProbes {
    /// Of the calling thread's namespace, which has to be the node's own.
    ///
    /// # Errors
    /// Where the kernel does not tell of sockets (`CONFIG_INET_DIAG`).
    pub fn here(policy: ProbePolicy, cgroup2: &Path) -> io::Result<Self> {
        Ok(Self(match policy {
            ProbePolicy::Pass => Some(Asked {
                sockets: Mutex::new(SockDiag::here()?),
                groups: Hierarchy::open(cgroup2)?,
            }),
            ProbePolicy::Check => None,
        }))
    }

    /// None is one: they have all to obey the policies.
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether a connection that `client` has made to `application` is a probe. Where the
    /// kernel does not say, it is none.
    pub fn is_one(&self, client: SocketAddr, application: SocketAddr) -> bool {
        let Some(Asked { sockets, groups }) = &self.0 else {
            return false;
        };
        // It answers at once: nothing waits for more than a look into a table.
        let owner = match sockets.lock().owner(client, application) {
            Ok(owner) => owner,
            Err(error) => {
                tracing::warn!(%client, %error, "cannot tell whether this is a probe of the node");
                return false;
            }
        };
        match owner {
            Some(Owner { user: ROOT, cgroup }) => {
                !cgroup.is_some_and(|id| is_container(groups, id))
            }
            _ => false,
        }
    }
}

/// Where it cannot be told, it is none: an application that gets no probe is taken for dead.
fn is_container(groups: &Hierarchy, id: u64) -> bool {
    match groups.path(id) {
        Ok(path) => is_of_container(&path),
        Err(error) => {
            tracing::debug!(id, %error, "the control group of a probe is not found");
            false
        }
    }
}
