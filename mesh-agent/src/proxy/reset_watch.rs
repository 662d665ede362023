//! Notices that the far end of a connection has aborted it, also while nobody
//! reads or writes: a server of HTTP/1.1 does neither while it waits for an answer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

/// Watches one connection.
pub(super) struct ResetWatch(AsyncFd<OwnedFd>);

impl ResetWatch {
    /// Watches by a descriptor of its own: the stream's is whoever's reads and writes.
    ///
    /// # Errors
    /// Where there is no descriptor left.
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        let own = stream.as_fd().try_clone_to_owned()?;
        // Nothing that is urgent, so that only errors wake anybody.
        // SAFETY: the descriptor is open, owned, and closed by nobody else.
        let registered = unsafe { AsyncFd::register_with_interest(own, Interest::PRIORITY) };
        Ok(Self(registered?))
    }

    /// Completes when the connection was aborted.
    pub(super) async fn reset(&self) -> io::Error {
        match self.0.ready(Interest::ERROR).await {
            Ok(_) => io::ErrorKind::ConnectionReset.into(),
            Err(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
        (far.expect("connected"), near.expect("accepted").0)
    }

    #[tokio::test]
    async fn an_abort_is_noticed_and_neither_data_nor_an_end() {
        let (mut far, near) = pair().await;
        let watch = ResetWatch::of(&near).expect("watched");
        far.write_all(b"data").await.expect("written");
        far.shutdown().await.expect("ended");
        let quiet = tokio::time::timeout(Duration::from_millis(100), watch.reset()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        far.set_zero_linger().expect("set");
        drop(far);
        let reset = tokio::time::timeout(Duration::from_secs(10), watch.reset()).await;
        assert_eq!(
            reset.expect("in time").kind(),
            io::ErrorKind::ConnectionReset
        );
    }
}
