//! Loading the cgroup programs and attaching them by pinned links.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::{CgroupSockAddr, CgroupSockopt, Program, SkMsg, SockOps};

use super::bpf::{self, AttachType};
use super::order::{AttachOrder, exclusive};
use super::{DatapathError, cgroup};
use crate::file;

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

/// The program of the short-circuit, and the map of its sockets.
const SPLICE: &str = "um_splice";
const SPLICED_SOCKETS: &str = "spliced_sockets";

/// The agent's own sockets carry original addresses, too.
const FOR_AGENT: [(&str, AttachType); 1] = [("um_sockops", AttachType::SockOps)];

/// What is attached.
pub(super) struct Attached {
    /// A line for each program, for people.
    pub(super) lines: Vec<String>,
    wanted: HashSet<String>,
}

/// Attaches everything.
pub(super) fn attach(
    object: &mut Ebpf,
    folder: &Path,
    cgroup: &Path,
    order: Option<AttachOrder>,
) -> Result<Attached, DatapathError> {
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
        let directory = file::open(group).map_err(failed("open cgroup", group))?;
        let id = directory
            .metadata()
            .map_err(failed("read cgroup", group))?
            .ino();
        for (name, kind) in programs {
            let pin = format!("{name}_{id}{}", order.map_or("", AttachOrder::suffix));
            let program = object.program(name).ok_or_else(|| missing(name))?;
            let fd = program.fd().map_err(|error| refused(name, &error))?;
            let path = folder.join(LINKS).join(&pin);
            if !bpf::replace_pinned(&path, fd.as_fd())
                .map_err(failed("replace a link of", group))?
            {
                let link =
                    create(fd.as_fd(), directory.as_fd(), *kind, order).map_err(|source| {
                        match exclusive(group, name, *kind, &source) {
                            Some(error) => error,
                            None if AttachOrder::is_unknown(order, &source) => {
                                DatapathError::NoOrder {
                                    cgroup: group.to_owned(),
                                }
                            }
                            None => failed("attach to", group)(source),
                        }
                    })?;
                bpf::pin(link.as_fd(), &path).map_err(failed("pin a link below", folder))?;
            }
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
    Ok(Attached { lines, wanted })
}

/// Loads the program of the short-circuit and attaches it to its sockets.
pub(super) fn attach_splice(object: &mut Ebpf) -> Result<(), DatapathError> {
    load(object, SPLICE)?;
    let program = object.program(SPLICE).ok_or_else(|| missing(SPLICE))?;
    let program = program.fd().map_err(|error| refused(SPLICE, &error))?;
    let sockets = match object.map(SPLICED_SOCKETS) {
        Some(Map::SockHash(sockets)) => sockets.fd(),
        _ => return Err(missing(SPLICED_SOCKETS)),
    };
    bpf::attach_to_sockets(program.as_fd(), sockets.as_fd())
        .map_err(|error| refused(SPLICE, &error))
}

/// A new link. Where nothing is asked for, in front of what others have
/// attached if the kernel can do that: we have to see the address that the
/// application asked for.
fn create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    kind: AttachType,
    order: Option<AttachOrder>,
) -> io::Result<OwnedFd> {
    match order {
        Some(order) => bpf::link_create(program, target, kind, order.flags()),
        None => bpf::link_create(program, target, kind, AttachOrder::First.flags())
            .or_else(|_| bpf::link_create(program, target, kind, AttachOrder::Last.flags())),
    }
}

/// Removes links of cgroups that an earlier agent was told to use. To be done
/// when no such agent carries connections any more.
pub(super) fn remove_others(folder: &Path, attached: &Attached) {
    let (links, wanted) = (folder.join(LINKS), &attached.wanted);
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
        Program::SkMsg(_) => <&mut SkMsg>::try_from(program).and_then(SkMsg::load),
        _ => return Err(missing(name)),
    };
    result.map_err(|error| refused(name, &error))
}
