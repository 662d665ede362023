//! A tunnel through a proxy outside of the mesh by POST, for proxies that do not know CONNECT:
//! what the client says is the request's body, and what it hears the answer's.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::stream::poll_fn;
use http::{Method, Request, header};
use http_body::{Body, Frame};
use http_body_util::StreamBody;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::sync::PollSender;

use super::connect_tunnel::refused;
use super::copy::Duplex;
use crate::route::HttpTunnel;

/// Writes that wait to be sent.
const QUEUE: usize = 4;

/// The client's end of such a tunnel.
pub struct PostTunnel {
    asked: PollSender<Bytes>,
    answer: Incoming,
    /// Of the answer, to be read next.
    rest: Bytes,
    connection: AbortHandle,
}

/// Asks the proxy at the other end of `io` for the tunnel, as Envoy does.
///
/// # Errors
/// Where the proxy refuses, or does not speak HTTP.
pub(super) async fn establish(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tunnel: &Arc<HttpTunnel>,
) -> io::Result<PostTunnel> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(io))
        .await
        .map_err(io::Error::other)?;
    // It ends with the request, and what goes wrong is told to whoever reads or writes.
    let connection = tokio::spawn(connection);
    let (asked, mut body) = mpsc::channel::<Bytes>(QUEUE);
    let body = poll_fn(move |cx| {
        let polled = body.poll_recv(cx);
        polled.map(|bytes| bytes.map(|bytes| Ok::<_, io::Error>(Frame::data(bytes))))
    });
    let mut request = Request::new(StreamBody::new(body));
    *request.method_mut() = Method::POST;
    let host = tunnel.target.parse().map_err(io::Error::other)?;
    request.headers_mut().insert(header::HOST, host);
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|error| refused(tunnel, &error.to_string()))?;
    if !answer.status().is_success() {
        return Err(refused(tunnel, answer.status().as_str()));
    }
    Ok(PostTunnel {
        asked: PollSender::new(asked),
        answer: answer.into_body(),
        rest: Bytes::new(),
        connection: connection.abort_handle(),
    })
}

impl AsyncRead for PostTunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.answer).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error)));
                }
            }
        }
        let length = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..length]);
        self.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

/// The proxy listens no more.
fn closed<E>(_: E) -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl AsyncWrite for PostTunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.asked.poll_reserve(cx)).map_err(closed)?;
        let sent = self.asked.send_item(Bytes::copy_from_slice(bytes));
        Poll::Ready(sent.map(|()| bytes.len()).map_err(closed))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.asked.close();
        Poll::Ready(Ok(()))
    }
}

impl Duplex for PostTunnel {
    fn abort(&mut self) {
        // The request has no end: the proxy knows that it was cut off.
        self.connection.abort();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const ASKED: &str =
        "POST / HTTP/1.1\r\nhost: db.example.com:5432\r\ntransfer-encoding: chunked\r\n\r\n";

    async fn asked(answer: &'static [u8]) -> (io::Result<PostTunnel>, DuplexStream) {
        let (near, mut far) = duplex(64 * 1024);
        let tunnel = Arc::new(HttpTunnel {
            target: "db.example.com:5432".to_owned(),
            method: Method::POST,
        });
        let proxy = tokio::spawn(async move {
            let mut head = vec![0; ASKED.len()];
            far.read_exact(&mut head).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&head), ASKED);
            far.write_all(answer).await.unwrap();
            far
        });
        let tunnel = establish(near, &tunnel).await;
        (tunnel, proxy.await.unwrap())
    }

    #[tokio::test]
    async fn bodies_carry_both_directions_and_their_ends() {
        let (tunnel, mut far) =
            asked(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
        let mut tunnel = tunnel.unwrap();
        let mut heard = [0; 5];
        tunnel.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        tunnel.write_all(b"question").await.unwrap();
        tunnel.shutdown().await.unwrap();
        let said = b"8\r\nquestion\r\n0\r\n\r\n";
        let mut got = vec![0; said.len()];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(got, said);
        far.write_all(b"3\r\nbye\r\n0\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        tunnel.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"bye");
    }

    #[tokio::test]
    async fn what_is_cut_off_has_no_end() {
        let (tunnel, mut far) =
            asked(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let mut tunnel = tunnel.unwrap();
        tunnel.abort();
        drop(tunnel);
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");

        let (tunnel, far) = asked(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        drop(far);
        let error = tunnel.unwrap().read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn anything_else_than_success_is_no_tunnel() {
        for answer in [
            &b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"[..],
            b"SSH-2.0-x\r\n\r\n",
        ] {
            assert!(asked(answer).await.0.is_err(), "{answer:?}");
        }
    }
}
