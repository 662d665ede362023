//! `mesh-agent uninstall`: nothing of the agent is left.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};

use super::UninstallOptions;
use super::takeover::{Draining, TakeoverSocket};
use crate::datapath::{Datapath, DatapathError};
use crate::identity::AUTHORITY_FILES;

/// `mesh-agent uninstall`.
///
/// # Errors
/// While an agent runs, unless it is forced; where something cannot be removed.
pub fn uninstall(options: &UninstallOptions) -> anyhow::Result<()> {
    match Datapath::check_unused(&options.bpffs) {
        Err(DatapathError::InUse { path }) if !options.force => bail!(
            "an agent runs with --bpffs {}: stop it first, or say --force",
            path.display()
        ),
        Err(DatapathError::InUse { .. }) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    Datapath::uninstall(&options.bpffs)
        .with_context(|| format!("cannot remove {}", options.bpffs.display()))?;
    let control = options.admin_socket();
    let drained = Draining::sockets(&control).into_iter();
    for socket in drained.chain([TakeoverSocket::path(&control), control]) {
        remove_file(&socket)?;
        // The directory may be of other agents, too.
        if let Some(directory) = socket.parent() {
            remove_if_empty(directory)?;
        }
    }
    if options.purge {
        for file in AUTHORITY_FILES {
            remove_file(&options.ca.join(file))?;
        }
        // What an operator has put there beside them is his own.
        remove_if_empty(&options.ca)?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_if_empty(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir(path) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
