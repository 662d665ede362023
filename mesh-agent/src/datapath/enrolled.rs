//! What the kernel is told of a workload when it is enrolled.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_common::{Ip, Workload, workload_flag};

use super::Tiers;
use crate::registry::ShortCircuit;

/// Listeners of the agent in a workload's namespace; ports are 0 where a family is off.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenerPorts {
    /// Connections of the workload over IPv4.
    pub outbound4: u16,
    /// Over IPv6.
    pub outbound6: u16,
    /// DNS over UDP and IPv4.
    pub dns4: u16,
    /// DNS over UDP and IPv6.
    pub dns6: u16,
}

/// What the kernel is told of a workload.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// Its addresses; the kernel knows the first of each family.
    pub addresses: Vec<IpAddr>,
    /// Who it is.
    pub identity: String,
    /// Listeners for it.
    pub ports: ListenerPorts,
    /// Its connections are left alone while no agent serves it, instead of refused.
    pub fails_open: bool,
    /// Its connections to addresses that the mesh does not know go to the agent, too.
    pub takes_all: bool,
    /// Ports at which connections from outside are taken, whoever listens there.
    pub ingress: BTreeSet<u16>,
    /// Whether its bytes may take the short-circuit.
    pub short_circuit: ShortCircuit,
}

impl Enrolled {
    pub(super) fn value(&self, tiers: &Tiers) -> Workload {
        let first = |is_v4: bool| {
            let mut addresses = self.addresses.iter();
            let address = addresses.find(|address| address.is_ipv4() == is_v4);
            address.map_or(Ip::UNSPECIFIED, |address| Ip::from(*address))
        };
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let fail_open = flag(self.fails_open, workload_flag::FAIL_OPEN);
        let all_outbound = flag(self.takes_all, workload_flag::ALL_OUTBOUND);
        Workload {
            ip4: first(true),
            ip6: first(false),
            outbound4_port: self.ports.outbound4,
            outbound6_port: self.ports.outbound6,
            dns4_port: self.ports.dns4,
            dns6_port: self.ports.dns6,
            flags: fail_open | all_outbound | tiers.flags(self.short_circuit),
            ..Workload::default()
        }
    }
}
