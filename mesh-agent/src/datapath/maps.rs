//! The maps, pinned by name below the agent's bpffs folder.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, SkStorage, SockHash};
use aya::{Ebpf, Pod};
use ipnet::IpNet;
use mesh_common::{
    Destination, Heartbeat, Ip, Knob, ListenerKey, ListenerKind, ListeningPort, Nameserver, Socket,
    SocketIp, Workload, WorkloadKey,
};
use parking_lot::Mutex;

use super::account::{Account, Refusals};
use super::bridges::Bridges;
use super::host::HostWorkloads;
use super::identities::Identities;
use super::marks::SocketMarks;
use super::mentions::Mentions;
use super::verdicts::Verdicts;
use super::{DatapathError, layout};
use crate::registry::Served;

pub(super) fn refused(name: &str, error: &dyn std::error::Error) -> DatapathError {
    let DatapathError::Refused { reason, .. } = super::programs::refused(name, error) else {
        unreachable!()
    };
    DatapathError::Refused {
        what: format!("map {name}"),
        reason,
    }
}

/// Maps that the agent reads and writes. aya asks for exclusive access to
/// write; all of these change rarely (a configuration, an enrolment).
pub(super) struct Maps {
    workloads: Mutex<HashMap<MapData, WorkloadKey, Workload>>,
    destinations: Mutex<LpmTrie<MapData, Ip, Destination>>,
    listeners: Mutex<SockHash<MapData, ListenerKey>>,
    listening: Mutex<HashMap<MapData, ListeningPort, u64>>,
    nameservers: HashMap<MapData, Nameserver, SocketIp>,
    heartbeat: Mutex<Array<MapData, Heartbeat>>,
    pub(super) host: HostWorkloads,
    pub(super) account: Account,
    knobs: Mutex<Array<MapData, u32>>,
    pub(super) identities: Arc<Identities>,
    pub(super) mentions: Mentions,
    pub(super) verdicts: Verdicts,
}

impl Maps {
    pub(super) fn take(
        object: &mut Ebpf,
        folder: &Path,
    ) -> Result<(Self, SocketMarks), DatapathError> {
        layout::settle(take(object, layout::MAP)?, folder)?;
        let agent_sockets: SkStorage<_, Socket> = take(object, "agent_sockets")?;
        let mentions = Mentions::new(object)?;
        let all_identities = descriptor(object, "identities")?;
        let identities = Identities::new(take(object, "identities")?, all_identities);
        let identities = Arc::new(identities);
        let marks = SocketMarks::new(agent_sockets, take(object, "origins")?, identities.clone());
        let maps = Self {
            workloads: Mutex::new(take(object, "workloads")?),
            destinations: Mutex::new(take(object, "destinations")?),
            listeners: Mutex::new(take(object, "listeners")?),
            listening: Mutex::new(take(object, "listening")?),
            nameservers: take(object, "nameservers")?,
            heartbeat: Mutex::new(take(object, "heartbeat")?),
            host: HostWorkloads::new(take(object, "host")?, take(object, "host_workloads")?),
            account: Account {
                flows: descriptor(object, "flows")?,
                all_paths: descriptor(object, "flow_paths")?,
                paths: Mutex::new(take(object, "flow_paths")?),
                events: Mutex::new(take(object, "flow_events")?),
                counters: take(object, "counters")?,
                identities: identities.clone(),
                refusals: Refusals::default(),
            },
            knobs: Mutex::new(take(object, "knobs")?),
            identities,
            mentions,
            verdicts: Verdicts::new(
                take(object, "verdicts")?,
                take(object, "endpoints")?,
                take(object, "generation")?,
            ),
        };
        Ok((maps, marks))
    }

    pub(super) fn beat(&self, heartbeat: Heartbeat) -> Result<(), DatapathError> {
        let written = self.heartbeat.lock().set(0, heartbeat, 0);
        written.map_err(|error| refused("heartbeat", &error))
    }

    pub(super) fn last_beat(&self) -> Option<Heartbeat> {
        self.heartbeat.lock().get(&0, 0).ok()
    }

    pub(super) fn set_destinations(
        &self,
        networks: &[(IpNet, Served)],
        generation: u32,
    ) -> Result<(), DatapathError> {
        let failed = |error| refused("destinations", &error);
        let mut destinations = self.destinations.lock();
        // What is there already stays untouched: the kernel knows it best, whoever wrote it.
        let mut known: std::collections::HashMap<(u32, Ip), u32> =
            (destinations.iter().filter_map(Result::ok))
                .map(|(key, value)| ((key.prefix_len(), key.data()), value.flags))
                .collect();
        let mut written = 0;
        for (network, served) in networks {
            let (length, ip) = prefix(network);
            let flags = match served {
                Served::BySomebody => 0,
                Served::ByNobody => Destination::NOBODY,
            };
            if known.remove(&(length, ip)) != Some(flags) {
                let value = Destination { generation, flags };
                destinations
                    .insert(&Key::new(length, ip), value, 0)
                    .map_err(failed)?;
                written += 1;
            }
        }
        let removed = known.len();
        for (length, ip) in known.into_keys() {
            destinations.remove(&Key::new(length, ip)).map_err(failed)?;
        }
        tracing::debug!(written, removed, "addresses in the kernel");
        Ok(())
    }

    pub(super) fn set_workload(&self, cookie: u64, value: Workload) -> Result<(), DatapathError> {
        let key = WorkloadKey {
            netns_cookie: cookie,
        };
        self.workloads
            .lock()
            .insert(key, value, 0)
            .map_err(|error| refused("workloads", &error))
    }

    pub(super) fn workload(&self, cookie: u64) -> Option<Workload> {
        let key = WorkloadKey {
            netns_cookie: cookie,
        };
        self.workloads.lock().get(&key, 0).ok()
    }

    /// Cookies of the namespaces of all workloads.
    pub(super) fn workload_cookies(&self) -> Vec<u64> {
        let workloads = self.workloads.lock();
        let keys = workloads.keys().filter_map(Result::ok);
        keys.map(|key| key.netns_cookie).collect()
    }
    pub(super) fn set_listener(
        &self,
        cookie: u64,
        kind: ListenerKind,
        is_v4: bool,
        listener: &impl AsRawFd,
    ) -> Result<(), DatapathError> {
        let ip_version = if is_v4 { 4 } else { 6 };
        let key = ListenerKey {
            netns_cookie: cookie,
            kind: kind as u16,
            ip_version,
            reserved: 0,
        };
        self.listeners
            .lock()
            .insert(key, listener.as_raw_fd(), 0)
            .map_err(|error| refused("listeners", &error))
    }

    pub(super) fn remove_workload(&self, cookie: u64) {
        // The listeners leave their map when they are closed.
        let _ = self.workloads.lock().remove(&WorkloadKey {
            netns_cookie: cookie,
        });
        let mut listening = self.listening.lock();
        for key in keys_of(&listening, |key| key.netns_cookie == cookie) {
            let _ = listening.remove(&key);
        }
    }

    pub(super) fn sync_listening(
        &self,
        cookie: u64,
        ports: &HashSet<u16>,
        add: bool,
    ) -> Result<(), DatapathError> {
        let mut listening = self.listening.lock();
        for key in keys_of(&listening, |key| {
            key.netns_cookie == cookie && key.configured == 0 && !ports.contains(&key.port)
        }) {
            let _ = listening.remove(&key);
        }
        if add {
            for port in ports {
                let key = ListeningPort::listened(cookie, *port);
                if listening.get(&key, 0).is_ok_and(|count| count > 0) {
                    continue;
                }
                listening
                    .insert(key, 1, 0)
                    .map_err(|error| refused("listening", &error))?;
            }
        }
        Ok(())
    }

    /// Connections from outside are taken at these ports, whoever listens, and at no others
    /// but those on which somebody does.
    pub(super) fn set_ingress(
        &self,
        cookie: u64,
        ports: &BTreeSet<u16>,
    ) -> Result<(), DatapathError> {
        let mut listening = self.listening.lock();
        for key in keys_of(&listening, |key| {
            key.netns_cookie == cookie && key.configured != 0 && !ports.contains(&key.port)
        }) {
            let _ = listening.remove(&key);
        }
        for port in ports {
            let key = ListeningPort::configured(cookie, *port);
            let inserted = listening.insert(key, 1, 0);
            inserted.map_err(|error| refused("listening", &error))?;
        }
        Ok(())
    }

    pub(super) fn nameserver(&self, key: &Nameserver) -> Option<SocketAddr> {
        self.nameservers.get(key, 0).ok().map(Into::into)
    }

    pub(super) fn set_knob(&self, which: Knob, value: u32) -> Result<(), DatapathError> {
        (self.knobs.lock().set(which as u32, value, 0)).map_err(|error| refused("knobs", &error))
    }

    pub(super) fn knob(&self, which: Knob) -> u32 {
        self.knobs.lock().get(&(which as u32), 0).unwrap_or(0)
    }
}

fn take<T: TryFrom<Map, Error: std::error::Error>>(
    object: &mut Ebpf,
    name: &str,
) -> Result<T, DatapathError> {
    let map = object
        .take_map(name)
        .ok_or_else(|| DatapathError::Refused {
            what: format!("map {name}"),
            reason: "it is not in the object".to_owned(),
        })?;
    T::try_from(map).map_err(|error| refused(name, &error))
}

/// The bridges; none where the kernel does not share a map's memory.
pub(super) fn take_bridges(
    object: &mut Ebpf,
    is_first: bool,
) -> Result<Option<Arc<Bridges>>, DatapathError> {
    let (splices, peers) = (take(object, "splices")?, take(object, "splice_peers")?);
    let Some(Map::Array(map)) = object.map("bridges") else {
        return Err(super::programs::missing("bridges"));
    };
    match Bridges::new(map.fd().as_fd(), splices, peers, is_first) {
        Ok(bridges) => Ok(Some(Arc::new(bridges))),
        Err(error) => {
            tracing::warn!(%error, "all bytes go through the agent: the map bridges cannot be shared");
            Ok(None)
        }
    }
}

/// A descriptor of its own for a map, for calls that aya does not make.
pub(super) fn descriptor(object: &Ebpf, name: &str) -> Result<OwnedFd, DatapathError> {
    let map = match object.map(name) {
        Some(Map::HashMap(map) | Map::LruHashMap(map)) => map,
        _ => return Err(super::programs::missing(name)),
    };
    let owned = map.fd().as_fd().try_clone_to_owned();
    owned.map_err(|error| refused(name, &error))
}

fn keys_of<V: Pod>(
    map: &HashMap<MapData, ListeningPort, V>,
    wanted: impl Fn(&ListeningPort) -> bool,
) -> Vec<ListeningPort> {
    map.keys().filter_map(Result::ok).filter(wanted).collect()
}

/// Length and address in canonical form: IPv4 prefixes are 96 bits longer.
fn prefix(network: &IpNet) -> (u32, Ip) {
    let length = u32::from(network.prefix_len()) + if network.addr().is_ipv4() { 96 } else { 0 };
    (length, Ip::from(network.network()))
}
