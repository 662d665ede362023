//! The access log: a line for each request and each connection, in Istio's
//! formats. Whoever writes one never waits for the file.

mod entry;
mod queue;

pub use entry::Entry;

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use queue::Queue;

/// How long the last lines have to get out when the agent ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How lines are written (Istio's `accessLogEncoding`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[clap(rename_all = "UPPER")]
pub enum Encoding {
    /// Istio's default format.
    #[default]
    Text,
    /// An object for each line.
    Json,
}

/// The log, which may be off.
#[derive(Default)]
pub struct AccessLog(Option<Open>);

struct Open {
    encoding: Encoding,
    queue: Arc<Queue>,
}

impl AccessLog {
    /// Appends to a file (Istio's `accessLogFile`); `-` and `/dev/stdout` are the agent's own output.
    ///
    /// # Errors
    /// Where the file cannot be opened, or no thread be started.
    pub fn open(file: &Path, encoding: Encoding) -> io::Result<Self> {
        if file == Path::new("-") || file == Path::new("/dev/stdout") {
            return Self::to(io::stdout(), encoding);
        }
        let file = OpenOptions::new().append(true).create(true).open(file)?;
        Self::to(file, encoding)
    }

    /// Writes to `sink`, from a thread of its own.
    fn to(sink: impl Write + Send + 'static, encoding: Encoding) -> io::Result<Self> {
        let queue = Arc::<Queue>::default();
        let taken = queue.clone();
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || taken.write_to(sink))?;
        Ok(Self(Some(Open { encoding, queue })))
    }

    /// Whether anybody reads it.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Adds a line; where the writer cannot keep up, it is dropped and counted.
    pub fn write(&self, entry: &Entry<'_>) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let Some(Open { encoding, queue }) = &self.0 else {
            return;
        };
        LINE.with_borrow_mut(|line| {
            line.clear();
            match encoding {
                Encoding::Text => entry.text(line),
                Encoding::Json => entry.json(line),
            }
            line.push(b'\n');
            queue.add(line);
        });
    }

    /// Lines that were written and that were dropped.
    pub fn counts(&self) -> (u64, u64) {
        self.0.as_ref().map_or((0, 0), |open| open.queue.counts())
    }

    /// Gives the lines that are left the time to get out.
    pub fn close(&self) {
        if let Some(open) = &self.0 {
            open.queue.close(CLOSE_TIMEOUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_appended_whole_whoever_writes_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("access.log");
        std::fs::write(&file, "before\n").expect("written");
        let log = Arc::new(AccessLog::open(&file, Encoding::Json).expect("opened"));
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let log = log.clone();
                std::thread::spawn(move || {
                    for number in 0..500 {
                        log.write(&Entry {
                            response_code: 200 + thread,
                            bytes_sent: number,
                            ..Entry::default()
                        });
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("an end");
        }
        log.close();
        let text = std::fs::read_to_string(&file).expect("read");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines[0], lines.len()), ("before", 2001));
        for line in &lines[1..] {
            serde_json::from_str::<serde_json::Value>(line).expect(line);
        }
        assert_eq!(log.counts(), (2000, 0));
    }

    #[test]
    fn a_log_that_is_off_costs_nothing() {
        let log = AccessLog::default();
        assert!(!log.is_on());
        log.write(&Entry::default());
        log.close();
        assert_eq!(log.counts(), (0, 0));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error() {
        assert!(AccessLog::open(Path::new("/dev/null/x"), Encoding::Text).is_err());
    }
}
