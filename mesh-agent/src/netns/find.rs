//! Namespaces by their cookie, for what an agent before this one has left.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Namespace;
use super::namespace::NAMED;

/// Those of `cookies` that still exist: by name, or because a process lives in
/// them. One that neither holds cannot be entered by anybody.
pub fn find(cookies: &HashSet<u64>) -> Vec<Namespace> {
    let named = files(Path::new(NAMED)).into_iter();
    let of_processes = files(Path::new("/proc"))
        .into_iter()
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
        })
        .map(|path| path.join("ns/net"));
    let mut seen = HashSet::new();
    named
        .chain(of_processes)
        .filter(|path| {
            fs::metadata(path).is_ok_and(|found| seen.insert((found.dev(), found.ino())))
        })
        .filter_map(|path| Namespace::of(File::open(&path).ok()?.into(), path).ok())
        .filter(|namespace| cookies.contains(&namespace.cookie()))
        .collect()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
