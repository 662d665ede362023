//! Datagrams with the local address to which they were sent (`IP_PKTINFO`,
//! ip(7); `IPV6_PKTINFO`, RFC 3542): one socket stands for many addresses, and
//! an answer has to come from the one that was asked.

use std::io;
use std::mem::{self, size_of};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use socket2::SockAddr;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Room for the control messages of one datagram; one of type pktinfo is expected.
#[repr(C, align(8))]
struct Control([u8; 128]);

/// A datagram that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Bytes in the buffer.
    pub length: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// The address that it was sent to.
    pub to: IpAddr,
}

/// Has the kernel say the destination of every datagram. IPv6 sockets that take IPv4 too are fine.
pub fn enable(socket: &UdpSocket) -> io::Result<()> {
    let (level, option) = if socket.local_addr()?.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_PKTINFO)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    };
    let on: libc::c_int = 1;
    // SAFETY: the value is an int that outlives the call, and its length is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits for a datagram. One that does not fit `buffer`, or comes without its destination, is an
/// error of kind `InvalidData`; the socket goes on.
pub async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Arrival> {
    socket
        .async_io(Interest::READABLE, || receive_now(socket.as_fd(), buffer))
        .await
}

/// Sends `packet` to `to` from the local address `from`.
pub async fn send(
    socket: &UdpSocket,
    packet: &[u8],
    to: SocketAddr,
    from: IpAddr,
) -> io::Result<()> {
    socket
        .async_io(Interest::WRITABLE, || {
            send_now(socket.as_fd(), packet, to, from)
        })
        .await
}

fn receive_now(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Arrival> {
    let mut control = Control([0; 128]);
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

    // SAFETY: the closure fills the storage through recvmsg and sets the length it reports.
    let (length, from) = unsafe {
        SockAddr::try_init(|storage, storage_length| {
            message.msg_name = storage.cast();
            message.msg_namelen = *storage_length;
            // The pointers in `message` are of live buffers with the lengths given beside them.
            let length = libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0);
            *storage_length = message.msg_namelen;
            usize::try_from(length).map_err(|_| io::Error::last_os_error())
        })
    }?;
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(invalid("datagram is longer than the buffer"));
    }
    Ok(Arrival {
        length,
        from: from
            .as_socket()
            .ok_or_else(|| invalid("datagram without an address of IP"))?,
        to: destination(&message).ok_or_else(|| invalid("datagram without its destination"))?,
    })
}

/// The destination that recvmsg put among the control messages of `message`.
fn destination(message: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: `message` was filled by recvmsg, and its control buffer is alive and aligned for
    // cmsghdr; the CMSG macros stay within msg_controllen. The data of a control message of
    // these types is the struct of that name; it is read without regard to its alignment.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(message);
        while let Some(header) = next.as_ref() {
            let data = libc::CMSG_DATA(header);
            match (header.cmsg_level, header.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = ptr::read_unaligned(data.cast());
                    return Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = ptr::read_unaligned(data.cast());
                    return Some(IpAddr::from(info.ipi6_addr.s6_addr));
                }
                _ => next = libc::CMSG_NXTHDR(message, header),
            }
        }
    }
    None
}

fn send_now(socket: BorrowedFd<'_>, packet: &[u8], to: SocketAddr, from: IpAddr) -> io::Result<()> {
    let to = SockAddr::from(to);
    let mut control = Control([0; 128]);
    let mut vector = libc::iovec {
        iov_base: packet.as_ptr().cast_mut().cast(),
        iov_len: packet.len(),
    };
    // SAFETY: all zeroes is a valid msghdr; its pointers are set below.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    match from {
        IpAddr::V4(from) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(from.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            put_control(&mut message, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        IpAddr::V6(from) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: from.octets(),
                },
                ipi6_ifindex: 0,
            };
            put_control(&mut message, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
    }
    // SAFETY: every pointer in `message` is of a live value with the length given beside it;
    // sendmsg writes to none of them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes `data` the one control message of `message`.
fn put_control<T: Copy>(message: &mut libc::msghdr, level: i32, kind: i32, data: T) {
    let length = size_of::<T>() as u32;
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute. The control buffer is aligned for cmsghdr and
    // longer than the space of the structs of this module (asserted), so the first header is not
    // null and `data`, written without regard to alignment, fits behind it.
    unsafe {
        let space = libc::CMSG_SPACE(length) as usize;
        assert!(space <= message.msg_controllen);
        message.msg_controllen = space;
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(length) as usize;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast(), data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn exchange(bind: &str, alias: &str, server_sees: &str) {
        let server = UdpSocket::bind(bind).await.unwrap();
        enable(&server).unwrap();
        let port = server.local_addr().unwrap().port();
        let alias = SocketAddr::new(alias.parse().unwrap(), port);
        let any = if alias.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let client = UdpSocket::bind(any).await.unwrap();
        client.send_to(b"question", alias).await.unwrap();

        let mut buffer = [0; 64];
        let arrival = receive(&server, &mut buffer).await.unwrap();
        assert_eq!(&buffer[..arrival.length], b"question");
        assert_eq!(arrival.to, server_sees.parse::<IpAddr>().unwrap());
        send(&server, b"answer", arrival.from, arrival.to)
            .await
            .unwrap();
        let (length, from) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..length], from), (&b"answer"[..], alias));
    }

    #[tokio::test]
    async fn answers_come_from_the_address_that_was_asked() {
        exchange("0.0.0.0:0", "127.0.0.53", "127.0.0.53").await;
        exchange("0.0.0.0:0", "127.9.8.7", "127.9.8.7").await;
        exchange("[::]:0", "::1", "::1").await;
        exchange("[::]:0", "127.9.8.7", "::ffff:127.9.8.7").await;
    }

    #[tokio::test]
    async fn too_long_a_datagram_is_an_error_and_the_next_one_is_not() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        enable(&server).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = server.local_addr().unwrap();
        client.send_to(&[7; 100], to).await.unwrap();
        client.send_to(&[8; 10], to).await.unwrap();
        let mut buffer = [0; 64];
        let error = receive(&server, &mut buffer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let arrival = receive(&server, &mut buffer).await.unwrap();
        assert_eq!(&buffer[..arrival.length], &[8; 10]);
    }
}
