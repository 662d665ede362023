//! Lines on their way to the file: many threads add, one writes. What is held
//! has a bound; beyond it lines are dropped and counted.

use std::io::Write;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Lines that may wait for the writer, in bytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// With so many bytes waiting, the writer does not wait for more.
const EAGER_BYTES: usize = 256 * 1024;
/// How long the writer waits for more lines after the first, so that each request does not
/// wake it.
const GATHER: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Lines have come, or enough of them, or the end.
    added: Condvar,
    /// The writer has taken or written something.
    written: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    count: u64,
    written: u64,
    dropped: u64,
    /// The writer is busy with lines that it took.
    is_writing: bool,
    closed: bool,
}

impl Queue {
    /// Adds a line with its end.
    pub(super) fn add(&self, line: &[u8]) {
        let mut state = self.state.lock();
        let before = state.lines.len();
        if before + line.len() > MAX_BYTES {
            state.dropped += 1;
            return;
        }
        state.lines.extend_from_slice(line);
        state.count += 1;
        let after = state.lines.len();
        drop(state);
        if before == 0 || (before < EAGER_BYTES && after >= EAGER_BYTES) {
            self.added.notify_one();
        }
    }

    /// Lines that were written, and lines that were dropped.
    pub(super) fn counts(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.written, state.dropped)
    }

    /// Writes what comes, until the end.
    pub(super) fn write_to(&self, mut sink: impl Write) {
        let mut lines = Vec::new();
        let mut failed = false;
        while let Some(count) = self.take(&mut lines) {
            let result = sink.write_all(&lines).and_then(|()| sink.flush());
            if let Err(error) = &result
                && !failed
            {
                tracing::warn!(%error, "the access log cannot be written");
            }
            failed = result.is_err();
            lines.clear();
            let mut state = self.state.lock();
            state.is_writing = false;
            match result {
                Ok(()) => state.written += count,
                Err(_) => state.dropped += count,
            }
            drop(state);
            self.written.notify_all();
        }
    }

    /// Waits for lines, takes all, and counts them; `None` at the end.
    fn take(&self, lines: &mut Vec<u8>) -> Option<u64> {
        let mut state = self.state.lock();
        while state.lines.is_empty() {
            if state.closed {
                return None;
            }
            self.added.wait(&mut state);
        }
        let until = Instant::now() + GATHER;
        while state.lines.len() < EAGER_BYTES && !state.closed {
            if self.added.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        std::mem::swap(&mut state.lines, lines);
        state.is_writing = true;
        Some(std::mem::take(&mut state.count))
    }

    /// Waits until all is written, no longer than `limit`. The writer ends.
    pub(super) fn close(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut state = self.state.lock();
        state.closed = true;
        self.added.notify_all();
        while state.is_writing || !state.lines.is_empty() {
            if self.written.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Takes one write for each leave, and says what it was.
    struct Slow(Receiver<io::Result<()>>, Sender<usize>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let leave = self.0.recv();
            self.1.send(bytes.len()).expect("a reader");
            leave.expect("a leave").map(|()| bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (Arc<Queue>, Sender<io::Result<()>>, Receiver<usize>) {
        let queue = Arc::<Queue>::default();
        let ((leave, leaves), (said, written)) = (channel(), channel());
        let writer = queue.clone();
        std::thread::spawn(move || writer.write_to(Slow(leaves, said)));
        (queue, leave, written)
    }

    #[test]
    fn nobody_waits_for_a_file_and_what_is_dropped_is_counted() {
        let (queue, leave, written) = slow();
        let line = [b'x'; 1024];
        // The writer takes the first lines and is held up with them.
        let took = || queue.state.lock().is_writing;
        while !took() {
            queue.add(&line);
        }
        let began = Instant::now();
        for _ in 0..10_000 {
            queue.add(&line);
        }
        assert!(began.elapsed() < Duration::from_secs(1), "nobody waited");
        let (_, dropped) = queue.counts();
        assert!(dropped >= 10_000 - (MAX_BYTES / 1024) as u64, "{dropped}");
        for _ in 0..2 {
            leave.send(Ok(())).expect("a writer");
        }
        written.recv().expect("the first lines");
        assert!(written.recv().expect("the others") <= MAX_BYTES);
        queue.close(Duration::from_secs(10));
        assert_eq!(queue.counts().1, dropped);
    }

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted() {
        let (queue, leave, _written) = slow();
        queue.add(b"one\n");
        queue.add(b"two\n");
        leave
            .send(Err(io::ErrorKind::StorageFull.into()))
            .expect("a writer");
        queue.close(Duration::from_secs(10));
        assert_eq!(queue.counts(), (0, 2));
    }
}
