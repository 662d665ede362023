//! The body of a request on its way: streamed with back-pressure, and kept
//! while it is small, so that the request can be sent again.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// Body up to which a request can be sent again, in bytes.
const MAX_REPLAY: usize = 64 * 1024;
/// Frames of a body that wait for the reader of a copy; one more, and the copy is given up.
const MAX_COPIED_FRAMES: usize = 256;
/// How long a client's body waits for the server's `100 Continue` before it is
/// sent anyway (RFC 9110, section 10.1.1, asks not to wait indefinitely).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// A body that ended because its request is sent again.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Another attempt has taken the body over.
    #[error("the request is sent again")]
    Superseded,
    /// The client did not send it to the end.
    #[error("the client's body: {0}")]
    Client(#[source] hyper::Error),
}

/// Where the bodies of all attempts come from.
#[derive(Clone)]
pub(super) struct BodySource(Option<Arc<Shared>>);

struct Shared {
    state: Mutex<State>,
    ended: Notify,
}

struct State {
    incoming: Incoming,
    /// What has been read, from the beginning.
    kept: Vec<Kept>,
    kept_bytes: usize,
    /// What the client has sent of it, in bytes.
    received: u64,
    /// `kept` is complete so far, and further frames are added.
    keep: bool,
    /// When the client had sent all of it.
    ended: Option<Instant>,
    attempt: u32,
    /// Readers of copies.
    copies: Vec<mpsc::Sender<Kept>>,
}

#[derive(Clone)]
enum Kept {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Nothing follows; only copies need to be told.
    End,
}

impl BodySource {
    pub(super) fn new(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            return Self(None);
        }
        Self(Some(Arc::new(Shared {
            state: Mutex::new(State {
                incoming,
                kept: Vec::new(),
                kept_bytes: 0,
                received: 0,
                keep: true,
                ended: None,
                attempt: 0,
                copies: Vec::new(),
            }),
            ended: Notify::new(),
        })))
    }

    /// The body for another attempt; earlier ones end with an error.
    pub(super) fn attempt(&self) -> RequestBody {
        let Some(shared) = &self.0 else {
            return RequestBody::default();
        };
        let mut state = shared.state.lock();
        state.attempt += 1;
        RequestBody {
            source: Some(Arc::clone(shared)),
            attempt: state.attempt,
            ..RequestBody::default()
        }
    }

    /// Whether a further attempt would send the same.
    pub(super) fn is_replayable(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|shared| shared.state.lock().keep)
    }

    /// The body once more, for another request, as the client sends it: it never holds the
    /// attempts up, and ends with an error where its reader is too slow.
    pub(super) fn copy(&self) -> RequestBody {
        let Some(shared) = &self.0 else {
            return RequestBody::default();
        };
        let (sender, receiver) = mpsc::channel(MAX_COPIED_FRAMES);
        shared.state.lock().copies.push(sender);
        RequestBody {
            copied: Some(receiver),
            ..RequestBody::default()
        }
    }

    /// What the client has sent so far, in bytes.
    pub(super) fn received(&self) -> u64 {
        (self.0.as_ref()).map_or(0, |shared| shared.state.lock().received)
    }

    /// No further attempt is needed.
    pub(super) fn commit(&self) {
        if let Some(shared) = &self.0 {
            shared.state.lock().keep = false;
        }
    }

    /// When the client had sent all of its request; `None` while it is still sending.
    /// `began` is for requests without a body.
    pub(super) fn ended_at(&self, began: Instant) -> Option<Instant> {
        match &self.0 {
            None => Some(began),
            Some(shared) => shared.state.lock().ended,
        }
    }

    /// Completes when the client has sent all of its request.
    pub(super) async fn ended(&self) {
        let Some(shared) = &self.0 else { return };
        loop {
            let notified = shared.ended.notified();
            if shared.state.lock().ended.is_some() {
                return;
            }
            notified.await;
        }
    }
}

/// The body of one attempt.
#[derive(Default)]
pub(super) struct RequestBody {
    source: Option<Arc<Shared>>,
    attempt: u32,
    /// Next of the kept frames.
    position: usize,
    gate: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// What another body is made of.
    copied: Option<mpsc::Receiver<Kept>>,
}

impl RequestBody {
    /// Holds the body back until the server says `100 Continue`.
    pub(super) fn wait_for_continue(&mut self, said: Arc<Notify>) {
        self.gate = Some(Box::pin(async move {
            // Sent anyway after the time: nothing to do with the result.
            let _ = tokio::time::timeout(CONTINUE_TIMEOUT, said.notified()).await;
        }));
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(gate) = &mut this.gate {
            ready!(gate.as_mut().poll(cx));
            this.gate = None;
        }
        if let Some(copied) = &mut this.copied {
            return Poll::Ready(match ready!(copied.poll_recv(cx)) {
                Some(Kept::Data(data)) => Some(Ok(Frame::data(data))),
                Some(Kept::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
                Some(Kept::End) => None,
                // The copy was too slow, or the client is gone.
                None => Some(Err(BodyError::Superseded)),
            });
        }
        let Some(source) = &this.source else {
            return Poll::Ready(None);
        };
        let mut state = source.state.lock();
        let state = &mut *state;
        if state.attempt != this.attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(kept) = state.kept.get(this.position) {
            this.position += 1;
            return Poll::Ready(Some(Ok(match kept.clone() {
                Kept::Data(data) => Frame::data(data),
                Kept::Trailers(trailers) => Frame::trailers(trailers),
                Kept::End => return Poll::Ready(None),
            })));
        }
        if !state.keep {
            state.kept.clear();
            this.position = 0;
        }
        if state.ended.is_some() {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut state.incoming).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            let data = frame.data_ref();
            state.received += data.map_or(0, |data| data.len() as u64);
            state.copy(frame);
            state.keep(frame);
            this.position = state.kept.len();
        }
        if frame.is_none() || state.incoming.is_end_stream() {
            state.ended = Some(Instant::now());
            for copy in state.copies.drain(..) {
                let _ = copy.try_send(Kept::End);
            }
            source.ended.notify_waiters();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Client)))
    }

    fn is_end_stream(&self) -> bool {
        if self.copied.is_some() {
            return false;
        }
        self.source.as_ref().is_none_or(|source| {
            let state = source.state.lock();
            state.ended.is_some() && self.position >= state.kept.len()
        })
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            None if self.copied.is_some() => SizeHint::new(),
            None => SizeHint::with_exact(0),
            Some(source) => {
                let state = source.state.lock();
                if state.kept.is_empty() {
                    state.incoming.size_hint()
                } else {
                    SizeHint::new()
                }
            }
        }
    }
}

impl State {
    /// Readers that cannot take the frame now are given up.
    fn copy(&mut self, frame: &Frame<Bytes>) {
        if self.copies.is_empty() {
            return;
        }
        let copied = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Kept::Data(data.clone()),
            (None, Some(trailers)) => Kept::Trailers(trailers.clone()),
            (None, None) => return,
        };
        self.copies
            .retain(|copy| copy.try_send(copied.clone()).is_ok());
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if !self.keep {
            return;
        }
        let (kept, size) = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => (Kept::Data(data.clone()), data.len()),
            (None, Some(trailers)) => (Kept::Trailers(trailers.clone()), 0),
            (None, None) => return,
        };
        self.kept_bytes += size;
        if self.kept_bytes > MAX_REPLAY {
            self.keep = false;
            self.kept = Vec::new();
        } else {
            self.kept.push(kept);
        }
    }
}
