//! Reads the objects with the kernel programs, and sets their constants.
//!
//! aya's loader reads and parses the kernel's own types when it is made (aya 0.14), though no
//! program here asks for them: 5 MB, a tenth of a second, and 17 MB of memory for a while. Each
//! workload gets an instance of a program, so there is one loader for the life of the process.
//! It would have to borrow the constants for as long; they are set in a copy of the object.

use std::path::{Path, PathBuf};

use aya::{Ebpf, EbpfError, EbpfLoader, Pod};
use mesh_common::KernelLayout;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use parking_lot::Mutex;

use super::{DatapathError, LOG_OBJECT, LogLevel, OBJECT, kernel_log, layout, programs};

/// Loads programs with maps of their own.
pub(super) struct Loader(EbpfLoader<'static>);

impl Loader {
    pub(super) fn new() -> Self {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        Self(loader)
    }

    pub(super) fn load(&mut self, object: &[u8]) -> Result<Ebpf, EbpfError> {
        self.0.load(object)
    }

    /// Pins maps below `folder` from now on.
    pub(super) fn pinning(self, folder: &Path, kernel: KernelLayout) -> Objects {
        let mut loader = self.0;
        for name in layout::pinned_maps() {
            loader.map_pin_path(name, folder.join(name));
        }
        loader.map_pin_path(kernel_log::MAP, kernel_log::pin(folder));
        Objects {
            loader: Mutex::new(loader),
            folder: folder.to_owned(),
            kernel,
        }
    }
}

/// The objects of this agent, whose maps are pinned or taken from their pins.
pub(super) struct Objects {
    loader: Mutex<EbpfLoader<'static>>,
    folder: PathBuf,
    kernel: KernelLayout,
}

impl Objects {
    /// Where programs and maps are pinned.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the programs know the kernel's structures.
    pub(super) fn know_the_kernel(&self) -> bool {
        self.kernel.is_known != 0
    }

    /// Reads the object, with log lines where there are to be any.
    pub(super) fn open(
        &self,
        netns_cookie: Option<u64>,
        log: LogLevel,
    ) -> Result<Ebpf, DatapathError> {
        let object = match log {
            LogLevel::Off => OBJECT,
            _ => LOG_OBJECT,
        };
        let mut object = object.to_vec();
        set(&mut object, "KERNEL_LAYOUT", &self.kernel)?;
        if let Some(cookie) = netns_cookie {
            set(&mut object, "NETNS_COOKIE", &cookie)?;
        }
        if log != LogLevel::Off {
            set(&mut object, kernel_log::LEVEL, &(log as u8))?;
        }
        let loaded = self.loader.lock().load(&object);
        loaded.map_err(|error| programs::refused("maps", &error))
    }
}

/// Sets a constant of an object.
fn set<T: Pod>(object: &mut [u8], name: &str, value: &T) -> Result<(), DatapathError> {
    // SAFETY: plain old data has no padding and lives through this function.
    let value = unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>())
    };
    let place = place(object, name).filter(|place| place.len() == value.len());
    let place = place.and_then(|place| object.get_mut(place));
    let place = place.ok_or_else(|| DatapathError::Refused {
        what: format!("constant {name}"),
        reason: format!("the object has none of {} bytes", value.len()),
    })?;
    place.copy_from_slice(value);
    Ok(())
}

/// Where a constant stands in the file.
fn place(object: &[u8], name: &str) -> Option<std::ops::Range<usize>> {
    let file = object::File::parse(object).ok()?;
    let symbol = file.symbol_by_name(name)?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    let (in_file, _) = section.file_range()?;
    let offset = symbol.address().checked_sub(section.address())?;
    let start = usize::try_from(in_file.checked_add(offset)?).ok()?;
    Some(start..start.checked_add(usize::try_from(symbol.size()).ok()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_is_set_and_nothing_else_is_changed() {
        let mut object = OBJECT.to_vec();
        set(&mut object, "NETNS_COOKIE", &0x0102_0304_0506_0708_u64).unwrap();
        let place = place(&object, "NETNS_COOKIE").unwrap();
        assert_eq!(
            object[place.clone()],
            0x0102_0304_0506_0708_u64.to_ne_bytes()
        );
        assert_eq!(object[..place.start], OBJECT[..place.start]);
        assert_eq!(object[place.end..], OBJECT[place.end..]);
    }

    #[test]
    fn what_is_not_in_the_object_is_named() {
        let mut object = OBJECT.to_vec();
        for (name, wrong) in [("NO_SUCH_CONSTANT", 0_u64), ("KERNEL_LAYOUT", 0_u64)] {
            let error = set(&mut object, name, &wrong).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
