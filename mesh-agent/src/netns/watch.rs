//! Tells when network namespaces may have come or gone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::namespace::NAMED;

/// How often to look without having been told: nobody tells of processes and containers.
const SLOW: Duration = Duration::from_secs(2);
/// How often to look after a name has come or gone. `ip netns add` makes the name
/// first and puts the namespace there a moment later, of which the kernel says nothing.
const FAST: Duration = Duration::from_millis(50);
/// How long it is looked at that often.
const SETTLE: Duration = Duration::from_millis(500);

/// Watches the names of network namespaces (inotify on the folder of `ip netns`).
pub struct NamespaceWatch {
    told: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    next: Instant,
    fast_until: Instant,
}

impl NamespaceWatch {
    /// Watches from now on.
    pub fn start() -> Self {
        let told = Arc::new(Notify::new());
        let watcher = watcher(&told);
        Self {
            told,
            watcher,
            next: Instant::now() + SLOW,
            fast_until: Instant::now(),
        }
    }

    /// Returns when it is time to look. Nothing is lost where it is dropped while it waits.
    pub async fn changed(&mut self) {
        tokio::select! {
            () = self.told.notified() => self.fast_until = Instant::now() + SETTLE,
            () = sleep_until(self.next) => {}
        }
        let now = Instant::now();
        self.next = now + if now < self.fast_until { FAST } else { SLOW };
        if self.watcher.is_none() {
            // The first `ip netns add` makes the folder.
            self.watcher = watcher(&self.told);
        }
    }
}

fn watcher(told: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let tell = told.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Opening a namespace, as this agent does, is no change.
        if event.map_or(true, |event| !event.kind.is_access()) {
            tell.notify_one();
        }
    })
    .ok()?;
    watcher
        .watch(Path::new(NAMED), RecursiveMode::NonRecursive)
        .ok()?;
    Some(watcher)
}
