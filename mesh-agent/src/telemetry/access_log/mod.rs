//! The access log: a line for each request and each connection, in Istio's
//! formats. Whoever writes one never waits for the file.

mod entry;
mod facts;
mod format;
mod queue;

pub use entry::Entry;
pub use format::{BadFormat, Format};

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use queue::Queue;

use super::rules::Logging;

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
pub struct AccessLog {
    format: Format,
    /// Whether it tells of those of whom no resource says anything.
    by_default: bool,
    /// Opened when the first line is wanted, where no file was named.
    queue: OnceLock<Option<Arc<Queue>>>,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self::off(Format::Default(Encoding::default()))
    }
}

impl AccessLog {
    /// Appends to a file (Istio's `accessLogFile`); `-` and `/dev/stdout` are the agent's own output.
    ///
    /// # Errors
    /// Where the file cannot be opened, or no thread be started.
    pub fn open(file: &Path, format: Format) -> io::Result<Self> {
        if file == Path::new("-") || file == Path::new("/dev/stdout") {
            return Self::to(io::stdout(), format);
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            // Where nobody reads a FIFO that is an error, and no start without an end.
            .custom_flags(libc::O_NONBLOCK)
            .open(file)?;
        Self::to(file, format)
    }

    /// Without a file: resources may want lines, and these go to the agent's own output.
    pub fn off(format: Format) -> Self {
        Self {
            format,
            by_default: false,
            queue: OnceLock::new(),
        }
    }

    /// Writes to `sink`, from a thread of its own.
    fn to(sink: impl Write + Send + 'static, format: Format) -> io::Result<Self> {
        Ok(Self {
            format,
            by_default: true,
            queue: Some(started(sink)?).into(),
        })
    }

    /// Whether lines of those are wanted.
    pub fn is_on(&self, wanted: &Logging) -> bool {
        match wanted {
            Logging::AsStarted => self.by_default,
            Logging::Never => false,
            Logging::Always | Logging::Where(_) => true,
        }
    }

    /// Whether all header fields have to be kept until a line is written.
    pub fn needs_headers(&self, wanted: &Logging) -> bool {
        self.format.needs_headers() || wanted.needs_headers()
    }

    /// Adds a line, where it is wanted; where the writer cannot keep up, it is dropped and counted.
    pub fn write(&self, entry: &Entry<'_>, wanted: &Logging) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        if !self.is_on(wanted) {
            return;
        }
        if let Logging::Where(filter) = wanted
            && !filter.holds(entry)
        {
            return;
        }
        let Some(queue) = self.queue.get_or_init(|| {
            let started = started(io::stdout());
            let told = started.inspect_err(|error| tracing::warn!(%error, "no access log"));
            told.ok()
        }) else {
            return;
        };
        LINE.with_borrow_mut(|line| {
            line.clear();
            self.format.write(entry, line);
            line.push(b'\n');
            queue.add(line);
        });
    }

    /// Lines that were written and that were dropped.
    pub fn counts(&self) -> (u64, u64) {
        self.queue().map_or((0, 0), Queue::counts)
    }

    /// Gives the lines that are left the time to get out.
    pub fn close(&self) {
        if let Some(queue) = self.queue() {
            queue.close(CLOSE_TIMEOUT);
        }
    }

    fn queue(&self) -> Option<&Queue> {
        self.queue.get()?.as_deref()
    }
}

/// A queue with a thread that writes what comes.
fn started(sink: impl Write + Send + 'static) -> io::Result<Arc<Queue>> {
    let queue = Arc::<Queue>::default();
    let taken = queue.clone();
    std::thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || taken.write_to(sink))?;
    Ok(queue)
}

#[cfg(test)]
mod tests {
    use super::super::expression::Expression;
    use super::*;

    #[test]
    fn a_fifo_that_nobody_reads_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let fifo = folder.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.expect("mkfifo runs").success());
        let open = || AccessLog::open(&fifo, Format::Default(Encoding::Json));
        assert_eq!(
            open().err().and_then(|error| error.raw_os_error()),
            Some(libc::ENXIO)
        );
        let _reader = crate::file::open(&fifo).expect("opened");
        assert!(open().is_ok());
    }

    #[test]
    fn lines_are_appended_whole_whoever_writes_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("access.log");
        std::fs::write(&file, "before\n").expect("written");
        let log =
            Arc::new(AccessLog::open(&file, Format::Default(Encoding::Json)).expect("opened"));
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let log = log.clone();
                std::thread::spawn(move || {
                    for number in 0..500 {
                        let entry = Entry {
                            response_code: 200 + thread,
                            bytes_sent: number,
                            ..Entry::default()
                        };
                        log.write(&entry, &Logging::AsStarted);
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
        assert!(!log.is_on(&Logging::AsStarted));
        log.write(&Entry::default(), &Logging::AsStarted);
        log.close();
        assert_eq!(log.counts(), (0, 0));
    }

    #[test]
    fn only_lines_that_are_wanted_are_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("access.log");
        let format = Format::parse("%RESPONSE_CODE%", Encoding::Text).expect("a format");
        let log = AccessLog::open(&file, format).expect("opened");
        let errors = Expression::parse("response.code >= 400").expect("a filter");
        let wanted = [
            Logging::AsStarted,
            Logging::Never,
            Logging::Where(Arc::new(errors)),
        ];
        for (response_code, wanted) in [200, 404]
            .into_iter()
            .flat_map(|code| wanted.iter().map(move |one| (code, one)))
        {
            let entry = Entry {
                method: Some("GET"),
                response_code,
                ..Entry::default()
            };
            log.write(&entry, wanted);
        }
        log.close();
        let text = std::fs::read_to_string(&file).expect("read");
        assert_eq!(text, "200\n404\n404\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error() {
        assert!(
            AccessLog::open(Path::new("/dev/null/x"), Format::Default(Encoding::Text)).is_err()
        );
    }
}
