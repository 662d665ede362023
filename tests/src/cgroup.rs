//! Control groups: they say which node a process belongs to.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::wait::wait_until;

/// How long the kernel may take to end what a group holds.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes a group below `parent`.
pub fn create(parent: &Path, name: &str) -> io::Result<PathBuf> {
    let path = parent.join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// Ends every process in the group and below, then removes all of it. Nothing
/// to do where it is not there.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::write(path.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => other?,
    }
    wait_until(EMPTY_TIMEOUT, || {
        fs::read_to_string(path.join("cgroup.events"))
            .map_or(true, |events| events.contains("populated 0"))
    });
    remove_folders(path)
}

/// Removes a group and those below, which hold no process. Nothing to do where it is not there.
pub fn remove_folders(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten() {
        if entry.file_type()?.is_dir() {
            remove_folders(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
