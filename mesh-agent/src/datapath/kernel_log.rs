//! Log lines of the kernel programs. The programs that run have none. While the
//! operator asks for them (`knobs`, or `meshctl kernel-log`), the same programs
//! with log lines run in their place, at the level that was asked for: the
//! verifier removes the lines of the levels beyond.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::Ebpf;
use aya_log::EbpfLogger;
use mesh_common::Knob;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::task::AbortOnDropHandle;

use super::{Datapath, DatapathError, inbound, maps, programs};

/// The map that programs with log lines have.
pub(super) const MAP: &str = "AYA_LOGS";
/// Their constant.
pub(super) const LEVEL: &str = aya_log::LEVEL;
/// Where the map is pinned while there are lines: all instances of the programs share it.
const PIN: &str = "kernel_log";

/// How much the kernel programs say. The numbers are those of the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LogLevel {
    /// Nothing, which costs nothing.
    #[default]
    Off = 0,
    /// What must not happen.
    Error = 1,
    /// What is dropped for want of an agent.
    Warn = 2,
    /// What is refused.
    Info = 3,
    /// What becomes of each connection.
    Debug = 4,
    /// What is left alone, too.
    Trace = 5,
}

impl LogLevel {
    /// All levels.
    pub const ALL: [Self; 6] = [
        Self::Off,
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
    ];

    /// The level of a switch; beyond the last it is the last.
    fn of(knob: u32) -> Self {
        let last = Self::ALL.len() - 1;
        Self::ALL[(knob as usize).min(last)]
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|level| level.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no level: off, error, warn, info, debug, trace"))
    }
}

/// Which programs run.
#[derive(Default)]
pub(super) struct KernelLog {
    /// What was asked for last. It is not tried again where it did not work.
    wanted: AtomicU32,
    /// What the programs that run say. Loading others takes a while: nobody waits
    /// for the lock who only wants to know.
    level: AtomicU32,
    running: Mutex<Running>,
}

/// Held while programs are loaded.
#[derive(Default)]
pub(super) struct Running {
    level: LogLevel,
    reader: Option<AbortOnDropHandle<()>>,
}

impl KernelLog {
    /// Nobody replaces the programs meanwhile.
    pub(super) fn hold(&self) -> MutexGuard<'_, Running> {
        self.running.lock()
    }
}

impl Running {
    /// What programs that are loaded now are to say.
    pub(super) fn level(&self) -> LogLevel {
        self.level
    }
}

/// Where the map of log lines is pinned.
pub(super) fn pin(folder: &Path) -> PathBuf {
    folder.join(PIN)
}

impl Datapath {
    /// What the kernel programs say.
    pub fn kernel_log(&self) -> LogLevel {
        LogLevel::of(self.log.level.load(Ordering::Relaxed))
    }

    /// Changes it. Connections that are being made meet the old programs or the new ones.
    ///
    /// # Errors
    /// Where the kernel refuses the programs with log lines; the others stay.
    pub fn set_kernel_log(&self, level: LogLevel) -> Result<(), DatapathError> {
        self.maps.set_knob(Knob::LogLevel, level as u32)?;
        self.follow_kernel_log()
    }

    /// Whether the switch has been changed: [`Self::follow_kernel_log`] has something to do.
    pub fn kernel_log_is_to_change(&self) -> bool {
        LogLevel::of(self.knob(Knob::LogLevel)) as u32 != self.log.wanted.load(Ordering::Relaxed)
    }

    /// Does what the switch says, where it has been changed. Takes as long as loading programs.
    ///
    /// # Errors
    /// As above, once.
    pub fn follow_kernel_log(&self) -> Result<(), DatapathError> {
        let wanted = LogLevel::of(self.knob(Knob::LogLevel));
        let before = self.log.wanted.swap(wanted as u32, Ordering::Relaxed);
        let mut log = self.log.hold();
        if before == wanted as u32 || log.level == wanted {
            return Ok(());
        }
        if log.reader.is_none() {
            // An agent that was killed has left it.
            let _ = fs::remove_file(pin(self.folder()));
        }
        let mut object = self.objects.open(None, wanted)?;
        let reader = match wanted {
            LogLevel::Off => None,
            _ if log.reader.is_some() => log.reader.take(),
            // The programs refer to the map by the descriptor that the reader has.
            _ => Some(read(&mut object)?),
        };
        let replaced = programs::attach(&mut object, self.folder(), &self.cgroup, self.order)
            .and_then(|_| inbound::replace_all(&self.objects, wanted));
        match replaced {
            Ok(()) => {
                log.level = wanted;
                self.log.level.store(wanted as u32, Ordering::Relaxed);
                log.reader = reader;
                if wanted == LogLevel::Off {
                    let _ = fs::remove_file(pin(self.folder()));
                }
                tracing::info!(level = %wanted, "the kernel programs' log has another level");
                Ok(())
            }
            Err(error) => {
                log.reader = reader.filter(|_| log.level != LogLevel::Off);
                Err(error)
            }
        }
    }
}

/// Passes the programs' log lines on to the agent's log until the handle is dropped.
fn read(object: &mut Ebpf) -> Result<AbortOnDropHandle<()>, DatapathError> {
    let logger =
        EbpfLogger::init_with_logger(object, Lines).map_err(|error| maps::refused(MAP, &error))?;
    let reader = tokio::spawn(async move {
        // SAFETY: the logger keeps its descriptor, always the same, open for as long as it lives.
        let registered = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
        let mut logger = match registered {
            Ok(logger) => logger,
            Err(error) => {
                tracing::warn!(%error, "the kernel programs' log cannot be read");
                return;
            }
        };
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(AbortOnDropHandle::new(reader))
}

/// The kernel's lines in the agent's log. Whoever has asked for them wants to
/// see them, whatever the level of the agent's own log.
struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let level = record.level().as_str().to_ascii_lowercase();
        tracing::info!(target: "kernel", level, "{}", record.args());
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_names_and_numbers() {
        for (number, level) in LogLevel::ALL.into_iter().enumerate() {
            assert_eq!(level as usize, number);
            assert_eq!(LogLevel::of(number as u32), level);
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert_eq!(LogLevel::of(77), LogLevel::Trace);
        let error = "loud".parse::<LogLevel>().unwrap_err();
        assert!(
            error.starts_with("\"loud\" is no level: off, error"),
            "{error}"
        );
    }
}
