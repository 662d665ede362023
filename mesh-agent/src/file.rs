//! Files that people name: opened without waiting, read whole, looked at again and again.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How often files are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Opens for reading, and does not wait for another end as FIFOs have it.
///
/// # Errors
/// As of open(2).
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// Reads a regular file, or one that links lead to.
///
/// # Errors
/// Where it cannot be read, is something else, or is larger than `max_bytes`.
pub(crate) fn read(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    // Before it is opened: to open a device may do something.
    must_be_regular(path.metadata()?.file_type())?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(max_bytes).map_or(u64::MAX, |max| max.saturating_add(1));
    open(path)?.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > max_bytes {
        let reason = format!("it is larger than {} MiB", max_bytes >> 20);
        return Err(io::Error::new(ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

/// The same of a text.
///
/// # Errors
/// As above, and where it is not UTF-8.
pub(crate) fn read_text(path: &Path, max_bytes: usize) -> io::Result<String> {
    String::from_utf8(read(path, max_bytes)?)
        .map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

fn must_be_regular(kind: FileType) -> io::Result<()> {
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    let reason = format!("it is {what}, not a regular file");
    Err(io::Error::new(ErrorKind::InvalidInput, reason))
}

/// What changes with a file: its number, the time of its last change and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(u64, i64, i64, u64);

/// The stamp of a file, where it is there.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    // Of contents and attributes, and nobody can set it: a mode counts, too.
    let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
    Some(Stamp(metadata.ino(), seconds, nanoseconds, metadata.len()))
}

/// Calls `changed` whenever `look` sees something else than before (`seen` at first), until `stop`.
pub(crate) async fn watch<T: PartialEq>(
    mut seen: T,
    look: impl Fn() -> T,
    changed: impl Fn(),
    stop: CancellationToken,
) {
    while stop
        .run_until_cancelled(tokio::time::sleep(INTERVAL))
        .await
        .is_some()
    {
        let now = look();
        if now != seen {
            seen = now;
            changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn regular_files_alone_are_read_also_through_links() {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "text").unwrap();
        symlink("file", at("link")).unwrap();
        assert_eq!(read_text(&at("link"), 4).unwrap(), "text");

        let made = Command::new("mkfifo").arg(at("fifo")).status().unwrap();
        assert!(made.success());
        symlink("fifo", at("link-to-fifo")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let too_large = read(&at("file"), 3).unwrap_err();
        assert_eq!(too_large.kind(), ErrorKind::FileTooLarge);
        for (path, what) in [
            (at("fifo"), "a FIFO"),
            (at("link-to-fifo"), "a FIFO"),
            (at("socket"), "a socket"),
            (at("."), "a directory"),
            ("/dev/zero".into(), "a device"),
        ] {
            let error = read(&path, 1 << 20).unwrap_err().to_string();
            assert_eq!(error, format!("it is {what}, not a regular file"));
        }
    }

    #[test]
    fn a_stamp_changes_with_contents_and_mode() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("file");
        assert_eq!(stamp(&path), None);
        fs::write(&path, "a").unwrap();
        let first = stamp(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let second = stamp(&path);
        assert_ne!(first, second);
        fs::write(&path, "ab").unwrap();
        assert_ne!(second, stamp(&path));
    }
}
