//! When a connection that many share does its work, and for how long.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

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

/// How long a connection reads before others go first.
const MOMENT: Duration = Duration::from_micros(500);

/// Bounds how long a connection has the thread. HTTP/2 reads and answers frames as long as any
/// come: whoever sends small ones without end (pings, settings) would otherwise keep the thread
/// for megabytes at a time, and since the runtime looks for what has come to others only every
/// 61 turns while somebody is ready, hold up everybody for as many times as long. Time is what
/// counts, not bytes: as many bytes of data cost a hundredth of what pings do.
#[derive(Default)]
pub struct Moment {
    began: Option<Instant>,
}

impl Moment {
    /// Reads, unless the connection has read for a moment already: then others go first.
    pub fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        read: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let now = Instant::now();
        if now.duration_since(*self.began.get_or_insert(now)) >= MOMENT {
            self.began = None;
            // Unlike a task that wakes itself, one that yields goes on only after the runtime has
            // looked what has come to others.
            let _ = pin!(tokio::task::yield_now()).poll(cx);
            return Poll::Pending;
        }
        let polled = read(cx);
        if polled.is_pending() {
            self.began = None;
        }
        polled
    }
}

/// Drives a connection, each time after those who are ready. Boxed, so that whoever awaits
/// it does not hold the connection twice.
pub fn after_others<F: Future>(connection: F) -> impl Future<Output = F::Output> {
    let (mut connection, mut turn) = (Box::pin(connection), Turn::default());
    poll_fn(move |cx| turn.poll(cx, |cx| connection.as_mut().poll(cx)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    #[test]
    fn whoever_always_has_something_to_read_lets_others_go_first_again_and_again() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let mut moment = Moment::default();
        for _ in 0..3 {
            let mut reads = 0;
            while moment.poll(&mut cx, |_| Poll::Ready(())).is_ready() {
                reads += 1;
                // Far more than fit into a moment, however long somebody else has the processor.
                assert!(reads < 10_000_000, "others wait for ever");
            }
            assert!(reads > 0, "it never gets to read");
            assert!(woken.0.swap(false, Relaxed), "it would never go on");
        }
    }

    #[tokio::test]
    async fn what_has_come_to_others_is_seen_between_two_moments() {
        let moments = Arc::new(AtomicUsize::new(0));
        let counting = moments.clone();
        let greedy = tokio::spawn(async move {
            let mut moment = Moment::default();
            poll_fn(|cx| {
                while moment.poll(cx, |_| Poll::Ready(())).is_ready() {}
                counting.fetch_add(1, Relaxed);
                Poll::<()>::Pending
            })
            .await;
        });
        let (mut near, mut far) = tokio::net::UnixStream::pair().unwrap();
        let echoes = tokio::spawn(async move {
            let mut byte = [0];
            while far.read_exact(&mut byte).await.is_ok() {
                far.write_all(&byte).await.unwrap();
            }
        });
        for _ in 0..10 {
            let before = moments.load(Relaxed);
            near.write_all(b"x").await.unwrap();
            near.read_exact(&mut [0]).await.unwrap();
            let passed = moments.load(Relaxed) - before;
            assert!(passed < 10, "{passed} moments until an echo has come");
        }
        greedy.abort();
        drop(near);
        echoes.await.unwrap();
    }

    #[test]
    fn a_moment_begins_anew_when_there_was_nothing_to_read() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut moment = Moment::default();
        assert!(moment.poll(&mut cx, |_| Poll::Ready(())).is_ready());
        assert!(moment.poll(&mut cx, |_| Poll::<()>::Pending).is_pending());
        std::thread::sleep(MOMENT);
        assert!(moment.poll(&mut cx, |_| Poll::Ready(())).is_ready());
    }
}
