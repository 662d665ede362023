//! One `sk_lookup` instance per workload namespace.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::SkLookup;
use mesh_common::KernelLayout;

use super::bpf::{self, AttachType};
use super::programs::{LINKS, missing, refused};
use super::{DatapathError, LogLevel, maps};
use crate::netns::Namespace;

const PROGRAM: &str = "um_inbound";
/// Links are named after the namespace's cookie.
pub(super) const PREFIX: &str = "um_inbound_";

/// Loads an instance for the namespace (its cookie is a constant of the
/// program) and attaches it.
pub(super) fn attach(
    folder: &Path,
    kernel: &KernelLayout,
    namespace: &Namespace,
    log: LogLevel,
) -> Result<(), DatapathError> {
    let cookie = namespace.cookie();
    let fd = load(folder, kernel, cookie, log)?;
    let path = path(folder, cookie);
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
pub(super) fn replace_all(
    folder: &Path,
    kernel: &KernelLayout,
    log: LogLevel,
) -> Result<(), DatapathError> {
    for (cookie, is_alive) in attached(folder) {
        if !is_alive {
            continue;
        }
        let fd = load(folder, kernel, cookie, log)?;
        let path = path(folder, cookie);
        // A namespace that has just gone has taken its link with it.
        bpf::replace_pinned(&path, fd.as_fd()).map_err(|source| DatapathError::File {
            action: "replace",
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

fn load(
    folder: &Path,
    kernel: &KernelLayout,
    cookie: u64,
    log: LogLevel,
) -> Result<OwnedFd, DatapathError> {
    let mut object = maps::open_object(folder, kernel, Some(cookie), log)?;
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
