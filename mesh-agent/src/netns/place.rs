//! Where a workload's sockets are: a namespace of its own, or a control group
//! in the host's.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Namespace, NamespaceError};
use crate::registry::Placement;

/// What the kernel tells a workload by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Id of the control group in the host's own namespace; `None` for a whole namespace.
    pub cgroup_id: Option<u64>,
}

/// A control group (cgroup2) whose processes are a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its directory.
    pub path: PathBuf,
    /// Its id, which is the inode number of the directory.
    pub id: u64,
    /// How many groups are above it, the root included.
    pub level: u32,
}

impl Cgroup {
    /// The group at `path`: below the mount point, or a directory of it.
    ///
    /// # Errors
    /// Where it is missing, the root, or no control group.
    pub fn open(mount: &Path, path: &str) -> Result<Self, NamespaceError> {
        let what = format!("control group {path}");
        let below = Path::new(path).strip_prefix(mount).map_or_else(
            |_| PathBuf::from(path.trim_start_matches('/')),
            Path::to_path_buf,
        );
        let level = below
            .components()
            .filter(|component| matches!(component, Component::Normal(_)))
            .count();
        let path = mount.join(below);
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => NamespaceError::Missing { what: what.clone() },
            _ => NamespaceError::Io {
                action: "open",
                what: what.clone(),
                source,
            },
        };
        let found = fs::metadata(&path).map_err(failed)?;
        if level == 0 || !path.join("cgroup.events").exists() {
            let reason = "it is the root of the hierarchy, or no control group";
            return Err(failed(io::Error::other(reason)));
        }
        Ok(Self {
            path,
            id: found.ino(),
            level: u32::try_from(level).unwrap_or(u32::MAX),
        })
    }
}

/// Where a workload was found.
#[derive(Debug)]
pub struct Location {
    /// Its network namespace.
    pub namespace: Namespace,
    /// Its control group, where the namespace is the host's own.
    pub cgroup: Option<Cgroup>,
}

impl Location {
    /// Looks for a workload; `cgroup2` is where the hierarchy is mounted.
    ///
    /// # Errors
    /// Where it is missing or cannot be entered.
    pub fn find(placement: &Placement, cgroup2: &Path) -> Result<Self, NamespaceError> {
        match placement {
            Placement::Cgroup(path) => Ok(Self {
                cgroup: Some(Cgroup::open(cgroup2, path)?),
                namespace: Namespace::host()?,
            }),
            _ => Ok(Self {
                namespace: Namespace::open(placement)?,
                cgroup: None,
            }),
        }
    }

    /// Whether `placement` still means this place.
    pub fn is_at(&self, placement: &Placement, cgroup2: &Path) -> bool {
        match (placement, &self.cgroup) {
            (Placement::Cgroup(path), Some(cgroup)) => {
                Cgroup::open(cgroup2, path).is_ok_and(|now| now.id == cgroup.id)
            }
            (_, None) => self.namespace.is_at(placement),
            (_, Some(_)) => false,
        }
    }

    /// What the kernel tells it by.
    pub fn place(&self) -> Place {
        Place {
            netns_cookie: self.namespace.cookie(),
            cgroup_id: self.cgroup.as_ref().map(|cgroup| cgroup.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_named_by_its_path_in_the_hierarchy_or_on_the_machine() {
        let mount = tempfile::tempdir().unwrap();
        let group = mount.path().join("system.slice/web.service");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cgroup.events"), "populated 1").unwrap();
        for path in ["/system.slice/web.service", group.to_str().unwrap()] {
            let found = Cgroup::open(mount.path(), path).unwrap();
            assert_eq!((found.level, &found.path), (2, &group), "{path}");
        }
        let error = Cgroup::open(mount.path(), "/system.slice/gone.service").unwrap_err();
        assert_eq!(
            error.to_string(),
            "control group /system.slice/gone.service is not there"
        );
        let error = Cgroup::open(mount.path(), "/").unwrap_err();
        assert!(error.to_string().contains("root"), "{error}");
    }
}
