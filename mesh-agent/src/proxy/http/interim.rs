//! Informational responses (RFC 9110, section 15.2), such as 103 Early Hints (RFC 8297): they go to a
//! client of HTTP/1.1 ahead of the answer. hyper tells of those that it reads and cannot send any, so they
//! are written below it, where nothing of another response can be around them.

use std::future::poll_fn;
use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Request, StatusCode};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::message::strip_hop_by_hop;

/// What may wait for a client, in bytes; further ones are left out, which any recipient has to expect.
const MAX_WAITING: usize = 16 * 1024;

/// What waits to be written to one client's connection.
#[derive(Default)]
pub struct Interim {
    /// Whether anything does: asked at each write.
    is_waiting: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Counts tries, and their ends: only the one that is under way may add something.
    turn: u64,
    bytes: Vec<u8>,
}

/// While it lives, informational responses to one request are passed on.
pub struct PassingOn<'a>(&'a Interim);

impl Drop for PassingOn<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().turn += 1;
    }
}

/// The task that asks.
pub async fn this_task() -> Waker {
    poll_fn(|cx| Poll::Ready(cx.waker().clone())).await
}

impl Interim {
    /// Passes informational responses to `request` on to the client, whose connection `task` serves, if
    /// any does. To be called before the request is sent; what comes back with it has to end before any
    /// part of the answer is given.
    ///
    /// The request comes back, since a future that lends it would hold it twice.
    pub fn pass_on<B>(
        self: &Arc<Self>,
        mut request: Request<B>,
        task: Option<Waker>,
    ) -> (Request<B>, Option<PassingOn<'_>>) {
        let Some(task) = task else {
            return (request, None);
        };
        let turn = {
            let mut waiting = self.waiting.lock();
            waiting.turn += 1;
            waiting.turn
        };
        let interim = Arc::clone(self);
        hyper::ext::on_informational(&mut request, move |response| {
            // hyper itself says this one, when it reads the request's body.
            if response.status() != StatusCode::CONTINUE
                && interim.add(turn, response.status(), response.headers().clone())
            {
                task.wake_by_ref();
            }
        });
        (request, Some(PassingOn(self)))
    }

    /// Adds a response, unless it comes too late or too much waits.
    fn add(&self, turn: u64, status: StatusCode, mut headers: HeaderMap) -> bool {
        strip_hop_by_hop(&mut headers);
        // There is no body (RFC 9110, section 8.6).
        headers.remove(CONTENT_LENGTH);
        let mut head = format!("HTTP/1.1 {status}\r\n").into_bytes();
        for (name, value) in &headers {
            let _ = write!(head, "{name}: ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        let mut waiting = self.waiting.lock();
        if waiting.turn != turn || waiting.bytes.len() + head.len() > MAX_WAITING {
            return false;
        }
        waiting.bytes.extend_from_slice(&head);
        self.is_waiting.store(true, Ordering::Release);
        true
    }

    fn take(&self) -> Bytes {
        let mut waiting = self.waiting.lock();
        self.is_waiting.store(false, Ordering::Release);
        std::mem::take(&mut waiting.bytes).into()
    }
}

/// A client's connection below hyper's server of HTTP/1.
///
/// hyper flushes only when it has written all that it has, and reads a request only when the answer to
/// the one before is complete. So between such a flush and its next write nothing is half said, as far
/// as nothing of the answer has been given yet: then what waits is written.
pub struct WithInterim<S> {
    stream: S,
    interim: Arc<Interim>,
    /// Being written.
    writing: Bytes,
    /// Whether hyper has flushed since it wrote.
    is_between: bool,
}

impl<S> WithInterim<S> {
    pub fn new(stream: S, interim: Arc<Interim>) -> Self {
        Self {
            stream,
            interim,
            writing: Bytes::new(),
            is_between: true,
        }
    }
}

impl<S: AsyncWrite + Unpin> WithInterim<S> {
    /// Writes what waits, or leaves it out where hyper has begun to write something.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.writing.is_empty() {
                let taken = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.writing))?;
                if taken == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.writing.advance(taken);
            }
            if !self.interim.is_waiting.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            let taken = self.interim.take();
            if self.is_between {
                self.writing = taken;
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WithInterim<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_interim(cx))?;
        this.is_between = false;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_interim(cx))?;
        this.is_between = false;
        Pin::new(&mut this.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.is_between = true;
        ready!(this.poll_interim(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WithInterim<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn add(interim: &Interim, turn: u64) -> bool {
        interim.add(turn, StatusCode::EARLY_HINTS, HeaderMap::new())
    }

    #[tokio::test]
    async fn what_comes_after_the_request_has_ended_is_left_out() {
        let interim = Arc::new(Interim::default());
        let (_request, first) = interim.pass_on(Request::new(()), Some(this_task().await));
        let turn = interim.waiting.lock().turn;
        assert!(add(&interim, turn));
        drop(first);
        assert!(!add(&interim, turn));
        let _second = interim.pass_on(Request::new(()), Some(this_task().await));
        assert!(!add(&interim, turn) && add(&interim, turn + 2));
    }

    #[test]
    fn so_much_waits_and_no_more() {
        let interim = Interim::default();
        let added = (0..MAX_WAITING).filter(|_| add(&interim, 0)).count();
        assert_eq!(
            added,
            MAX_WAITING / "HTTP/1.1 103 Early Hints\r\n\r\n".len()
        );
        assert!(interim.take().len() <= MAX_WAITING);
        assert!(add(&interim, 0), "room again");
    }

    #[test]
    fn fields_of_the_connection_end_here() {
        let interim = Interim::default();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("link", "</a>"),
            ("connection", "close, x-hop"),
            ("x-hop", "of the connection"),
            ("content-length", "0"),
            ("link", "</b>"),
        ] {
            let value = http::HeaderValue::from_static(value);
            headers.append(http::HeaderName::from_static(name), value);
        }
        assert!(interim.add(0, StatusCode::EARLY_HINTS, headers));
        let text = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nlink: </b>\r\n\r\n";
        assert_eq!(interim.take(), &text[..]);
    }

    proptest! {
        /// Whatever is written and flushed, and however slow the reader: hyper's bytes arrive whole, and
        /// hints only where a flush was.
        #[test]
        fn hints_stand_where_nothing_is_half_said(
            steps in prop::collection::vec((1_usize..50, any::<bool>(), any::<bool>()), 1..30),
            pipe in 1_usize..60,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (text, marks) = runtime.block_on(async {
                let (near, mut far) = tokio::io::duplex(pipe);
                let interim = Arc::new(Interim::default());
                let mut stream = WithInterim::new(near, interim.clone());
                let write = async move {
                    // Numbers of bytes of hyper's before which hints may stand.
                    let (mut written, mut marks) = (0, vec![0]);
                    for (bytes, flush, hint) in steps {
                        stream.write_all(&vec![b'.'; bytes]).await.unwrap();
                        written += bytes;
                        if flush {
                            stream.flush().await.unwrap();
                            marks.push(written);
                        }
                        if hint {
                            assert!(add(&interim, 0));
                        }
                    }
                    stream.flush().await.unwrap();
                    marks.push(written);
                    marks
                };
                let read = async move {
                    let mut text = String::new();
                    far.read_to_string(&mut text).await.unwrap();
                    text
                };
                let (marks, text) = tokio::join!(write, read);
                (text, marks)
            });
            let mut written = 0;
            let parts: Vec<&str> = text.split("HTTP/1.1 103 Early Hints\r\n\r\n").collect();
            for part in &parts[..parts.len() - 1] {
                written += part.len();
                prop_assert!(marks.contains(&written), "a hint after {written} of {marks:?}");
            }
            written += parts[parts.len() - 1].len();
            prop_assert!(parts.iter().all(|part| part.bytes().all(|byte| byte == b'.')));
            prop_assert_eq!(written, marks[marks.len() - 1]);
        }
    }
}
