//! The socket on which an agent hears the one that takes over from it.

use std::io;
use std::path::{Path, PathBuf};

use super::Successor;
use super::channel::Listener;
use crate::admin::{ControlSocketError, SocketFile, place_socket};

/// Its name is that of the control socket with this at the end.
const SUFFIX: &str = ".takeover";

/// Root's alone, beside the control socket.
pub(in crate::agent) struct TakeoverSocket {
    listener: Listener,
    _file: SocketFile,
}

impl TakeoverSocket {
    pub(in crate::agent) fn path(control_socket: &Path) -> PathBuf {
        let mut path = control_socket.as_os_str().to_owned();
        path.push(SUFFIX);
        path.into()
    }

    /// From now on it is this agent that is asked.
    pub(in crate::agent) fn bind(control_socket: &Path) -> Result<Self, ControlSocketError> {
        let (listener, file) = place_socket(&Self::path(control_socket), None, Listener::bind)?;
        Ok(Self {
            listener,
            _file: file,
        })
    }

    pub(in crate::agent) async fn accept(&self) -> io::Result<Successor> {
        let channel = self.listener.accept().await?;
        Ok(Successor { channel })
    }
}
