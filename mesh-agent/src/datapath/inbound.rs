//! One `sk_lookup` instance per workload namespace.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::bpf::{self, AttachType};
use super::object::Objects;
use super::programs::{LINKS, missing, refused};
use super::{DatapathError, LogLevel};
use crate::netns::Namespace;
use aya::programs::SkLookup;

const PROGRAM: &str = "um_inbound";
/// Links are named after the namespace's cookie.
pub(super) const PREFIX: &str = "um_inbound_";

/// Loads an instance for the namespace (its cookie is a constant of the
/// program) and attaches it.
pub(super) fn attach(
    objects: &Objects,
    namespace: &Namespace,
    log: LogLevel,
) -> Result<(), DatapathError> {
    let cookie = namespace.cookie();
    let fd = load(objects, cookie, log)?;
    let path = path(objects.folder(), cookie);
    let attached = || {
        if bpf::replace_pinned(&path, fd.as_fd())? {
            return Ok(());
        }
        let link = bpf::link_create(fd.as_fd(), namespace.as_fd(), AttachType::SkLookup, 0)?;
        bpf::pin(link.as_fd(), &path)
    };
    attached().map_err(|source| DatapathError::File {
        action: "attach",
        path: path.clone(),
        source,
    })
}

/// Loads all instances again and puts them in the place of those that run.
pub(super) fn replace_all(objects: &Objects, log: LogLevel) -> Result<(), DatapathError> {
    for (cookie, is_alive) in attached(objects.folder()) {
        if !is_alive {
            continue;
        }
        let fd = load(objects, cookie, log)?;
        let path = path(objects.folder(), cookie);
        // A namespace that has just gone has taken its link with it.
        bpf::replace_pinned(&path, fd.as_fd()).map_err(|source| DatapathError::File {
            action: "replace",
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

fn load(objects: &Objects, cookie: u64, log: LogLevel) -> Result<OwnedFd, DatapathError> {
    let mut object = objects.open(Some(cookie), log)?;
    let program = object
        .program_mut(PROGRAM)
        .ok_or_else(|| missing(PROGRAM))?;
    let program: &mut SkLookup = program
        .try_into()
        .map_err(|error| refused(PROGRAM, &error))?;
    program.load().map_err(|error| refused(PROGRAM, &error))?;
    let fd = program.fd().map_err(|error| refused(PROGRAM, &error))?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|error| refused(PROGRAM, &error))
}

fn path(folder: &Path, cookie: u64) -> PathBuf {
    folder.join(LINKS).join(format!("{PREFIX}{cookie}"))
}

/// Cookies of the namespaces that instances are attached to, and whether each
/// of them still exists.
pub(super) fn attached(folder: &Path) -> Vec<(u64, bool)> {
    let entries = fs::read_dir(folder.join(LINKS)).into_iter().flatten();
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let cookie = name.to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
            let alive = bpf::open_pin(&entry.path())
                .and_then(|link| bpf::has_namespace(link.as_fd()))
                .unwrap_or(false);
            Some((cookie, alive))
        })
        .collect()
}

pub(super) fn detach(folder: &Path, cookie: u64) {
    // Gone already is as good.
    let _ = fs::remove_file(path(folder, cookie));
}
