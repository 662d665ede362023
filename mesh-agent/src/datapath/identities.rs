//! Numbers of identities. They stay the same as long as the pinned map does, so
//! that records of flows that an earlier agent has seen can be read.

use std::collections::HashMap;

use aya::maps::{HashMap as BpfMap, MapData};
use mesh_common::{IDENTITY_BYTES, Identity};
use parking_lot::RwLock;

/// An identity that is not known, in the kernel's records.
pub(super) const UNKNOWN: u32 = 0;

/// The map `identities` and its content.
pub(super) struct Identities(RwLock<Inner>);

struct Inner {
    map: BpfMap<MapData, u32, Identity>,
    by_uri: HashMap<Box<str>, u32>,
    by_number: HashMap<u32, Box<str>>,
}

impl Identities {
    pub(super) fn new(map: BpfMap<MapData, u32, Identity>) -> Self {
        let known = map.iter().filter_map(Result::ok);
        let by_number: HashMap<u32, Box<str>> = known
            .filter_map(|(number, identity)| {
                let uri = identity.uri.get(..identity.length as usize)?;
                Some((number, std::str::from_utf8(uri).ok()?.into()))
            })
            .collect();
        let by_uri = (by_number.iter())
            .map(|(number, uri)| (uri.clone(), *number))
            .collect();
        Self(RwLock::new(Inner {
            map,
            by_uri,
            by_number,
        }))
    }

    /// The number of an identity; a new one where it has none yet, and
    /// [`UNKNOWN`] where it is too long or the map is full.
    pub(super) fn number(&self, uri: &str) -> u32 {
        if let Some(number) = self.0.read().by_uri.get(uri) {
            return *number;
        }
        let mut inner = self.0.write();
        if let Some(number) = inner.by_uri.get(uri) {
            return *number;
        }
        if uri.len() > IDENTITY_BYTES {
            return UNKNOWN;
        }
        let number = inner.by_number.keys().max().map_or(1, |last| last + 1);
        let mut identity = Identity {
            length: uri.len() as u32,
            uri: [0; IDENTITY_BYTES],
        };
        identity.uri[..uri.len()].copy_from_slice(uri.as_bytes());
        if inner.map.insert(number, identity, 0).is_err() {
            return UNKNOWN;
        }
        inner.by_uri.insert(uri.into(), number);
        inner.by_number.insert(number, uri.into());
        number
    }

    /// What a number stands for.
    pub(super) fn uri(&self, number: u32) -> Option<String> {
        let inner = self.0.read();
        inner.by_number.get(&number).map(|uri| (**uri).to_owned())
    }
}
