//! Tells a supervisor (systemd, by sd_notify(3)) that the agent is up, that it
//! still is, and that it goes: a unit with `WatchdogSec=` whose agent hangs is
//! started again.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// Where the supervisor listens, a path or an abstract name with `@`.
const SOCKET: &str = "NOTIFY_SOCKET";
/// Within how many microseconds it wants to hear of us.
const WATCHDOG: &str = "WATCHDOG_USEC";

/// Who has started the agent, if that wants to know.
pub(super) struct Supervisor {
    socket: Option<UnixDatagram>,
    watchdog: Option<Watchdog>,
}

struct Watchdog {
    every: Duration,
    last: Option<Instant>,
}

impl Supervisor {
    /// As the environment says; nobody where it says nothing that can be used.
    pub(super) fn find() -> Self {
        let text = |name| std::env::var(name).ok();
        Self::new(text(SOCKET).as_deref(), text(WATCHDOG).as_deref())
    }

    fn new(name: Option<&str>, watchdog_us: Option<&str>) -> Self {
        let connect = |name: &str| {
            let address = match name.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(name)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            // A supervisor that does not read must not hold the agent up.
            socket.set_nonblocking(true)?;
            std::io::Result::Ok(socket)
        };
        let socket = name.and_then(|name| {
            connect(name)
                .inspect_err(|error| tracing::warn!(name, %error, "NOTIFY_SOCKET cannot be used"))
                .ok()
        });
        let every = watchdog_us.and_then(|text| text.parse().ok()).map(|limit| {
            // Half of it, as sd_watchdog_enabled(3) recommends.
            Duration::from_micros(limit) / 2
        });
        Self {
            socket,
            watchdog: every.map(|every| Watchdog { every, last: None }),
        }
    }

    /// The agent serves its workloads. It may be another process than the one
    /// that was started: one that has taken over.
    pub(super) fn ready(&self) {
        self.say(&format!("READY=1\nMAINPID={}", std::process::id()));
    }

    /// The agent does not hang. To be called often; it is said as often as it is asked for.
    pub(super) fn alive(&mut self) {
        let Some(watchdog) = &mut self.watchdog else {
            return;
        };
        let is_due = (watchdog.last).is_none_or(|last| last.elapsed() >= watchdog.every);
        if is_due {
            watchdog.last = Some(Instant::now());
            self.say("WATCHDOG=1");
        }
    }

    /// The agent ends.
    pub(super) fn stopping(&self) {
        self.say("STOPPING=1");
    }

    fn say(&self, what: &str) {
        if let Some(socket) = &self.socket {
            // It is for the supervisor's own good.
            let _ = socket.send(what.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 100];
        std::iter::from_fn(|| {
            let size = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..size]).into_owned())
        })
        .collect()
    }

    #[test]
    fn a_supervisor_hears_what_it_has_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let own = format!("undermesh-test-{}", std::process::id());
        let of_path = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_abstract_name(&own).unwrap();
        let of_name = UnixDatagram::bind_addr(&address).unwrap();
        let ready = format!("READY=1\nMAINPID={}", std::process::id());
        for (name, socket) in [
            (path.to_str().unwrap().to_owned(), of_path),
            (format!("@{own}"), of_name),
        ] {
            let mut supervisor = Supervisor::new(Some(&name), Some("60000000"));
            supervisor.ready();
            supervisor.alive();
            supervisor.alive();
            supervisor.stopping();
            assert_eq!(heard(&socket), [&*ready, "WATCHDOG=1", "STOPPING=1"]);
            // Without `WatchdogSec=`.
            let mut supervisor = Supervisor::new(Some(&name), None);
            supervisor.alive();
            assert!(heard(&socket).is_empty());
        }
        // Nobody.
        let mut nobody = Supervisor::new(None, Some("1"));
        nobody.ready();
        nobody.alive();
    }
}
