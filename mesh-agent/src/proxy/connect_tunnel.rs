//! A tunnel through a proxy outside of the mesh, which a DestinationRule asks
//! for (`tunnel`): HTTP/1.1 CONNECT (RFC 9110, section 9.3.6), then bytes.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::route::HttpTunnel;

/// Longest answer to CONNECT that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024;

/// Asks the proxy at the other end of `io` for the tunnel. What comes after
/// its answer is left to be read.
///
/// # Errors
/// Where the proxy refuses, or does not speak HTTP.
pub(super) async fn establish(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    tunnel: &HttpTunnel,
) -> io::Result<()> {
    let target = &tunnel.target;
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    io.write_all(request.as_bytes()).await?;
    io.flush().await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows is the server's, and it is once a connection.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() == MAX_ANSWER {
            return Err(refused(tunnel, "its answer does not end"));
        }
        match io.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(refused(tunnel, "it closed the connection"));
            }
            Err(error) => return Err(error),
        }
    }
    let line = answer
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let is_http = words
        .next()
        .is_some_and(|version| version.starts_with("HTTP/1."));
    match words.next().and_then(|status| status.parse::<u16>().ok()) {
        Some(200..=299) if is_http => Ok(()),
        _ => Err(refused(tunnel, &line)),
    }
}

/// There is none.
pub(super) fn refused(tunnel: &HttpTunnel, reason: &str) -> io::Error {
    let target = &tunnel.target;
    io::Error::new(
        io::ErrorKind::ConnectionRefused,
        format!("the proxy gives no tunnel to {target}: {reason}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(answer: &'static [u8]) -> (io::Result<()>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(64 * 1024);
        let tunnel = HttpTunnel {
            target: "db.example.com:5432".to_owned(),
            method: http::Method::CONNECT,
        };
        let proxy = tokio::spawn(async move {
            let mut asked = vec![0; 67];
            far.read_exact(&mut asked).await.expect("a request");
            far.write_all(answer).await.expect("written");
            asked
        });
        let result = establish(&mut near, &tunnel).await;
        let asked = proxy.await.expect("the proxy");
        assert_eq!(
            String::from_utf8_lossy(&asked),
            "CONNECT db.example.com:5432 HTTP/1.1\r\nHost: db.example.com:5432\r\n\r\n"
        );
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.expect("the rest");
        (result, rest)
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_servers() {
        let (result, rest) = answered(b"HTTP/1.1 200 OK\r\nVia: p\r\n\r\nhello").await;
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(rest, b"hello");
    }

    #[tokio::test]
    async fn anything_else_than_success_is_no_tunnel() {
        for answer in [
            &b"HTTP/1.1 403 Forbidden\r\n\r\n"[..],
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"",
        ] {
            assert!(answered(answer).await.0.is_err(), "{answer:?}");
        }
    }
}
