//! When a connection that many share does its work.

use std::future::poll_fn;
use std::task::{Context, Poll};

/// Lets the tasks go first that are ready when the connection is woken: what all of them
/// have written then leaves with one system call, through TLS in one record. The runtime
/// otherwise runs a task right after the one that woke it, so that each tunnel's or
/// request's frame would leave by itself.
#[derive(Default)]
pub struct Turn {
    others_went_first: bool,
}

impl Turn {
    /// Polls the connection, after those who are ready now; at once where it has just given
    /// something, since there may be more of it.
    pub fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        connection: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if !self.others_went_first {
            self.others_went_first = true;
            // A task that wakes itself gets behind those that are ready.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = connection(cx);
        self.others_went_first = polled.is_ready();
        polled
    }
}

/// Drives a connection, each time after those who are ready. Boxed, so that whoever awaits
/// it does not hold the connection twice.
pub fn after_others<F: Future>(connection: F) -> impl Future<Output = F::Output> {
    let (mut connection, mut turn) = (Box::pin(connection), Turn::default());
    poll_fn(move |cx| turn.poll(cx, |cx| connection.as_mut().poll(cx)))
}
