//! Marks on sockets, by file descriptor.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use aya::maps::{MapData, MapError, SkStorage};
use mesh_common::{Origin, OriginRole, Socket, Transport};
use parking_lot::Mutex;

use super::identities::{Identities, UNKNOWN};

/// On whose behalf the agent connects to an application.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The address that the application shall see.
    pub address: SocketAddr,
    /// Who that is, where it is known.
    pub identity: Option<String>,
    /// How its bytes came to this node.
    pub transport: Transport,
}

/// Marks the agent's own sockets, and reads what the kernel programs noted on
/// accepted ones.
pub struct SocketMarks {
    // aya asks for exclusive access; the system call itself needs none. Once per connection.
    agent_sockets: Mutex<SkStorage<MapData, Socket>>,
    origins: SkStorage<MapData, Origin>,
    identities: Arc<Identities>,
}

impl SocketMarks {
    pub(super) fn new(
        agent_sockets: SkStorage<MapData, Socket>,
        origins: SkStorage<MapData, Origin>,
        identities: Arc<Identities>,
    ) -> Self {
        Self {
            agent_sockets: Mutex::new(agent_sockets),
            origins,
            identities,
        }
    }

    /// Marks a socket as the agent's. The application that accepts its
    /// connection sees the caller's address.
    ///
    /// # Errors
    /// Where the map refuses.
    pub fn mark(&self, socket: &impl AsRawFd, caller: Option<&Caller>) -> io::Result<()> {
        let value = caller.map_or_else(Socket::default, |caller| Socket {
            client: caller.address.into(),
            source_identity: (caller.identity.as_deref())
                .map_or(UNKNOWN, |identity| self.identities.number(identity)),
            transport: caller.transport as u32,
        });
        self.agent_sockets
            .lock()
            .insert(socket, value, 0)
            .map_err(io::Error::other)
    }

    /// The destination that the application asked for, and the cookie of its
    /// socket; `None` for a connection that no kernel program has sent here.
    ///
    /// # Errors
    /// Where the map cannot be read.
    pub fn original_destination(
        &self,
        accepted: &impl AsRawFd,
    ) -> io::Result<Option<(SocketAddr, u64)>> {
        match self.origins.get(accepted, 0) {
            Ok(origin) if origin.role == OriginRole::Agent as u32 => {
                Ok(Some((origin.address.into(), origin.flow)))
            }
            Ok(_) | Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}
