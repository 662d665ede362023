//! Loading the cgroup programs and attaching them by pinned links.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::{CgroupSockAddr, CgroupSockopt, Program, SockOps};

use super::bpf::{AttachType, attach_pinned};
use super::{DatapathError, cgroup};

/// Folder of the links below the agent's bpffs folder.
pub(super) const LINKS: &str = "links";

/// Programs for the sockets of workloads.
const FOR_WORKLOADS: [(&str, AttachType); 12] = [
    // Before the others: a listener that opens in between is counted.
    ("um_sockops", AttachType::SockOps),
    ("um_bind4", AttachType::Bind4),
    ("um_bind6", AttachType::Bind6),
    ("um_getpeername4", AttachType::Getpeername4),
    ("um_getpeername6", AttachType::Getpeername6),
    ("um_original_dst", AttachType::Getsockopt),
    ("um_recvmsg4", AttachType::Recvmsg4),
    ("um_recvmsg6", AttachType::Recvmsg6),
    ("um_sendmsg4", AttachType::Sendmsg4),
    ("um_sendmsg6", AttachType::Sendmsg6),
    ("um_connect4", AttachType::Connect4),
    ("um_connect6", AttachType::Connect6),
];

/// The agent's own sockets carry original addresses, too.
const FOR_AGENT: [(&str, AttachType); 1] = [("um_sockops", AttachType::SockOps)];

/// Attaches everything, and removes links that are no longer wanted. Gives a
/// line for each program.
pub(super) fn attach(
    object: &mut Ebpf,
    folder: &Path,
    cgroup: &Path,
) -> Result<Vec<String>, DatapathError> {
    for (name, _) in FOR_WORKLOADS {
        load(object, name)?;
    }
    let mut wanted = HashSet::new();
    let mut lines = Vec::new();
    let mut at = |group: &Path, programs: &[(&str, AttachType)]| -> Result<(), DatapathError> {
        let failed = |action, path: &Path| {
            let path: PathBuf = path.to_owned();
            move |source| DatapathError::File {
                action,
                path,
                source,
            }
        };
        let directory = File::open(group).map_err(failed("open cgroup", group))?;
        let id = directory
            .metadata()
            .map_err(failed("read cgroup", group))?
            .ino();
        for (name, kind) in programs {
            let pin = format!("{name}_{id}");
            let program = object.program(name).ok_or_else(|| missing(name))?;
            let fd = program.fd().map_err(|error| refused(name, &error))?;
            attach_pinned(
                &folder.join(LINKS).join(&pin),
                fd.as_fd(),
                directory.as_fd(),
                *kind,
            )
            .map_err(failed("attach to", group))?;
            wanted.insert(pin);
            lines.push(format!("{name} at {}", group.display()));
        }
        Ok(())
    };
    at(cgroup, &FOR_WORKLOADS)?;
    if let Some(own) = cgroup::own_cgroup()
        && !own.starts_with(cgroup)
    {
        at(&own, &FOR_AGENT)?;
    }
    remove_others(&folder.join(LINKS), &wanted);
    Ok(lines)
}

/// Links of cgroups that an earlier agent was told to use.
fn remove_others(links: &Path, wanted: &HashSet<String>) {
    for entry in fs::read_dir(links).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(super::inbound::PREFIX) && !wanted.contains(&name) {
            // It is tried again at the next start.
            let _ = fs::remove_file(entry.path());
        }
    }
}

pub(super) fn missing(name: &str) -> DatapathError {
    DatapathError::Refused {
        what: format!("program {name}"),
        reason: "it is not in the object".to_owned(),
    }
}

pub(super) fn refused(name: &str, error: &dyn std::error::Error) -> DatapathError {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    DatapathError::Refused {
        what: format!("program {name}"),
        reason,
    }
}

fn load(object: &mut Ebpf, name: &str) -> Result<(), DatapathError> {
    let program = object.program_mut(name).ok_or_else(|| missing(name))?;
    let result = match program {
        Program::CgroupSockAddr(_) => {
            <&mut CgroupSockAddr>::try_from(program).and_then(CgroupSockAddr::load)
        }
        Program::SockOps(_) => <&mut SockOps>::try_from(program).and_then(SockOps::load),
        Program::CgroupSockopt(_) => {
            <&mut CgroupSockopt>::try_from(program).and_then(CgroupSockopt::load)
        }
        _ => return Err(missing(name)),
    };
    result.map_err(|error| refused(name, &error))
}
