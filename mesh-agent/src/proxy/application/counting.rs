//! What is counted of a request that is looked at, from its beginning to the end of its
//! answer, on the side of the application.

use std::pin::Pin;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::proxy::http::grpc_status;
use crate::telemetry::Flags;
use crate::telemetry::callers::Arrived;
use crate::telemetry::requests::{Measures, Outcome};

/// There is no such status of gRPC's.
const NO_STATUS: u16 = u16::MAX;

/// A request; it is counted when the last part of it is dropped.
pub(super) struct Counting {
    arrived: Arc<Arrived>,
    began: Instant,
    is_grpc: bool,
    code: AtomicU16,
    grpc_status: AtomicU16,
    flags: OnceLock<Flags>,
    received: AtomicU64,
    sent: AtomicU64,
}

impl Counting {
    pub(super) fn begin(arrived: Arc<Arrived>, is_grpc: bool) -> Arc<Self> {
        Arc::new(Self {
            arrived,
            began: Instant::now(),
            is_grpc,
            code: AtomicU16::new(0),
            grpc_status: AtomicU16::new(NO_STATUS),
            flags: OnceLock::new(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        })
    }

    /// The answer's head.
    pub(super) fn answered(&self, code: u16, headers: &HeaderMap) {
        self.code.store(code, Relaxed);
        self.trailers(headers);
    }

    /// What happened, where it is the agent that answers.
    pub(super) fn flagged(&self, flags: Flags) {
        let _ = self.flags.set(flags);
    }

    fn trailers(&self, headers: &HeaderMap) {
        if let Some(status) = grpc_status(headers) {
            self.grpc_status.store(status, Relaxed);
        }
    }

    /// Something of the answer.
    pub(super) fn frame(&self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.sent(data.len() as u64);
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers(trailers);
        }
    }

    /// So many bytes of the answer.
    pub(super) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let status = *self.grpc_status.get_mut();
        let outcome = Outcome {
            code: *self.code.get_mut(),
            flags: self.flags.get().copied().unwrap_or_default(),
            is_grpc: self.is_grpc,
            grpc_status: Some(status).filter(|status| *status != NO_STATUS),
        };
        let measures = Measures {
            took: self.began.elapsed(),
            received: *self.received.get_mut(),
            sent: *self.sent.get_mut(),
        };
        self.arrived.requests.add(outcome, measures);
    }
}

/// A request's body, whose bytes are counted.
pub(super) struct Asked {
    body: Incoming,
    counting: Option<Arc<Counting>>,
}

impl Asked {
    pub(super) fn new(body: Incoming, counting: Option<Arc<Counting>>) -> Self {
        Self { body, counting }
    }
}

impl Body for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(counting)) = (&polled, &self.counting)
            && let Some(data) = frame.data_ref()
        {
            counting.received.fetch_add(data.len() as u64, Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
