//! What is pinned has to be what this agent's programs expect: the layout's
//! version, and of each map its kind, its sizes and its flags, which the object
//! with the programs says itself.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use aya::maps::{Array, MapData, MapInfo};
use aya_obj::generated::bpf_map_type;
use aya_obj::{EbpfSectionKind, Object};
use mesh_common::{LAYOUT_VERSION, Layout};

use super::{DatapathError, OBJECT};

/// The map that holds the version.
pub(super) const MAP: &str = "layout";
/// Maps whose size the kernel rounds up to pages, or chooses itself.
const SIZED_BY_KERNEL: [u32; 1] = [bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32];

/// A map of the object, as `bpf_map_info` describes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

impl Shape {
    /// Where it differs from `found`: the field, what was found and what is wanted.
    fn difference(&self, found: &Self) -> Option<(&'static str, u32, u32)> {
        let entries = if SIZED_BY_KERNEL.contains(&self.kind) {
            self.max_entries
        } else {
            found.max_entries
        };
        let fields = [
            ("type", found.kind, self.kind),
            ("key size", found.key_size, self.key_size),
            ("value size", found.value_size, self.value_size),
            ("number of entries", entries, self.max_entries),
            ("flags", found.flags, self.flags),
        ];
        fields
            .into_iter()
            .find(|(_, found, wanted)| found != wanted)
    }
}

/// Names of the maps that are pinned.
pub(super) fn pinned_maps() -> impl Iterator<Item = &'static str> {
    shapes().iter().map(|(name, _)| name.as_str())
}

/// The object's maps with BTF: those without are its constants and its log.
fn shapes() -> &'static [(String, Shape)] {
    static SHAPES: OnceLock<Vec<(String, Shape)>> = OnceLock::new();
    SHAPES.get_or_init(|| {
        let object = Object::parse(OBJECT).expect("the object is a part of this program");
        let mut shapes: Vec<_> = object
            .maps
            .into_iter()
            .filter(|(_, map)| map.section_kind() == EbpfSectionKind::BtfMaps)
            .map(|(name, map)| {
                let shape = Shape {
                    kind: map.map_type(),
                    key_size: map.key_size(),
                    value_size: map.value_size(),
                    max_entries: map.max_entries(),
                    flags: map.map_flags(),
                };
                (name, shape)
            })
            .collect();
        shapes.sort_by(|(a, _), (b, _)| a.cmp(b));
        shapes
    })
}

/// Refuses pins that another version of the agent has left.
pub(super) fn check(folder: &Path) -> Result<(), DatapathError> {
    let pins = shapes()
        .iter()
        .map(|(name, shape)| (folder.join(name), name, shape))
        .filter(|(path, ..)| path.exists());
    let other = |path: PathBuf, what: &str, found: String, wanted: String| DatapathError::Layout {
        path,
        folder: folder.to_owned(),
        what: what.to_owned(),
        found,
        wanted,
    };
    let mut versioned = true;
    for (path, name, shape) in pins {
        let info = MapInfo::from_pin(&path).map_err(|error| DatapathError::Refused {
            what: format!("a look at the map {name}"),
            reason: error.to_string(),
        })?;
        let found = Shape {
            // A type that aya does not know is not one of ours.
            kind: info.map_type().map_or(u32::MAX, |kind| kind as u32),
            key_size: info.key_size(),
            value_size: info.value_size(),
            max_entries: info.max_entries(),
            flags: info.map_flags(),
        };
        if let Some((what, found, wanted)) = shape.difference(&found) {
            return Err(other(path, what, found.to_string(), wanted.to_string()));
        }
        versioned &= folder.join(MAP).exists();
    }
    if !versioned {
        let wanted = LAYOUT_VERSION.to_string();
        return Err(other(
            folder.to_owned(),
            "version",
            "none".to_owned(),
            wanted,
        ));
    }
    Ok(())
}

/// Compares the version of a map that was taken from its pin, or writes it into a new one.
pub(super) fn settle(mut map: Array<MapData, Layout>, folder: &Path) -> Result<(), DatapathError> {
    let failed = |error: aya::maps::MapError| DatapathError::Refused {
        what: format!("map {MAP}"),
        reason: error.to_string(),
    };
    let found = map.get(&0, 0).map_err(failed)?.version;
    match found {
        LAYOUT_VERSION => Ok(()),
        0 => {
            let layout = Layout {
                version: LAYOUT_VERSION,
            };
            map.set(0, layout, 0).map_err(failed)
        }
        _ => Err(DatapathError::Layout {
            path: folder.join(MAP),
            folder: folder.to_owned(),
            what: "version".to_owned(),
            found: found.to_string(),
            wanted: LAYOUT_VERSION.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_says_what_its_maps_are() {
        let (_, workloads) = (shapes().iter())
            .find(|(name, _)| name == "workloads")
            .expect("there is a map of workloads");
        assert_eq!(
            workloads.key_size as usize,
            size_of::<mesh_common::WorkloadKey>()
        );
        assert_eq!(
            workloads.value_size as usize,
            size_of::<mesh_common::Workload>()
        );
        assert!(pinned_maps().any(|name| name == MAP));
        assert!(pinned_maps().all(|name| !name.starts_with('.')));
    }

    #[test]
    fn the_first_difference_is_named() {
        let shape = Shape {
            kind: 1,
            key_size: 8,
            value_size: 52,
            max_entries: 4096,
            flags: 1,
        };
        assert_eq!(shape.difference(&shape), None);
        let older = Shape {
            value_size: 40,
            ..shape
        };
        assert_eq!(shape.difference(&older), Some(("value size", 40, 52)));
        let larger = Shape {
            max_entries: 8192,
            ..shape
        };
        assert_eq!(
            shape.difference(&larger),
            Some(("number of entries", 8192, 4096))
        );
    }
}
