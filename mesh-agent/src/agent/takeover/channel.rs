//! Messages with open files between two agents: JSON in packets of a unix
//! socket (`SOCK_SEQPACKET`, unix(7)), descriptors beside them (`SCM_RIGHTS`).

use std::io;
use std::mem::{self, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Largest message, bytes.
const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// Most descriptors beside one message; the kernel takes 253 (`SCM_MAX_FD`).
pub(super) const MAX_DESCRIPTORS: usize = 32;
/// How long the other agent may take for one message. It may have many
/// workloads to enrol in between.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Room for the control message with the descriptors.
#[repr(C, align(8))]
struct Control([u8; 256]);

const _: () = assert!(
    size_of::<Control>() >= size_of::<libc::cmsghdr>() + MAX_DESCRIPTORS * size_of::<libc::c_int>()
);

/// One end of a conversation.
pub(super) struct Channel(AsyncFd<Socket>);

/// Where agents that take over are heard.
pub(super) struct Listener(AsyncFd<Socket>);

fn socket() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None)
}

fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a socket keeps its descriptor, always the same, open for as long as it lives.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

impl Listener {
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        socket.bind(&SockAddr::unix(path)?)?;
        socket.listen(1)?;
        Ok(Self(register(socket)?))
    }

    pub(super) async fn accept(&self) -> io::Result<Channel> {
        let (socket, _) = self
            .0
            .async_io(Interest::READABLE, |listener| listener.accept())
            .await?;
        socket.set_nonblocking(true)?;
        Ok(Channel(register(socket)?))
    }
}

impl Channel {
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(Self(register(socket)?))
    }

    pub(super) async fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE_BYTES || descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::other("the message is too long"));
        }
        let sent = self.0.async_io(Interest::WRITABLE, |socket| {
            send_now(socket.as_fd(), &bytes, descriptors)
        });
        timely(sent).await
    }

    /// The next message and its descriptors.
    ///
    /// # Errors
    /// `UnexpectedEof` where the other agent is gone, `TimedOut` where it does not go on,
    /// `InvalidData` where it says what this version does not understand.
    pub(super) async fn receive<T: DeserializeOwned>(&self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        let received = self.0.async_io(Interest::READABLE, |socket| {
            receive_now(socket.as_fd(), &mut buffer)
        });
        let (length, descriptors) = timely(received).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let message = serde_json::from_slice(&buffer[..length])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((message, descriptors))
    }

    /// Returns when the other agent has closed its end, as it does when it is gone.
    pub(super) async fn closed(&self) {
        let mut buffer = [0];
        // Nothing is sent any more; anything but a pause is an end.
        let _ = self
            .0
            .async_io(Interest::READABLE, |socket| {
                receive_now(socket.as_fd(), &mut buffer)
            })
            .await;
    }
}

async fn timely<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(MESSAGE_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn send_now(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut control = Control([0; 256]);
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeroes is a valid msghdr; its pointers are set below.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let length = size_of_val(descriptors) as libc::c_uint;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: the control buffer has room for MAX_DESCRIPTORS, which `send` has checked, and is
        // aligned for cmsghdr; a BorrowedFd is a descriptor (`repr(transparent)`).
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(length) as usize;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(length) as usize;
            libc::CMSG_DATA(header)
                .copy_from_nonoverlapping(descriptors.as_ptr().cast::<u8>(), length as usize);
        }
    }
    // SAFETY: the pointers in `message` are of live buffers with the lengths given beside them.
    match unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) } {
        sent if sent >= 0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn receive_now(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = Control([0; 256]);
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeroes is a valid msghdr; its pointers are set below.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: the pointers in `message` are of live buffers with the lengths given beside them.
    let length =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut descriptors = Vec::new();
    // SAFETY: `message` was filled by recvmsg, and its control buffer is alive and aligned for
    // cmsghdr; the CMSG macros stay within msg_controllen. The descriptors are new and nobody else's.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(header) = next.as_ref() {
            if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let data = libc::CMSG_DATA(header).cast::<libc::c_int>();
                let bytes = header.cmsg_len - libc::CMSG_LEN(0) as usize;
                for index in 0..bytes / size_of::<libc::c_int>() {
                    descriptors.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            next = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message is longer than agreed",
        ));
    }
    Ok((length, descriptors))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    async fn pair() -> (Channel, Channel) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let near = Channel::connect(&path).unwrap();
        (near, listener.accept().await.unwrap())
    }

    #[tokio::test]
    async fn an_open_file_travels_with_its_message() {
        let (near, far) = pair().await;
        let (mut kept, given) = UnixStream::pair().unwrap();
        near.send(&"first", &[given.as_fd()]).await.unwrap();
        near.send(&("second", 2), &[]).await.unwrap();
        drop(given);
        let (text, mut descriptors): (String, _) = far.receive().await.unwrap();
        assert_eq!((text.as_str(), descriptors.len()), ("first", 1));
        let mut received = UnixStream::from(descriptors.remove(0));
        kept.write_all(b"x").unwrap();
        let mut byte = [0];
        received.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        let (second, none): ((String, u32), _) = far.receive().await.unwrap();
        assert_eq!((second.1, none.len()), (2, 0));
    }

    #[tokio::test]
    async fn the_end_of_the_other_agent_and_nonsense_are_told_apart() {
        let (near, far) = pair().await;
        near.send(&1, &[]).await.unwrap();
        let error = far.receive::<String>().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(near);
        let error = far.receive::<String>().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        far.closed().await;
    }
}
