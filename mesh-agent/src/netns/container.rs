//! The process of a container, by the container's id.
//!
//! Container runtimes name the control group of a container after its id:
//! `<id>`, `docker-<id>.scope`, `cri-containerd-<id>.scope`, `kubepods:cri-containerd:<id>`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

/// What was found for an id, or for its beginning.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No process is in such a container.
    Nothing,
    /// A process of the one container.
    Process(u32),
    /// Ids of several containers that begin so.
    Several(Vec<String>),
}

/// Looks at the control groups of all processes below `proc`.
pub(super) fn find(proc: &Path, id: &str) -> io::Result<Found> {
    let mut processes = Vec::new();
    for entry in fs::read_dir(proc)?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process may end while we look.
        let Ok(groups) = fs::read_to_string(entry.path().join("cgroup")) else {
            continue;
        };
        if let Some(member) = member(&groups, id) {
            processes.push((pid, member));
        }
    }
    Ok(choose(processes, id))
}

/// How a process belongs to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    /// Whole id of the container.
    container: String,
    /// Groups between the container's own and that of the process.
    depth: usize,
}

fn choose(processes: Vec<(u32, Member)>, id: &str) -> Found {
    let exact = processes.iter().any(|(_, member)| member.container == id);
    let of_one = |member: &Member| !exact || member.container == id;
    let ids: BTreeSet<&String> = processes
        .iter()
        .filter(|(_, member)| of_one(member))
        .map(|(_, member)| &member.container)
        .collect();
    if ids.len() > 1 {
        return Found::Several(ids.into_iter().cloned().collect());
    }
    // Deeper groups can be those of containers within the container.
    processes
        .iter()
        .filter(|(_, member)| of_one(member))
        .min_by_key(|(pid, member)| (member.depth, *pid))
        .map_or(Found::Nothing, |(pid, _)| Found::Process(*pid))
}

/// Reads the text of `/proc/<pid>/cgroup`: one hierarchy a line, `number:controllers:path`.
fn member(groups: &str, id: &str) -> Option<Member> {
    if id.is_empty() {
        return None;
    }
    groups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .find_map(|path| {
            let mut names = path.rsplit('/').enumerate();
            names.find_map(|(depth, name)| {
                let container = container(name, id)?;
                Some(Member { container, depth })
            })
        })
}

/// The id in the name of a group, where it begins with `id`.
fn container(name: &str, id: &str) -> Option<String> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let starts = std::iter::once(0).chain(
        name.match_indices(['-', ':'])
            .map(|(separator, _)| separator + 1),
    );
    let mut ids = starts.filter(|&start| {
        // `libpod-conmon-<id>` is the container's monitor, outside of it.
        name[start..].starts_with(id) && !name[..start].ends_with("conmon-")
    });
    ids.next().map(|start| name[start..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3fbc5f0ab1c2";

    fn in_group(path: &str) -> Option<Member> {
        member(&format!("0::{path}\n"), &ID[..6])
    }

    #[test]
    fn names_of_all_runtimes_are_understood() {
        for name in [
            ID.to_owned(),
            format!("docker-{ID}.scope"),
            format!("cri-containerd-{ID}.scope"),
            format!("libpod-{ID}.scope"),
            format!("kubepods-burstable-pod0f1e.slice:cri-containerd:{ID}"),
        ] {
            let expected = Member {
                container: ID.to_owned(),
                depth: 0,
            };
            assert_eq!(in_group(&format!("/x/{name}")), Some(expected), "{name}");
        }
        assert_eq!(
            in_group(&format!("/{ID}/init.scope")).map(|member| member.depth),
            Some(1)
        );
        for name in ["x", "x3fbc5f", &format!("libpod-conmon-{ID}.scope")] {
            assert_eq!(in_group(&format!("/{name}")), None, "{name}");
        }
        // An id may have hyphens, and version 1 has many lines.
        let groups = "4:memory:/um/web-3fb-1\n1:cpu:/\n0::/\n";
        assert_eq!(
            member(groups, "web-3fb-1").map(|member| member.depth),
            Some(0)
        );
        assert_eq!(member(groups, ""), None);
    }

    fn found(processes: &[(u32, &str, usize)], id: &str) -> Found {
        let processes = processes.iter().map(|(pid, container, depth)| {
            let container = (*container).to_owned();
            let depth = *depth;
            (*pid, Member { container, depth })
        });
        choose(processes.collect(), id)
    }

    #[test]
    fn the_beginning_of_an_id_must_tell_one_container() {
        let two = [(7, "abc1", 0), (8, "abc2", 0), (9, "abc2", 0)];
        assert_eq!(
            found(&two, "abc"),
            Found::Several(vec!["abc1".to_owned(), "abc2".to_owned()])
        );
        assert_eq!(found(&two[1..], "abc"), Found::Process(8));
        // The whole id of one, the beginning of another.
        assert_eq!(
            found(&[(7, "web", 0), (8, "web-2", 0)], "web"),
            Found::Process(7)
        );
        assert_eq!(found(&[], "abc"), Found::Nothing);
    }

    #[test]
    fn containers_within_the_container_are_not_meant() {
        assert_eq!(
            found(&[(7, "abc1", 2), (8, "abc1", 1)], "abc1"),
            Found::Process(8)
        );
    }
}
