//! One `sk_lookup` instance per workload namespace.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use aya::programs::SkLookup;

use super::bpf::{AttachType, attach_pinned};
use super::programs::{LINKS, missing, refused};
use super::{DatapathError, maps};
use crate::netns::Namespace;

const PROGRAM: &str = "um_inbound";
/// Links are named after the namespace's cookie.
pub(super) const PREFIX: &str = "um_inbound_";

/// Loads an instance for the namespace (its cookie is a constant of the
/// program) and attaches it.
pub(super) fn attach(folder: &Path, namespace: &Namespace) -> Result<(), DatapathError> {
    let cookie = namespace.cookie();
    let mut object = maps::open_object(folder, Some(cookie))?;
    let program = object
        .program_mut(PROGRAM)
        .ok_or_else(|| missing(PROGRAM))?;
    let program: &mut SkLookup = program
        .try_into()
        .map_err(|error| refused(PROGRAM, &error))?;
    program.load().map_err(|error| refused(PROGRAM, &error))?;
    let fd = program.fd().map_err(|error| refused(PROGRAM, &error))?;
    let path = folder.join(LINKS).join(format!("{PREFIX}{cookie}"));
    attach_pinned(&path, fd.as_fd(), namespace.as_fd(), AttachType::SkLookup).map_err(|source| {
        DatapathError::File {
            action: "attach",
            path,
            source,
        }
    })
}

pub(super) fn detach(folder: &Path, cookie: u64) {
    // Gone already is as good.
    let _ = fs::remove_file(folder.join(LINKS).join(format!("{PREFIX}{cookie}")));
}
