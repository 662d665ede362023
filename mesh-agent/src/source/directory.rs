//! A directory of YAML and JSON files, watched for change.
//!
//! The kernel tells of changes (inotify), and a slow look at the files' times
//! finds what it does not tell of: files behind links that lead out of the
//! directory, file systems without inotify, a directory that was replaced.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Loaded, State, Texts};
use crate::file;
use crate::resource::{Cache, MAX_FILE_BYTES, Reading};

/// How long the directory must be at rest before it is read: writers often
/// change several files, or one file in several steps.
const QUIET: Duration = Duration::from_millis(100);
/// How long a directory that never rests is left unread.
const MAX_DELAY: Duration = Duration::from_millis(500);
/// How often changes are looked for that the kernel did not tell of.
const RESCAN: Duration = Duration::from_secs(2);
/// Deepest nesting of directories, which also ends circles of links.
const MAX_DEPTH: usize = 16;
/// Most files that are read.
const MAX_FILES: usize = 100_000;

/// Reads the directory now. What cannot be read is among the findings.
pub fn load(dir: &Path) -> Loaded {
    Listing::of(dir).read().parse(&mut Cache::default())
}

/// Reads the directory now and whenever it changes; the first message is what
/// it holds now. States that are the same as the last one are left out.
/// Watching ends when the receiver is dropped.
///
/// # Errors
/// When `dir` is not a directory that can be listed. Later errors are findings.
pub async fn watch(dir: impl Into<PathBuf>) -> io::Result<mpsc::Receiver<State>> {
    let dir = dir.into();
    fs::read_dir(&dir)?;
    // One state waits; a slow receiver gets the newest after it.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(follow(dir, sender));
    Ok(receiver)
}

async fn follow(dir: PathBuf, sender: mpsc::Sender<State>) {
    let changed = Arc::new(Notify::new());
    // Watching starts before the first reading, so that nothing falls between.
    let mut watcher = watcher(&dir, &changed);
    let mut last = Last::default();
    let mut cache = Cache::default();
    loop {
        let (listing, texts) = read(dir.clone()).await;
        let fingerprint = texts.fingerprint();
        if last.fingerprint != Some(fingerprint) {
            let state;
            (state, cache) = blocking(move || (State::of(texts, &mut cache), cache)).await;
            let Reading { read, reused } = cache.last();
            tracing::debug!(read, reused, "configuration files read");
            if sender.send(state).await.is_err() {
                return;
            }
        }
        last = Last {
            listing,
            fingerprint: Some(fingerprint),
        };

        if wait(&dir, &changed, &last.listing, &sender).await == Change::Unannounced {
            // The kernel watches something else than what is there now.
            watcher = self::watcher(&dir, &changed);
        }
        if sender.is_closed() {
            drop(watcher);
            return;
        }
    }
}

/// What was last read.
#[derive(Default)]
struct Last {
    listing: Listing,
    fingerprint: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// The kernel told of it, or the receiver is gone.
    Announced,
    /// Only the files' times show it.
    Unannounced,
}

/// Waits for a change, and for the rest after it.
async fn wait(
    dir: &Path,
    changed: &Notify,
    last: &Listing,
    sender: &mpsc::Sender<State>,
) -> Change {
    loop {
        tokio::select! {
            () = sender.closed() => return Change::Announced,
            () = changed.notified() => break,
            () = sleep(RESCAN) => {
                let dir = dir.to_owned();
                if blocking(move || Listing::of(&dir)).await != *last {
                    return Change::Unannounced;
                }
            }
        }
    }
    let latest = Instant::now() + MAX_DELAY;
    loop {
        let quiet = latest.min(Instant::now() + QUIET);
        tokio::select! {
            () = sleep_until(quiet) => return Change::Announced,
            () = changed.notified() => {}
        }
    }
}

async fn read(dir: PathBuf) -> (Listing, Texts) {
    blocking(move || {
        let listing = Listing::of(&dir);
        let texts = listing.read();
        (listing, texts)
    })
    .await
}

/// Runs file-system work, or work that takes long, off the asynchronous threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Watches the directory. Where that fails, the slow look remains.
fn watcher(dir: &Path, changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let tell = changed.clone();
    let watching = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |event| may_change(event.kind)) {
            tell.notify_one();
        }
    })
    .and_then(|mut watcher| {
        watcher.watch(dir, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    match watching {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(
                dir = %dir.display(), %error, interval = ?RESCAN,
                "configuration is not watched, only looked at",
            );
            None
        }
    }
}

/// Whether an event may mean other contents. The agent's own reading is an
/// event too, and must not lead to the next reading.
fn may_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// The files of a directory, in the order of their paths, and what could not
/// be listed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Listing {
    files: Vec<Entry>,
    errors: Vec<(String, String)>,
}

/// A file, and what of it changes when its contents do.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Path below the directory, for messages.
    name: String,
    path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds of the last change of contents or attributes.
    changed: (i64, i64),
}

impl Listing {
    fn of(dir: &Path) -> Self {
        let mut listing = Self::default();
        listing.add(dir, "", 0);
        listing.files.sort();
        listing
    }

    fn add(&mut self, dir: &Path, prefix: &str, depth: usize) {
        let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.error(prefix, format!("cannot be listed: {error}")),
        };
        for entry in entries {
            let file_name = entry.file_name();
            let file_name = file_name.to_string_lossy();
            // Hidden: editors' temporary files, and the directories to which
            // Kubernetes' links lead in a mounted ConfigMap.
            if file_name.starts_with('.') {
                continue;
            }
            let name = format!("{prefix}{file_name}");
            let path = entry.path();
            // Follows links.
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                // Gone since, or a link to nothing.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    self.error(&name, format!("cannot be read: {error}"));
                    continue;
                }
            };
            if metadata.is_dir() {
                if depth < MAX_DEPTH {
                    self.add(&path, &format!("{name}/"), depth + 1);
                } else {
                    self.error(&name, format!("lies deeper than {MAX_DEPTH} directories"));
                }
            } else if is_resource_file(&path) {
                if self.files.len() == MAX_FILES {
                    return self.error(&name, format!("there are more than {MAX_FILES} files"));
                }
                self.files.push(Entry {
                    name,
                    path,
                    device: metadata.dev(),
                    inode: metadata.ino(),
                    bytes: metadata.len(),
                    changed: (metadata.ctime(), metadata.ctime_nsec()),
                });
            }
        }
    }

    fn error(&mut self, name: &str, reason: String) {
        let name = if name.is_empty() { "." } else { name };
        self.errors.push((name.to_owned(), reason));
    }

    fn read(&self) -> Texts {
        let mut texts = Texts {
            files: Vec::with_capacity(self.files.len()),
            unread: self.errors.clone(),
        };
        for entry in &self.files {
            match file::read_text(&entry.path, MAX_FILE_BYTES) {
                Ok(text) => texts.files.push((entry.name.clone(), text)),
                // Gone since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let reason = format!("cannot be read: {error}");
                    texts.unread.push((entry.name.clone(), reason));
                }
            }
        }
        texts
    }
}

fn is_resource_file(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    /// A state must be there this soon after a change.
    const LIVE: Duration = Duration::from_secs(1);

    fn service(name: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
             spec: {{clusterIP: None, selector: {{app: {name}}}}}}}\n"
        )
    }

    fn names(loaded: &Loaded) -> Vec<&str> {
        let services = &loaded.as_ref().unwrap().services;
        services
            .iter()
            .map(|service| service.meta.name.as_str())
            .collect()
    }

    async fn next(states: &mut mpsc::Receiver<State>) -> Loaded {
        let state = timeout(LIVE, states.recv()).await;
        state.expect("a state in time").unwrap().loaded
    }

    #[test]
    fn files_are_read_in_order_of_their_paths() {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        fs::create_dir(at(".hidden")).unwrap();
        for (file, name) in [
            ("z.yml", "z"),
            ("a.yaml", "a"),
            ("sub/m.json", "not-json"),
            (".swap.yaml", "hidden"),
            (".hidden/b.yaml", "hidden"),
            ("notes.txt", "text"),
            ("a.yaml~", "backup"),
        ] {
            fs::write(at(file), service(name)).unwrap();
        }
        let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"m"},"spec":{"clusterIP":"None"}}"#;
        fs::write(at("sub/m.json"), json).unwrap();
        let loaded = load(dir.path());
        assert_eq!(names(&loaded), ["a", "m", "z"]);
        let services = loaded.unwrap().services;
        assert_eq!(
            services[1].meta.origin.to_string(),
            "sub/m.json, document 1"
        );
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("a.yaml"), b"a: \xff").unwrap();
        let findings = load(dir.path()).unwrap_err();
        assert!(
            findings[0]
                .to_string()
                .starts_with("a.yaml: cannot be read: ")
        );
        let findings = load(&dir.path().join("gone")).unwrap_err();
        assert!(findings[0].to_string().starts_with(".: cannot be listed: "));
    }

    #[test]
    fn circles_of_links_end() {
        let dir = TempDir::new().unwrap();
        symlink(".", dir.path().join("again")).unwrap();
        assert!(load(dir.path()).is_err());
    }

    #[tokio::test]
    async fn changes_are_live_within_a_second() {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a.yaml"), service("a")).unwrap();
        let mut states = watch(dir.path()).await.unwrap();
        assert_eq!(names(&next(&mut states).await), ["a"]);

        fs::write(at("b.yaml"), service("b")).unwrap();
        assert_eq!(names(&next(&mut states).await), ["a", "b"]);

        fs::write(at("b.yaml"), "kind: [").unwrap();
        let findings = next(&mut states).await.unwrap_err();
        assert!(findings[0].to_string().starts_with("b.yaml, document 1: "));

        fs::create_dir(at("sub")).unwrap();
        fs::write(at("sub/c.yaml"), service("c")).unwrap();
        fs::write(at("new"), service("b2")).unwrap();
        fs::rename(at("new"), at("b.yaml")).unwrap();
        assert_eq!(names(&next(&mut states).await), ["a", "b2", "c"]);

        fs::remove_file(at("a.yaml")).unwrap();
        assert_eq!(names(&next(&mut states).await), ["b2", "c"]);
    }

    #[tokio::test]
    async fn reading_and_empty_changes_are_no_news() {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
        let mut states = watch(dir.path()).await.unwrap();
        next(&mut states).await.unwrap();
        fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
        fs::write(dir.path().join("notes.txt"), "x").unwrap();
        let quiet = timeout(MAX_DELAY + RESCAN, states.recv()).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }

    /// Kubernetes mounts a ConfigMap as links through `..data`, and changes it
    /// by replacing that one link.
    #[tokio::test]
    async fn a_config_map_changes_at_once() {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        for version in ["..1", "..2"] {
            fs::create_dir(at(version)).unwrap();
        }
        fs::write(at("..1/a.yaml"), service("one")).unwrap();
        fs::write(at("..2/a.yaml"), service("two")).unwrap();
        symlink("..1", at("..data")).unwrap();
        symlink("..data/a.yaml", at("a.yaml")).unwrap();
        let mut states = watch(dir.path()).await.unwrap();
        assert_eq!(names(&next(&mut states).await), ["one"]);

        symlink("..2", at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
        assert_eq!(names(&next(&mut states).await), ["two"]);
    }

    #[tokio::test]
    async fn changes_that_the_kernel_does_not_tell_are_found() {
        let (dir, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let target = elsewhere.path().join("a.yaml");
        fs::write(&target, service("one")).unwrap();
        symlink(&target, dir.path().join("a.yaml")).unwrap();
        let mut states = watch(dir.path()).await.unwrap();
        assert_eq!(names(&next(&mut states).await), ["one"]);

        fs::write(&target, service("two")).unwrap();
        let found = timeout(RESCAN + LIVE, states.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(names(&found.loaded), ["two"]);
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_cannot_be_watched() {
        let dir = TempDir::new().unwrap();
        assert!(watch(dir.path().join("gone")).await.is_err());
    }
}
