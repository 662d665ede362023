//! Bytes that go from one socket to another without coming here: splice(2) moves the pages that they are
//! in, by way of a pipe. Of a stream's work the two copies into this process and out of it are left out.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::duplex::SOCKET_BYTES;

/// So many may be there at one time: each takes two file descriptors, and holds up to 256 KiB for a
/// receiver that is slow.
const MAX_PIPES: usize = 512;
static PIPES: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// For all streams that this thread carries: one has a pipe of its own only for what its receiver did
    /// not take yet.
    static SPARE: Cell<Option<KernelPipe>> = Cell::default();
}

/// A pipe(7), with what has been read into it and waits for the writer.
#[derive(Debug)]
pub struct KernelPipe {
    output: OwnedFd,
    input: OwnedFd,
    held: usize,
}

impl KernelPipe {
    /// The thread's own, or a new one; `None` where there are too many, or no descriptor is left.
    pub(super) fn take() -> Option<Self> {
        SPARE.take().or_else(|| Self::new().ok())
    }

    fn new() -> io::Result<Self> {
        if PIPES.fetch_add(1, Ordering::Relaxed) >= MAX_PIPES {
            PIPES.fetch_sub(1, Ordering::Relaxed);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let pipe = io::pipe().map(|(output, input)| Self {
            output: output.into(),
            input: input.into(),
            held: 0,
        });
        if pipe.is_err() {
            PIPES.fetch_sub(1, Ordering::Relaxed);
        }
        let pipe = pipe?;
        // Without room for so much, which the kernel may refuse, it moves less at once.
        // SAFETY: takes plain numbers.
        unsafe {
            libc::fcntl(
                pipe.input.as_raw_fd(),
                libc::F_SETPIPE_SZ,
                SOCKET_BYTES as libc::c_int,
            )
        };
        Ok(pipe)
    }

    /// The next stream of this thread may have it.
    pub(super) fn give_back(self) {
        if self.is_empty() {
            SPARE.set(Some(self));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Reads into the pipe, which is empty. Whether 0 means that there is nothing, or nothing more, only
    /// recv(2) can say: splice(2) gives it also where it gets no further (at urgent data).
    pub(super) fn poll_fill(
        &mut self,
        from: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            let input = self.input.as_fd();
            // The socket counts as ready afterwards, too: who asks it next is recv(2).
            let moved = from.try_io(Interest::READABLE, || {
                match splice(from.as_fd(), input, SOCKET_BYTES) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                    result => result,
                }
            });
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    let moved = result?;
                    self.held += moved;
                    return Poll::Ready(Ok(moved));
                }
            }
        }
    }

    /// Writes what is in the pipe, or its beginning.
    pub(super) fn poll_drain(
        &mut self,
        to: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            let output = self.output.as_fd();
            let moved = to.try_io(Interest::WRITABLE, || splice(output, to.as_fd(), self.held));
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    let moved = result?;
                    self.held -= moved;
                    return Poll::Ready(Ok(moved));
                }
            }
        }
    }
}

impl Drop for KernelPipe {
    fn drop(&mut self) {
        PIPES.fetch_sub(1, Ordering::Relaxed);
    }
}

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    loop {
        // SAFETY: two descriptors that are open; no offsets are given.
        let moved = unsafe {
            libc::splice(
                from.as_raw_fd(),
                ptr::null_mut(),
                to.as_raw_fd(),
                ptr::null_mut(),
                bytes,
                libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK,
            )
        };
        match usize::try_from(moved).map_err(|_| io::Error::last_os_error()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::proxy::copy::tests::pair;
    use crate::proxy::copy::{Transferred, copy_both};

    /// Sends a stream through a copy, whose reader pauses now and then.
    async fn send_through() {
        const BYTES: usize = 16 << 20;
        let ((mut left, first), (mut right, second)) = (pair().await, pair().await);
        let sent: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
        let expected = sent.clone();
        let transferred = Transferred::default();
        let read = async {
            let (mut got, mut pauses) = (Vec::with_capacity(BYTES), 0);
            while right.read_buf(&mut got).await.unwrap() > 0 {
                if got.len() >> 20 > pauses {
                    pauses += 4;
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            }
            right.shutdown().await.unwrap();
            got
        };
        let write = async {
            left.write_all(&sent).await.unwrap();
            left.shutdown().await.unwrap();
        };
        let (got, (), copied) = tokio::join!(read, write, copy_both(first, second, &transferred));
        copied.unwrap();
        assert!(got == expected);
        assert_eq!(transferred.bytes(), (BYTES as u64, 0));
    }

    #[tokio::test]
    async fn a_stream_between_sockets_goes_by_a_pipe_as_long_as_there_may_be_more() {
        PIPES.fetch_add(MAX_PIPES, Ordering::Relaxed);
        send_through().await;
        assert!(SPARE.take().is_none());
        PIPES.fetch_sub(MAX_PIPES, Ordering::Relaxed);
        send_through().await;
        let pipe = SPARE.take().expect("one was used");
        assert!(pipe.is_empty());
    }

    #[tokio::test]
    async fn urgent_data_ends_no_stream_and_holds_none_up() {
        const BYTES: usize = 2 << 20;
        let ((left, first), (mut right, second)) = (pair().await, pair().await);
        let transferred = Transferred::default();
        let write = tokio::task::spawn_blocking(move || {
            let mut left = left.into_std().unwrap();
            left.set_nonblocking(false).unwrap();
            for _ in 0..3 {
                io::Write::write_all(&mut left, &[7; BYTES]).unwrap();
                socket2::SockRef::from(&left)
                    .send_out_of_band(b"!")
                    .unwrap();
            }
            io::Write::write_all(&mut left, &[7; BYTES]).unwrap();
            left.shutdown(std::net::Shutdown::Write).unwrap();
            left
        });
        let read = async {
            let mut got = Vec::new();
            right.read_to_end(&mut got).await.unwrap();
            right.shutdown().await.unwrap();
            got
        };
        let (got, left, copied) = tokio::join!(read, write, copy_both(first, second, &transferred));
        left.unwrap();
        copied.unwrap();
        // Of what is urgent only the last is out of band: before it is read, the next makes it a byte like others.
        let (usual, urgent): (Vec<u8>, Vec<u8>) = got.iter().partition(|byte| **byte == 7);
        assert_eq!(usual.len(), 4 * BYTES);
        assert!(urgent.len() < 3 && urgent.iter().all(|byte| *byte == b'!'));
    }
}
