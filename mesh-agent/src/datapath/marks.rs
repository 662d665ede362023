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

/// What the kernel programs noted on a connection from an application.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// What the application wanted to connect to.
    pub destination: SocketAddr,
    /// Cookie of its socket.
    pub flow: u64,
    /// Whether the short-circuit knows both ends.
    pub is_spliced: bool,
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

    /// What the application asked for; `None` for a connection that no kernel program
    /// has sent here.
    ///
    /// # Errors
    /// Where the map cannot be read.
    pub fn accepted(&self, socket: &impl AsRawFd) -> io::Result<Option<Accepted>> {
        Ok(self.origin(socket)?.map(|origin| Accepted {
            destination: origin.address.into(),
            flow: origin.flow,
            is_spliced: origin.splice != 0,
        }))
    }

    /// Whether the short-circuit knows a connection of the agent to an application.
    ///
    /// # Errors
    /// Where the map cannot be read.
    pub fn is_spliced(&self, connected: &impl AsRawFd) -> io::Result<bool> {
        Ok((self.origin(connected)?).is_some_and(|origin| origin.splice != 0))
    }

    fn origin(&self, socket: &impl AsRawFd) -> io::Result<Option<Origin>> {
        match self.origins.get(socket, 0) {
            Ok(origin) if origin.role == OriginRole::Agent as u32 => Ok(Some(origin)),
            Ok(_) | Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}
