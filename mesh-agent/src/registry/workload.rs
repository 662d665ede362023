//! Workloads.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::Identity;

/// `<name>.<namespace>`, as people write it to `meshctl`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadName {
    /// Name of the `WorkloadEntry`.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

/// Where the sockets of a workload are found on its node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// A named network namespace (`ip netns`) or a path to one.
    Netns(String),
    /// The network namespace of a process.
    Pid(u32),
    /// The network namespace of a container, by (a prefix of) its id.
    Container(String),
    /// A control group in the host's own network namespace: a systemd unit.
    Cgroup(String),
}

/// What becomes of the connections of an enrolled workload while no agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenAgentIsDown {
    /// They are refused: nothing passes in the clear that was not meant to.
    Refuse,
    /// They are left alone, as if the workload were not enrolled.
    Pass,
}

/// How connections to a workload travel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// The workload is not in the mesh: plain TCP.
    None,
    /// HBONE on port 15008.
    Hbone,
}

/// A network namespace, pod, container or unit that runs an application
/// (an Istio `WorkloadEntry`).
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Name and namespace.
    pub name: WorkloadName,
    /// Labels, for selectors and subsets.
    pub labels: BTreeMap<String, String>,
    /// SPIFFE identity (trust domain, namespace, service account).
    pub identity: Identity,
    /// Addresses, the `WorkloadEntry`'s `address` first.
    pub addresses: Vec<IpAddr>,
    /// Named ports (`WorkloadEntry.ports`), which beat a service's `targetPort`.
    pub ports: BTreeMap<String, u16>,
    /// The node it runs on, where that is said; `None` means any node that finds its namespace.
    pub node: Option<String>,
    /// Where its sockets are; `None` for a workload that is not enrolled by annotation.
    pub placement: Option<Placement>,
    /// What becomes of its connections while no agent runs; `None` as the agent was told.
    pub when_agent_is_down: Option<WhenAgentIsDown>,
    /// How it is reached from another node.
    pub tunnel: Tunnel,
    /// `region/zone/subzone`, or empty.
    pub locality: String,
    /// Load-balancing weight, at least 1 (a `WorkloadEntry.weight` of 0 means 1).
    pub weight: u32,
    /// File and document that it comes from, for messages.
    pub origin: String,
}

impl Workload {
    /// The first address of the family of `like`.
    pub fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == like.is_ipv4())
    }
}
