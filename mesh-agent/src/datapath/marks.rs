//! Marks on sockets, by file descriptor.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use aya::maps::{MapData, MapError, SkStorage};
use mesh_common::{Origin, OriginRole, Socket};
use parking_lot::Mutex;

/// Marks the agent's own sockets, and reads what the kernel programs noted on
/// accepted ones.
pub struct SocketMarks {
    // aya asks for exclusive access; the system call itself needs none. Once per connection.
    agent_sockets: Mutex<SkStorage<MapData, Socket>>,
    origins: SkStorage<MapData, Origin>,
}

impl SocketMarks {
    pub(super) fn new(
        agent_sockets: SkStorage<MapData, Socket>,
        origins: SkStorage<MapData, Origin>,
    ) -> Self {
        Self {
            agent_sockets: Mutex::new(agent_sockets),
            origins,
        }
    }

    /// Marks a socket as the agent's. `client` is shown to the application that
    /// accepts its connection.
    ///
    /// # Errors
    /// Where the map refuses.
    pub fn mark(&self, socket: &impl AsRawFd, client: Option<SocketAddr>) -> io::Result<()> {
        let value = Socket {
            client: client.map(Into::into).unwrap_or_default(),
            reserved: 0,
        };
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
