//! Workloads.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
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

/// How connections between two workloads of one node travel, the stricter last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum SameNode {
    /// The kernel knows both ends; no byte leaves the node.
    #[default]
    Attest,
    /// By mutual TLS, as between nodes.
    Encrypt,
}

/// What becomes of the connections of an enrolled workload while no agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenAgentIsDown {
    /// They are refused: nothing passes in the clear that was not meant to.
    Refuse,
    /// They are left alone, as if the workload were not enrolled.
    Pass,
}

/// Whether bytes that stay on the node may bypass the TCP/IP stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShortCircuit {
    /// Where the application cannot notice it.
    #[default]
    Auto,
    /// Wherever bytes stay on the node; for applications that are known to
    /// read with plain `recv`, `read` and `poll`.
    On,
    /// Nowhere.
    Off,
}

impl FromStr for ShortCircuit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(format!("{text:?} is not one of auto, on, off")),
        }
    }
}

impl fmt::Display for ShortCircuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// How connections to a workload travel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// The workload is not in the mesh: plain TCP.
    None,
    /// HBONE on port 15008.
    Hbone,
    /// Mutual TLS to the application's own port, where a sidecar of Istio ends it.
    Sidecar,
}

/// A network namespace, pod, container or unit that runs an application
/// (an Istio `WorkloadEntry`).
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Name and namespace.
    pub name: WorkloadName,
    /// Labels, for selectors and subsets.
    pub labels: Arc<BTreeMap<String, String>>,
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
    /// Its connections to workloads of its node go there with no agent on the
    /// way, where policy and routes ask for nothing else.
    pub direct: bool,
    /// Whether its bytes may take the short-circuit; `None` where the agent's default holds.
    pub short_circuit: Option<ShortCircuit>,
    /// How connections to and from workloads of its node travel; `None` where the agent's default holds.
    pub same_node: Option<SameNode>,
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
    /// Whether it is in a mesh: there is somebody who ends mutual TLS for it.
    pub fn is_meshed(&self) -> bool {
        self.tunnel != Tunnel::None
    }

    /// The first address of the family of `like`.
    pub fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == like.is_ipv4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_are_written() {
        for setting in [ShortCircuit::Auto, ShortCircuit::On, ShortCircuit::Off] {
            assert_eq!(setting.to_string().parse(), Ok(setting));
        }
        assert!("yes".parse::<ShortCircuit>().is_err());
    }
}
