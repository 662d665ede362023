//! One agent at a time works with a folder of bpffs.

use std::fs::{File, TryLockError};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::DatapathError;

/// Holds the folder (flock(2)) until it is dropped. It belongs to the open file:
/// a process that was handed the descriptor holds it too.
#[derive(Debug)]
pub(super) struct FolderLock(File);

impl FolderLock {
    pub(super) fn acquire(folder: &Path) -> Result<Self, DatapathError> {
        let failed = |source| DatapathError::File {
            action: "lock",
            path: folder.to_owned(),
            source,
        };
        let file = File::open(folder).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(DatapathError::InUse {
                path: folder.to_owned(),
            }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    pub(super) fn inherit(lock: OwnedFd) -> Self {
        Self(lock.into())
    }

    pub(super) fn share(&self) -> std::io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_until_the_last_descriptor_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let first = FolderLock::acquire(directory.path()).unwrap();
        let shared = FolderLock::inherit(first.share().unwrap());
        drop(first);
        let error = FolderLock::acquire(directory.path()).unwrap_err();
        assert!(matches!(error, DatapathError::InUse { .. }), "{error}");
        drop(shared);
        FolderLock::acquire(directory.path()).unwrap();
    }
}
