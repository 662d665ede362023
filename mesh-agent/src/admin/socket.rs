//! The unix socket on which the agent is asked: made so that nobody but root,
//! or the group that the operator names, can ever open it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

/// How long a socket that is there has to answer before its owner counts as alive but busy.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ControlSocketError {
    /// Another agent listens on it.
    #[error(
        "an agent already listens on {0} and is not there to be taken over from: stop it, or give this \
         one another --node or socket"
    )]
    InUse(PathBuf),
    /// Something that is not a socket has its name.
    #[error("{0} exists and is not a socket: move it away, or give the agent another socket path")]
    NotASocket(PathBuf),
    /// `/etc/group` has no such group.
    #[error("there is no group {0:?} to open the control socket to (--admin-group)")]
    NoGroup(String),
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A bound control socket. Its file is removed when the value is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    pub(super) listener: UnixListener,
    file: Arc<SocketFile>,
}

impl ControlSocket {
    /// Binds `path`: mode 0600, or 0660 and owned by `group` (name or number) where one is
    /// given. A socket that a dead agent left behind is replaced.
    pub async fn bind(path: &Path, group: Option<&str>) -> Result<Self, ControlSocketError> {
        let group = group.map(group_id).transpose()?;
        refuse_if_alive(path).await?;
        let (listener, file) = place_socket(path, group, |path| UnixListener::bind(path))?;
        Ok(Self {
            listener,
            file: Arc::new(file),
        })
    }

    /// Goes on with the listening socket of another agent, at the path where that one has put it.
    pub fn inherit(path: &Path, listener: OwnedFd) -> Result<Self, ControlSocketError> {
        let listener = std::os::unix::net::UnixListener::from(listener);
        Ok(Self {
            listener: UnixListener::from_std(listener)
                .map_err(failed("go on with the control socket", path))?,
            file: Arc::new(SocketFile::of(path)?),
        })
    }

    /// The listening socket for another process, and the file that is no longer
    /// ours once that process has it ([`SocketFile::give_away`]).
    pub fn share(&self) -> io::Result<(OwnedFd, Arc<SocketFile>)> {
        let listener = self.listener.as_fd().try_clone_to_owned()?;
        Ok((listener, self.file.clone()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

/// Makes a socket at `path` with `bind`: mode 0600, or 0660 and owned by `group`.
/// What was there before is replaced at one instant.
pub(crate) fn place_socket<T>(
    path: &Path,
    group: Option<u32>,
    bind: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<(T, SocketFile), ControlSocketError> {
    let directory = path.parent().filter(|parent| *parent != Path::new(""));
    let directory = directory.unwrap_or(Path::new("."));
    if !directory.exists() {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755);
        builder
            .create(directory)
            .map_err(failed("create the directory", directory))?;
    }
    // Between bind and chmod a socket has the mode that the umask gives it. So it is made in
    // a directory of root's own and moved to its place when it is as it should be.
    let private = PrivateDirectory::below(directory)?;
    let unfinished = private.0.join("s");
    let socket = bind(&unfinished).map_err(failed("bind a unix socket at", &unfinished))?;
    if let Some(group) = group {
        chown(&unfinished, None, Some(group))
            .map_err(failed("give to the admin group", &unfinished))?;
    }
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(&unfinished, Permissions::from_mode(mode))
        .map_err(failed("set the mode of", &unfinished))?;
    fs::rename(&unfinished, path).map_err(failed("move the socket to", path))?;
    Ok((socket, SocketFile::of(path)?))
}

async fn refuse_if_alive(path: &Path) -> Result<(), ControlSocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ControlSocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match tokio::time::timeout(PROBE_TIMEOUT, UnixStream::connect(path)).await {
        Ok(Err(error))
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        Ok(Err(error)) => Err(failed("ask whether an agent is alive at", path)(error)),
        Ok(Ok(_)) | Err(_) => Err(ControlSocketError::InUse(path.to_owned())),
    }
}

/// The id of a group, from its name or number.
fn group_id(group: &str) -> Result<u32, ControlSocketError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let path = Path::new("/etc/group");
    let text = fs::read_to_string(path).map_err(failed("read", path))?;
    text.lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
        })
        .ok_or_else(|| ControlSocketError::NoGroup(group.to_owned()))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ControlSocketError {
    move |source| ControlSocketError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// The file of a socket of ours; removed on drop unless it has become somebody else's.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
    given_away: AtomicBool,
}

impl SocketFile {
    fn of(path: &Path) -> Result<Self, ControlSocketError> {
        let found = fs::symlink_metadata(path).map_err(failed("look at", path))?;
        Ok(Self {
            path: path.to_owned(),
            inode: (found.dev(), found.ino()),
            given_away: AtomicBool::new(false),
        })
    }

    /// Another process answers there: the file is not removed.
    pub fn give_away(&self) {
        self.given_away.store(true, Ordering::Relaxed);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.given_away.load(Ordering::Relaxed) {
            return;
        }
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "control socket not removed");
        }
    }
}

/// A directory that only this user can enter; removed on drop.
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    fn below(directory: &Path) -> Result<Self, ControlSocketError> {
        let path = directory.join(format!(
            ".{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        ));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(failed("create the directory", &path))?;
        Ok(Self(path))
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // Empty after the move; after a failure it may hold the unfinished socket.
        let _ = fs::remove_file(self.0.join("s"));
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "temporary directory not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[tokio::test]
    async fn only_root_may_open_it_and_nothing_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/undermesh/n1.sock");
        let socket = ControlSocket::bind(&path, None).await.unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_group_may_open_it_where_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n1.sock");
        let _socket = ControlSocket::bind(&path, Some("0")).await.unwrap();
        assert_eq!(mode(&path), 0o660);
        assert_eq!(group_id("root").unwrap(), 0);
        let error = ControlSocket::bind(&path, Some("no such group")).await;
        assert!(matches!(error, Err(ControlSocketError::NoGroup(_))));
    }

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced_a_living_ones_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n1.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = ControlSocket::bind(&path, None).await.unwrap();
        let error = ControlSocket::bind(&path, None).await.unwrap_err();
        assert!(matches!(error, ControlSocketError::InUse(_)), "{error}");
        drop(socket);

        fs::write(&path, "text").unwrap();
        let error = ControlSocket::bind(&path, None).await.unwrap_err();
        assert!(
            matches!(error, ControlSocketError::NotASocket(_)),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_socket_that_is_given_away_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n1.sock");
        let first = ControlSocket::bind(&path, None).await.unwrap();
        let (listener, file) = first.share().unwrap();
        let second = ControlSocket::inherit(&path, listener).unwrap();
        file.give_away();
        drop((first, file));
        let (_client, accepted) =
            tokio::join!(UnixStream::connect(&path), second.listener.accept());
        accepted.unwrap();
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_is_no_longer_ours_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n1.sock");
        let socket = ControlSocket::bind(&path, None).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
