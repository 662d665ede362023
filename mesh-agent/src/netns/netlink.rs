//! Netlink (netlink(7)): questions to the kernel, one at a time, and its
//! answers. Fields are read at their offsets.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct rtattr`.
const ATTRIBUTE: usize = 4;
/// As much as the kernel puts into one answer of a dump.
const BUFFER: usize = 32 * 1024;

/// A netlink socket. It answers at once.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// A socket of a protocol (`NETLINK_ROUTE` ...) in the calling thread's namespace.
    pub(super) fn open(protocol: libc::c_int) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: a plain socket call; the result is checked and owned.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: as above.
            socket: unsafe { OwnedFd::from_raw_fd(fd) },
        })
    }

    /// Asks for a change, and waits until it is made.
    pub(super) fn change(&self, message: &Message) -> io::Result<()> {
        self.send(message)?;
        // The answer has the question in it.
        let mut buffer = vec![0; message.0.len() + BUFFER / 32];
        self.receive(&mut buffer, |_, _| Ok(())).map(drop)
    }

    /// Asks for one thing, and calls `each` as [`dump`](Self::dump) does with what is said of it.
    pub(super) fn ask(
        &self,
        message: &Message,
        each: impl FnMut(u16, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.send(message)?;
        self.receive(&mut [0; BUFFER / 32], each).map(drop)
    }

    /// Asks for a list, and calls `each` with the type and the content of its messages.
    pub(super) fn dump(
        &self,
        message: &Message,
        mut each: impl FnMut(u16, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.send(message)?;
        let mut buffer = vec![0; BUFFER];
        while self.receive(&mut buffer, &mut each)? == More::Yes {}
        Ok(())
    }

    fn send(&self, Message(bytes): &Message) -> io::Result<()> {
        // SAFETY: bytes of the length that is given.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
            )
        };
        match sent {
            sent if sent < 0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    fn receive(
        &self,
        buffer: &mut [u8],
        each: impl FnMut(u16, &[u8]) -> io::Result<()>,
    ) -> io::Result<More> {
        let received = loop {
            // SAFETY: a buffer of the length that is given.
            let received = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            match usize::try_from(received) {
                Ok(received) => break received,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        };
        read(&buffer[..received], each)
    }
}

/// A question: a header, a structure of its type, and attributes.
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn new(kind: u16, flags: libc::c_int, content: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        bytes.extend(content);
        Self(bytes).with_length()
    }

    pub(super) fn with(mut self, attribute: &[u8]) -> Self {
        self.0.extend(attribute);
        self.with_length()
    }

    fn with_length(mut self) -> Self {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

/// An attribute, or several of them as the content of one.
pub(super) fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = ATTRIBUTE + content.len();
    let mut bytes = Vec::with_capacity(aligned(length));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(content);
    bytes.resize(aligned(length), 0);
    bytes
}

/// Whether a dump goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum More {
    Yes,
    No,
}

/// Reads an answer.
fn read(mut bytes: &[u8], mut each: impl FnMut(u16, &[u8]) -> io::Result<()>) -> io::Result<More> {
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let length = length as usize;
        let Some(content) = bytes.get(HEADER..length) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(More::No),
            libc::NLMSG_ERROR => {
                return match u32_at(content, 0).map(u32::cast_signed) {
                    Some(0) => Ok(More::No),
                    Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                    None => Err(io::ErrorKind::InvalidData.into()),
                };
            }
            _ => each(kind, content)?,
        }
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
    }
    Ok(More::Yes)
}

/// Calls `each` with the types and contents of attributes; `None` where they are cut off.
pub(super) fn attributes<'a>(
    mut bytes: &'a [u8],
    mut each: impl FnMut(u16, &'a [u8]),
) -> Option<()> {
    while let (Some(length), Some(kind)) = (u16_at(bytes, 0), u16_at(bytes, 2)) {
        let length = usize::from(length);
        each(kind, bytes.get(ATTRIBUTE..length)?);
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
    }
    Some(())
}

/// Messages and attributes begin at multiples of four.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    bytes.try_into().ok().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        let refusal = [
            20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa1, 0xff, 0xff, 0xff,
        ];
        let error = read(&refusal, |_, _| Ok(())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let written = [attribute(7, b"abcde"), attribute(9, &[])].concat();
        assert_eq!(written.len(), 16);
        let mut seen = Vec::new();
        attributes(&written, |kind, content| seen.push((kind, content))).unwrap();
        assert_eq!(seen, [(7, &b"abcde"[..]), (9, &b""[..])]);
        assert_eq!(attributes(&written[..8], |_, _| ()), None);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic_or_read_for_ever(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            length in 0u32..300,
        ) {
            if bytes.len() > 4 {
                bytes[..4].copy_from_slice(&length.to_ne_bytes());
            }
            let _ = read(&bytes, |_, content| {
                let _ = attributes(content, |_, _| ());
                Ok(())
            });
        }
    }
}
