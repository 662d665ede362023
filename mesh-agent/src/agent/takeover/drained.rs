//! No connection is decided by an old policy once a change is acknowledged, also
//! none that an agent carries which drains: the agent in charge tells all those
//! of a configuration, and waits for them, before it says that it is in force.
//!
//! ```text
//! agent in charge                          agent that drains
//!   the files' texts, and the end    ───▶   puts them in force
//!                                    ◀───   "in force"; or it ends
//! ```
//!
//! Each agent that drains has a socket of its own beside the control socket, so
//! that whoever is in charge finds it: also one that was started after a crash of
//! the agent that has relieved it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::admin::{ControlSocketError, SocketFile, place_socket};
use crate::source::Texts;

/// In the name of such a socket: after that of the control socket, before a number.
const INFIX: &str = ".drain.";
/// The answer.
const IN_FORCE: &[u8] = b"in force";
/// How long an agent that drains may take until it has answered. One that hangs may
/// not go on under the old policy when it wakes up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the kernel may take to end it then.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Most that is read of a configuration.
const MAX_TEXTS_BYTES: u64 = 1 << 30;

/// Where an agent that drains is told of configurations. Root's alone.
pub(in crate::agent) struct DrainSocket {
    listener: UnixListener,
    _file: SocketFile,
}

/// A configuration that is to be put in force before the other agent goes on.
pub(in crate::agent) struct Told {
    stream: UnixStream,
    pub(in crate::agent) texts: Texts,
}

impl DrainSocket {
    /// To be bound before the other agent is in charge.
    pub(in crate::agent) fn bind(control_socket: &Path) -> Result<Self, ControlSocketError> {
        // Agents may run in different process namespaces and have the same process id.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let number = now.unwrap_or_default().as_nanos() as u64;
        let mut path = control_socket.as_os_str().to_owned();
        path.push(format!("{INFIX}{number:x}"));
        let (listener, file) =
            place_socket(Path::new(&path), None, |path| UnixListener::bind(path))?;
        Ok(Self {
            listener,
            _file: file,
        })
    }

    /// The next configuration.
    pub(in crate::agent) async fn next(&self) -> io::Result<Told> {
        let (mut stream, _) = self.listener.accept().await?;
        let mut text = Vec::new();
        let mut bounded = (&mut stream).take(MAX_TEXTS_BYTES);
        timeout(ANSWER_TIMEOUT, bounded.read_to_end(&mut text)).await??;
        let texts = serde_json::from_slice(&text)?;
        Ok(Told { stream, texts })
    }
}

impl Told {
    /// Answers that the configuration is in force.
    pub(in crate::agent) async fn in_force(mut self) -> io::Result<()> {
        self.stream.write_all(IN_FORCE).await
    }
}

/// The agents that drain, and what they are to be told.
#[derive(Default)]
pub(in crate::agent) struct Draining {
    sockets: Vec<PathBuf>,
    texts: Texts,
}

impl Draining {
    /// Those beside a control socket. Their number grows only when the agent in charge is relieved.
    pub(in crate::agent) fn find(control_socket: &Path) -> Self {
        Self {
            sockets: Self::sockets(control_socket),
            texts: Texts::default(),
        }
    }

    /// Their sockets.
    pub(in crate::agent) fn sockets(control_socket: &Path) -> Vec<PathBuf> {
        let (Some(directory), Some(name)) = (control_socket.parent(), control_socket.file_name())
        else {
            return Vec::new();
        };
        let prefix = format!("{}{INFIX}", name.to_string_lossy());
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect()
    }

    /// With a configuration for them. Where there are none, it is not kept.
    pub(in crate::agent) fn with(self, texts: Texts) -> Self {
        if self.sockets.is_empty() {
            return self;
        }
        Self { texts, ..self }
    }

    /// Returns when none of them decides by another configuration any more.
    pub(in crate::agent) async fn tell(&self) {
        if self.sockets.is_empty() {
            return;
        }
        match serde_json::to_vec(&self.texts) {
            Ok(text) => {
                join_all(self.sockets.iter().map(|socket| tell_one(socket, &text))).await;
            }
            Err(error) => tracing::error!(%error, "agents that drain are not told of the change"),
        }
    }
}

async fn tell_one(socket: &Path, text: &[u8]) {
    let mut stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        // It was killed.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            let _ = fs::remove_file(socket);
            return;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        Err(error) => {
            tracing::error!(
                socket = %socket.display(), %error,
                "an agent that drains is not told of the change"
            );
            return;
        }
    };
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    match timeout(ANSWER_TIMEOUT, ask(&mut stream, text)).await {
        Ok(true) => tracing::debug!(pid, "an agent that drains has taken up the change"),
        Ok(false) => tracing::debug!(pid, "an agent that drains has ended"),
        Err(_) => {
            tracing::error!(
                pid,
                "an agent that drains does not take up the change: it is killed, and what it carries is cut"
            );
            end(&mut stream, pid).await;
        }
    }
}

/// Whether the agent answers that it is in force; it has ended otherwise.
async fn ask(stream: &mut UnixStream, text: &[u8]) -> bool {
    let mut answer = Vec::new();
    let asked = async {
        stream.write_all(text).await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut answer).await
    };
    asked.await.is_ok() && answer == IN_FORCE
}

/// Ends the process at the other end, which still has the connection.
async fn end(stream: &mut UnixStream, pid: Option<i32>) {
    // One of another process namespace is seen as 0.
    let Some(pid) = pid.filter(|pid| *pid > 0) else {
        return;
    };
    // SAFETY: takes plain numbers. The id is that of a process: it has the connection open still.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let mut rest = Vec::new();
    let gone = stream.read_to_end(&mut rest);
    if timeout(END_TIMEOUT, gone).await.is_err() {
        tracing::error!(pid, "it has not ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Texts {
        serde_json::from_value(serde_json::json!({"files": [["a.yaml", text]], "unread": []}))
            .unwrap()
    }

    #[tokio::test]
    async fn all_that_drain_are_told_and_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join("agent.sock");
        assert!(Draining::sockets(&control).is_empty());
        let sockets = [(); 2].map(|()| DrainSocket::bind(&control).unwrap());
        fs::write(folder.path().join("agent.sock.takeover"), "").unwrap();
        let draining = Draining::find(&control).with(texts("kind: Service"));
        assert_eq!(draining.sockets.len(), 2);
        let wanted = texts("kind: Service");
        let tells = draining.tell();
        tokio::pin!(tells);
        let told = tokio::select! {
            told = async { tokio::join!(sockets[0].next(), sockets[1].next()) } => told,
            () = &mut tells => panic!("nobody has answered"),
        };
        let (first, second) = (told.0.unwrap(), told.1.unwrap());
        assert_eq!((&first.texts, &second.texts), (&wanted, &wanted));
        first.in_force().await.unwrap();
        let early = timeout(Duration::from_millis(50), &mut tells).await;
        assert!(early.is_err(), "one has not answered");
        // Its end is as good as an answer.
        drop(second);
        tells.await;
        drop(sockets);
        assert!(Draining::sockets(&control).is_empty());
    }

    #[tokio::test]
    async fn what_a_killed_agent_has_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join("agent.sock");
        let socket = DrainSocket::bind(&control).unwrap();
        socket._file.give_away();
        drop(socket);
        let draining = Draining::find(&control).with(texts(""));
        assert_eq!(draining.sockets.len(), 1);
        draining.tell().await;
        assert!(Draining::sockets(&control).is_empty());
    }
}
