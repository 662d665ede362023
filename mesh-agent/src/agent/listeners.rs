//! The agent's sockets in one workload's namespace: from the agent before, or new.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use tokio::net::{TcpListener, UdpSocket};

use super::takeover::{ListenerRole, Sockets};
use crate::netns::WorkloadSockets;

/// Opens sockets, and keeps a descriptor of each for the agent that may take over.
pub(super) struct Listeners<'a> {
    sockets: &'a WorkloadSockets,
    inherited: Sockets,
    kept: Sockets,
}

impl<'a> Listeners<'a> {
    pub(super) fn new(sockets: &'a WorkloadSockets, inherited: Sockets) -> Self {
        Self {
            sockets,
            inherited,
            kept: HashMap::new(),
        }
    }

    pub(super) fn tcp(&mut self, role: ListenerRole) -> io::Result<TcpListener> {
        let listener = match self.inherited.remove(&role) {
            Some(socket) => TcpListener::from_std(socket.into())?,
            None => self.sockets.listen(loopback(role))?,
        };
        self.keep(role, &listener)?;
        Ok(listener)
    }

    /// `before` is the port that the agent before had, which has died: sockets that are
    /// connected to it work again where this one gets it.
    pub(super) fn udp(&mut self, role: ListenerRole, before: u16) -> io::Result<UdpSocket> {
        let socket = match self.inherited.remove(&role) {
            Some(socket) => UdpSocket::from_std(socket.into())?,
            None => {
                let address = match loopback(role) {
                    // Every name server has an address of its own in 127.0.0.0/8.
                    IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    v6 => v6,
                };
                self.sockets.listen_udp(address, before)?
            }
        };
        self.keep(role, &socket)?;
        Ok(socket)
    }

    fn keep(&mut self, role: ListenerRole, socket: &impl AsFd) -> io::Result<()> {
        let descriptor = socket.as_fd().try_clone_to_owned()?;
        self.kept.insert(role, descriptor);
        Ok(())
    }

    /// Their descriptors.
    pub(super) fn into_kept(self) -> Sockets {
        self.kept
    }
}

/// Further descriptors of all sockets.
pub(super) fn share(sockets: &Sockets) -> io::Result<Vec<(ListenerRole, OwnedFd)>> {
    sockets
        .iter()
        .map(|(role, socket)| Ok((*role, socket.try_clone()?)))
        .collect()
}

fn loopback(role: ListenerRole) -> IpAddr {
    use ListenerRole::{Dns4, Dns6, Hbone4, Hbone6, Inbound4, Inbound6, Outbound4, Outbound6};
    match role {
        Outbound4 | Inbound4 | Hbone4 | Dns4 => Ipv4Addr::LOCALHOST.into(),
        Outbound6 | Inbound6 | Hbone6 | Dns6 => Ipv6Addr::LOCALHOST.into(),
    }
}
